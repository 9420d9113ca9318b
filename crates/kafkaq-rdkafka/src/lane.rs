//! A consumer that is assigned the partitions that are being read.

use crate::{
    batch, error,
    reader::{Callbacks, Client, FETCH, Found, Request, SWEEP},
    settings::Settings,
};
use kafkaq_core::{Error, ErrorKind, Partition, Record, Result, lock};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{Consumer as _, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode as Code,
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// How long a partition stays assigned after the last fetch, so that the next one finds what was read ahead.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// The maximum number of idle partitions that stay assigned for the next fetch.
const LINGERING: usize = 64;
/// A record counts as at least this many bytes, so that the number in a batch is bounded too.
const SMALLEST: usize = 16;

/// One consumer.
pub(crate) struct Lane {
    // Before the client: its queues are views into it.
    cursors: HashMap<Partition, Cursor>,
    client: Arc<Client>,
    pub(crate) readahead: usize,
    /// It takes no more requests.
    pub(crate) is_retired: bool,
    settings: Arc<Settings>,
    used: Instant,
}

impl Lane {
    pub(crate) fn new(client: Arc<Client>, readahead: usize, settings: Arc<Settings>) -> Self {
        Lane { cursors: HashMap::new(), client, readahead, is_retired: false, settings, used: Instant::now() }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn is_unused_since(&self, limit: Duration) -> bool {
        self.cursors.is_empty() && self.used.elapsed() >= limit
    }

    /// Returns whether nobody needs it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_retired && self.cursors.values().all(|cursor| cursor.waiting.is_empty())
    }

    /// Returns whether a request waits at that partition.
    pub(crate) fn is_busy(&self, partition: &Partition) -> bool {
        self.cursors.get(partition).is_some_and(|cursor| !cursor.waiting.is_empty())
    }

    /// Returns whether its queue continues where the request wants to read.
    pub(crate) fn is_contiguous(&self, request: &Request) -> bool {
        let at = self.cursors.get(&request.partition).map(|cursor| cursor.next);
        !request.bypass_read_ahead && at == Some(request.offset)
    }

    /// Takes a request that continues a queue, or whose partition is not busy.
    pub(crate) fn take(&mut self, request: Request) {
        self.used = Instant::now();
        let partition = &request.partition;
        if !self.is_contiguous(&request) {
            let cursor = self
                .give_up(std::slice::from_ref(partition))
                .and_then(|()| self.open(partition, request.offset));
            match cursor {
                Ok(cursor) => drop(self.cursors.insert(partition.clone(), cursor)),
                Err(e) => return request.answer(Err(self.failed(e))),
            }
        }
        if let Some(cursor) = self.cursors.get_mut(&request.partition) {
            cursor.waiting.push(request);
        }
    }

    fn open(&self, partition: &Partition, offset: i64) -> KafkaResult<Cursor> {
        let Partition { topic, index } = partition;
        // Split before the assignment, so that no record ever arrives through the main queue.
        let split = self.client.split_partition_queue(topic, *index);
        let mut queue = split.ok_or(KafkaError::Subscription("not a partition".into()))?;
        let (ready, bell) = (Arc::new(AtomicBool::new(true)), std::thread::current());
        let full = ready.clone();
        queue.set_nonempty_callback(move || {
            full.store(true, SeqCst);
            bell.unpark();
        });
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, *index, Offset::Offset(offset))?;
        self.client.incremental_assign(&list)?;
        Ok(Cursor {
            queue,
            ready,
            next: offset,
            is_alive: false,
            at_end: false,
            waiting: Vec::new(),
            used: self.used,
        })
    }

    fn give_up(&mut self, partitions: &[Partition]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            if self.cursors.remove(partition).is_some() {
                list.add_partition(&partition.topic, partition.index);
            }
        }
        if list.count() == 0 { Ok(()) } else { self.client.incremental_unassign(&list) }
    }

    /// Answers the requests that can be answered. Returns how long there will be nothing to do.
    pub(crate) fn serve(&mut self, now: Instant, sweep: bool, overdue: &dyn Fn() -> Error) -> Duration {
        serve_main_queue(&self.client);
        let (mut wait, mut over, mut lingering) = (LINGER, Vec::new(), Vec::new());
        for (partition, cursor) in &mut self.cursors {
            let failed = |code, reason| verdict(code, reason, self.settings.bootstrap());
            let is_sound = cursor.serve(now, sweep, self.client.context(), &failed, overdue);
            if !is_sound || (cursor.waiting.is_empty() && self.readahead == 0) {
                over.push(partition.clone());
            } else if cursor.waiting.is_empty() {
                lingering.push((cursor.used, partition.clone()));
            } else {
                wait = wait.min(cursor.wait(now)).min(SWEEP);
            }
        }
        lingering.sort_unstable_by_key(|(used, _)| *used);
        let too_many = lingering.len().saturating_sub(LINGERING);
        for (n, (used, partition)) in lingering.into_iter().enumerate() {
            match LINGER.saturating_sub(now.saturating_duration_since(used)) {
                left if n < too_many || left.is_zero() => over.push(partition),
                left => wait = wait.min(left),
            }
        }
        if let Err(e) = self.give_up(&over) {
            tracing::debug!("partitions could not be given up: {e}");
        }
        wait
    }

    /// Answers all requests that still wait.
    pub(crate) fn end(&mut self) {
        for (_, mut cursor) in self.cursors.drain() {
            cursor.answer(&Err(error::closed(FETCH)));
        }
    }

    fn failed(&self, error: KafkaError) -> Error {
        Error::not_applied(ErrorKind::Other, FETCH).on(self.settings.bootstrap()).with_source(error)
    }
}

