//! Copies and dead letters: what is appended, and what its acknowledgement allows.

use super::{
    Alarm, Answer, Fault, Machine, Now, Token,
    item::{AppendOp, Item, Place, Stage, StoreOp},
    open, rule,
    rule::Seen,
    slab::Ref,
    window::Slot,
};
use crate::{Effect, Error, NewRecord, Partition, Result, Retry, Wall, partitioner};
use std::{cmp::Reverse, collections::VecDeque, time::Duration};

/// How long an append that can't succeed waits before it is tried again: until then a person may have mended it.
const STUCK_PAUSE: Duration = Duration::from_secs(30);

impl Machine {
    /// The record rule says: copy it, to be considered again at `due`.
    pub(super) fn park(&mut self, r: Ref, due: Wall) {
        // The append may take long; the task's other items must not wait for it.
        self.let_go(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Closing;
        let announce = matches!(item.seen, Seen::Missing);
        if let Seen::Newer(version, _) = item.seen {
            let at = item.at.clone();
            self.alarm(Alarm::Newer { at, version });
        }
        self.start_copy(r, due, announce);
    }

    /// A job that takes long must not hold back the commit.
    fn park_held(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        if item.stage != Stage::Held || item.place.is_none() || item.append.is_some() || item.ask.is_some() {
            return;
        }
        let Some(lease) = item.seen.lease() else { return };
        let mut due = rule::end(lease, self.now.wall, self.limits);
        if self.broken(Fault::ParkWithoutSkew) {
            due = lease.deadline;
        }
        self.start_copy(r, due, false);
    }

    pub(super) fn start_copy(&mut self, r: Ref, due: Wall, announce: bool) {
        let Some(item) = self.items.get(r) else { return };
        let cover = item.next_cover();
        let ahead = due.since(self.now.wall);
        self.start_append(r, AppendOp::Copy { cover, due, ahead, lane_due: due, announce });
        if self.broken(Fault::FinishBeforeAck) {
            self.finish_record(r);
        }
        if self.broken(Fault::RaiseBeforeAck)
            && let Some(item) = self.items.get_mut(r)
        {
            item.raise = Some((cover, due));
            self.go_on(r);
        }
    }

    pub(super) fn bury(&mut self, r: Ref, reason: String) {
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Burying;
        }
        self.start_append(r, AppendOp::DeadLetter { reason });
    }

    pub(super) fn start_append(&mut self, r: Ref, op: AppendOp) {
        let Some(item) = self.items.get_mut(r) else { return };
        debug_assert!(item.append.is_none(), "one append at a time");
        item.append = Some(op);
        self.queue_append(r);
    }

    fn queue_append(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        let id = &item.content.id;
        let to = match &mut item.append {
            None => return,
            Some(AppendOp::Copy { due, lane_due, .. }) => {
                let (index, leaves) = self.ladder.place(self.now.wall, *due, id);
                *lane_due = leaves;
                Partition::new(self.layout.wait.clone(), index)
            }
            Some(AppendOp::DeadLetter { .. } | AppendOp::Whole { .. }) => {
                let index = partitioner::for_key(id.as_str().as_bytes(), self.layout.dead_partitions);
                Partition::new(self.layout.dead.clone(), index)
            }
        };
        match self.appends.iter_mut().find(|(p, _)| *p == to) {
            Some((_, line)) => line.push_back(r),
            None => self.appends.push((to, VecDeque::from([r]))),
        }
    }

    pub(super) fn new_record(&self, r: Ref) -> Option<NewRecord> {
        let item = self.items.get(r)?;
        Some(match item.append.as_ref()? {
            AppendOp::Copy { cover, due, ahead, lane_due, .. } => {
                open::copy(item, *cover, (*due, *ahead), *lane_due)
            }
            AppendOp::DeadLetter { reason } => {
                // A burial's own take was no hand-out.
                let attempts = item.own.map_or(0, |o| o.attempt).min(self.limits.max_attempts);
                open::dead_letter(item, reason, attempts)
            }
            AppendOp::Whole { reason } => open::whole(item.whole.as_deref()?, reason, &item.at),
        })
    }

    /// The outcome of an append.
    pub fn handle_appended(&mut self, now: Now, token: Token, outcome: Result<i64>) {
        self.hear(now);
        let r = Ref::from_bits(token.0);
        let Some(item) = self.items.get_mut(r) else { return };
        match outcome {
            Ok(_) => {
                self.log_gate.worked();
                if let Some(op) = item.append.take() {
                    self.appended(r, op);
                }
            }
            Err(error) => self.append_failed(r, error),
        }
    }

