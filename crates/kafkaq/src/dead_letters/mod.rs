//! Dead letters: tasks that were given up.
//!
//! [`DeadLetters`] browses, counts and groups them, redrives them (publishes their tasks again), and discards them.
//!
//! ```
//! use kafkaq::{Queue, Task, dead_letters::Filter, memory::{MemoryLog, MemoryStore}};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In memory; on servers it is an RdKafka or an RsKafka.
//! let log = Arc::new(MemoryLog::new());
//! let builder = Queue::builder("emails");
//! let queue = builder.clone().broker(log.clone()).store(MemoryStore::new()).build().await?;
//! queue.publish(Task::new("hello").with_header("task-kind", "welcome")).await?;
//! queue.get_job().await?.reject("user 17 not found").await?;
//!
//! let dead = builder.build_dead_letters(log).await?;
//! let groups = dead.groups(Filter::new()).await?.groups;
//! assert_eq!((groups[0].fingerprint.as_str(), groups[0].count), ("user # not found", 1));
//!
//! let report = dead.redrive(Filter::new().kind("welcome")).run().await?;
//! assert_eq!(report.redriven, 1);
//! let again = queue.get_job().await?;
//! assert_eq!((again.payload(), again.attempt(), again.failures()), (&"hello".into(), 1, 0));
//! again.done().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Marks
//! A record of a log can't be deleted, so a letter that was redriven or discarded is marked by a record in another
//! topic, which has the name of the dead-letter topic plus `.handled`. The first redrive or discard creates it. It keeps
//! its records forever, since a letter without its mark would be redriven again. A marked letter is no longer selected,
//! unless [`Filter::include_handled`] asks for it. Its payload stays in the log until the dead-letter topic's retention
//! deletes it.
//!
//! # Redriving
//! A dead task has ended under its id, so a redrive publishes it under another one: [`DeadLetter::redrive_id`], which
//! is always the same for the same task. A letter is first published and then marked, so if a redrive is interrupted in
//! between, the next one publishes it again. Under the same id that adds nothing while the id is remembered: for at
//! least [`done_retention`](crate::QueueBuilder::done_retention) after the task has ended.
//!
//! It is a new task: attempts and failures start over, and it is published without a delay. The header `task-redrives`
//! counts how often it was redriven, and a task that was redriven too often is skipped
//! ([`Redrive::max_redrives`]).
//!
//! The task goes to the task topic, which all groups of the queue read. So if a queue has several groups, each of them
//! executes it, including those in which it had not failed.

mod filter;
mod fingerprint;
mod groups;
mod letter;
mod marks;
mod redrive;
mod scan;

pub use filter::Filter;
pub use fingerprint::Fingerprint;
pub use groups::{Group, Groups};
pub use letter::{DeadLetter, Place};
pub use marks::Handled;
pub use redrive::{Redrive, RedriveReport, RedriveState};
pub use scan::Letters;

use crate::{
    Publisher,
    config::Config,
    runtime::Home,
    topics::{self, TaskTopic},
};
use groups::Grouping;
use kafkaq_core::{Error, ErrorKind, PartitionLog, Result, TopicSpec};
use marks::Marks;
use scan::{Ranges, Scan};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// How many letters are marked as discarded in one call.
const DISCARD_BATCH: usize = 500;

/// The dead letters of a queue's group: see the [module](self). Cheap to clone.
///
/// [`QueueBuilder::build_dead_letters`](crate::QueueBuilder::build_dead_letters) creates one. It can be used while
/// workers run, and doesn't affect them. Every call reads the marks and then the topic from its beginning, about 1 MiB
/// at a time: the calls are meant for operators, not for every request of a service.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: Arc<dyn PartitionLog>,
    topic: Arc<str>,
    marks: TopicSpec,
    /// The topic of marks exists.
    ensured: AtomicBool,
    publisher: Publisher,
}

