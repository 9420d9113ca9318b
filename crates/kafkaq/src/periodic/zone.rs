//! From local times to instants: what happens when the clocks of a time zone change.

use super::expression::Expression;
use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

/// Returns the first tick after `after`.
pub(super) fn next_tick(expression: &Expression, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    if expression.names_hours() {
        next_time_of_day(expression, zone, after)
    } else {
        next_match(expression, zone, after)
    }
}

/// Each local time that matches is one tick, whether the clock shows it once, twice or never. Instants are in the order
/// of their local times, so the search goes over these.
fn next_time_of_day(expression: &Expression, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let mut local = zone.to_datetime(after);
    loop {
        local = expression.next(local, false)?;
        let at = instant(zone, local)?;
        // Otherwise the clock is in the second half of a fold: the tick was in the first.
        if at > after {
            return Some(at);
        }
    }
}

/// The first time that the clock shows `local`; in a gap, when the gap ends.
fn instant(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => {
            let before_the_gap = ambiguous.earlier().ok()?;
            zone.following(before_the_gap).next().map(|change| change.timestamp())
        }
        _ => ambiguous.earlier().ok(),
    }
}

/// Each instant at which the clock shows a matching time is a tick. The search goes from one change to the next.
fn next_match(expression: &Expression, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let (mut from, mut inclusive) = (after, false);
    loop {
        let offset = zone.to_offset(from);
        let local = expression.next(offset.to_datetime(from), inclusive)?;
        let at = offset.to_timestamp(local).ok()?;
        match zone.following(from).next().map(|change| change.timestamp()) {
            Some(change) if at >= change => (from, inclusive) = (change, true),
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZoneDatabase;

    /// Compares the ticks after `from` with what is expected. Each is a local time with its offset, so that it can be
    /// read and names one instant.
    #[track_caller]
    fn ticks(text: &str, zone: &str, from: &str, expected: &[&str]) {
        let expression = Expression::parse(text).unwrap();
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let mut after: Timestamp = from.parse().unwrap();
        let mut found = Vec::new();
        for _ in expected {
            let next = next_tick(&expression, &zone, after).unwrap();
            assert!(next > after);
            found.push(next.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M %:z").to_string());
            after = next;
        }
        assert_eq!(found, expected, "{text}");
    }

    /// On 2026-03-29 the clock goes from 02:00 to 03:00, on 2026-10-25 from 03:00 to 02:00.
    #[test]
    fn berlin() {
        let spring = "2026-03-28T12:00:00Z";
        let daily = ["2026-03-29 03:00 +02:00", "2026-03-30 02:30 +02:00", "2026-03-31 02:30 +02:00"];
        ticks("30 2 * * *", "Europe/Berlin", spring, &daily);
        ticks(
            "0,30 2 * * *",
            "Europe/Berlin",
            spring,
            &["2026-03-29 03:00 +02:00", "2026-03-30 02:00 +02:00"],
        );
        ticks(
            "0 2,3 * * *",
            "Europe/Berlin",
            spring,
            &["2026-03-29 03:00 +02:00", "2026-03-30 02:00 +02:00"],
        );
        let quarter_past = ["2026-03-29 01:15 +01:00", "2026-03-29 03:15 +02:00", "2026-03-29 04:15 +02:00"];
        ticks("15 * * * *", "Europe/Berlin", "2026-03-28T23:59:00Z", &quarter_past);
        let every_other = ["2026-03-29 00:00 +01:00", "2026-03-29 04:00 +02:00", "2026-03-29 06:00 +02:00"];
        ticks("0 */2 * * *", "Europe/Berlin", "2026-03-28T22:59:00Z", &every_other);
        ticks("0 0-23/2 * * *", "Europe/Berlin", "2026-03-28T22:59:00Z", &every_other);

        let autumn = "2026-10-24T12:00:00Z";
        let daily = ["2026-10-25 02:30 +02:00", "2026-10-26 02:30 +01:00", "2026-10-27 02:30 +01:00"];
        ticks("30 2 * * *", "Europe/Berlin", autumn, &daily);
        ticks("0,30 2 * * *", "Europe/Berlin", "2026-10-25T00:10:00Z", &["2026-10-25 02:30 +02:00"]);
        let half_past = ["2026-10-25 02:30 +02:00", "2026-10-25 02:30 +01:00", "2026-10-25 03:30 +01:00"];
        ticks("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", &half_past);
        let range = ["2026-10-25 02:00 +02:00", "2026-10-25 03:00 +01:00", "2026-10-26 01:00 +01:00"];
        ticks("0 1-3 * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", &range);
    }

    /// A search that begins inside the second half of a fold does not go back to the first.
    #[test]
    fn a_search_can_begin_in_a_fold_and_at_the_end_of_a_gap() {
        let second_half = "2026-10-25T01:10:00Z"; // 02:10 +01:00
        ticks("30 2 * * *", "Europe/Berlin", second_half, &["2026-10-26 02:30 +01:00"]);
        ticks("30 * * * *", "Europe/Berlin", second_half, &["2026-10-25 02:30 +01:00"]);
        let end_of_gap = "2026-03-29T01:00:00Z";
        ticks("30 2 * * *", "Europe/Berlin", end_of_gap, &["2026-03-30 02:30 +02:00"]);
        ticks("30 2 * * *", "Europe/Berlin", "2026-03-29T00:59:59.999Z", &["2026-03-29 03:00 +02:00"]);
        ticks("0 * * * *", "Europe/Berlin", "2026-03-29T00:59:59.999Z", &["2026-03-29 03:00 +02:00"]);
        ticks("0 * * * *", "Europe/Berlin", end_of_gap, &["2026-03-29 04:00 +02:00"]);
    }

    /// On 2026-03-08 the clock goes from 02:00 to 03:00, on 2026-11-01 from 02:00 to 01:00.
    #[test]
    fn new_york() {
        let spring = "2026-03-08T05:00:00Z"; // midnight
        let daily = ["2026-03-08 03:00 -04:00", "2026-03-09 02:15 -04:00"];
        ticks("15 2 * * *", "America/New_York", spring, &daily);
        let quarters = ["2026-03-08 01:45 -05:00", "2026-03-08 03:00 -04:00", "2026-03-08 03:15 -04:00"];
        ticks("*/15 * * * *", "America/New_York", "2026-03-08T06:30:00Z", &quarters);
        ticks(
            "*/15 2 * * *",
            "America/New_York",
            spring,
            &["2026-03-08 03:00 -04:00", "2026-03-09 02:00 -04:00"],
        );

        let autumn = "2026-11-01T04:00:00Z"; // midnight
        let daily = ["2026-11-01 01:30 -04:00", "2026-11-02 01:30 -05:00"];
        ticks("30 1 * * *", "America/New_York", autumn, &daily);
        let hourly = [
            "2026-11-01 01:00 -04:00",
            "2026-11-01 01:00 -05:00",
            "2026-11-01 02:00 -05:00",
            "2026-11-01 03:00 -05:00",
        ];
        ticks("0 * * * *", "America/New_York", autumn, &hourly);
        ticks("0 1,2 * * *", "America/New_York", autumn, &[hourly[0], hourly[2], "2026-11-02 01:00 -05:00"]);
    }

    /// The clock changes at midnight: on 2026-09-06 from 00:00 to 01:00, on 2026-04-05 from 00:00 to 23:00 of the day
    /// before.
    #[test]
    fn santiago() {
        let midnights = ["2026-09-05 00:00 -04:00", "2026-09-06 01:00 -03:00", "2026-09-07 00:00 -03:00"];
        ticks("@daily", "America/Santiago", "2026-09-04T12:00:00Z", &midnights);
        let sunday = ["2026-09-06 01:00 -03:00", "2026-09-13 00:30 -03:00"];
        ticks("30 0 * * SUN", "America/Santiago", "2026-09-04T12:00:00Z", &sunday);
        let hourly = ["2026-09-05 23:00 -04:00", "2026-09-06 01:00 -03:00", "2026-09-06 02:00 -03:00"];
        ticks("0 * * * *", "America/Santiago", "2026-09-06T02:30:00Z", &hourly);

        let late = ["2026-04-04 23:30 -03:00", "2026-04-05 23:30 -04:00"];
        ticks("30 23 * * *", "America/Santiago", "2026-04-04T12:00:00Z", &late);
        let midnights = ["2026-04-04 00:00 -03:00", "2026-04-05 00:00 -04:00", "2026-04-06 00:00 -04:00"];
        ticks("@daily", "America/Santiago", "2026-04-03T12:00:00Z", &midnights);
        let hourly = ["2026-04-04 23:00 -03:00", "2026-04-04 23:00 -04:00", "2026-04-05 00:00 -04:00"];
        ticks("0 * * * *", "America/Santiago", "2026-04-05T01:30:00Z", &hourly);
    }

    /// The clock changes by half an hour: on 2026-10-04 from 02:00 to 02:30, on 2026-04-05 from 02:00 to 01:30.
    #[test]
    fn lord_howe() {
        let daily = ["2026-10-04 02:30 +11:00", "2026-10-05 02:15 +11:00"];
        ticks("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", &daily);
        let hourly = ["2026-10-04 01:00 +10:30", "2026-10-04 03:00 +11:00", "2026-10-04 04:00 +11:00"];
        ticks("0 * * * *", "Australia/Lord_Howe", "2026-10-03T14:00:00Z", &hourly);
        let often = ["2026-10-04 01:40 +10:30", "2026-10-04 02:40 +11:00", "2026-10-04 03:00 +11:00"];
        ticks("*/20 * * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", &often);

        let daily = ["2026-04-05 01:45 +11:00", "2026-04-06 01:45 +10:30"];
        ticks("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00:00Z", &daily);
        let hourly = ["2026-04-05 01:00 +11:00", "2026-04-05 02:00 +10:30", "2026-04-05 03:00 +10:30"];
        ticks("0 * * * *", "Australia/Lord_Howe", "2026-04-04T13:30:00Z", &hourly);
        let late = ["2026-04-05 01:45 +11:00", "2026-04-05 01:45 +10:30", "2026-04-05 02:45 +10:30"];
        ticks("45 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00:00Z", &late);
    }

    /// Samoa skipped all of 2011-12-30.
    #[test]
    fn skipped_day() {
        let noons = ["2011-12-29 12:00 -10:00", "2011-12-31 00:00 +14:00", "2011-12-31 12:00 +14:00"];
        ticks("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", &noons);
        let hourly = ["2011-12-29 23:00 -10:00", "2011-12-31 00:00 +14:00"];
        ticks("0 * * * *", "Pacific/Apia", "2011-12-30T08:30:00Z", &hourly);
    }

    #[test]
    fn rare_days_are_found_across_many_changes() {
        ticks("* * 29 2 *", "Europe/Berlin", "2096-03-01T00:00:00Z", &["2104-02-29 00:00 +01:00"]);
        ticks("0 0 29 2 *", "Europe/Berlin", "2096-03-01T00:00:00Z", &["2104-02-29 00:00 +01:00"]);
    }

    /// Whatever the schedule, a search from any instant gives the next of all ticks.
    #[test]
    fn a_search_from_anywhere_skips_nothing_and_repeats_nothing() {
        for zone in ["Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe"] {
            for text in ["30 2 * * *", "*/20 * * * *", "0,30 0-3,23 * * *", "15 */2 * * *", "0 0 * * *"] {
                let expression = Expression::parse(text).unwrap();
                let tz = TimeZoneDatabase::bundled().get(zone).unwrap();
                for change in tz.following("2026-01-01T00:00:00Z".parse().unwrap()).take(2) {
                    let hours = |n| jiff::SignedDuration::from_hours(n);
                    let end = change.timestamp() + hours(30);
                    let mut from = change.timestamp() - hours(30);
                    let mut all = Vec::new();
                    while let Some(next) = next_tick(&expression, &tz, from).filter(|t| *t < end) {
                        all.push(next);
                        from = next;
                    }
                    let mut at = change.timestamp() - hours(30);
                    while at < *all.last().unwrap() {
                        let expected = all.iter().find(|t| **t > at).copied();
                        assert_eq!(next_tick(&expression, &tz, at), expected, "{text} {zone} {at}");
                        at += jiff::SignedDuration::from_secs(257);
                    }
                }
            }
        }
    }
}
