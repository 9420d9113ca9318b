//! Operations on leases: queues of those to be sent, counts of those in flight, and their tokens.

use super::{Mono, gate::Gate, slab::Ref};
use crate::LeaseToken;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct StoreOps {
    swaps: VecDeque<Ref>,
    reads: VecDeque<Ref>,
    /// Operations whose last attempt failed, oldest first: takes of jobs, and all reads.
    failed_takes: VecDeque<Ref>,
    failed_reads: VecDeque<Ref>,
    /// Whether a failed take is next.
    is_retry_next: bool,
    gate: Gate,
    /// Reads that have begun, including those that wait for another item of their task.
    reads_begun: usize,
    /// Takes and renewals whose jobs will be ready.
    takes_begun: usize,
    process: [u8; 16],
    tokens: u64,
}

impl StoreOps {
    pub(super) fn new(process: [u8; 16]) -> Self {
        StoreOps { process, ..Self::default() }
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

    pub(super) fn push_failed_take(&mut self, r: Ref) {
        self.failed_takes.push_back(r);
    }

    pub(super) fn push_failed_read(&mut self, r: Ref) {
        self.failed_reads.push_back(r);
    }

    pub(super) fn pop_failed_take(&mut self) -> Option<Ref> {
        self.failed_takes.pop_front()
    }

    /// Returns a failed take every other time, so that jobs of other tasks are taken in between.
    pub(super) fn pop_failed_take_in_turn(&mut self) -> Option<Ref> {
        self.is_retry_next = !self.is_retry_next;
        if self.is_retry_next { self.pop_failed_take() } else { None }
    }

    pub(super) fn pop_failed_read(&mut self) -> Option<Ref> {
        self.failed_reads.pop_front()
    }

    pub(super) fn failed_reads(&self) -> usize {
        self.failed_reads.len()
    }

    pub(super) fn retain_failed(&mut self, is_there: impl Fn(Ref) -> bool) {
        self.failed_takes.retain(|r| is_there(*r));
        self.failed_reads.retain(|r| is_there(*r));
    }

    /// An upper bound: some may not have to be sent any more.
    pub(super) fn swaps_waiting(&self) -> usize {
        self.swaps.len()
    }

    pub(super) fn succeeded(&mut self) {
        self.gate.worked();
    }

    /// Closes the gate. Returns whether it was open: failures that were under way together count as one.
    pub(super) fn failed(&mut self, now: Mono) -> bool {
        let was_open = self.gate.is_open(now);
        self.gate.failed(now);
        was_open
    }

    /// Returns when the gate opens, if something waits behind it.
    pub(super) fn opens_at(&self, now: Mono) -> Option<Mono> {
        let waits = !self.swaps.is_empty() || !self.reads.is_empty();
        (waits && !self.gate.is_open(now)).then(|| self.gate.opens_at())
    }

    pub(super) fn read_begins(&mut self) {
        self.reads_begun += 1;
    }

    pub(super) fn read_ends(&mut self) {
        self.reads_begun -= 1;
    }

    pub(super) fn reads_begun(&self) -> usize {
        self.reads_begun
    }

    pub(super) fn take_begins(&mut self) {
        self.takes_begun += 1;
    }

    pub(super) fn take_ends(&mut self) {
        self.takes_begun -= 1;
    }

    pub(super) fn takes_begun(&self) -> usize {
        self.takes_begun
    }

    pub(super) fn new_token(&mut self) -> LeaseToken {
        self.tokens += 1;
        LeaseToken { process: self.process, number: self.tokens }
    }
}
