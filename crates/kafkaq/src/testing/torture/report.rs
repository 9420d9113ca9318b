//! The result of a torture test.

use std::{error::Error, fmt};

/// How an execution was disturbed. Await points are counted from 1, in the disturbed execution: one is passed each time
/// the handler is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disturbance {
    /// The process died while the handler was suspended, and the task was executed again.
    Crash {
        /// The await point.
        at: usize,
    },
    /// The process died after the handler had returned and before that was confirmed. The task was executed again.
    CrashAfterReturn,
    /// The handler was told that its lease is lost, and ended. The task was executed again.
    LeaseLost {
        /// The await point at which it was told.
        at: usize,
    },
    /// The handler was told that the worker is stopping, and ended. If it was not done, the task was executed again.
    ShuttingDown {
        /// The await point at which it was told.
        at: usize,
    },
    /// The handler was suspended for longer than its lease, and resumed while the task was executed again.
    Overlap {
        /// The await point at which the first execution was suspended; 0 is before it started.
        first: usize,
        /// The await point of the second execution at which the first resumed; `usize::MAX` is after it had returned.
        second: usize,
    },
    /// Two executions ran concurrently, taking turns from one await point to the next.
    InTurns,
}

impl Disturbance {
    /// The await point of the first execution.
    pub(super) fn at(self) -> Option<usize> {
        match self {
            Disturbance::Crash { at }
            | Disturbance::LeaseLost { at }
            | Disturbance::ShuttingDown { at }
            | Disturbance::Overlap { first: at, .. } => Some(at),
            Disturbance::CrashAfterReturn | Disturbance::InTurns => None,
        }
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Disturbance::Crash { at } => write!(f, "a crash at await point {at}"),
            Disturbance::CrashAfterReturn => f.write_str("a crash after the handler has returned"),
            Disturbance::LeaseLost { at } => write!(f, "a lost lease at await point {at}"),
            Disturbance::ShuttingDown { at } => write!(f, "a shutdown of the worker at await point {at}"),
            Disturbance::Overlap { first, second } => {
                match first {
                    0 => f.write_str("a first execution that is suspended before it starts")?,
                    _ => write!(f, "a first execution that is suspended at await point {first}")?,
                }
                match second {
                    usize::MAX => f.write_str(" until a second one has returned"),
                    _ => write!(f, " until a second one is at await point {second}"),
                }
            }
            Disturbance::InTurns => f.write_str("two executions taking turns"),
        }
    }
}

/// A disturbance that changed the effects of the task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// What was done.
    pub disturbance: Disturbance,
    /// The location of the await point: known for [`await_point`](crate::testing::await_point) and
    /// [`Ctx::enqueue`](crate::worker::Ctx::enqueue).
    pub place: Option<String>,
    /// The effects without a disturbance.
    pub expected: String,
    /// The effects with it.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { disturbance, place, expected, found } = self;
        write!(f, "{disturbance}")?;
        if let Some(place) = place {
            write!(f, "\n    place:    {place}")?;
        }
        write!(f, "\n    expected: {expected}\n    found:    {found}")
    }
}

/// The disturbances that a handler has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TortureReport {
    /// How many times the handler is suspended when undisturbed.
    pub await_points: usize,
    /// How many disturbances were tried.
    pub disturbances: usize,
}

impl fmt::Display for TortureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TortureReport { await_points, disturbances } = self;
        write!(f, "{await_points} await points, {disturbances} disturbances, the same effects each time")
    }
}

/// Why a handler has failed the test. [`Debug`] prints the same as [`Display`](fmt::Display), for `unwrap`.
#[derive(Clone, PartialEq, Eq)]
pub struct TortureError(pub(super) Problem);

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// There is nothing to compare with.
    Undisturbed(String),
    Differences(TortureReport, Vec<Difference>),
}

impl TortureError {
    /// Returns the disturbances that changed the effects. None if the handler fails undisturbed.
    #[must_use]
    pub fn differences(&self) -> &[Difference] {
        match &self.0 {
            Problem::Undisturbed(_) => &[],
            Problem::Differences(_, differences) => differences,
        }
    }
}

impl fmt::Display for TortureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (report, differences) = match &self.0 {
            Problem::Undisturbed(why) => {
                return write!(f, "the handler fails without a disturbance: {why}");
            }
            Problem::Differences(report, differences) => (report, differences),
        };
        let TortureReport { await_points, disturbances } = report;
        write!(
            f,
            "the handler is not idempotent: {} of {disturbances} disturbances have changed its effects \
             ({await_points} await points)",
            differences.len()
        )?;
        // The first of each kind: the others are mostly similar.
        let kind = |difference: &Difference| std::mem::discriminant(&difference.disturbance);
        for (n, difference) in differences.iter().enumerate() {
            if differences[..n].iter().any(|earlier| kind(earlier) == kind(difference)) {
                continue;
            }
            write!(f, "\n- {difference}")?;
            let like = differences[n + 1..].iter().filter(|later| kind(later) == kind(difference)).count();
            if like > 0 {
                write!(f, "\n    and {like} more like this")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TortureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for TortureError {}
