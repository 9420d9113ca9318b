//! Pending appends: a line per partition with one call under way at a time, so that a partition without a leader
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
    lines: Vec<Line>,
    /// The line that was called last, so that a busy partition doesn't starve the others.
    turn: usize,
    /// The lines of the records that are under way.
    under_way: HashMap<Ref, usize>,
    /// What the log refuses for now, by when it is tried again.
    refused: BinaryHeap<Reverse<(Mono, Ref)>>,
}

#[derive(Debug)]
struct Line {
    to: Partition,
    waiting: VecDeque<Ref>,
    /// Unanswered records of the call under way.
    under_way: usize,
    gate: Gate,
}

impl Line {
    fn is_ready(&self, now: Mono) -> bool {
        !self.waiting.is_empty() && self.under_way == 0 && self.gate.is_open(now)
    }
}

impl Appends {
    /// Queues an append.
    pub(super) fn push(&mut self, to: Partition, r: Ref) {
        let line = self.lines.iter().position(|l| l.to == to).unwrap_or_else(|| {
            self.lines.push(Line { to, waiting: VecDeque::new(), under_way: 0, gate: Gate::default() });
            self.lines.len() - 1
        });
        self.lines[line].waiting.push_back(r);
    }

    /// The next call: its partition, and the records that `record` still has for what waits there.
    pub(super) fn next<T>(
        &mut self,
        now: Mono,
        max: usize,
        out: &mut Vec<(OpId, T)>,
        record: impl Fn(Ref) -> Option<T>,
    ) -> Option<Partition> {
        let failing = self.lines.iter().filter(|l| l.under_way > 0 && l.gate.is_failing()).count();
        for _ in 0..self.lines.len() {
            self.turn = (self.turn + 1) % self.lines.len();
            let line = &mut self.lines[self.turn];
            if !line.is_ready(now) || (line.gate.is_failing() && failing >= MOST_FAILING) {
                continue;
            }
            while out.len() < max
                && let Some(r) = line.waiting.pop_front()
            {
                if let Some(record) = record(r) {
                    out.push((r.into(), record));
                    self.under_way.insert(r, self.turn);
                }
            }
            if !out.is_empty() {
                line.under_way = out.len();
                return Some(line.to.clone());
            }
        }
        None
    }

    /// A record was answered.
    pub(super) fn answered(&mut self, r: Ref, now: Mono, worked: bool) {
        let Some(line) = self.under_way.remove(&r).and_then(|line| self.lines.get_mut(line)) else { return };
        line.under_way = line.under_way.saturating_sub(1);
        if worked { line.gate.worked() } else { line.gate.failed(now) }
    }

    /// When the first gate opens that holds something back.
    pub(super) fn opens_at(&self, now: Mono) -> Option<Mono> {
        let closed = |l: &&Line| !l.waiting.is_empty() && l.under_way == 0 && !l.gate.is_open(now);
        self.lines.iter().filter(closed).map(|l| l.gate.opens_at()).min()
    }

    /// Takes an append out of its line. Returns whether that could be done: not if it is under way.
    pub(super) fn cancel(&mut self, r: Ref) -> bool {
        if self.under_way.contains_key(&r) {
            return false;
        }
        self.lines.iter_mut().for_each(|line| line.waiting.retain(|waiting| *waiting != r));
        true
    }

    /// The log refuses it: it is put into its line again `at` this time.
    pub(super) fn retry(&mut self, r: Ref, at: Mono) {
        self.refused.push(Reverse((at, r)));
    }

    /// The next one that was refused and is to be tried again now.
    pub(super) fn pop_retry(&mut self, now: Mono) -> Option<Ref> {
        self.retry_at().filter(|at| *at <= now)?;
        self.refused.pop().map(|Reverse((_, r))| r)
    }

    pub(super) fn retry_at(&self) -> Option<Mono> {
        self.refused.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(|l| l.waiting.len() + l.under_way).sum()
    }
}
