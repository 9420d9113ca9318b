//! Cron expressions: parsing, and which local times they match. No time zones here.

use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Year},
    time::{CivilDateTime, CronDateTime, Resolution, Weekday},
};
use jiff::civil::DateTime;
use kafkaq_core::{Error, ErrorKind, Result};
use std::cmp::Ordering;

const FIELDS: [&str; 6] = ["second", "minute", "hour", "day of month", "month", "day of week"];
const HOUR: usize = 2;
const DAY_OF_MONTH: usize = 3;
const MONTH: usize = 4;
const DAY_OF_WEEK: usize = 5;
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const NICKNAMES: [(&str, &str); 6] = [
    ("@HOURLY", "0 * * * *"),
    ("@DAILY", "0 0 * * *"),
    ("@WEEKLY", "0 0 * * SUN"),
    ("@MONTHLY", "0 0 1 * *"),
    ("@YEARLY", "0 0 1 1 *"),
    ("@ANNUALLY", "0 0 1 1 *"),
];
/// No valid expression is longer.
const MAX_LEN: usize = 512;

#[derive(Debug)]
pub(super) struct Expression {
    /// In upper case, with single spaces.
    text: String,
    cron: Cron,
    names_hours: bool,
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let refused = |what: String, advice: String| {
            Err(Error::not_applied(ErrorKind::Invalid, "read a cron expression").on(what).with_advice(advice))
        };
        if !text.is_ascii() || text.len() > MAX_LEN {
            return refused(
                format!("{} bytes", text.len()),
                format!("An expression has at most {MAX_LEN} bytes of ASCII"),
            );
        }
        let text = text.to_ascii_uppercase().split_whitespace().collect::<Vec<_>>().join(" ");
        let plain = match NICKNAMES.iter().find(|(name, _)| *name == text) {
            Some((_, plain)) => plain,
            None if text.starts_with('@') => {
                return refused(
                    format!("`{text}`"),
                    "Known are @hourly, @daily, @weekly, @monthly, @yearly and @annually".into(),
                );
            }
            None => text.as_str(),
        };
        let mut fields: Vec<_> = plain.split(' ').collect();
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        if fields.len() != 6 || text.is_empty() {
            let count = text.split_whitespace().count();
            return refused(
                format!("`{text}`, {count} fields"),
                "An expression has five fields: minute, hour, day of month, month, day of week; or six, with \
                 the second before them"
                    .into(),
            );
        }
        for (place, field) in fields.iter().enumerate() {
            if let Err(why) = check_field(place, field) {
                return refused(format!("`{text}`, {} `{field}`", FIELDS[place]), why);
            }
        }
        let cron = match parse(&fields.join(" ")) {
            Ok(cron) => cron,
            Err(e) => return refused(format!("`{text}`"), e.to_string()),
        };
        let names_hours = !fields[HOUR].contains(['*', '/']);
        let expression = Expression { text: text.clone(), cron, names_hours };
        if expression.next(jiff::civil::datetime(2000, 1, 1, 0, 0, 0, 0), true).is_none() {
            return refused(
                format!("`{text}`, day of month `{}`, month `{}`", fields[DAY_OF_MONTH], fields[MONTH]),
                "There is no such day".into(),
            );
        }
        Ok(expression)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether its hours are listed, so that each is a time of day rather than "every so often".
    pub(super) fn names_hours(&self) -> bool {
        self.names_hours
    }

    /// Returns the first matching local time after `from`, or at it if `inclusive`.
    pub(super) fn next(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&Local(from), inclusive).ok().map(|local| local.0)
    }
}

fn parse(fields: &str) -> std::result::Result<Cron, CronError> {
    CronParser::builder().year(Year::Disallowed).build().parse(fields)
}

/// Describes what is wrong with a field. The crate that parses expressions doesn't report the field of an error, and
/// accepts names of months and days in any field.
fn check_field(place: usize, field: &str) -> std::result::Result<(), String> {
    if field.split(',').any(str::is_empty) {
        return Err("An item of the list is empty".into());
    }
    for word in field.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()) {
        let known = match place {
            DAY_OF_MONTH => ["L", "W", "LW"].contains(&word),
            MONTH => MONTHS.contains(&word),
            DAY_OF_WEEK => {
                word == "L" || WEEKDAYS.contains(&word) || WEEKDAYS.contains(&word.trim_end_matches('L'))
            }
            _ => false,
        };
        if !known {
            return Err(format!("`{word}` has no meaning there"));
        }
    }
    let mut alone = ["*"; 6];
    alone[place] = field;
    parse(&alone.join(" ")).map(drop).map_err(|e| e.to_string())
}

