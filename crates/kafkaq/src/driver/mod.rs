//! The driver: the only place where the pure machine meets the backends.
//!
//! ```text
//!  get_job ──── Handout ◄──┐                       ┌──► store.swap, store.get
//!  done, retry, … Slot ──► Shared ◄──► Intake ◄────┼──► log.append
//!                                      (Machine)   ├──► member.commit
//!                                          ▲       │
//!                                          └───────┴─── events
//! ```
//! One task, [`Driver`], joins the group when a job is wanted first, and then is the `Intake`, which owns the machine. It never awaits a call: it starts calls, a bounded number of each kind,
//! and selects over their ends, the events, the bell and the machine's timer. What can't be started gathers in the
//! machine and makes the next batch.

mod calls;
mod handout;
mod intake;
mod shared;
mod slot;
mod start;

pub(crate) use calls::every_answer;
pub(crate) use shared::{Limits, Shared};
pub(crate) use slot::Slot;
#[cfg(feature = "worker")]
pub(crate) use start::stop_within;
pub(crate) use start::{Driver, Plan};

use kafkaq_core::{Wall, machine};
use std::time::{Duration, Instant as SystemInstant, SystemTime};
use tokio::time::Instant;

/// Later than anything, and near enough for every clock.
pub(crate) const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The process's two clocks. The monotonic one is tokio's, so that tests can run it as fast as they like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> machine::Now {
        machine::Now { mono: self.mono(), wall: wall_now() }
    }

    pub(crate) fn mono(self) -> machine::Mono {
        machine::Mono::default().plus(self.0.elapsed())
    }

    pub(crate) fn at(self, mono: machine::Mono) -> Instant {
        // A time too far away to be told stays far away.
        self.0 + Duration::from_nanos(mono.0).min(self.0.elapsed() + FAR)
    }
}

/// The wall clock's time. Where a test has paused tokio's clock, or advanced it, the wall clock is as far behind or
/// ahead of the system's as tokio's is, so that delays and leases take virtual time too.
pub(crate) fn system_now() -> SystemTime {
    let before = SystemInstant::now();
    let tokio = Instant::now().into_std();
    let after = SystemInstant::now();
    // Read in any case: the system's clock may be set, and that must be seen.
    shifted(SystemTime::now(), before, tokio, after)
}

/// `system`, by as much earlier or later as tokio's clock is. One that isn't paused shows a time in between of what was
/// read before and after, however long that took.
fn shifted(
    system: SystemTime,
    before: SystemInstant,
    tokio: SystemInstant,
    after: SystemInstant,
) -> SystemTime {
    let shifted = if tokio < before {
        system.checked_sub(before - tokio)
    } else {
        system.checked_add(tokio.saturating_duration_since(after))
    };
    shifted.unwrap_or(system)
}

pub(crate) fn wall_now() -> Wall {
    wall(system_now())
}

pub(crate) fn wall(at: SystemTime) -> Wall {
    Wall::default().plus(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn system_time(at: Wall) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at.0)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_wall_clock_is_the_systems_unless_tokios_is_paused_or_advanced() {
        let (system, start) =
            (SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), SystemInstant::now());
        let now =
            |tokio_ms: u32| shifted(system, start + 1000 * MS, start + tokio_ms * MS, start + 1500 * MS);
        for running in [1000, 1200, 1500] {
            assert_eq!(now(running), system, "the thread may have been away between two looks");
        }
        assert_eq!(now(900), system - 100 * MS);
        assert_eq!(now(3_601_500), system + Duration::from_secs(3600));
    }

    /// Of many looks, since the thread may be away in the middle of one.
    fn earliest() -> Wall {
        (0..1000).map(|_| wall_now()).min().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn virtual_time_moves_the_wall_clock_and_nothing_else_does() {
        let wall = earliest();
        std::thread::sleep(50 * MS);
        assert!(earliest().since(wall) < 25 * MS, "{:?}", earliest().since(wall));
        let day = Duration::from_secs(86_400);
        tokio::time::sleep(day).await;
        let moved = earliest().since(wall);
        assert!((day - MS..day + 25 * MS).contains(&moved), "{moved:?}");
    }

    #[tokio::test]
    async fn a_clock_that_runs_shows_the_systems_time() {
        let (before, wall_time, after) = (SystemTime::now(), system_now(), SystemTime::now());
        assert!(before <= wall_time && wall_time <= after);
    }
}
