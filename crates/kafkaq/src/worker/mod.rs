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
//! - It runs **at least once**. It runs again when it fails, when its process dies, and when the store loses its data: make
//!   it idempotent, by [`Ctx::id`] or with what [`LeaseToken`](crate::LeaseToken) says.
//! - Its lease is renewed while it runs, also when it blocks the thread that it runs on: on a multi-threaded runtime
//!   handlers have threads of their own.
//! - It is [told](Ctx::stop) when it should end. If it doesn't, it is dropped at its next await.
//! - A panic is a failure, with its message and place as the reason.
//! - What it [enqueues](Ctx::enqueue) is one task, also if it runs twice, while that task's id is remembered.
//! - Failures, dead letters and lost leases are events of [`tracing`](https://docs.rs/tracing) with the target `kafkaq`.
//!
//! # One at a time per key
//! [`Options::one_at_a_time`] and [`Options::exclusive_by`] take the [lock](crate::KeyLocks) of the task's key before the
//! handler begins, and give it back when the handler has ended. So handlers of one key never run at once in any worker of
//! the queue, under the conditions that [`KeyLocks`](crate::KeyLocks) names. A handler whose lock is lost is told
//! [`StopReason::LeaseLost`], and when it has ended, other than by being done, its task is given back, which is no failure.
//! One that goes on all the same, because its process stood still or the store was wiped, may
//! overlap with the next. Against that helps only a claim at the system that it writes to, by [`Ctx::token`]: see
//! [`KeyLocks`](crate::KeyLocks#writes-of-a-holder-that-has-lost-the-lock). The end of a task is confirmed after its key was
//! given back.
//!
//! - **Store calls.** Two more per task, and one more per third of a lease while it runs. Tasks of a key that follow each
//!   other in one worker without a pause share the two.
//! - **Latency.** One answer of the store before the handler begins. A task whose key is busy waits in the worker for up to
//!   5 s; that takes a place of its [concurrency](WorkerBuilder::concurrency) and counts into its timeout. Then it is
//!   snoozed, for 0.25 s the first time and up to 30 s later, which is no failure. It is snoozed at once if an eighth of the
//!   concurrency waits in this worker for its key, or half of it for keys in all.
//! - **Fairness.** In one worker first come, first served; between workers, and after a snooze, in no order. Tasks that were
//!   published with one key lie in one partition, so most of them meet in one worker.
//! - **Hand-outs.** Each snooze uses up one of the [`max_handouts`](crate::QueueBuilder::max_handouts). So that waiting
//!   alone sends no task to the dead letters, one that has used up half of them is snoozed no more and waits in the worker
//!   for as long as it takes. With the default of 1,000 that is after about three hours of waiting. However many of these
//!   wait, each takes a place of the worker's concurrency.
//! - **Expiry.** A task that was handed out and snoozed for its key counts as one that may have been started, so it
//!   [expires](Enqueue::expires) no more.

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

/// Executes the tasks of one or more queues by handlers: see the [module](self).
#[derive(Debug)]
pub struct Worker(());

impl Worker {
    /// Begins to set up a worker. It takes the queue for itself: when the worker stops, the queue is shut down. It may take
    /// [others](WorkerBuilder::queue), too.
    pub fn builder(queue: Queue) -> WorkerBuilder {
        WorkerBuilder::new(queue)
    }
}
