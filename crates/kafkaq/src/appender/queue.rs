//! The records of one partition that are waiting to be appended.

use super::flush::Answers;
use crate::{driver::every_answer, runtime::Home, sync::lock};
use kafkaq_core::{Effect, Error, ErrorKind, NewRecord, Partition, Result, Retry};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The maximum records and, approximately, bytes of one request.
pub(crate) const MAX_RECORDS: usize = 1000;
pub(crate) const MAX_BYTES: usize = 900_000;

/// After this many ticks without a request, the timer task ends.
const IDLE_TICKS: u32 = 8;

#[derive(Debug)]
pub(crate) struct PartitionQueue {
    pub(crate) partition: Partition,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The size of these records in a request.
    bytes: usize,
    /// The request in flight, whose records are with the log.
    sent: Vec<Waiting>,
    records: Arc<[NewRecord]>,
    /// No outcome is due before this.
    earliest: Option<Instant>,
    /// Somebody is sending the queue.
    flushing: bool,
    /// Single tasks without a key are among the waiting records.
    gathered: bool,
}

impl State {
    fn push(&mut self, waiting: Waiting, front: bool) {
        self.bytes += waiting.size;
        self.note(waiting.until);
        if front { self.waiting.push_front(waiting) } else { self.waiting.push_back(waiting) }
    }

    fn note(&mut self, until: Instant) {
        self.earliest = Some(self.earliest.map_or(until, |at| at.min(until)));
    }

    fn pop_if(&mut self, fits: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        if !self.waiting.front().is_some_and(fits) {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.bytes -= first.size;
        Some(first)
    }

    /// Ends the request in flight. Returns what it consisted of.
    fn take_sent(&mut self) -> (Vec<Waiting>, Arc<[NewRecord]>) {
        (std::mem::take(&mut self.sent), std::mem::take(&mut self.records))
    }
}

/// The result of putting a record into a queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queued {
    /// Somebody is sending the queue.
    IsSent,
    /// Nobody is yet; this many records are waiting.
    Waits(usize),
    /// Nobody is, although there is enough for a full request.
    IsWholeRequest,
}

/// The outcome of a request.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) failed: usize,
    /// Some of it is to be retried.
    pub(super) again: bool,
    /// The pause that the log asked for.
    pub(super) asked: Option<Duration>,
}

/// A record that is waiting or in flight.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: NewRecord,
    pub(super) size: usize,
    /// When its outcome is due.
    pub(super) until: Instant,
    /// Why the last attempt failed.
    failed: Option<Error>,
    /// An earlier attempt may have taken effect, so the outcome is unknown even if the last one certainly had none.
    in_doubt: bool,
    /// `None`: its outcome was reported.
    answer: Option<oneshot::Sender<Result<i64>>>,
    space: OwnedSemaphorePermit,
}

impl Waiting {
    pub(super) fn new(
        record: NewRecord,
        size: usize,
        until: Instant,
        answer: oneshot::Sender<Result<i64>>,
        space: OwnedSemaphorePermit,
    ) -> Self {
        Waiting { record, size, until, failed: None, in_doubt: false, answer: Some(answer), space }
    }

    /// Applies the outcome of an attempt. Returns whether it is final; otherwise the record is to be retried.
    fn is_settled_by(&mut self, outcome: Result<i64>, now: Instant) -> bool {
        let outcome = match outcome {
            Err(e) if self.answer.is_some() && may_help(&e) && now < self.until => {
                self.in_doubt |= e.effect() == Effect::Unknown;
                self.failed = Some(e);
                return false;
            }
            Err(e) => Err(failed(e, self.in_doubt)),
            Ok(offset) => Ok(offset),
        };
        if let Some(to) = self.answer.take() {
            Answer(to, outcome).send();
        }
        true
    }

    /// Gives up on a record whose time is up, before it was sent or while it is `sent`. Returns the outcome to report.
    fn give_up(&mut self, sent: bool) -> Option<Answer> {
        let to = self.answer.take()?;
        let unknown = sent || self.in_doubt;
        let e = match self.failed.take() {
            Some(e) => failed(e, unknown),
            None if unknown => Error::unknown(ErrorKind::Timeout, "publish"),
            None => Error::not_applied(ErrorKind::Timeout, "publish"),
        };
        Some(Answer(to, Err(e)))
    }

