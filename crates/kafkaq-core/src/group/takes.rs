//! Decides which partitions a member takes, and which it asks for.

use super::{Group, GroupFault, MemberId, Value, balance::Loads, view::PartitionView};
use crate::machine::Mono;

impl Group {
    /// The next free partition that this member takes; it is added to `loads`.
    pub(super) fn take(&self, i: usize, loads: &mut Loads, now: Mono) -> Option<Value> {
        let (me, view) = (self.config.member, &self.views[i]);
        if !self.is_free(view, now) {
            return None;
        }
        let promised = view.wanted_by() == Some(me);
        // Lost while the store was down: nobody else can have it as long as the store has this member's name.
        let still_ours = view.owner() == Some(me);
        // A partition that stays free for too long may be taken by any member.
        let left_over = now >= view.changed.plus(self.config.member_timeout + self.tick() * 3);
        if !promised && !still_ours && !left_over && !loads.has_room(&view.partition.topic, me) {
            return None;
        }
        if !promised {
            loads.add(&view.partition.topic, me);
        }
        let cursor = view.value.as_ref().and_then(|v| v.cursor);
        let epoch = view.epoch + u64::from(!self.planted.is(GroupFault::EpochKept));
        Some(Value { owner: Some(me), counter: 0, epoch, wanted_by: None, cursor })
    }

    /// Whether the owner, if there is one, has shown no sign of life for too long.
    fn is_expired(&self, view: &PartitionView, now: Mono) -> bool {
        let limit = if self.planted.is(GroupFault::TakesFromTheLiving) {
            self.tick() / 2
        } else {
            self.config.member_timeout
        };
        now >= view.changed.plus(limit) && !self.planted.is(GroupFault::NoExpiry)
    }

    fn is_free(&self, view: &PartitionView, now: Mono) -> bool {
        let busy = view.own.is_some() || view.sent.is_some() || !view.known || view.newer || view.gone;
        if busy || now < view.retry_at || now < view.avoid_until {
            return false;
        }
        match (view.owner(), view.wanted_by()) {
            // Its own value from before it was lost, or from a swap whose response never came.
            (Some(owner), _) if owner == self.config.member => true,
            (Some(_), _) => self.is_expired(view, now),
            (None, Some(by)) if by != self.config.member => now >= view.changed.plus(self.tick() * 3),
            (None, _) => true,
        }
    }

    /// The live member that has it or is promised it.
    pub(super) fn holder(&self, view: &PartitionView, now: Mono) -> Option<MemberId> {
        let me = self.config.member;
        let taking = view.sent.as_ref().is_some_and(|s| s.new.owner == Some(me));
        if view.own.is_some() || taking {
            return Some(view.wanted_by().unwrap_or(me));
        }
        let alive = view.value.is_some() && !self.is_free(view, now);
        view.wanted_by().or(view.owner()).filter(|m| (*m != me && alive) || view.wanted_by() == Some(me))
    }

    /// The next partition to ask another member for. Only one at a time.
    pub(super) fn request(&self, loads: &Loads, now: Mono) -> Option<(usize, Value)> {
        let me = self.config.member;
        let asks = |s: &PartitionView| {
            s.own.is_none()
                && (s.wanted_by() == Some(me) || s.sent.as_ref().is_some_and(|s| s.new.wanted_by == Some(me)))
        };
        let waits = |s: &PartitionView| !s.gone && (asks(s) || !s.known);
        if self.planted.is(GroupFault::NoBalance) || self.views.iter().any(waits) {
            return None;
        }
        let (topic, victim) = loads.victim(me, self.planted.is(GroupFault::StealsForNothing))?;
        let i = self.views.iter().position(|s| {
            let open = s.sent.is_none() && s.own.is_none() && now >= s.retry_at && !s.newer && !s.gone;
            open && s.partition.topic == topic && s.owner() == Some(victim) && s.wanted_by().is_none()
        })?;
        let mut new = self.views[i].value.clone()?;
        new.wanted_by = Some(me);
        Some((i, new))
    }
}
