//! Periodic tasks: one task at each tick of a schedule, however many processes publish it.
//!
//! ```
//! use kafkaq::{Queue, Task, periodic::{Missed, PeriodicTask, Schedule, Scheduler}};
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> kafkaq::Result<()> {
//! let queue = Queue::builder("reports").done_retention(Duration::from_secs(24 * 3600)).build().await?;
//!
//! let nightly = Schedule::cron("30 2 * * *")?.time_zone("Europe/Berlin")?;
//! let scheduler = Scheduler::new(queue.publisher())
//!     .add(PeriodicTask::new("nightly-report", nightly, |_| Task::new("report")).missed(Missed::RunLast))?
//!     .add(PeriodicTask::new("refresh", Schedule::every(Duration::from_secs(300))?, |tick| {
//!         Task::new(format!("{:?}", tick.time())).with_key("refresh")
//!     }))?;
//!
//! let running = tokio::spawn(scheduler.run()); // in every process
//! # running.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # How a tick becomes one task
//! Every process that runs the scheduler publishes every tick, under the id `<name>@<version>.<Unix time in ms>`. The
//! queue executes an id once for as long as it remembers it, so any process may crash, and no leader election is
//! needed. Each process's record costs one read of the store, so run the scheduler in a few processes, not in hundreds.
//!
//! A task without a key gets its id as the key, so that its records are in one partition, close to each other.
//!
//! # How far back a tick is published
//! The queue remembers the id of an ended task for at least [`done_retention`](crate::QueueBuilder::done_retention). An
//! older tick may have been executed and forgotten, and would be executed again. So no process publishes a tick that is
//! older than its **window**: `done_retention`, less [`clock_skew`](crate::QueueBuilder::clock_skew) and
//! [`publish_timeout`](crate::QueueBuilder::publish_timeout), since clocks may differ and a publish may take a while.
//! With the defaults this is 59 min 29 s. These settings must be the same in all processes of the queue, including
//! those that only publish. As everywhere in kafkaq, a store that loses its memory, or workers that are further behind
//! than [`max_overdue`](crate::QueueBuilder::max_overdue), can cost a second execution.
//!
//! # Missed ticks
//! A tick is missed if it could not be published within a minute of its time, because no process was running or the log
//! was down. [`Missed`] says what happens then. Nothing records which ticks were published. A starting process
//! publishes the past ticks that the policy asks for, and the queue drops those that it remembers. Therefore
//! - no policy reaches further back than the window: for a daily task that must catch up after a day without any
//!   process, set `done_retention` to more than a day;
//! - a new schedule also runs for past ticks that the policy asks for, although they are older than the schedule.
//!
//! # Changing and removing a schedule
//! A tick is published at its time, never in advance. So a schedule that was changed or removed leaves nothing behind,
//! and its ticks end when the last process that has it exits. While old and new processes run side by side, the ticks
//! of both definitions are published. A tick at which both agree is one task, as long as the
//! [`version`](PeriodicTask::version) is the same; which definition's payload it has is undetermined.
//!
//! # Clocks
//! Ticks follow the wall clock, which is read at least every five seconds. If it is set forward, the ticks in between
//! are late or missed; if it is set back, they are published again under the same ids.

mod cursor;
mod expression;
mod schedule;
mod scheduler;
mod task;
mod zone;

pub use schedule::Schedule;
pub use scheduler::Scheduler;
pub use task::{Missed, PeriodicTask, Tick};
