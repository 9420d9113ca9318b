//! Runs a worker on an in-memory queue until it is idle.

use super::{
    published::Published,
    report::{Event, Report, TaskReport},
};
use crate::{
    DeadLetters, Error, ErrorKind, JobStatus, Queue, QueueBuilder, Result, TaskId,
    dead_letters::Filter,
    memory::{MemoryLog, MemoryStore},
    sync::lock,
    worker::{Ending, Finished, WorkerBuilder, WorkerHandle, WorkerReport},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// How often to check whether all tasks have ended if no execution ends.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(3600);
/// The default limit of a run.
const LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A worker on a queue in memory.
///
/// ```
/// use kafkaq::{Queue, testing::Harness, worker::{Ctx, Failure, TaskType, Worker}};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl TaskType for SendEmail {
///     const KIND: &'static str = "send_email";
/// }
///
/// async fn send_email(ctx: Ctx, email: SendEmail) -> Result<(), Failure> {
///     match ctx.attempt() {
///         1 => Err(Failure::snooze(Duration::from_secs(3600))),
///         2 => Err(Failure::retry("busy")),
///         _ if email.to == "nobody" => Err(Failure::reject("unknown")),
///         _ => Ok(()),
///     }
/// }
///
/// # fn main() -> kafkaq::Result<()> {
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
/// # runtime.block_on(async {
/// // In a test with #[tokio::test(start_paused = true)]: the hour takes no time.
/// let builder = Queue::builder("emails");
/// let mut harness = Harness::start(builder, |queue| Worker::builder(queue).on(send_email)).await?;
/// let ada = harness.queue().enqueue(SendEmail { to: "ada".into() }).await?;
/// let nobody = harness.queue().enqueue(SendEmail { to: "nobody".into() }).await?;
/// let report = harness.run_until_idle().await?;
/// report.assert_done(&ada);
/// report.assert_retried(&ada, 1);
/// report.assert_dead(&nobody, "unknown");
/// # Ok(())
/// # })
/// # }
/// ```
///
/// It also works on a runtime whose clock is not paused, but then delays and retries take real time. On a
/// multi-threaded runtime the order of executions is not deterministic.
pub struct Harness {
    queue: Queue,
    running: WorkerHandle,
    seen: Arc<Seen>,
    published: Published,
    dead: (QueueBuilder, MemoryLog),
    limit: Duration,
}

/// The outcomes of executions.
#[derive(Default)]
struct Seen {
    events: Mutex<HashMap<TaskId, Vec<Event>>>,
    news: Notify,
}

impl Seen {
    fn finished(&self, Finished { id, ending, reason }: Finished) {
        let reason = reason.unwrap_or_default();
        let event = match ending {
            Ending::Done => Event::Done,
            Ending::Retried => Event::Retried { reason },
            Ending::Snoozed => Event::Snoozed,
            Ending::DeadLettered => Event::Dead { reason },
            Ending::Expired => Event::Expired,
            Ending::Released => Event::Released,
            Ending::Lost => Event::Lost,
            Ending::Unconfirmed => Event::Unconfirmed,
        };
        self.add(id, event);
    }

    fn add(&self, id: TaskId, event: Event) {
        let mut events = lock(&self.events);
        let events = events.entry(id).or_default();
        // The store may show a dead letter before the execution reports it.
        if !(matches!(event, Event::Dead { .. }) && matches!(events.last(), Some(Event::Dead { .. }))) {
            events.push(event);
        }
        self.news.notify_one();
    }

    fn has_ended(&self, id: &TaskId) -> bool {
        let ends = |event: &Event| {
            matches!(event, Event::Done | Event::Dead { .. } | Event::Expired | Event::Cancelled)
        };
        lock(&self.events).get(id).is_some_and(|events| events.iter().any(ends))
    }
}

impl Harness {
    /// Builds an in-memory queue, and starts the worker that `worker` returns for it. The builder's settings apply, but
    /// its backends are replaced, and the task topic has one partition, so that tasks are executed in order.
    ///
    /// # Errors
    /// The same as for [`QueueBuilder::build`] and [`WorkerBuilder::start`].
    pub async fn start<S: Send + Sync + 'static>(
        builder: QueueBuilder,
        worker: impl FnOnce(Queue) -> WorkerBuilder<S>,
    ) -> Result<Self> {
        let log = MemoryLog::new();
        let builder = builder.partitions(1);
        let topic = builder.task_topic_name();
        let queue = builder.clone().broker(log.clone()).store(MemoryStore::new()).build().await?;
        let seen = Arc::new(Seen::default());
        let told = seen.clone();
        let observer = Arc::new(move |finished| told.finished(finished));
        let running = worker(queue.clone()).observer(observer).start()?;
        let published = Published::new(log.clone(), topic);
        Ok(Harness { queue, running, seen, published, dead: (builder, log), limit: LIMIT })
    }

    /// The longest that [`run_until_idle`](Harness::run_until_idle) runs, by tokio's clock. Default: 7 days.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The queue, to publish tasks and to cancel them.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Runs until no task is waiting, delayed or running, and returns their outcomes. Afterwards, more tasks can be
    /// published and the harness can be run again.
    ///
    /// *Cancel-safety:* safe; the worker continues.
    ///
    /// # Errors
    /// `Timeout` names the tasks that have not ended within the [`limit`](Harness::limit). Otherwise the error that has
    /// stopped the queue.
    pub async fn run_until_idle(&mut self) -> Result<Report> {
        let begun = Instant::now();
        let mut pause = SOON;
        loop {
            self.published.read().await?;
            let open = self.open().await?;
            if open.is_empty() && !self.published.read().await? && self.queue.stats().await.held == 0 {
                return self.report().await;
            }
            let left = self.limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(self.not_idle(&open));
            }
            let news = timeout(pause.min(left), self.seen.news.notified());
            tokio::select! {
                news = news => pause = if news.is_ok() { SOON } else { (2 * pause).min(LATE) },
                stopped = self.running.stopped() => {
                    stopped?;
                    return Err(Error::not_applied(ErrorKind::Closed, "run a worker until it is idle"));
                }
            }
        }
    }

    /// The tasks that have not ended.
    async fn open(&self) -> Result<Vec<TaskId>> {
        let mut open = Vec::new();
        for (id, _) in &self.published.tasks {
            if self.seen.has_ended(id) {
                continue;
            }
            match self.queue.jobs().get(id).await?.status {
                JobStatus::Cancelled => self.seen.add(id.clone(), Event::Cancelled),
                // Dead-lettered by the queue, without an execution.
                JobStatus::Dead => {
                    let reason = self.reason(id).await?;
                    self.seen.add(id.clone(), Event::Dead { reason });
                }
                // The execution that confirmed it will report it shortly.
                _ => open.push(id.clone()),
            }
        }
        Ok(open)
    }

    async fn reason(&self, id: &TaskId) -> Result<String> {
        let (builder, log) = &self.dead;
        let dead: DeadLetters = builder.clone().build_dead_letters(log.clone()).await?;
        let mut letters = dead.letters(Filter::new().include_handled()).await?;
        while let Some(letter) = letters.next().await? {
            if letter.id.as_ref() == Some(id) {
                return Ok(letter.reason.unwrap_or_default());
            }
        }
        Ok(String::new())
    }

    fn not_idle(&self, open: &[TaskId]) -> Error {
        let named = open.iter().take(5).map(TaskId::as_str).collect::<Vec<_>>().join(", ");
        Error::unknown(ErrorKind::Timeout, "run a worker until it is idle")
            .on(format!("{} tasks: {named}", open.len()))
            .with_advice(format!("They have not ended within {:?}. Raise the harness's limit", self.limit))
    }

    /// Returns the outcomes of the tasks published so far.
    ///
    /// # Errors
    /// `Closed` once the queue's log is closed.
    pub async fn report(&mut self) -> Result<Report> {
        self.published.read().await?;
        let events = lock(&self.seen.events);
        let task = |(id, kind): &(TaskId, Option<String>)| TaskReport {
            id: id.clone(),
            kind: kind.clone(),
            events: events.get(id).cloned().unwrap_or_default(),
        };
        Ok(Report::new(self.published.tasks.iter().map(task).collect()))
    }

    /// Stops the worker and the queue.
    ///
    /// # Errors
    /// The error that has stopped the queue permanently.
    pub async fn stop(mut self) -> Result<WorkerReport> {
        self.running.stop();
        self.running.stopped().await
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_that_is_reported_twice_counts_once() {
        let seen = Seen::default();
        let id = TaskId::new("one").unwrap();
        let died = || Event::Dead { reason: "unknown".to_owned() };
        assert!(!seen.has_ended(&id));
        seen.add(id.clone(), Event::Snoozed);
        assert!(!seen.has_ended(&id));
        seen.add(id.clone(), died());
        seen.add(id.clone(), died());
        assert!(seen.has_ended(&id));
        assert_eq!(lock(&seen.events)[&id], [Event::Snoozed, died()]);
    }
}
