//! How items begin, advance and end, and their records with them.

use super::{
    Machine, News,
    item::{Copies, Item, Operation, Raise, RecordState, Stage, SwapOp},
    items::NewItem,
    rule::Meta,
    slab::Ref,
    window::Slot,
};

impl Machine {
    pub(super) fn insert_item(&mut self, new: NewItem) -> Ref {
        let place = new.place;
        let r = self.items.insert(new, &self.config.layout.keyspace, self.clock.mono());
        if let Some(window) = self.windows.get_mut(place.window) {
            window.set(place.seq, Slot::Open(r));
        }
        r
    }

    /// Removes the item; its record stays in the window as it is.
    pub(super) fn remove(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        let has_begun = !item.store.has_failed();
        if let Some(Operation::Read(_)) = item.store.operation.take()
            && has_begun
        {
            self.store.read_ends();
        }
        self.end_take(r);
        self.release_key(r);
        self.items.remove(r);
        self.news = self.news.max(News::Ended);
    }

    /// Finishes the item's record. I1, I4: records are finished only here.
    pub(super) fn finish_record(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        let Some(place) = item.place() else { return };
        item.record = RecordState::Finished;
        if let Some(window) = self.windows.get_mut(place.window) {
            window.finish(place.seq);
        }
        self.news = self.news.max(News::Ended);
    }

    /// Returns whether this process may consider the item's record.
    pub(super) fn is_ours(&self, r: Ref) -> bool {
        let place = self.items.get(r).and_then(|item| item.place());
        let window = place.and_then(|place| self.windows.get(place.window));
        !self.shutting_down && window.is_some_and(|window| !window.is_revoked())
    }

    /// Considers the record again, with a new item: a handle of the old item must not reach the new job.
    pub(super) fn reconsider(&mut self, r: Ref) {
        if let Some(fresh) = self.detach(r) {
            self.start_read(fresh);
        }
        self.close(r);
    }

    /// Moves the item's record to a new item, if this process may still consider it.
    pub(super) fn detach(&mut self, r: Ref) -> Option<Ref> {
        if !self.is_ours(r) {
            return None;
        }
        let item = self.items.get_mut(r)?;
        let place = item.place()?;
        item.record = RecordState::Elsewhere;
        // A job that nobody has had may have been given back meanwhile, with its attempt: then the lease shows it. For
        // a job without a lease, nothing does.
        let may_run = item.handed_out || (item.is_unleased() && item.is_with_driver());
        let attempt = if may_run { item.attempt() } else { item.meta.attempt };
        let meta = Meta { attempt, failures: item.failures(), ..item.meta };
        // The cover number of a copy that may yet become durable is not reused.
        let highest = item.copies.highest.max(item.copy().map_or(0, |copy| copy.cover));
        let copies = Copies { highest, ..item.copies };
        let (content, history, at) = (item.content.clone(), item.history.clone(), item.at.clone());
        Some(self.insert_item(NewItem { content, meta, history, place, at, copies }))
    }

    /// Closes the item: it only waits for its operations in flight.
    pub(super) fn close(&mut self, r: Ref) {
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Closing;
        }
        self.drop_pointless_append(r);
        self.advance(r);
    }

    /// Drops a copy, or any other append that would finish the record, once that is finished or belongs to another
    /// process. Returns whether there was one that was not in flight.
    pub(super) fn drop_pointless_append(&mut self, r: Ref) -> bool {
        let is_pointless = |item: &Item| item.is_closing() && item.place().is_none();
        self.items.get(r).is_some_and(is_pointless) && self.cancel_append(r)
    }

    /// Cancels an append. Returns whether there was one that was not in flight.
    pub(super) fn cancel_append(&mut self, r: Ref) -> bool {
        let Some(item) = self.items.get_mut(r) else { return false };
        let is_cancelled = item.append.is_some() && self.appends.cancel(r);
        if is_cancelled {
            item.append = None;
        }
        is_cancelled
    }

    /// Begins the next operation that waited for the last one, or ends the item.
    pub(super) fn advance(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        if !item.store.is_idle() {
            return;
        }
        if item.is_held()
            && let Some(next) = item.commands.pop()
        {
            return self.begin_command(r, next);
        }
        // The swap to dead follows its append at once.
        if !item.is_dead_lettering()
            && let Some(raise) = item.raise.take()
        {
            return self.raise(r, raise);
        }
        let mut is_over = item.is_closing();
        if let Stage::Held(held) = &mut item.stage {
            if std::mem::take(&mut held.came_back) {
                return self.renew_or_offer(r, false);
            }
            let is_abandoned = !held.with_driver && item.commands.current().is_none();
            is_over = is_abandoned && (item.place().is_none() || self.shutting_down);
        }
        if is_over && item.append.is_none() {
            self.remove(r);
        }
    }

    /// Records a durable copy in the lease, if that is of use.
    fn raise(&mut self, r: Ref, raise: Raise) {
        if self.may_raise(r, raise) {
            self.start_swap(r, SwapOp::Raise { cover: raise.cover });
        } else {
            self.advance(r);
        }
    }
}
