//! Pending appends: a queue per partition with one call under way at a time, so that a partition without a leader
//! doesn't delay the others or use up their calls.

use super::{Mono, OpId, gate::Gate, slab::Ref};
use crate::Partition;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

/// Calls under way to partitions whose last call failed: these may all wait for a leader, while others have one.
const MOST_FAILING: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Appends {
    queues: Vec<AppendQueue>,
    /// The queue that was called last, so that a busy partition doesn't starve the others.
    turn: usize,
    /// The queues of the records that are under way.
    under_way: HashMap<Ref, usize>,
    /// Appends that the log has refused, by when they are tried again.
    refused: BinaryHeap<Reverse<(Mono, Ref)>>,
}

#[derive(Debug)]
struct AppendQueue {
    to: Partition,
    waiting: VecDeque<Ref>,
    /// Unanswered records of the call under way.
    under_way: usize,
    gate: Gate,
}

impl AppendQueue {
    fn is_ready(&self, now: Mono) -> bool {
        !self.waiting.is_empty() && self.under_way == 0 && self.gate.is_open(now)
    }
}

impl Appends {
    /// Queues an append.
    pub(super) fn push(&mut self, to: Partition, r: Ref) {
        let queue = self.queues.iter().position(|q| q.to == to).unwrap_or_else(|| {
            self.queues.push(AppendQueue {
                to,
                waiting: VecDeque::new(),
                under_way: 0,
                gate: Gate::default(),
            });
            self.queues.len() - 1
        });
        self.queues[queue].waiting.push_back(r);
    }

    /// Returns the next call: its partition, and the records that `record` still returns for the appends queued there.
    pub(super) fn next<T>(
        &mut self,
        now: Mono,
        max: usize,
        out: &mut Vec<(OpId, T)>,
        record: impl Fn(Ref) -> Option<T>,
    ) -> Option<Partition> {
        let failing = self.queues.iter().filter(|q| q.under_way > 0 && q.gate.is_failing()).count();
        for _ in 0..self.queues.len() {
            self.turn = (self.turn + 1) % self.queues.len();
            let queue = &mut self.queues[self.turn];
            if !queue.is_ready(now) || (queue.gate.is_failing() && failing >= MOST_FAILING) {
                continue;
            }
            while out.len() < max
                && let Some(r) = queue.waiting.pop_front()
            {
                if let Some(record) = record(r) {
                    out.push((r.into(), record));
                    self.under_way.insert(r, self.turn);
                }
            }
            if !out.is_empty() {
                queue.under_way = out.len();
                return Some(queue.to.clone());
            }
        }
        None
    }

    /// Records the outcome of one record.
    pub(super) fn answered(&mut self, r: Ref, now: Mono, worked: bool) {
        let Some(queue) = self.under_way.remove(&r).and_then(|queue| self.queues.get_mut(queue)) else {
            return;
        };
        queue.under_way = queue.under_way.saturating_sub(1);
        if worked { queue.gate.worked() } else { queue.gate.failed(now) }
    }

    /// Returns when the first closed gate opens that has appends queued behind it.
    pub(super) fn opens_at(&self, now: Mono) -> Option<Mono> {
        let closed = |q: &&AppendQueue| !q.waiting.is_empty() && q.under_way == 0 && !q.gate.is_open(now);
        self.queues.iter().filter(closed).map(|q| q.gate.opens_at()).min()
    }

    /// Removes an append from its queue. Returns whether that was possible: not if it is under way.
    pub(super) fn cancel(&mut self, r: Ref) -> bool {
        if self.under_way.contains_key(&r) {
            return false;
        }
        self.queues.iter_mut().for_each(|queue| queue.waiting.retain(|waiting| *waiting != r));
        true
    }

    /// Queues a refused append again, at this time.
    pub(super) fn retry(&mut self, r: Ref, at: Mono) {
        self.refused.push(Reverse((at, r)));
    }

    /// Returns the next refused append that is to be tried again now.
    pub(super) fn pop_retry(&mut self, now: Mono) -> Option<Ref> {
        self.retry_at().filter(|at| *at <= now)?;
        self.refused.pop().map(|Reverse((_, r))| r)
    }

    pub(super) fn retry_at(&self) -> Option<Mono> {
        self.refused.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|q| q.waiting.len() + q.under_way).sum()
    }
}
