//! Publishing: from a task to a durable record.

use crate::{
    appender::{Appender, Destination, Pushed, Unsent},
    clock::wall_now,
    config::Config,
    numbers::{Lane, Numbers},
    once_per::{Window, refused},
    runtime::Home,
    stats::{CallCounter, CallStats},
    sync::yield_once,
    task_headers::EXPIRES_HEADER,
    telemetry::{PublishMeter, PublishSpans},
    topics::TaskTopic,
};
use bytes::{Bytes, BytesMut};
use kafkaq_core::{
    Effect, Envelope, Error, ErrorKind, HEADER, Log, NewRecord, Result, Retry, Task, TaskId, Wall,
    partitioner,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Publishes tasks. Cheap to clone; clones share batches and limits.
///
/// A queue has one ([`Queue::publisher`](crate::Queue::publisher)); a process that only publishes creates one with
/// [`QueueBuilder::build_publisher`](crate::QueueBuilder::build_publisher): it joins no group and needs no store. It
/// can be used from any number of runtimes at once, and outside of any. Its requests run on the runtime that it was
/// built on if that is multi-threaded; otherwise, and once that runtime is gone, on a thread of kafkaq's own, one per
/// process. When partitions are added to the topic, a publisher in use notices within about ten seconds.
#[derive(Clone, Debug)]
pub struct Publisher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tasks: Arc<Appender>,
    meter: PublishMeter,
    spans: PublishSpans,
    max_delay: Duration,
    max_bytes: usize,
    /// How long after its time a task can be published again without being executed twice.
    id_window: Duration,
    clock_skew: Duration,
    /// The next task without a key goes to the next partition.
    turn: AtomicU64,
    numbers: Numbers,
}

impl Publisher {
    pub(crate) fn new(log: Arc<dyn Log>, config: &Config, topic: TaskTopic, home: Home) -> Self {
        let TaskTopic { name, partitions } = topic;
        let (buffer, timeout) = (config.publish_buffer, config.publish_timeout);
        let counter = CallCounter::new(&config.queue, "publish");
        let seed = Uuid::new_v4().as_u128();
        Publisher {
            inner: Arc::new(Inner {
                tasks: Appender::new(log, name, partitions, buffer, timeout, home, counter),
                meter: PublishMeter::new(&config.queue),
                spans: PublishSpans::new(config),
                max_delay: config.max_delay,
                max_bytes: config.max_task_bytes,
                id_window: config.id_window(),
                clock_skew: config.clock_skew,
                // Publishers begin with different partitions.
                turn: AtomicU64::new(seed as u64),
                numbers: Numbers::new(seed),
            }),
        }
    }

    /// Publishes one task. When it returns an id, the task is durable in the log and will be executed at least once.
    /// Concurrent calls share requests: for throughput, make many at once or use
    /// [`publish_many`](Publisher::publish_many). The latter spreads tasks without a key evenly over the partitions;
    /// with many concurrent calls, up to 64 may go to the same one. Temporary failures are retried. The call returns
    /// within the queue's [`publish_timeout`](crate::QueueBuilder::publish_timeout), whatever the log does.
    ///
    /// *Cancel-safety:* a future that is dropped after its first poll may or may not have published the task.
    ///
    /// # Errors
    /// Nothing was published if the error's [`effect`](Error::effect) is `NotApplied`; otherwise it may have been, or
    /// may still be. Publishing the same task again is safe either way: with the same id, or
    /// [once per window](Task::with_once_per) as it was; but to workers with [`Tracking::Slow`](crate::Tracking::Slow)
    /// it may be a second task, unless its id was chosen by you from the start. `Invalid` and `TooLarge` say what is
    /// wrong with the task; `Timeout` on a full buffer means that tasks are published faster than the log accepts them.
    pub async fn publish(&self, task: Task) -> Result<TaskId> {
        let outcome = self.inner.spans.of_one(self.push_one(task)).await;
        self.inner.meter.published(std::slice::from_ref(&outcome));
        outcome
    }

    async fn push_one(&self, task: Task) -> Result<TaskId> {
        let now = Instant::now();
        let (id, pushed) = {
            let tasks = &self.inner.tasks;
            let mut unsent = Unsent::new(tasks);
            let partition = self.inner.choose(task.key());
            let (to, lane) = match task.key() {
                Some(_) => (Destination::Partition(partition), Lane::Partition(partition)),
                None => (Destination::Any(partition), Lane::Single),
            };
            let (id, record) = self.inner.address(task, lane, Envelope::encode)?;
            let until = tasks.deadline(now);
            let pushed = tasks.push(to, record, until, &mut unsent).await?;
            if !unsent.is_empty() {
                // Lets other callers that are about to publish join the request.
                yield_once().await;
            }
            (id, pushed)
        };
        self.inner.tasks.look(now);
        outcome(id, pushed).await
    }

