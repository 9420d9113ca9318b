//! What happens to a partition while it is held: where it starts, what is committed, what the log remembers of it.

use super::{
    Change, CommitOutcome, Group, RETRY, planted,
    slot::{Own, Phase},
};
use crate::{Assignment, Cursor, machine::Mono};

#[cfg(feature = "planted-faults")]
use super::GroupFault;

impl Group {
    /// Partitions whose start has to be found: the cursor that the store holds, if any.
    pub fn poll_locate(&mut self, now: Mono) -> Option<(Assignment, Option<Cursor>)> {
        let ready = |own: &Own| matches!(own.phase, Phase::Locating(Some(at)) if now >= at);
        let slot = self.slots.iter_mut().find(|s| s.own.as_ref().is_some_and(ready))?;
        let own = slot.own.as_mut()?;
        own.phase = Phase::Locating(None);
        let (epoch, cursor) = (own.epoch, own.cursor);
        Some((slot.assignment(epoch), cursor))
    }

    /// Where reading starts; `None` if it could not be found out. That is tried again, more and more seldom, and after
    /// the member timeout the partition is let go of, so that another member can try.
    pub fn handle_located(&mut self, assignment: &Assignment, cursor: Option<Cursor>, now: Mono) {
        let (timeout, tick) = (self.config.member_timeout, self.tick());
        let believed = planted!(self, StaleStoredConfirms);
        let Some(slot) = self.slot(&assignment.partition) else { return };
        let Some(own) = slot.held(assignment).filter(|own| own.phase == Phase::Locating(None)) else {
            return;
        };
        let Some(cursor) = cursor else {
            own.failures += 1;
            own.phase = Phase::Locating(Some(now.plus((RETRY * own.failures).min(tick))));
            if now >= own.taken.plus(timeout) {
                own.phase = Phase::Releasing;
                slot.avoid_until = now.plus(timeout);
            }
            return;
        };
        own.phase = Phase::Held;
        own.located = true;
        // Without a mark it would be believed in a topic made anew.
        own.cursor = Some(cursor).filter(|c| c.mark.is_some());
        // A cursor of an earlier topic confirms no commit of this one.
        own.stored = own.stored.filter(|s| own.cursor == Some(*s) || believed);
        self.changes.push_back(Change::Assigned(assignment.clone(), cursor));
    }

    /// Everything below the cursor is finished. Answered by [`Group::poll_answers`] under `id`.
    pub fn handle_commit(&mut self, id: u64, assignment: &Assignment, cursor: Cursor, now: Mono) {
        self.handle_time(now);
        let back = planted!(self, CursorGoesBack);
        let Some(i) = self.by_partition.get(&assignment.partition).copied() else {
            return self.answers.push((id, CommitOutcome::NotOwner));
        };
        let held =
            self.slots[i].held(assignment).filter(|o| matches!(o.phase, Phase::Held | Phase::Revoking(_)));
        let Some(own) = held else { return self.answers.push((id, CommitOutcome::NotOwner)) };
        if back || own.cursor.is_none_or(|c| cursor.offset > c.offset) {
            // An older mark is worth more than none.
            let mark = cursor.mark.or(own.cursor.and_then(|c| c.mark));
            own.cursor = Some(Cursor { mark, ..cursor });
        }
        own.commits.push((id, cursor.offset));
        own.answer_stored(&mut self.answers);
    }

    /// The member lets go of what was being revoked.
    pub fn handle_release(&mut self, assignment: &Assignment) {
        if let Some(own) = self.slot(&assignment.partition).and_then(|s| s.held(assignment))
            && matches!(own.phase, Phase::Revoking(_))
        {
            own.phase = Phase::Releasing;
        }
    }

    /// Reading can't go on where it was: the topic was made anew, or its beginning deleted. The partition is lost and
    /// won again, with a fresh look at where to start.
    pub fn handle_broken(&mut self, assignment: &Assignment) {
        if let Some(i) = self.by_partition.get(&assignment.partition).copied()
            && self.slots[i].held(assignment).is_some()
        {
            self.lose(i, CommitOutcome::Unknown);
        }
    }

    /// A cursor to be put into the log now.
    pub fn poll_checkpoint(&mut self, now: Mono) -> Option<(Assignment, Cursor)> {
        let due = |own: &Own| self.unkept(own).filter(|(_, at)| now >= *at);
        let (i, cursor) = self.slots.iter().enumerate().find_map(|(i, slot)| {
            let (cursor, _) = due(slot.own.as_ref()?)?;
            Some((i, cursor))
        })?;
        let slot = &mut self.slots[i];
        let own = slot.own.as_mut()?;
        own.checkpointing = true;
        let epoch = own.epoch;
        Some((slot.assignment(epoch), cursor))
    }

    /// The cursor that the log lacks, and from when on it should have it.
    pub(super) fn unkept(&self, own: &Own) -> Option<(Cursor, Mono)> {
        let (cursor, at) = match self.leaving {
            false => (own.stored, own.checkpoint_at),
            true if self.owes_checkpoint(own) => (own.cursor, Mono(0)),
            true => (None, Mono(0)),
        };
        cursor.filter(|c| !own.checkpointing && own.checkpointed != Some(*c)).map(|c| (c, at))
    }

    /// Whether a member that leaves has to put its cursor into the log first: there may be nobody after it.
    pub(super) fn owes_checkpoint(&self, own: &Own) -> bool {
        let forgets = planted!(self, LeaveForgets);
        self.leaving && own.located && own.cursor.is_some() && own.checkpointed != own.cursor && !forgets
    }

    /// Whether the log has it. Who leaves tries once.
    pub fn handle_checkpointed(&mut self, assignment: &Assignment, cursor: Cursor, ok: bool, now: Mono) {
        let (next, enough) = (now.plus(self.config.checkpoint_every), ok || self.leaving);
        if let Some(own) = self.slot(&assignment.partition).and_then(|s| s.held(assignment)) {
            own.checkpointing = false;
            own.checkpoint_at = next;
            if enough {
                own.checkpointed = Some(cursor);
            }
        }
    }
}