    fn is_answered(&self) -> bool {
        self.answer.is_none()
    }
}

/// The outcome for the caller that waits for a record. It is never sent under the lock of a queue.
struct Answer(oneshot::Sender<Result<i64>>, Result<i64>);

impl Answer {
    fn send(self) {
        // The receiver may be gone.
        quietly(|| drop(self.0.send(self.1)));
    }
}

/// Sending an outcome, or freeing buffer space, runs a caller's waker, which is foreign code. Its panics are ignored.
fn quietly(f: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(f));
}

/// Whether another attempt may help. It does no harm: the same record, with the same id, is one task however often it
/// is appended.
fn may_help(e: &Error) -> bool {
    e.retry() != Retry::No || (e.effect() == Effect::Unknown && e.kind() != ErrorKind::Closed)
}

fn failed(e: Error, in_doubt: bool) -> Error {
    let new = match e.effect() {
        Effect::NotApplied if !in_doubt => Error::not_applied(e.kind(), "publish"),
        _ => Error::unknown(e.kind(), "publish"),
    };
    new.with_retry(e.retry()).with_source(e)
}

/// The queues of a topic. A queue is created at its first use.
#[derive(Debug)]
pub(super) struct PartitionQueues {
    topic: Arc<str>,
    queues: RwLock<Vec<Arc<PartitionQueue>>>,
    /// How often deadlines are checked.
    tick: Duration,
    /// The timer task is running.
    keeping_time: AtomicBool,
}

impl PartitionQueues {
    pub(super) fn new(topic: Arc<str>, tick: Duration) -> Arc<Self> {
        Arc::new(PartitionQueues {
            topic,
            queues: RwLock::default(),
            tick,
            keeping_time: AtomicBool::new(false),
        })
    }

    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    pub(super) fn queue(&self, index: i32) -> Arc<PartitionQueue> {
        let index = index.unsigned_abs() as usize;
        if let Some(queue) = self.queues.read().unwrap_or_else(PoisonError::into_inner).get(index) {
            return queue.clone();
        }
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        while queues.len() <= index {
            let partition = Partition::new(self.topic.clone(), queues.len() as i32);
            queues.push(Arc::new(PartitionQueue::new(partition)));
        }
        queues[index].clone()
    }

