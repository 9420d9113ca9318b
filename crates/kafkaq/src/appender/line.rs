//! The records of one partition that wait to be appended.

use crate::sync::lock;
use kafkaq_core::{Effect, Error, ErrorKind, NewRecord, Partition, Result, Retry};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The most records and about the most bytes of one request.
pub(crate) const MAX_RECORDS: usize = 1000;
pub(crate) const MAX_BYTES: usize = 900_000;

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) partition: Partition,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// No record that waits has to be answered before this.
    earliest: Option<Instant>,
    /// Somebody sends what waits.
    flushing: bool,
}

impl State {
    fn push(&mut self, waiting: Waiting, front: bool) {
        self.bytes += waiting.size;
        self.earliest = Some(self.earliest.map_or(waiting.until, |at| at.min(waiting.until)));
        if front { self.waiting.push_front(waiting) } else { self.waiting.push_back(waiting) }
    }

    fn pop_if(&mut self, fits: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        if !self.waiting.front().is_some_and(fits) {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.bytes -= first.size;
        Some(first)
    }
}

/// One record on its way.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: NewRecord,
    pub(super) size: usize,
    /// When it has to be answered.
    pub(super) until: Instant,
    /// Why the last try failed.
    failed: Option<Error>,
    /// An earlier try may have taken effect, so the outcome is unknown even if the last one certainly had none.
    in_doubt: bool,
    /// `None`: it was answered.
    answer: Option<oneshot::Sender<Result<i64>>>,
    room: OwnedSemaphorePermit,
}

impl Waiting {
    pub(super) fn new(
        record: NewRecord,
        size: usize,
        until: Instant,
        answer: oneshot::Sender<Result<i64>>,
        room: OwnedSemaphorePermit,
    ) -> Self {
        Waiting { record, size, until, failed: None, in_doubt: false, answer: Some(answer), room }
    }

    /// Takes in the outcome of a try. Returns the record if it is to be tried again.
    pub(super) fn tried(mut self, outcome: Result<i64>, now: Instant) -> Option<Waiting> {
        match outcome {
            Err(e) if self.answer.is_some() && may_help(&e) && now < self.until => {
                self.in_doubt |= e.effect() == Effect::Unknown;
                self.failed = Some(e);
                return Some(self);
            }
            Err(e) => {
                let in_doubt = self.in_doubt;
                self.answer(Err(failed(e, in_doubt)));
            }
            Ok(offset) => self.answer(Ok(offset)),
        }
        quietly(|| drop(self.room));
        None
    }

    /// Its time is up, before or while it is `sent`.
    pub(super) fn expire(&mut self, sent: bool) {
        let unknown = sent || self.in_doubt;
        let e = match self.failed.take() {
            Some(e) => failed(e, unknown),
            None if unknown => Error::unknown(ErrorKind::Timeout, "publish"),
            None => Error::not_applied(ErrorKind::Timeout, "publish"),
        };
        self.answer(Err(e));
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answer.is_none()
    }

    fn answer(&mut self, outcome: Result<i64>) {
        // A receiver that is gone doesn't want to know.
        if let Some(answer) = self.answer.take() {
            quietly(|| drop(answer.send(outcome)));
        }
    }
}

/// To answer runs the waker of whoever waits, which is foreign code: if it panics, that is its owner's trouble.
fn quietly(f: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(f));
}

/// The same record, with the same id, is one task however often it is appended.
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

impl Line {
    pub(super) fn new(partition: Partition) -> Self {
        Line { partition, state: Mutex::default() }
    }

    /// Returns whether a whole request waits that nobody sends.
    pub(super) fn push(&self, waiting: Waiting) -> bool {
        let mut state = lock(&self.state);
        state.push(waiting, false);
        !state.flushing && (state.waiting.len() >= MAX_RECORDS || state.bytes >= MAX_BYTES)
    }

    /// Makes the caller the one who sends, if there is something to send and nobody else does.
    pub(super) fn claim(&self) -> bool {
        let mut state = lock(&self.state);
        let claimed = !state.flushing && !state.waiting.is_empty();
        state.flushing |= claimed;
        claimed
    }

    /// The records of the next request, for whoever has claimed the line. Without any, the claim has ended.
    pub(super) fn next_batch(&self, now: Instant) -> Option<Vec<Waiting>> {
        let (mut batch, mut expired, mut bytes) = (Vec::new(), Vec::new(), 0);
        {
            let mut state = lock(&self.state);
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
        }
        end(expired);
        (!batch.is_empty()).then_some(batch)
    }

    /// Ends the claim if nothing waits.
    pub(super) fn release_if_empty(&self) -> bool {
        let mut state = lock(&self.state);
        state.flushing = !state.waiting.is_empty();
        !state.flushing
    }

    /// Puts records that are to be tried again before all others.
    pub(super) fn put_back(&self, again: Vec<Waiting>) {
        let mut state = lock(&self.state);
        again.into_iter().rev().for_each(|w| state.push(w, true));
    }

    /// Answers those that wait and whose time is up.
    pub(super) fn expire(&self, now: Instant) {
        let mut expired = Vec::new();
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
        }
        end(expired);
    }
}

/// Nobody is answered under the lock of a line.
fn end(expired: Vec<Waiting>) {
    for mut waiting in expired {
        waiting.expire(false);
        quietly(|| drop(waiting));
    }
}
