//! The pure machine: what one process of a queue does, without a clock, a random number, a thread or a socket.
//!
//! ```text
//!                 records                      lease missing              commands: done, retry, reject, extend
//!   consumer ───────────────▶ window ──turn──▶ or past: swap to live ───▶ held ────────────────┐
//!                               │                 │                        │ park_after         │ done, dead
//!                               │                 │ live, idle             ▼                    ▼
//!   commit ◀── finished prefix ◀┴──── acknowledged copy in the wait topic ◀─┘   terminal lease: finished
//! ```
//!
//! The methods come in three kinds. *Getters* look. `handle_*` takes what happened; it never fails and never waits.
//! `poll_*` returns what is to be done, by kind and with a limit: what isn't polled gathers and makes the next batch,
//! which is all the batching there is. Every input carries `Now`, as its first argument.
//!
//! Outputs are polled in this order, and from the beginning again after an input:
//!
//! | | poll | why there |
//! |---|---|---|
//! | 1 | `poll_ready`, `poll_notice`, then `poll_recall` | a recall also applies to jobs that were made ready before it |
//! | 2 | `poll_swaps`, `poll_gets`, `poll_appends`, `poll_commits`, as far as calls are free | |
//! | 3 | `poll_releases`, `poll_reassigns`, `poll_flow` | a partition that is released can't be committed any more |
//! | 4 | `poll_timeout` | every other poll may change it |
//!
//! The second group may come first. `poll_notice`, `poll_recall` and `poll_reassigns` only return what other polls have
//! made of the inputs; in debug builds they panic if none was called since the last input.
//!
//! The state lies with owners, whose fields are private to their files. The steps of the protocol touch several of them,
//! so they are methods of [`Machine`]:
//!
//! | owner | state | steps |
//! |---|---|---|
//! | `windows.rs`, `window.rs` | records that were read, their commits, and how far partitions are read | `partitions.rs` |
//! | `lanes.rs` | delayed records by time | `intake.rs` |
//! | `items.rs`, `item.rs` | records under consideration and jobs, and the order of a task's operations | `lifecycle.rs`, `sweep.rs` |
//! | `store_ops.rs` | operations that wait for the store, and limits | `leases.rs` |
//! | `appends.rs` | copies and dead letters on their way to the log | `copies.rs` |
//! | `dispatch.rs`, `suspects.rs` | callers, ready jobs, and redeliveries that wait for a caller | `intake.rs`, `commands.rs`, `hand_over.rs` |
//! | `notices.rs` | answers and alarms for the driver | |
//!
//! Invariants, numbered as in ARCHITECTURE.md:
//! - **I1 cover** a record is finished only when the lease is terminal, a copy with a higher number is durable, or a job
//!   without a lease was done while its record was this process's.
//! - **I2 exclusive** no job is handed out without a live lease that this process has just won; with `track_after`, a
//!   first attempt may be that nobody else has begun, as far as its record's place shows.
//! - **I3 fenced** only the holder of the current token finishes, extends, retries or rejects.
//! - **I4 prefix** the committed offset never passes an unfinished record and never goes back.
//! - **I5 liveness** when faults stop, every task becomes terminal.
//! - **I6 bounded** windows, hand-out, retries and copies have limits.
//!
//! This module promises no stability: it is for kafkaq's driver and its simulation.

mod api;
mod appends;
mod clock;
mod commands;
mod config;
mod copies;
mod dispatch;
mod fault;
mod gate;
mod hand_over;
mod inputs;
mod intake;
mod item;
mod items;
mod ladder;
mod lanes;
mod leases;
mod lifecycle;
mod notices;
mod open;
mod outputs;
mod partitions;
mod recall;
mod rule;
mod slab;
mod stats;
mod store_ops;
mod suspects;
mod sweep;
#[cfg(test)]
mod tests;
mod window;
mod windows;

pub use crate::faults::Planted;
pub use api::*;
pub use fault::Fault;
pub use ladder::Ladder;
pub use recall::Recall;

use appends::Appends;
use clock::Clock;
use config::Config;
use dispatch::Dispatch;
use items::Items;
use lanes::Lanes;
use notices::Notices;
use store_ops::StoreOps;
use window::Window;
use windows::Windows;

/// The state of one process of a queue. See the [module](self).
#[derive(Debug)]
pub struct Machine {
    config: Config,
    clock: Clock,
    windows: Windows,
    lanes: Lanes,
    items: Items,
    store: StoreOps,
    appends: Appends,
    dispatch: Dispatch,
    notices: Notices,
    next_sweep: Mono,
    shutting_down: bool,
    news: News,
}

/// What has happened since inputs were last processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Nothing,
    /// Records were finished or items removed, which makes room for others.
    Ended,
    Input,
}

impl Machine {
    /// Creates a machine that has no partitions yet.
    #[must_use]
    pub fn new(settings: Settings, layout: Layout, now: Now) -> Self {
        let store = StoreOps::new(settings.process);
        Machine {
            config: Config::new(settings, layout),
            clock: Clock::new(now),
            windows: Windows::default(),
            lanes: Lanes::default(),
            items: Items::default(),
            store,
            appends: Appends::default(),
            dispatch: Dispatch::new(now.mono),
            notices: Notices::default(),
            next_sweep: now.mono,
            shutting_down: false,
            news: News::Nothing,
        }
    }

    /// Returns its settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// Returns whether, after [`Machine::handle_shutdown`], nothing is in flight, no job is held, and everything
    /// finished is committed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.shutting_down
            && !self.dispatch.is_recalling()
            && self.items.is_empty()
            && self.windows.iter().all(Window::is_committed)
    }

    /// Raises an alarm.
    fn alarm(&mut self, alarm: Alarm) {
        self.notices.alarm(alarm, self.clock.mono());
    }
}