/// Returns what to report to a partition's readers for an error of its queue; nothing if the client recovers by itself.
fn verdict(code: Code, reason: String, bootstrap: &str) -> Option<Result<Found>> {
    if matches!(code, Code::AutoOffsetReset | Code::OffsetOutOfRange) {
        return Some(Ok(Found::OutOfRange));
    }
    error::unreadable(code, &reason, FETCH, bootstrap).map(Err)
}

/// A partition that is being read.
struct Cursor {
    queue: PartitionQueue<Callbacks>,
    /// The queue may hold something.
    ready: Arc<AtomicBool>,
    /// Where its queue continues.
    next: i64,
    /// Something has arrived since the assignment.
    is_alive: bool,
    /// All records up to the log's end, as it was at some time since the assignment, have been handed out.
    at_end: bool,
    waiting: Vec<Request>,
    used: Instant,
}

/// Why no more was taken from a queue.
enum Until {
    Empty,
    Enough,
    /// Reading doesn't continue here.
    Over(Result<Found>),
}

impl Cursor {
    /// Serves the requests at a partition. Returns `false` if nothing can be read here any more.
    fn serve(
        &mut self,
        now: Instant,
        sweep: bool,
        callbacks: &Callbacks,
        verdict: &dyn Fn(Code, String) -> Option<Result<Found>>,
        overdue: &dyn Fn() -> Error,
    ) -> bool {
        self.waiting.retain(|request| !request.answer.is_closed());
        let Some(max_bytes) = self.waiting.iter().map(|request| request.max_bytes).min() else { return true };
        self.used = now;
        if self.ready.swap(false, SeqCst) || sweep {
            let (records, until) = self.drain(max_bytes, callbacks, verdict);
            if !records.is_empty() {
                self.answer(&Ok(Found::Records(records)));
            }
            match until {
                Until::Empty => {}
                Until::Enough => self.ready.store(true, SeqCst),
                Until::Over(why) => {
                    self.answer(&why);
                    return false;
                }
            }
        }
        let (is_alive, at_end) = (self.is_alive, self.at_end);
        for request in self.waiting.extract_if(.., |r| now >= r.due(is_alive, at_end)) {
            let found = match at_end {
                true => Ok(Found::Nothing),
                false if !is_alive && now < request.last => Ok(Found::Silence),
                false => Err(overdue()),
            };
            request.answer(found);
        }
        true
    }

    fn drain(
        &mut self,
        max_bytes: usize,
        callbacks: &Callbacks,
        verdict: &dyn Fn(Code, String) -> Option<Result<Found>>,
    ) -> (Vec<Record>, Until) {
        let Cursor { queue, next, is_alive, at_end, .. } = self;
        let (mut messages, mut size, mut bytes) = (Vec::new(), 0, 0);
        let until = loop {
            if bytes >= max_bytes && !messages.is_empty() {
                break Until::Enough;
            }
            match queue.poll(Duration::ZERO) {
                None => break Until::Empty,
                // The log was truncated, and the client continues at its new end.
                Some(Ok(message)) if message.offset() < *next => break Until::Over(Ok(Found::OutOfRange)),
                Some(Ok(message)) => {
                    (*next, *is_alive, *at_end) = (message.offset() + 1, true, false);
                    size += batch::size(&message);
                    bytes += batch::size(&message).max(SMALLEST);
                    messages.push(message);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => (*is_alive, *at_end) = (true, true),
                Some(Err(e)) => {
                    let reason = std::mem::take(&mut *lock(&callbacks.reason));
                    tracing::debug!(target: "librdkafka", reason, "a partition can't be read");
                    if let Some(why) = verdict(error::code_of(&e), reason) {
                        break Until::Over(why);
                    }
                }
            }
        };
        (batch::records(&messages, size), until)
    }

    fn answer(&mut self, found: &Result<Found>) {
        self.waiting.drain(..).for_each(|request| request.answer(found.clone()));
    }

    /// Returns the time until the first of them has waited long enough.
    fn wait(&self, now: Instant) -> Duration {
        let due = self.waiting.iter().map(|r| r.due(self.is_alive, self.at_end)).min();
        due.map_or(LINGER, |due| due.saturating_duration_since(now))
    }
}

/// Handles errors (noted) and logs (written). Records never arrive here.
pub(crate) fn serve_main_queue(client: &Client) {
    let context = client.context();
    loop {
        let served = context.served.load(SeqCst);
        if client.poll(Duration::ZERO).is_none() && served == context.served.load(SeqCst) {
            return;
        }
    }
}