impl DeadLetters {
    pub(crate) async fn new(log: Arc<dyn PartitionLog>, config: &Config) -> Result<Self> {
        let (topic, task) = (config.dead_topic(), config.task_topic());
        let names = [topic.clone(), task.clone()];
        let found = log.describe_topics(&names).await?;
        let missing = |name| {
            Error::not_applied(ErrorKind::NotFound, "open the dead letters").on(name).with_advice(
                "Check the names of the queue, the group and the topics. The topics are created by the first worker",
            )
        };
        let mut found = names.into_iter().zip(found);
        let mut next = || found.next().and_then(|(name, info)| Some((name, info?.partitions)));
        next().ok_or_else(|| missing(topic.clone()))?;
        let (name, partitions) = next().ok_or_else(|| missing(task))?;
        let publisher = Publisher::new(log.clone(), config, TaskTopic { name, partitions }, Home::find()?);
        Ok(DeadLetters {
            inner: Arc::new(Inner {
                log,
                topic,
                marks: topics::marks_spec(config),
                ensured: AtomicBool::new(false),
                publisher,
            }),
        })
    }

    /// Browses the letters that are there now. Memory use is bounded, however many there are.
    ///
    /// *Cancel-safety:* safe, and so are the calls below that only read.
    ///
    /// # Errors
    /// The log's own.
    pub async fn letters(&self, filter: Filter) -> Result<Letters> {
        let scan = Scan::new(&self.inner.log, &self.inner.topic).await?;
        Letters::new(self, scan, filter).await
    }

    /// Returns the letter at this place, handled or not. `None` if there is no record.
    ///
    /// # Errors
    /// The log's own.
    pub async fn get(&self, place: Place) -> Result<Option<DeadLetter>> {
        self.letters(Filter::new().places([place]).include_handled()).await?.next().await
    }

    /// Counts letters.
    ///
    /// # Errors
    /// The log's own.
    pub async fn count(&self, filter: Filter) -> Result<u64> {
        let mut letters = self.letters(filter).await?;
        let mut count = 0;
        while letters.next().await?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Groups letters by kind and by the fingerprint of their reason: at most 1,000 groups, those found first.
    ///
    /// # Errors
    /// The log's own.
    pub async fn groups(&self, filter: Filter) -> Result<Groups> {
        let mut letters = self.letters(filter).await?;
        let mut grouping = Grouping::default();
        while let Some(letter) = letters.next().await? {
            grouping.add(letter);
        }
        Ok(grouping.finish())
    }

    /// Prepares to publish the tasks of letters again. Nothing happens until [`Redrive::run`] is called.
    pub fn redrive(&self, filter: Filter) -> Redrive {
        Redrive::new(self.clone(), filter)
    }

    /// Marks letters as discarded, so that they are no longer selected or redriven. Returns how many. Use
    /// [`count`](DeadLetters::count) to find out beforehand how many there are.
    ///
    /// *Cancel-safety:* safe. What was marked before the future was dropped stays marked; calling it again marks the
    /// rest.
    ///
    /// # Errors
    /// The log's own. What was marked before stays marked.
    pub async fn discard(&self, filter: Filter) -> Result<u64> {
        let mut letters = self.letters(filter).await?;
        let mut discarded = 0;
        loop {
            let mut batch = Vec::new();
            while batch.len() < DISCARD_BATCH
                && let Some(mut letter) = letters.next().await?
            {
                // The place and the hash are all that a mark needs.
                letter.payload = None;
                letter.key = None;
                letter.headers = crate::Headers::new();
                batch.push(letter);
            }
            if batch.is_empty() {
                return Ok(discarded);
            }
            self.ensure_marks().await?;
            self.mark(batch.iter(), Handled::Discarded).await?;
            discarded += batch.len() as u64;
        }
    }

    async fn marks_in(&self, ranges: &Ranges) -> Result<Marks> {
        Marks::read(&self.inner.log, &self.inner.marks.name, ranges).await
    }

    fn publisher(&self) -> &Publisher {
        &self.inner.publisher
    }

    async fn ensure_marks(&self) -> Result<()> {
        let inner = &*self.inner;
        if !inner.ensured.load(Ordering::Relaxed) {
            topics::ensure_marks(&*inner.log, &inner.marks).await?;
            inner.ensured.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn mark(&self, letters: impl Iterator<Item = &DeadLetter>, handled: Handled) -> Result<()> {
        marks::append(&*self.inner.log, &self.inner.marks.name, letters, handled).await
    }
}
