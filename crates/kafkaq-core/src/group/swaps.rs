//! Store operations and their outcomes: reads of other members' partitions, renewals, takes and requests.

use super::{
    Change, CommitOutcome, Group, GroupFault, RETRY, ReadToken, SwapToken, Value,
    balance::Loads,
    view::{Own, PartitionView, Phase, Sent},
};
use crate::{Cursor, Key, Result, Swap, Swapped, machine::Mono};
use bytes::Bytes;

impl Group {
    /// Returns the keys to read now, if it is time. Partitions that this member holds aren't read: its renewals show
    /// their state.
    ///
    /// All others are read twice as often as their owners renew, so that the time from a member's last sign of life to
    /// the moment when it is noticed adds little to the member timeout.
    pub fn poll_read(&mut self, now: Mono, max: usize) -> Option<(ReadToken, Vec<Key>)> {
        if self.reading || self.leaving || now < self.next_read {
            return None;
        }
        let others = |s: &PartitionView| s.own.is_none() && s.sent.is_none() && !s.gone;
        let mut rest = self.views.iter().enumerate().skip(self.read_from).filter(|(_, s)| others(s));
        let (token, keys): (Vec<_>, Vec<_>) =
            rest.by_ref().take(max).map(|(i, s)| ((i, s.version), s.key.clone())).unzip();
        match rest.next() {
            Some((i, _)) => self.read_from = i,
            None => {
                self.read_from = 0;
                let asks =
                    self.views.iter().any(|s| s.wanted_by() == Some(self.config.member) && s.own.is_none());
                let often = if self.planted.is(GroupFault::LooksSeldom) {
                    self.config.member_timeout
                } else {
                    self.tick() / 2
                };
                self.next_read = now.plus(if asks { self.tick() / 5 } else { often });
            }
        }
        self.reading = !keys.is_empty();
        self.reading.then_some((ReadToken(token), keys))
    }

    /// The outcome of a read.
    pub fn handle_read(&mut self, token: ReadToken, outcomes: Vec<Result<Option<Bytes>>>, now: Mono) {
        self.reading = false;
        let patience = self.tick() * 2;
        for ((i, version), outcome) in token.0.into_iter().zip(outcomes) {
            let view = &mut self.views[i];
            match outcome {
                Ok(raw) if view.version == version => view.observe(raw, now),
                Ok(_) => {}
                Err(_) => view.note_no_response(now, patience),
            }
        }
    }

    /// Returns the swaps to send now, at most one per key at a time.
    pub fn poll_swaps(&mut self, now: Mono, max: usize, out: &mut Vec<(SwapToken, Swap)>) {
        self.handle_time(now);
        for i in 0..self.views.len() {
            if out.len() < max
                && let Some(new) = self.renewal(i, now).or_else(|| self.release_value(i, now))
            {
                self.send(i, new, now, out);
            }
        }
        if self.leaving {
            return;
        }
        let me = self.config.member;
        let mut loads = Loads::new(&self.views, me, |view| self.holder(view, now));
        // Each member starts at a different partition, so that two rarely want the same one.
        let begin = usize::from(me[15]);
        for n in 0..self.views.len() {
            let i = (begin + n) % self.views.len();
            if out.len() < max
                && let Some(new) = self.take(i, &mut loads, now)
            {
                self.send(i, new, now, out);
            }
        }
        if out.len() < max
            && let Some((i, new)) = self.request(&loads, now)
        {
            self.send(i, new, now, out);
        }
    }

    /// When a hold is to be written next: at once if there is something to write, otherwise one tick after the last
    /// time.
    pub(super) fn write_at(&self, view: &PartitionView, own: &Own) -> Mono {
        let news = self.lets_go(own) || own.cursor != own.stored;
        let at = own.beat.filter(|_| !news).map_or(Mono(0), |beat| beat.plus(self.tick()));
        at.max(view.retry_at)
    }

    fn lets_go(&self, own: &Own) -> bool {
        own.phase == Phase::Releasing && !self.owes_checkpoint(own)
    }

    /// The value that an owner writes next, if any.
    fn renewal(&self, i: usize, now: Mono) -> Option<Value> {
        let view = &self.views[i];
        let own = view.own.as_ref().filter(|own| view.sent.is_none() && now >= self.write_at(view, own))?;
        Some(Value {
            owner: (!self.lets_go(own)).then_some(self.config.member),
            counter: 0,
            epoch: own.epoch,
            wanted_by: view.wanted_by().filter(|m| *m != self.config.member),
            cursor: own.cursor,
        })
    }

