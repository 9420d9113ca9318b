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
pub(crate) use start::{Driver, Plan};

use kafkaq_core::{Wall, machine};
use std::time::{Duration, Instant as SystemInstant, SystemTime};
use tokio::time::Instant;

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
        let far = Duration::from_secs(365 * 24 * 3600);
        self.0 + Duration::from_nanos(mono.0).min(self.0.elapsed() + far)
    }
}

/// The wall clock's time. Where a test has paused tokio's clock, or advanced it, the wall clock is as far behind or
/// ahead of the system's as tokio's is, so that delays and leases take virtual time too.
pub(crate) fn system_now() -> SystemTime {
    let before = SystemInstant::now();
    let tokio = Instant::now().into_std();
    let after = SystemInstant::now();
    // A clock that runs shows a time in between. `SystemTime` is read in any case: an operator may set it.
    let system = SystemTime::now();
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
