//! Handlers for the tasks of a queue, and the worker that runs them.
//!
//! ```
//! use kafkaq::{Queue, worker::{Ctx, Failure, ResultExt, TaskType, Worker}};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail {
//!     to: String,
//! }
//!
//! impl TaskType for SendEmail {
//!     const KIND: &'static str = "send_email";
//! }
//!
//! async fn send_email(_: Ctx, email: SendEmail) -> Result<(), Failure> {
//!     let address: Address = email.to.parse().reject()?; // can't succeed: a dead letter
//!     deliver(address).await?; // any other error is retried, later each time
//!     Ok(())
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queue = Queue::builder("emails").build().await?;
//! queue.enqueue(SendEmail { to: "ada@example.org".into() }).await?;
//!
//! let worker = Worker::builder(queue).on(send_email);
//! # let stopped = async {
//! #     let mut running = worker.start()?;
//! #     while DELIVERED.load(std::sync::atomic::Ordering::SeqCst) == 0 {
//! #         tokio::time::sleep(std::time::Duration::from_millis(5)).await;
//! #     }
//! #     running.stop();
//! #     running.stopped().await
//! # };
//! # let worker = Run(stopped);
//! let report = worker.run().await?; // until SIGINT or SIGTERM
//! println!("{report}");
//! # Ok(())
//! # }
//! # use std::sync::atomic::{AtomicUsize, Ordering};
//! # static DELIVERED: AtomicUsize = AtomicUsize::new(0);
//! # struct Run<F>(F);
//! # impl<F: Future> Run<F> { async fn run(self) -> F::Output { self.0.await } }
//! # struct Address;
//! # impl std::str::FromStr for Address {
//! #     type Err = std::fmt::Error;
//! #     fn from_str(_: &str) -> Result<Self, Self::Err> { Ok(Address) }
//! # }
//! # async fn deliver(_: Address) -> std::io::Result<()> { DELIVERED.fetch_add(1, Ordering::SeqCst); Ok(()) }
//! ```
//!
//! # What a handler can rely on
//! - It runs **at least once**. It runs again when it fails, when its process dies, and when the store loses its data:
//!   make it idempotent, with [`Ctx::id`] or as described at [`LeaseToken`](crate::LeaseToken).
//! - Its lease is renewed while it runs, even if it blocks its thread: on a multi-threaded runtime, handlers have their
//!   own threads.
//! - It is [told](Ctx::stop) when it should stop. If it doesn't, it is dropped at its next await.
//! - A panic counts as a failure, with its message and location as the reason.
//! - What it [enqueues](Ctx::enqueue) is one task, even if it runs twice, while that task's id is remembered.
//! - Failures, dead letters and lost leases are events of [`tracing`](https://docs.rs/tracing) with the target `kafkaq`.
//!
//! # One at a time per key
//! [`Options::one_at_a_time`] and [`Options::exclusive_by`] acquire the [lock](crate::KeyLocks) of the task's key
//! before the handler starts, and release it when the handler has ended. So handlers of one key never run concurrently
//! in any worker of the queue, under the conditions described at [`KeyLocks`](crate::KeyLocks). A handler whose lock is
//! lost is told [`StopReason::LeaseLost`], and unless it ends as done, its task is given back, which doesn't count as a
//! failure. One that continues nevertheless, because its process was suspended or the store was wiped, may overlap with
//! the next. The only protection against that is to claim the target system with [`Ctx::token`]: see
//! [`KeyLocks`](crate::KeyLocks#writes-of-a-holder-that-has-lost-the-lock). The outcome of a task is confirmed after
//! its key was released.
//!
//! - **Store calls.** Two more per task, and one more per third of a lease while it runs. Tasks with the same key that
//!   follow each other in one worker without a pause share the two.
//! - **Latency.** One store round trip before the handler starts. A task whose key is busy waits in the worker for up
//!   to 5 s; that takes up one slot of its [concurrency](WorkerBuilder::concurrency), but none of its timeout.
//!   Then it is snoozed, for 0.25 s the first time and up to 30 s later, which doesn't count as a failure. It is
//!   snoozed at once if an eighth of the concurrency is waiting in this worker for its key, or half of it for any key.
//! - **Fairness.** First come, first served within one worker; no order between workers, or after a snooze. Tasks that
//!   were published with one key are in one partition, so most of them reach the same worker.
//! - **Hand-outs.** Each snooze uses up one of the [`max_handouts`](crate::QueueBuilder::max_handouts). So that waiting
//!   alone never dead-letters a task, one that has used up half of them is no longer snoozed and waits in the worker as
//!   long as it takes. With the default of 1,000 that is after about three hours of waiting. Each of these takes up a
//!   slot of the worker's concurrency, however many there are. A task whose lock the store refuses, for instance because
//!   it may not write the key, is snoozed for up to 6 h each time instead, so that the rest of its hand-outs lasts for
//!   three months.
//! - **Expiry.** A task that was handed out and snoozed for its key counts as possibly started, so it no longer
//!   [expires](Enqueue::expires).

mod active;
mod backoff;
mod batch;
mod builder;
mod confirm;
mod context;
mod control;
#[cfg(feature = "testing")]
pub(crate) mod direct;
mod enqueue;
mod exclusive;
mod execute;
mod failure;
mod format;
mod handlers;
mod headers;
mod keeper;
mod kinds;
#[cfg(feature = "tower")]
mod layers;
#[cfg(not(feature = "tower"))]
#[path = "no_layers.rs"]
mod layers;
mod observe;
mod options;
mod pace;
mod panics;
mod queues;
mod report;
mod run;
mod share;
mod signals;
mod standstill;
mod stop;
mod typed;
mod watchdog;

pub use backoff::Backoff;
pub use builder::WorkerBuilder;
pub use context::Ctx;
pub use control::WorkerControl;
pub use enqueue::Enqueue;
pub use failure::{BoxError, Failure, IntoOutcome, Outcome, ResultExt};
pub use format::Format;
#[cfg(feature = "tower")]
pub use layers::{BoxContext, BoxHandler, BoxHandling};
pub use options::Options;
pub use report::WorkerReport;
pub use run::WorkerHandle;
pub use share::Share;
pub use stop::{Stop, StopReason};
pub use typed::TaskType;

pub(crate) use report::Ending;
#[cfg(feature = "testing")]
pub(crate) use report::Finished;

use crate::Queue;

/// Executes the tasks of one or more queues with handlers: see the [module](self).
#[derive(Debug)]
pub struct Worker(());

impl Worker {
    /// Returns a builder for a worker. The worker takes ownership of the queue: when it stops, the queue is shut down.
    /// More queues can be [added](WorkerBuilder::queue).
    pub fn builder(queue: Queue) -> WorkerBuilder {
        WorkerBuilder::new(queue)
    }
}