/// A local time to search over.
#[derive(Clone)]
struct Local(DateTime);

impl CronDateTime for Local {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0;
        let date = croner::time::CivilDate::from_parts_unchecked(
            at.year().into(),
            at.month().unsigned_abs().into(),
            at.day().unsigned_abs().into(),
        );
        let time = croner::time::CivilTime::from_parts_unchecked(
            at.hour().unsigned_abs().into(),
            at.minute().unsigned_abs().into(),
            at.second().unsigned_abs().into(),
        );
        CivilDateTime::new(date, time)
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(self.0.weekday().to_sunday_zero_offset().unsigned_abs().into())
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> std::result::Result<Resolution<Self>, CronError> {
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let [month, day, hour, minute, second] =
            [civil.month(), civil.day(), civil.hour(), civil.minute(), civil.second()].map(|n| n as i8);
        let at = DateTime::new(year, month, day, hour, minute, second, 0);
        at.map(|at| Resolution::Single(Local(at))).map_err(|_| CronError::InvalidDate)
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(jiff::SignedDuration::from_secs(seconds)).ok().map(Local)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, says: &str) {
        let e = Expression::parse(text).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains(says), "{text}: {e}");
    }

    #[test]
    fn errors_name_the_field() {
        refused("60 * * * *", "minute `60`");
        refused("0 24 * * *", "hour `24`");
        refused("0 0 0 * *", "day of month `0`");
        refused("0 0 * 13 *", "month `13`");
        refused("0 0 * * 8", "day of week `8`");
        refused("61 0 0 * * *", "second `61`");
        refused("0 0 * * MOON", "day of week `MOON`");
        refused("MON * * * *", "minute `MON`");
        refused("0 0 * FRI *", "month `FRI`");
        refused("*/0 * * * *", "minute `*/0`");
        refused("0 0 5-2 * *", "day of month `5-2`");
        refused("0 9-17/ * * *", "hour `9-17/`");
        refused("0 9,,10 * * *", "hour `9,,10`");
        refused("0 9, * * *", "hour `9,`");
    }

    #[test]
    fn errors_say_how_many_fields_there_are() {
        refused("", "0 fields");
        refused(" ", "0 fields");
        refused("0 9 * *", "4 fields");
        refused("0 0 9 * * * 2026", "7 fields");
        refused("@reboot", "@REBOOT");
        refused("0 9 * * ſun", "ASCII");
        refused(&"1,".repeat(600), "512");
    }

    #[test]
    fn days_that_never_come_are_refused() {
        refused("0 0 30 2 *", "day of month `30`, month `2`");
        refused("0 0 31 4,6,9,11 *", "no such day");
        Expression::parse("0 0 29 2 *").unwrap();
        Expression::parse("0 0 31 2,3 *").unwrap();
    }

    #[test]
    fn fields_mean_what_vixie_cron_says() {
        let next = |text: &str, from: &str| {
            let expression = Expression::parse(text).unwrap();
            expression.next(from.parse().unwrap(), false).unwrap().to_string()
        };
        // 2026-11-24 is a Tuesday.
        assert_eq!(next("0 9 * * MON-FRI", "2026-11-27T09:00:00"), "2026-11-30T09:00:00");
        assert_eq!(next("30 */6 * * *", "2026-11-24T06:30:00"), "2026-11-24T12:30:00");
        assert_eq!(next("*/15 0 9 * * *", "2026-11-24T09:00:15"), "2026-11-24T09:00:30");
        assert_eq!(next("0 0 1 JAN,jul *", "2026-11-24T00:00:00"), "2027-01-01T00:00:00");
        assert_eq!(next("0 0 13 * FRI", "2026-11-24T00:00:00"), "2026-11-27T00:00:00", "either day");
        assert_eq!(next("0 0 13 * +FRI", "2026-11-24T00:00:00"), "2027-08-13T00:00:00", "both");
        assert_eq!(next("0 0 L * *", "2026-02-01T00:00:00"), "2026-02-28T00:00:00");
        assert_eq!(next("0 0 * * FRIL", "2026-11-01T00:00:00"), "2026-11-27T00:00:00");
        assert_eq!(next("0 0 * * MON#2", "2026-11-24T00:00:00"), "2026-12-14T00:00:00");
        assert_eq!(next("0 0 * * 7", "2026-11-24T00:00:00"), "2026-11-29T00:00:00");
        assert_eq!(next(" @Daily ", "2026-11-24T00:00:00"), "2026-11-25T00:00:00");
        assert_eq!(next("0 0 29 2 *", "2096-03-01T00:00:00"), "2104-02-29T00:00:00");
    }
}
