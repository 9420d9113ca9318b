//! Publishes ticks when they are due.

use super::{Missed, PeriodicTask, cursor::Cursor, task::invalid};
use crate::{Publisher, clock::wall_now, publisher::FORGETS_IDS};
use kafkaq_core::{Effect, Error, ErrorKind, Result, Retry, Wall};
use std::{convert::Infallible, fmt, future::pending, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::sleep};

/// The wall clock is read at least this often.
const LOOK: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

type Clock = Arc<dyn Fn() -> Wall + Send + Sync>;

/// Publishes periodic tasks while it [runs](Scheduler::run). See the [module](super) for how several processes share
/// the work.
#[must_use = "a scheduler does nothing until it runs"]
pub struct Scheduler {
    publisher: Publisher,
    tasks: Vec<PeriodicTask>,
    clock: Clock,
}

impl Scheduler {
    /// Creates a scheduler without tasks. A process that only publishes can run one: see
    /// [`QueueBuilder::build_publisher`](crate::QueueBuilder::build_publisher).
    pub fn new(publisher: Publisher) -> Self {
        Scheduler { publisher, tasks: Vec::new(), clock: Arc::new(wall_now) }
    }

    #[cfg(test)]
    fn with_clock(mut self, clock: impl Fn() -> Wall + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Adds a periodic task.
    ///
    /// # Errors
    /// `Invalid` if its name is malformed or taken, if `done_retention` is so short that no tick can be published
    /// safely, or if [`Missed::RunAll`] reaches further back than the [window](super#how-far-back-a-tick-is-published).
    #[allow(clippy::should_implement_trait, reason = "it isn't an addition")]
    pub fn add(mut self, task: PeriodicTask) -> Result<Self> {
        task.check()?;
        if self.tasks.iter().any(|other| other.name == task.name) {
            return Err(invalid(&task.name).with_advice("Another periodic task has this name"));
        }
        let window = self.publisher.id_window();
        if window.is_zero() {
            return Err(invalid(&task.name).with_advice(FORGETS_IDS));
        }
        if let Missed::RunAll { within } = task.missed
            && within > window
        {
            return Err(invalid(&task.name).with_advice(format!(
                "Ticks of the last {within:?} can't be repeated, since the queue remembers ids for only \
                 {window:?} for certain: raise done_retention in every process of the queue",
            )));
        }
        self.tasks.push(task);
        Ok(self)
    }

    /// Publishes the ticks of all tasks, each at its time. Requires a tokio runtime. Never returns `Ok`.
    ///
    /// If the log doesn't accept a tick, publishing is retried as long as its [`Missed`] policy allows, and a warning
    /// says why. Schedules don't wait for each other.
    ///
    /// *Cancel-safety:* drop the future to stop. A tick that was being published then may or may not be in the log.
    /// Another process publishes it, or the next one to start if the policy allows.
    ///
    /// # Errors
    /// `Closed` once the publisher's log is closed.
    ///
    /// # Panics
    /// If the closure of a periodic task does.
    pub async fn run(self) -> Result<Infallible> {
        let mut running = JoinSet::new();
        for task in self.tasks {
            let cursor = Cursor::new(task.schedule.clone(), task.missed, self.publisher.id_window());
            let ticker = Ticker {
                task,
                cursor,
                publisher: self.publisher.clone(),
                clock: self.clock.clone(),
                failed: 0,
            };
            running.spawn(ticker.run());
        }
        match running.join_next().await {
            Some(Ok(e)) => Err(e),
            Some(Err(e)) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // There are no tasks, or the runtime is shutting down.
            Some(Err(_)) | None => pending().await,
        }
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

/// Runs one periodic task.
struct Ticker {
    task: PeriodicTask,
    cursor: Cursor,
    publisher: Publisher,
    clock: Clock,
    /// How often publishing has failed since it last succeeded.
    failed: u32,
}

impl Ticker {
    /// Returns when nothing can be published anymore.
    async fn run(mut self) -> Error {
        loop {
            let now = (self.clock)();
            let due = self.cursor.due(now);
            if let Some(tick) = due.skipped {
                let (task, tick) = (&*self.task.name, tick.0);
                tracing::warn!(target: "kafkaq", task, tick, "ticks were missed and are skipped, from this one on");
            }
            let pause = if due.ticks.is_empty() {
                due.next.map_or(LOOK, |next| next.since(now).min(LOOK))
            } else {
                match self.publish(due.ticks).await {
                    Ok(()) => continue,
                    Err(e) if e.kind() == ErrorKind::Closed && e.retry() == Retry::No => return e,
                    Err(e) => self.pause_after(&e),
                }
            };
            sleep(pause).await;
        }
    }

    /// Publishes ticks in order, up to the first that has to be retried.
    async fn publish(&mut self, ticks: Vec<Wall>) -> Result<()> {
        let mut tasks = Vec::with_capacity(ticks.len());
        for tick in &ticks {
            match self.task.task(*tick) {
                Ok(task) => tasks.push(task),
                Err(e) if tasks.is_empty() => {
                    self.refused(*tick, &e);
                    return Ok(());
                }
                // The ticks before it go first.
                Err(_) => break,
            }
        }
        let outcomes = self.publisher.publish_many(tasks).await;
        for (tick, outcome) in ticks.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    self.failed = 0;
                    self.cursor.handled(tick);
                }
                Err(e) if is_refused(&e) => self.refused(tick, &e),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives up on a tick: another attempt would not help.
    fn refused(&mut self, tick: Wall, e: &Error) {
        let (task, at) = (&*self.task.name, tick.0);
        tracing::error!(target: "kafkaq", task, tick = at, "the task of a tick was refused: {e}");
        self.cursor.handled(tick);
    }

    fn pause_after(&mut self, e: &Error) -> Duration {
        let task = &*self.task.name;
        tracing::warn!(target: "kafkaq", task, "a tick can't be published yet: {e}");
        let pause = (FIRST_PAUSE * 2_u32.pow(self.failed.min(4))).min(LONGEST_PAUSE);
        self.failed += 1;
        match e.retry() {
            Retry::After(least) => pause.max(least.min(LONGEST_PAUSE)),
            _ => pause,
        }
    }
}

/// Whether the task itself is invalid, so that it would be refused again.
fn is_refused(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Invalid | ErrorKind::TooLarge) && e.effect() == Effect::NotApplied
}

#[cfg(test)]
mod tests;