    fn appended(&mut self, r: Ref, op: AppendOp) {
        match op {
            AppendOp::Copy { cover, due, ahead, announce, .. } => {
                self.finish_record(r);
                if let Some(item) = self.items.get_mut(r) {
                    item.copies = item.copies.max(cover);
                    if !announce {
                        item.raise = Some((cover, due));
                    }
                }
                if announce {
                    let fence = self.new_fence();
                    self.start(r, StoreOp::Announce { cover, due, length: ahead, fence });
                } else {
                    self.go_on(r);
                }
            }
            AppendOp::DeadLetter { .. } => self.start(r, StoreOp::Dead),
            AppendOp::Whole { reason } => {
                self.finish_record(r);
                if let Some(item) = self.items.get(r) {
                    let at = item.at.clone();
                    self.alarm(Alarm::Undecodable { at, why: reason });
                }
                self.close(r);
            }
        }
    }

    /// An append of unknown effect is repeated with the same number.
    fn append_failed(&mut self, r: Ref, error: Error) {
        if error.effect() == Effect::Unknown || error.retry() != Retry::No {
            self.log_gate.failed(self.now.mono);
            return self.queue_append(r);
        }
        let Some(item) = self.items.get_mut(r) else { return };
        let at = item.at.clone();
        if matches!(item.append, Some(AppendOp::DeadLetter { .. })) {
            item.append = None;
            self.alarm(Alarm::Stuck { at, error: error.clone() });
            if self.broken(Fault::DeadLetterUnchecked) {
                return self.start(r, StoreOp::Dead);
            }
            // It is not finished in any other way: it comes back after a lease.
            self.answer(r, Answer::Failed(error));
            let length = self.settings.lease;
            return self.start(r, StoreOp::Idle { length });
        }
        self.alarm(Alarm::Stuck { at, error });
        self.later.push(Reverse((self.now.mono.plus(STUCK_PAUSE), r)));
    }

    pub(super) fn requeue_later(&mut self) {
        while let Some(Reverse((when, r))) = self.later.peek().copied()
            && when <= self.now.mono
        {
            self.later.pop();
            self.queue_append(r);
        }
    }

    /// Tells the lease of a durable copy, if that is of use.
    pub(super) fn raise(&mut self, r: Ref, cover: u32, due: Wall) {
        if self.may_raise(r, cover, due) {
            self.start(r, StoreOp::Raise { cover, due, again: false });
        } else {
            self.go_on(r);
        }
    }

    /// Only for a copy that comes to its turn no later than the lease ends: a later one must not displace an earlier.
    pub(super) fn may_raise(&self, r: Ref, cover: u32, due: Wall) -> bool {
        let lease = self.items.get(r).and_then(|i| i.seen.lease());
        lease.is_some_and(|l| {
            let in_time = due <= rule::end(l, self.now.wall, self.limits);
            !l.state.is_terminal() && l.cover < cover && (in_time || self.broken(Fault::RaiseForLater))
        })
    }

    /// Keeps the flow within its limits, copies what takes too long, and makes room at the head of a full window.
    pub(super) fn tend_window(&mut self, w: Ref) {
        let Some(window) = self.windows.get_mut(w).filter(|w| w.release_by.is_none()) else { return };
        let (most, most_bytes) = (self.settings.window, self.settings.window_bytes);
        let full = window.len() >= most || window.bytes() >= most_bytes;
        let room = window.len() * 2 <= most && window.bytes() * 2 <= most_bytes;
        if (full && !window.paused) || (room && window.paused) {
            window.paused = full;
            self.flow.push_back((window.assignment.clone(), !full));
        }
        let Some(window) = self.windows.get(w) else { return };
        let blocked = full && window.is_blocked_by_head();
        let mut late = Vec::new();
        let mut hop = None;
        for (seq, slot) in window.unfinished() {
            let in_the_way = blocked && late.is_empty();
            match slot {
                Slot::Open(r) if in_the_way || self.items.get(*r).is_some_and(|i| self.is_late(i)) => {
                    late.push(*r);
                }
                Slot::Queued(_) if in_the_way && window.is_wait => {
                    hop = Some(Place { window: w, seq });
                    break;
                }
                _ => break,
            }
        }
        late.into_iter().for_each(|r| self.park_held(r));
        if let Some(place) = hop {
            self.begin_turn(place, false);
        }
    }

    pub(super) fn is_late(&self, item: &Item) -> bool {
        item.turn.plus(self.settings.park_after) <= self.now.mono
    }
}
