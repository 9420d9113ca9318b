//! A partition while it is held: where it starts, its commits, its checkpoints in the log.

use super::{
    Change, CommitOutcome, Group, GroupFault, RETRY,
    view::{Own, Phase},
};
use crate::{Assignment, Cursor, machine::Mono};

impl Group {
    /// Returns the view of an assignment that is still held; `None` if the assignment is outdated.
    fn held(&self, assignment: &Assignment) -> Option<usize> {
        let i = *self.by_partition.get(&assignment.partition)?;
        let own = self.views[i].own.as_ref()?;
        (own.epoch == assignment.epoch || self.planted.is(GroupFault::OldEpochTaken)).then_some(i)
    }

    /// Returns partitions whose start has to be found, with the store's cursor, if any.
    pub fn poll_locate(&mut self, now: Mono) -> Option<(Assignment, Option<Cursor>)> {
        let ready = |own: &Own| matches!(own.phase, Phase::Locating(Some(at)) if now >= at);
        let view = self.views.iter_mut().find(|s| s.own.as_ref().is_some_and(ready))?;
        let own = view.own.as_mut()?;
        own.phase = Phase::Locating(None);
        let (epoch, cursor) = (own.epoch, own.cursor);
        Some((view.assignment(epoch), cursor))
    }

    /// Where reading starts; `None` if it could not be found out. That is retried, with a backoff, and after the member
    /// timeout the partition is released, so that another member can try.
    pub fn handle_located(&mut self, assignment: &Assignment, cursor: Option<Cursor>, now: Mono) {
        let (timeout, tick) = (self.config.member_timeout, self.tick());
        let believed = self.planted.is(GroupFault::StaleStoredConfirms);
        let Some(i) = self.held(assignment) else { return };
        let view = &mut self.views[i];
        let Some(own) = view.own.as_mut().filter(|own| own.phase == Phase::Locating(None)) else { return };
        let Some(cursor) = cursor else {
            own.failures += 1;
            own.phase = Phase::Locating(Some(now.plus((RETRY * own.failures).min(tick))));
            if now >= own.taken.plus(timeout) {
                own.phase = Phase::Releasing;
                view.avoid_until = now.plus(timeout);
            }
            return;
        };
        own.phase = Phase::Held;
        own.located = true;
        // Without a mark it would be trusted in a recreated topic.
        own.cursor = Some(cursor).filter(|c| c.mark.is_some());
        // A cursor of an earlier topic confirms no commit of this one.
        own.stored = own.stored.filter(|s| own.cursor == Some(*s) || believed);
        self.changes.push_back(Change::Assigned(assignment.clone(), cursor));
    }

    /// Commits: everything below the cursor is finished. The outcome is returned by [`Group::poll_answers`] under `id`.
    pub fn handle_commit(&mut self, id: u64, assignment: &Assignment, cursor: Cursor, now: Mono) {
        self.handle_time(now);
        let back = self.planted.is(GroupFault::CursorGoesBack);
        let open = |own: &&mut Own| matches!(own.phase, Phase::Held | Phase::Revoking(_));
        let held = self.held(assignment).and_then(|i| self.views[i].own.as_mut()).filter(open);
        let Some(own) = held else { return self.answers.push((id, CommitOutcome::NotOwner)) };
        if back || own.cursor.is_none_or(|c| cursor.offset > c.offset) {
            // Older marks are better than none.
            let marks = own.cursor.filter(|_| cursor.mark.is_none()).unwrap_or(cursor);
            own.cursor = Some(Cursor { offset: cursor.offset, ..marks });
        }
        own.commits.push((id, cursor.offset));
        own.answer_stored(&mut self.answers);
    }

    /// The member releases a revoked partition.
    pub fn handle_release(&mut self, assignment: &Assignment) {
        if let Some(i) = self.held(assignment)
            && let Some(own) = &mut self.views[i].own
            && matches!(own.phase, Phase::Revoking(_))
        {
            own.phase = Phase::Releasing;
        }
    }

    /// Reading can't continue from its position: the log was replaced, or its records don't fit. The partition is lost
    /// and taken again, and its start is determined again, after a pause, since it may be broken again.
    pub fn handle_broken(&mut self, assignment: &Assignment, now: Mono) {
        if let Some(i) = self.held(assignment).filter(|_| !self.planted.is(GroupFault::BrokenKept)) {
            self.lose(i, CommitOutcome::Unknown);
            self.views[i].retry_at = now.plus(RETRY);
        }
    }

    /// Returns the cursors to write to the log now: if one is due, all that the log lacks, up to `max`, so that they
    /// are one append.
    pub fn poll_checkpoints(&mut self, now: Mono, max: usize, out: &mut Vec<(Assignment, Cursor)>) {
        let pending: Vec<_> =
            self.views.iter().map(|s| s.own.as_ref().and_then(|own| self.pending_checkpoint(own))).collect();
        if !pending.iter().flatten().any(|(_, at)| now >= *at) {
            return;
        }
        for (view, (cursor, _)) in
            self.views.iter_mut().zip(pending).filter_map(|(s, u)| Some((s, u?))).take(max)
        {
            if let Some(own) = &mut view.own {
                own.checkpointing = true;
                let epoch = own.epoch;
                out.push((view.assignment(epoch), cursor));
            }
        }
    }

    /// The cursor that the log lacks, and when it is due. Not before the start is found: until then it is the store's,
    /// which may have been rolled back, while the log has a later one.
    pub(super) fn pending_checkpoint(&self, own: &Own) -> Option<(Cursor, Mono)> {
        let is_own = own.located || self.planted.is(GroupFault::UnlocatedKept);
        let (cursor, at) = match self.leaving {
            false => (own.stored.filter(|_| is_own), own.checkpoint_at),
            true if self.owes_checkpoint(own) => (own.cursor, Mono(0)),
            true => (None, Mono(0)),
        };
        cursor.filter(|c| !own.checkpointing && own.checkpointed != Some(*c)).map(|c| (c, at))
    }

    /// Whether a leaving member has to write its cursor to the log first: it may be the last member.
    pub(super) fn owes_checkpoint(&self, own: &Own) -> bool {
        let forgets = self.planted.is(GroupFault::LeaveForgets);
        self.leaving && own.located && own.cursor.is_some() && own.checkpointed != own.cursor && !forgets
    }

    /// The outcome of writing a checkpoint. A leaving member tries only once.
    pub fn handle_checkpointed(&mut self, assignment: &Assignment, cursor: Cursor, ok: bool, now: Mono) {
        let (next, enough) = (now.plus(self.config.checkpoint_every), ok || self.leaving);
        if let Some(i) = self.held(assignment)
            && let Some(own) = &mut self.views[i].own
        {
            own.checkpointing = false;
            own.checkpoint_at = next;
            if enough {
                own.checkpointed = Some(cursor);
            }
        }
    }
}