    /// Publishes tasks in few requests. Returns one outcome per task, in the same order, as
    /// [`publish`](Publisher::publish) would. The `publish_timeout` applies to the whole call: tasks that haven't been
    /// sent by then fail with `NotApplied`. *Cancel-safety:* as for `publish`, per task.
    pub async fn publish_many(&self, tasks: impl IntoIterator<Item = Task>) -> Vec<Result<TaskId>> {
        let tasks = tasks.into_iter();
        let size = tasks.size_hint().0.saturating_mul(HEADER_SIZE).min(HEADERS_SIZE);
        let mut headers = BytesMut::with_capacity(size);
        let tasks = tasks.map(|task| {
            let partition = self.inner.choose(task.key());
            let encode = |envelope: &Envelope| envelope.encode_in(&mut headers);
            let (id, record) = self.inner.address(task, Lane::Partition(partition), encode)?;
            Ok((id, partition, record))
        });
        self.inner.spans.of_many(self.push_all(tasks)).await
    }

    /// Publishes tasks that were accepted before, each under the given id. kafkaq and its users may have added headers
    /// since, so names and sizes are not checked.
    pub(crate) async fn publish_again(&self, tasks: Vec<(TaskId, NewRecord)>) -> Vec<Result<TaskId>> {
        self.push_all(tasks.into_iter().map(|(id, record)| Ok(self.inner.address_again(id, record)))).await
    }

    async fn push_all(&self, tasks: impl Iterator<Item = Result<Addressed>>) -> Vec<Result<TaskId>> {
        let now = Instant::now();
        let until = self.inner.tasks.deadline(now);
        let mut sent = Vec::new();
        {
            let mut unsent = Unsent::new(&self.inner.tasks);
            for task in tasks {
                sent.push(match task {
                    Ok((id, partition, record)) => {
                        let to = Destination::Partition(partition);
                        let pushed = self.inner.tasks.push(to, record, until, &mut unsent).await;
                        pushed.map(|pushed| (id, pushed))
                    }
                    Err(e) => Err(e),
                });
            }
        }
        self.inner.tasks.look(now);
        let mut outcomes = Vec::with_capacity(sent.len());
        for one in sent {
            outcomes.push(match one {
                Ok((id, pushed)) => outcome(id, pushed).await,
                Err(e) => Err(e),
            });
        }
        self.inner.meter.published(&outcomes);
        outcomes
    }

    #[cfg(feature = "worker")]
    pub(crate) fn spans(&self) -> &PublishSpans {
        &self.inner.spans
    }

    #[cfg(feature = "cron")]
    pub(crate) fn id_window(&self) -> Duration {
        self.inner.id_window
    }

    #[cfg(feature = "worker")]
    pub(crate) fn topic(&self) -> Arc<str> {
        self.inner.tasks.topic()
    }

    pub(crate) fn stats(&self) -> CallStats {
        self.inner.tasks.stats()
    }
}

async fn outcome(id: TaskId, pushed: Pushed) -> Result<TaskId> {
    let gone = |_| Err(Error::unknown(ErrorKind::Closed, "publish"));
    match pushed.outcome.await.unwrap_or_else(gone) {
        Ok(_offset) => Ok(id),
        Err(e) => {
            let again = e.retry() != Retry::No || e.effect() == Effect::Unknown;
            let e = e.on(format!("{}, task {id}", pushed.queue.partition));
            if !again {
                return Err(e);
            }
            Err(e.with_advice(if Window::end_of(&id).is_some() {
                "Publish the task again as it is, once per window: it is executed in any case".to_owned()
            } else {
                format!(
                    "Publishing the task again with id {id} is safe: it stays one task, unless the workers use \
                     Tracking::Slow"
                )
            }))
        }
    }
}

/// The due time of a task that must not be started without a lease: a task with a due time never is.
const LONG_AGO: Wall = Wall(1);
/// Most headers are shorter.
const HEADER_SIZE: usize = 64;
/// How many bytes of headers are allocated at once when many tasks are published. A single record can keep all of them
/// in memory.
const HEADERS_SIZE: usize = 1024;

/// A task's id, its partition and its record.
type Addressed = (TaskId, i32, NewRecord);

