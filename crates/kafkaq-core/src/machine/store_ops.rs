//! Operations on leases: those that wait to be sent, limits on those that are under way, and the tokens that they use.

use super::{Mono, gate::Gate, slab::Ref};
use crate::LeaseToken;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct StoreOps {
    swaps: VecDeque<Ref>,
    reads: VecDeque<Ref>,
    gate: Gate,
    /// Reads that have begun, also those that wait for another item of their task.
    reads_begun: Begun,
    /// Takes and renewals whose jobs will be ready.
    takes_begun: Begun,
    /// How often the store has worked since something began to fail.
    worked: usize,
    process: [u8; 16],
    tokens: u64,
}

/// The most operations that fail and don't count: those of a part of the store that is away. Once it is back, as many
/// succeed at once that nobody may wait for.
const MAX_FAILING: usize = 4096;

/// Operations that have begun.
#[derive(Debug, Default)]
struct Begun {
    all: usize,
    /// Those whose last try failed.
    failing: usize,
}

impl Begun {
    fn ends(&mut self, fails: bool) {
        self.all -= 1;
        self.failing -= usize::from(fails);
    }

    /// All but those that fail where others work.
    fn counted(&self, worked: usize) -> usize {
        self.all - self.failing.min(worked).min(MAX_FAILING)
    }
}

impl StoreOps {
    pub(super) fn new(process: [u8; 16]) -> Self {
        StoreOps {
            swaps: VecDeque::new(),
            reads: VecDeque::new(),
            gate: Gate::default(),
            reads_begun: Begun::default(),
            takes_begun: Begun::default(),
            worked: 0,
            process,
            tokens: 0,
        }
    }

    pub(super) fn push_swap(&mut self, r: Ref) {
        self.swaps.push_back(r);
    }

    pub(super) fn push_read(&mut self, r: Ref) {
        self.reads.push_back(r);
    }

    /// The next swap to send; none while the store fails.
    pub(super) fn pop_swap(&mut self, now: Mono) -> Option<Ref> {
        if self.gate.is_open(now) { self.swaps.pop_front() } else { None }
    }

    /// The next read to send; none while the store fails.
    pub(super) fn pop_read(&mut self, now: Mono) -> Option<Ref> {
        if self.gate.is_open(now) { self.reads.pop_front() } else { None }
    }

    /// At the most: some may not have to be sent any more.
    pub(super) fn swaps_waiting(&self) -> usize {
        self.swaps.len()
    }

    pub(super) fn succeeded(&mut self) {
        self.gate.worked();
        let is_partial = self.takes_begun.failing + self.reads_begun.failing > 0;
        self.worked = if is_partial { self.worked.saturating_add(1) } else { 0 };
    }

    /// Closes the gate. Returns whether it was open: failures that were under way together count as one.
    pub(super) fn failed(&mut self, now: Mono) -> bool {
        let was_open = self.gate.is_open(now);
        self.gate.failed(now);
        was_open
    }

    /// When the gate opens, if something waits before it.
    pub(super) fn opens_at(&self, now: Mono) -> Option<Mono> {
        let waits = !self.swaps.is_empty() || !self.reads.is_empty();
        (waits && !self.gate.is_open(now)).then(|| self.gate.opens_at())
    }

    pub(super) fn read_begins(&mut self) {
        self.reads_begun.all += 1;
    }

    /// The last try of a read has failed, and the one before had not.
    pub(super) fn read_fails(&mut self) {
        self.reads_begun.failing += 1;
    }

    pub(super) fn read_ends(&mut self, fails: bool) {
        self.reads_begun.ends(fails);
    }

    pub(super) fn reads_begun(&self) -> usize {
        self.reads_begun.counted(self.worked)
    }

    pub(super) fn take_begins(&mut self) {
        self.takes_begun.all += 1;
    }

    /// The last try of a take has failed, and the one before had not.
    pub(super) fn take_fails(&mut self) {
        self.takes_begun.failing += 1;
    }

    pub(super) fn take_ends(&mut self, fails: bool) {
        self.takes_begun.ends(fails);
    }

    pub(super) fn takes_begun(&self) -> usize {
        self.takes_begun.counted(self.worked)
    }

    pub(super) fn new_token(&mut self) -> LeaseToken {
        self.tokens += 1;
        LeaseToken { process: self.process, number: self.tokens }
    }
}
