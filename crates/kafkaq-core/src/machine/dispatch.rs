//! Callers that wait for jobs, and jobs that wait for callers.

use super::{
    Mono, Recall,
    slab::Ref,
    suspects::{Suspect, Suspects},
};
use std::{collections::VecDeque, time::Duration};

/// First attempts that may be taken for each redelivery while redeliveries wait.
const FIRST_PER_REDELIVERY: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Dispatch {
    /// Waiting callers, as last reported by the driver.
    waiting: usize,
    /// Ready jobs that wait for a caller: as last reported by the driver, plus those it was given since.
    ready: usize,
    /// When a job was last requested.
    asked_at: Mono,
    /// Redeliveries that are taken as soon as a caller waits.
    on_demand: VecDeque<Ref>,
    /// Redeliveries whose lease expired.
    suspects: Suspects,
    /// The last redelivery was one of them.
    was_suspect: bool,
    /// First attempts that may still be taken while redeliveries wait for demand: their guaranteed share.
    credit: usize,
    /// Ready jobs that the driver has not been given.
    offers: VecDeque<Ref>,
    recall: Option<Recall>,
}

impl Dispatch {
    pub(super) fn new(now: Mono) -> Self {
        Dispatch { asked_at: now, ..Self::default() }
    }

    // ---- demand

    pub(super) fn set_demand(&mut self, now: Mono, waiting: usize, ready: usize) {
        if waiting + self.waiting > 0 || ready < self.ready {
            self.asked_at = now;
        }
        (self.waiting, self.ready) = (waiting, ready);
    }

    /// Returns whether nobody has asked for a job for this long.
    pub(super) fn is_deserted(&self, now: Mono, after: Duration) -> bool {
        self.waiting == 0 && self.asked_at.plus(after) <= now
    }

    /// Returns how many more leases are wanted, for callers and for `ahead` jobs in advance, while `takes` are in
    /// flight.
    pub(super) fn wanted(&self, takes: usize, ahead: usize) -> usize {
        (self.waiting + ahead).saturating_sub(self.supply(takes))
    }

    fn supply(&self, takes: usize) -> usize {
        self.ready + self.offers.len() + takes
    }

    // ---- redeliveries that wait for demand

    pub(super) fn push_on_demand(&mut self, r: Ref) {
        self.on_demand.push_back(r);
    }

    pub(super) fn push_suspect(&mut self, suspect: Suspect) {
        self.suspects.push(suspect);
    }

    /// One that has waited longest, if `is` holds for it.
    pub(super) fn pop_on_demand_if(&mut self, is: impl Fn(Ref) -> bool) -> Option<Ref> {
        let first =
            if self.on_demand.front().is_some_and(|r| is(*r)) { self.on_demand.pop_front() } else { None };
        first.or_else(|| self.suspects.pop_if(is))
    }

    /// Returns the next redelivery for a caller, and grants some first attempts after it.
    pub(super) fn redeliver(&mut self, prefetch: usize, is_watched: impl Fn(Ref) -> bool) -> Option<Ref> {
        let is_their_turn = self.on_demand.is_empty() || !self.was_suspect;
        self.was_suspect = is_their_turn && self.suspects.may_begin(is_watched);
        let next = if self.was_suspect { self.suspects.begin() } else { self.on_demand.pop_front() }?;
        self.credit = (self.credit + FIRST_PER_REDELIVERY).min((2 * prefetch).max(FIRST_PER_REDELIVERY));
        Some(next)
    }

    /// Returns whether a first attempt may be taken: while redeliveries wait for a caller, an endless stream of first
    /// attempts would starve them.
    pub(super) fn spend_credit(&mut self, unlimited: bool, is_watched: impl Fn(Ref) -> bool) -> bool {
        if self.on_demand.is_empty() && !self.suspects.may_begin(is_watched) {
            return true;
        }
        let may = self.credit > 0 || unlimited;
        self.credit = self.credit.saturating_sub(1);
        may
    }

    /// Returns the running suspect that the next one waits for, if there is a caller for the next one.
    pub(super) fn held_back_by(&self) -> Option<Ref> {
        self.suspects.held_back_by().filter(|_| self.waiting > 0)
    }

    pub(super) fn has_suspects(&self) -> bool {
        self.suspects.len() > 0
    }

    /// Suspects and other redeliveries have separate limits: suspects that are held back don't hold back the others.
    pub(super) fn waiting_on_demand(&self) -> usize {
        self.on_demand.len().max(self.suspects.len())
    }

    pub(super) fn retain_on_demand(&mut self, is_there: impl Fn(Ref) -> bool) {
        self.on_demand.retain(|r| is_there(*r));
        self.suspects.retain(is_there);
    }

    // ---- ready jobs

    pub(super) fn offer(&mut self, r: Ref) {
        self.offers.push_back(r);
    }

    pub(super) fn pop_offer(&mut self) -> Option<Ref> {
        self.offers.pop_front()
    }

    pub(super) fn take_offers(&mut self) -> VecDeque<Ref> {
        std::mem::take(&mut self.offers)
    }

    /// Records that the driver was given a ready job.
    pub(super) fn given_to_driver(&mut self) {
        self.ready += 1;
    }

    /// Records that a ready job came back untaken: nobody has asked for it.
    pub(super) fn came_back(&mut self) {
        self.ready = self.ready.saturating_sub(1);
    }

    pub(super) fn has_ready(&self) -> bool {
        self.ready > 0 || !self.offers.is_empty()
    }

    /// Asks for the driver's ready jobs back.
    pub(super) fn recall(&mut self, which: Recall) {
        self.recall = self.recall.max(Some(which));
    }

    pub(super) fn is_recalling(&self) -> bool {
        self.recall.is_some()
    }

    pub(super) fn take_recall(&mut self) -> Option<Recall> {
        self.recall.take()
    }
}