impl Inner {
    /// A task's id, and its record for the partition that was chosen.
    fn address(
        &self,
        task: Task,
        lane: Lane,
        encode: impl FnOnce(&Envelope) -> Bytes,
    ) -> Result<(TaskId, NewRecord)> {
        self.check(&task)?;
        let now = wall_now();
        let (id, due) = match (task.id(), task.once_per()) {
            (Some(id), _) => {
                let due = self.due(id, task.delay(), now)?;
                (id.clone(), due.or_else(|| id.is_numbered().then_some(LONG_AGO)))
            }
            (None, Some((key, window))) => self.once_per(&task, key, window, now)?,
            (None, None) => {
                let due = due_after(task.delay(), now);
                // If it were started without a lease and interrupted, it would be redelivered as a first attempt, and
                // might expire.
                let needs_lease = task.headers().get(EXPIRES_HEADER).is_some();
                (TaskId::numbered(now, self.numbers.next(lane)), due.or(needs_lease.then_some(LONG_AGO)))
            }
        };
        let mut envelope = Envelope::new(id, now);
        // Each group parks it in its own wait topic when it reads the record.
        if let Some(due) = due {
            envelope.due = due;
            envelope.ahead = due.since(now);
        }
        let mut record = task.into_record();
        self.spans.inject(&mut record.headers);
        record.headers.push(HEADER, Some(encode(&envelope)));
        Ok((envelope.id, record))
    }

    /// When a task with a chosen id is due. One with a window's id waits for its end: executed sooner, it would be
    /// done, and what is published in the window later would not be executed.
    fn due(&self, id: &TaskId, delay: Option<Duration>, now: Wall) -> Result<Option<Wall>> {
        let delayed = due_after(delay, now);
        let Some(end) = Window::end_of(id).map(|end| end.plus(self.clock_skew)).filter(|end| *end > now)
        else {
            return Ok(delayed);
        };
        if end.since(now) > self.max_delay {
            let e = Error::not_applied(ErrorKind::Invalid, "publish").on(format!("task {id}"));
            return Err(e.with_advice(format!(
                "It is the id of a window that ends later than the queue's max_delay of {:?}: choose another",
                self.max_delay
            )));
        }
        Ok(delayed.max(Some(end)))
    }

    /// The id of a task that is executed once per window, and when it is due. Read from the clock at the time of the
    /// call, so that the caller's earlier changes are in this window or an earlier one.
    fn once_per(
        &self,
        task: &Task,
        key: &Bytes,
        window: Duration,
        now: Wall,
    ) -> Result<(TaskId, Option<Wall>)> {
        if task.delay().is_some() {
            return Err(refused(window).with_advice(
                "It is executed when its window ends, so it can't have a \
                delay",
            ));
        }
        if self.id_window.is_zero() {
            return Err(refused(window).with_advice(FORGETS_IDS));
        }
        let longest = self.max_delay.saturating_sub(self.clock_skew);
        if window > longest {
            return Err(refused(window).with_advice(format!(
                "The queue's max_delay less its clock_skew is {longest:?}: use a shorter window, or raise \
                 max_delay in every process of the queue"
            )));
        }
        let window = Window::at(now, key, window, self.clock_skew)?;
        Ok((window.id, Some(window.due)))
    }

    fn address_again(&self, id: TaskId, mut record: NewRecord) -> Addressed {
        let partition = self.choose(record.key.as_ref());
        let envelope = Envelope::new(id, wall_now());
        record.headers.push(HEADER, Some(envelope.encode()));
        (envelope.id, partition, record)
    }

    fn choose(&self, key: Option<&Bytes>) -> i32 {
        let partitions = self.tasks.partitions();
        match key {
            Some(key) => partitioner::for_key(key, partitions),
            None => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                (turn % u64::from(partitions.unsigned_abs())) as i32
            }
        }
    }

    fn check(&self, task: &Task) -> Result<()> {
        let refused = |kind, what: String| Error::not_applied(kind, "publish").on(what);
        if let Some((name, _)) = task.headers().iter().find(|(name, _)| name.starts_with(HEADER.as_bytes())) {
            let what = format!("header `{}`", String::from_utf8_lossy(name));
            return Err(refused(ErrorKind::Invalid, what)
                .with_advice("Names that start with `kafkaq` are reserved: choose another"));
        }
        if let Some(delay) = task.delay().filter(|d| *d > self.max_delay) {
            return Err(refused(ErrorKind::Invalid, format!("a delay of {delay:?}")).with_advice(format!(
                "The queue's max_delay is {:?}: raise it in every process of the queue",
                self.max_delay
            )));
        }
        let size = task.payload().len() + task.key().map_or(0, |k| k.len()) + task.headers().size();
        if size > self.max_bytes {
            return Err(refused(ErrorKind::TooLarge, format!("a task of {size} bytes")).with_advice(format!(
                "Payload, key and headers have at most {} bytes: store the payload elsewhere and publish a \
                 reference, or raise max_task_bytes and the topics' max.message.bytes",
                self.max_bytes
            )));
        }
        Ok(())
    }
}

/// The advice if ids are not remembered for long enough.
pub(crate) const FORGETS_IDS: &str = "Set the queue's done_retention to more than clock_skew and publish_timeout \
                                      together: an id that is forgotten sooner can be executed twice";

fn due_after(delay: Option<Duration>, now: Wall) -> Option<Wall> {
    delay.filter(|d| !d.is_zero()).map(|d| now.plus(d))
}
