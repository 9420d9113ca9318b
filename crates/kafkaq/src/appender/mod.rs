//! Appends with natural batching: what is pushed while a request is in flight goes into the next one.
//!
//! Each partition has a queue. Whoever pushes into an idle queue starts its flush, which runs at the publisher's
//! [home](crate::runtime), so that a caller that goes away, or whose runtime does, affects nobody else. The flush ends
//! when the queue is empty, so an idle partition costs nothing.
//!
//! Every pushed record gets an outcome when its time is up, whatever the log does: a waiting record was certainly not
//! appended, one in flight may have been.

mod flush;
mod gather;
mod queue;
mod space;
#[cfg(test)]
mod tests;

use crate::{
    runtime::Home,
    stats::{CallCounter, CallStats},
};
use flush::Flush;
use gather::{Gathering, MAX_GATHERED};
use kafkaq_core::{Log, NewRecord, Result};
use queue::{PartitionQueue, PartitionQueues, Queued, Waiting};
use space::{BufferSpace, OVERHEAD};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How often a publisher checks for added partitions.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The queues of one topic.
#[derive(Debug)]
pub(crate) struct Appender {
    log: Arc<dyn Log>,
    queues: Arc<PartitionQueues>,
    /// How many partitions the topic has, as last seen.
    partitions: AtomicI32,
    gathering: Gathering,
    space: BufferSpace,
    timeout: Duration,
    home: Home,
    counter: CallCounter,
    started: Instant,
    /// When the topic was last described, in milliseconds from the start.
    looked: AtomicU64,
}

/// Where a record goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination {
    /// To this partition.
    Partition(i32),
    /// A single task without a key: to this partition while few such requests are in flight, and otherwise to the
    /// partition where they gather.
    Any(i32),
}

/// A record that was pushed.
pub(crate) struct Pushed {
    pub(crate) queue: Arc<PartitionQueue>,
    /// Its offset.
    pub(crate) outcome: oneshot::Receiver<Result<i64>>,
}

impl Appender {
    /// `buffer` is how many bytes may be waiting or in flight, `timeout` how long a record is tried.
    pub(crate) fn new(
        log: Arc<dyn Log>,
        topic: Arc<str>,
        partitions: i32,
        buffer: usize,
        timeout: Duration,
        home: Home,
        counter: CallCounter,
    ) -> Arc<Self> {
        let tick = (timeout / 64).clamp(Duration::from_millis(1), Duration::from_secs(1));
        Arc::new(Appender {
            log,
            queues: PartitionQueues::new(topic, tick),
            partitions: AtomicI32::new(partitions.max(1)),
            gathering: Gathering::begin(partitions),
            space: BufferSpace::new(buffer),
            timeout,
            home,
            counter,
            started: Instant::now(),
            looked: AtomicU64::new(0),
        })
    }