    /// Ensures that outcomes are reported in time, on a thread that no other runtime can stop.
    pub(super) fn keep_time(self: &Arc<Self>, home: &Home) {
        if self.keeping_time.load(Ordering::Relaxed) || self.keeping_time.swap(true, Ordering::AcqRel) {
            return;
        }
        let queues = self.clone();
        home.spawn_apart(async move {
            let mut idle = 0;
            loop {
                tokio::time::sleep(queues.tick).await;
                idle = if queues.expire() { 0 } else { idle + 1 };
                if idle < IDLE_TICKS {
                    continue;
                }
                queues.keeping_time.store(false, Ordering::Release);
                // A flush may have started meanwhile that saw the timer task running.
                if !queues.expire() || queues.keeping_time.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// Reports the outcomes that are due. Returns whether anything is in flight.
    fn expire(&self) -> bool {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Instant::now();
        queues.iter().for_each(|queue| queue.expire(now));
        queues.iter().any(|queue| !queue.is_idle())
    }
}

impl PartitionQueue {
    fn new(partition: Partition) -> Self {
        PartitionQueue { partition, state: Mutex::default() }
    }

    /// `gathers`: it is a single task without a key.
    pub(super) fn push(&self, waiting: Waiting, gathers: bool) -> Queued {
        let mut state = lock(&self.state);
        state.push(waiting, false);
        state.gathered |= gathers;
        if state.flushing {
            Queued::IsSent
        } else if state.waiting.len() >= MAX_RECORDS || state.bytes >= MAX_BYTES {
            Queued::IsWholeRequest
        } else {
            Queued::Waits(state.waiting.len())
        }
    }

    /// Makes the caller the sender, if there is something to send and nobody else is sending.
    pub(super) fn claim(&self) -> bool {
        let mut state = lock(&self.state);
        let claimed = !state.flushing && !state.waiting.is_empty();
        state.flushing |= claimed;
        claimed
    }

    /// Returns the records of the next request, for the sender that has claimed the queue, and whether single tasks
    /// without a key are among them. If there are none, the claim has ended.
    pub(super) fn next_batch(&self, now: Instant) -> Option<(Arc<[NewRecord]>, bool)> {
        let mut expired = Vec::new();
        let (records, gathered) = {
            let mut state = lock(&self.state);
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < MAX_RECORDS
                && let Some(next) = state.pop_if(|w| {
                    // The first one is sent whatever its size.
                    w.until <= now || batch.is_empty() || bytes + w.size <= MAX_BYTES
                })
            {
                if next.until <= now {
                    expired.push(next);
                } else {
                    bytes += next.size;
                    batch.push(next);
                }
            }
            state.flushing = !batch.is_empty();
            state.records = batch.iter_mut().map(|w| std::mem::take(&mut w.record)).collect();
            state.sent = batch;
            (state.records.clone(), std::mem::take(&mut state.gathered))
        };
        end(expired);
        (!records.is_empty()).then_some((records, gathered))
    }

    /// Applies the outcome of the request in flight: reports what is decided, and puts the rest in front of all others.
    pub(super) fn settle(&self, answers: Answers, now: Instant) -> Settled {
        let (sent, records) = lock(&self.state).take_sent();
        let (mut again, mut settled) = (Vec::new(), Settled::default());
        for ((mut waiting, answer), record) in sent.into_iter().zip(every_answer(answers)).zip(&*records) {
            let mut asked = None;
            if let Err(e) = &answer {
                settled.failed += 1;
                if let Retry::After(pause) = e.retry() {
                    asked = Some(pause);
                }
            }
            if !waiting.is_settled_by(answer, now) {
                settled.asked = settled.asked.max(asked);
                waiting.record = record.clone();
                again.push(waiting);
            } else {
                // Each separately: a waker that panics would keep others from being woken.
                quietly(|| drop(waiting.space));
            }
        }
        settled.again = !again.is_empty();
        self.put_back(again);
        settled
    }

    /// The outcome of the request in flight will never be known: it may have taken effect, and is to be sent again.
    pub(super) fn put_back_sent(&self) {
        let (sent, records) = lock(&self.state).take_sent();
        let mut again = Vec::new();
        for (waiting, record) in sent.into_iter().zip(&*records) {
            if waiting.is_answered() {
                quietly(|| drop(waiting));
            } else {
                again.push(Waiting { record: record.clone(), in_doubt: true, ..waiting });
            }
        }
        self.put_back(again);
    }

    fn put_back(&self, again: Vec<Waiting>) {
        let mut state = lock(&self.state);
        again.into_iter().rev().for_each(|w| state.push(w, true));
    }

    /// Whether nobody is sending it.
    pub(super) fn is_idle(&self) -> bool {
        !lock(&self.state).flushing
    }

    /// Ends the claim if the queue is empty.
    pub(super) fn release_if_empty(&self) -> bool {
        let mut state = lock(&self.state);
        state.flushing = !state.waiting.is_empty();
        !state.flushing
    }

    /// Reports an outcome for records whose time is up, without waiting for a request in flight.
    fn expire(&self, now: Instant) {
        let (mut expired, mut answers) = (Vec::new(), Vec::new());
        {
            let mut state = lock(&self.state);
            if state.earliest.is_none_or(|at| at > now) {
                return;
            }
            let all = std::mem::take(&mut state.waiting);
            (state.bytes, state.earliest) = (0, None);
            for waiting in all {
                if waiting.until <= now { expired.push(waiting) } else { state.push(waiting, false) }
            }
            let mut sent = std::mem::take(&mut state.sent);
            for waiting in sent.iter_mut().filter(|w| !w.is_answered()) {
                if waiting.until <= now {
                    answers.extend(waiting.give_up(true));
                } else {
                    state.note(waiting.until);
                }
            }
            state.sent = sent;
        }
        answers.into_iter().for_each(Answer::send);
        end(expired);
    }
}

fn end(expired: Vec<Waiting>) {
    for mut waiting in expired {
        if let Some(answer) = waiting.give_up(false) {
            answer.send();
        }
        quietly(|| drop(waiting));
    }
}
