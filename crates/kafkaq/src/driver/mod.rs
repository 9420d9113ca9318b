//! The driver: the only place where the pure machine meets the backends.
//!
//! ```text
//!  get_job ───────── ReadyQueue ◄──┐                          ┌──► store.swap, store.get
//!  done, retry, … ── JobSlot ──► Shared ◄──► EventLoop ◄──────┼──► log.append
//!                                            (Machine)        ├──► member.commit
//!                                                ▲            │
//!                                                └────────────┴─── events
//! ```
//! One task, [`Driver`], joins the group when a job is first wanted, and then runs the `EventLoop`, which owns the
//! machine. It never awaits a call: it starts calls, a bounded number of each kind, and selects over their outcomes,
//! the events, the bell and the machine's timer. What can't be started yet accumulates in the machine and forms the
//! next batch.

mod calls;
mod event_loop;
mod job_slot;
mod ready_queue;
mod shared;
mod start;

pub(crate) use calls::every_answer;
pub(crate) use job_slot::JobSlot;
pub(crate) use shared::{Limits, Shared};
#[cfg(feature = "worker")]
pub(crate) use start::stop_within;
pub(crate) use start::{Driver, Plan};