    /// The value with which a leaving member replaces its name in a lost partition.
    fn release_value(&self, i: usize, now: Mono) -> Option<Value> {
        let view = &self.views[i];
        let is_due = self.leaving && view.sent.is_none() && now >= view.retry_at && self.is_left_behind(view);
        // As if it took it again and released it at once: the stored value may be older than what the last hold has
        // written.
        let epoch = view.epoch + 1;
        Some(Value { owner: None, epoch, ..view.value.clone().filter(|_| is_due)? })
    }

    fn send(&mut self, i: usize, mut new: Value, now: Mono, out: &mut Vec<(SwapToken, Swap)>) {
        let view = &mut self.views[i];
        if new.owner == Some(self.config.member) || view.own.is_some() {
            view.counter = view.counter.max(view.value.as_ref().map_or(0, |v| v.counter)) + 1;
            new.counter = view.counter;
        }
        view.version += 1;
        if let Some(own) = &mut view.own {
            own.beat = Some(now);
        }
        let take = view.own.is_none() && new.owner == Some(self.config.member);
        let located = view.own.as_ref().is_some_and(|own| own.located);
        let raw = new.encode();
        out.push((SwapToken(i), Swap::new(view.key.clone(), view.raw.clone(), Some(raw.clone()), None)));
        view.sent = Some(Sent { new, raw, at: now, take, located });
        if self.planted.is(GroupFault::CommitUnconfirmed)
            && let Some(own) = &mut self.views[i].own
        {
            self.answers.extend(own.commits.drain(..).map(|(id, _)| (id, CommitOutcome::Done)));
        }
    }

    /// The outcome of a swap.
    pub fn handle_swapped(&mut self, token: SwapToken, outcome: Result<Swapped>, now: Mono) {
        let view = &mut self.views[token.0];
        let Some(sent) = view.sent.take() else { return };
        view.version += 1;
        match outcome {
            Err(_) => {
                view.retry_at = now.plus(RETRY);
                view.write_at_once();
            }
            Ok(Swapped::Done) => {
                view.observe(Some(sent.raw.clone()), now);
                self.swap_done(token.0, &sent);
            }
            Ok(Swapped::Conflict(current)) => {
                view.observe(current, now);
                self.swap_lost(token.0, now);
            }
        }
    }

    fn swap_done(&mut self, i: usize, sent: &Sent) {
        let view = &mut self.views[i];
        let won = sent.new.owner == Some(self.config.member);
        match &mut view.own {
            Some(own) if own.epoch == sent.new.epoch => {
                own.renewed = sent.at;
                if sent.located {
                    own.stored = sent.new.cursor;
                    own.answer_stored(&mut self.answers);
                }
                if !won {
                    self.lose(i, CommitOutcome::NotOwner);
                }
            }
            None if sent.take => {
                let checkpoint_at = sent.at.plus(self.config.checkpoint_every);
                let mut own = Own::new(sent.new.epoch, sent.at, sent.new.cursor, checkpoint_at);
                if self.leaving {
                    own.phase = Phase::Releasing;
                }
                view.own = Some(own);
            }
            // A renewal that succeeds after its assignment was lost has no effect.
            Some(_) | None => {}
        }
    }

    fn swap_lost(&mut self, i: usize, now: Mono) {
        let release_by = now.plus(self.config.release_limit);
        let Some(own) = &self.views[i].own else { return };
        if !self.is_ours(&self.views[i], own) {
            return self.lose(i, CommitOutcome::NotOwner);
        }
        let me = self.config.member;
        let view = &mut self.views[i];
        let wanted = view.wanted_by().is_some_and(|m| m != me);
        view.write_at_once();
        let Some(own) = view.own.as_mut().filter(|_| wanted) else { return };
        match own.phase {
            Phase::Held => {
                own.phase = Phase::Revoking(release_by);
                let epoch = own.epoch;
                self.changes.push_back(Change::Revoking(view.assignment(epoch)));
            }
            Phase::Locating(_) => own.phase = Phase::Releasing,
            Phase::Revoking(_) | Phase::Releasing => {}
        }
    }

    /// Whether an owner that found this value instead of its own overwrites it.
    fn is_ours(&self, view: &PartitionView, own: &Own) -> bool {
        let Some(found) = &view.value else { return !view.newer };
        // The response to an earlier swap was lost, or another member asks for the partition.
        let mine = found.owner == Some(self.config.member);
        // The store was rolled back. What was committed since must stay: a cursor that is further on, or of a later
        // topic that this owner has not noticed yet. Yielding without need costs a moment, and no record.
        let further = |c: Cursor| own.cursor.is_none_or(|o| c.offset > o.offset || c.time() > o.time());
        let kept = !found.cursor.is_some_and(further) || self.planted.is(GroupFault::OwnCursorKept);
        let past = found.epoch < own.epoch && kept;
        mine || past || self.planted.is(GroupFault::ConflictOverwritten)
    }
}