    /// When the outcome of a record that is published now is due.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        now + self.timeout
    }

    pub(crate) fn partitions(&self) -> i32 {
        self.partitions.load(Ordering::Relaxed)
    }

    #[cfg(feature = "worker")]
    pub(crate) fn topic(&self) -> Arc<str> {
        self.queues.topic().clone()
    }

    pub(crate) fn stats(&self) -> CallStats {
        self.counter.stats()
    }

    /// Puts a record into a queue, once there is buffer space. It is sent when `unsent` is dropped, at the latest, or
    /// gathers with others; from then on it is appended even if nobody waits for the outcome. If the future is dropped
    /// before it returns, it has done nothing.
    ///
    /// # Errors
    /// `Timeout` if there is no buffer space in time.
    pub(crate) async fn push(
        self: &Arc<Self>,
        to: Destination,
        record: NewRecord,
        until: Instant,
        unsent: &mut Unsent<'_>,
    ) -> Result<Pushed> {
        let size = record.size() + OVERHEAD;
        let space = self.space(size, until, unsent).await?;
        let (answer, outcome) = oneshot::channel();
        let (index, gathers) = match to {
            Destination::Partition(index) => (index, false),
            Destination::Any(own) => (self.gathers_in().unwrap_or(own), true),
        };
        let queue = self.queues.queue(index);
        match queue.push(Waiting::new(record, size, until, answer, space), gathers) {
            // Whoever sends the queue takes this record too.
            Queued::IsSent => {}
            // Whoever ends a request sends the queue, long before the record's time is up.
            Queued::Waits(n) if gathers && n < MAX_GATHERED && self.gathering.holds_back(index, until) => {
                self.queues.keep_time(&self.home);
            }
            Queued::Waits(_) => unsent.add(&queue),
            Queued::IsWholeRequest => Flush::begin(self, &queue, true),
        }
        Ok(Pushed { queue, outcome })
    }

    /// Acquires buffer space for a record, once there is some.
    async fn space(
        &self,
        size: usize,
        until: Instant,
        unsent: &mut Unsent<'_>,
    ) -> Result<OwnedSemaphorePermit> {
        match self.space.try_take(size) {
            Some(space) => Ok(space),
            None => {
                unsent.flush();
                self.space.take(size, until, &self.home).await
            }
        }
    }

    /// Where single records gather now, if they do. Not in a queue that is being sent, which may hang with many records
    /// in it; spreading them is no worse then.
    fn gathers_in(&self) -> Option<i32> {
        let index = self.gathering.partition();
        let gathers =
            self.gathering.is_crowded() && index < self.partitions() && self.queues.queue(index).is_idle();
        gathers.then_some(index)
    }

    /// The queue where single records gather.
    fn gathering_queue(&self) -> Arc<PartitionQueue> {
        self.queues.queue(self.gathering.partition())
    }

    /// Moves gathering from a queue to the next one that nobody is sending, if there is one. Called by the sender of the
    /// queue.
    fn gather_on_another(&self, than: &PartitionQueue) {
        let here = than.partition.index;
        if self.gathering.partition() != here {
            return;
        }
        let partitions = self.partitions();
        let mut others = (1..partitions).map(|n| here.wrapping_add(n).rem_euclid(partitions));
        if let Some(to) = others.find(|index| self.queues.queue(*index).is_idle()) {
            self.gathering.move_on(here, to);
        }
    }

    /// Checks for added partitions in the background, if the last check was a while ago.
    pub(crate) fn look(self: &Arc<Self>, now: Instant) {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let now = millis(now.saturating_duration_since(self.started));
        let last = self.looked.load(Ordering::Relaxed);
        if now - last.min(now) < millis(LOOK_EVERY)
            || self.looked.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let appender = self.clone();
        self.home.spawn(async move {
            let names = [appender.queues.topic().clone()];
            let look = appender.log.describe_topics(&names);
            match tokio::time::timeout(LOOK_EVERY, look)
                .await
                .map(|r| r.map(|mut infos| infos.pop().flatten()))
            {
                Ok(Ok(Some(info))) if info.partitions > 0 => {
                    appender.partitions.store(info.partitions, Ordering::Relaxed);
                }
                // If something is wrong, appends report it.
                other => tracing::debug!(target: "kafkaq", topic = &*names[0], ?other, "could not check for \
                    added partitions"),
            }
        });
    }
}

/// The queues that a caller has pushed into and that are still to be sent. Sends them when it is dropped, so that a
/// caller that goes away leaves no unsent records.
#[derive(Debug)]
pub(crate) struct Unsent<'a> {
    appender: &'a Arc<Appender>,
    queues: Vec<Arc<PartitionQueue>>,
}

impl<'a> Unsent<'a> {
    pub(crate) fn new(appender: &'a Arc<Appender>) -> Self {
        Unsent { appender, queues: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    fn add(&mut self, queue: &Arc<PartitionQueue>) {
        if !self.queues.iter().any(|other| Arc::ptr_eq(other, queue)) {
            self.queues.push(queue.clone());
        }
    }

    fn flush(&mut self) {
        let several = self.queues.len() > 1;
        self.queues.drain(..).for_each(|queue| Flush::begin(self.appender, &queue, several));
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
