//! A process whose callers are all busy, or that has none, must not keep its share of the tasks waiting: what nobody
//! here has asked for within a while is copied to a partition of the wait topic that another process reads, due at once.
//! The copy covers the record, like any other. Alone, a process keeps what it has.

use super::{
    Fault, Machine,
    item::{Holder, Stage},
    rule::Seen,
    slab::Ref,
};
use crate::{Partition, TaskId, partitioner};

/// Records that are handed over per sweep. In a fleet that is busy all over, they come back at this rate.
const AT_ONCE: usize = 100;

impl Machine {
    /// Nobody has asked for a job for a while.
    pub(super) fn is_deserted(&self) -> bool {
        self.dispatch.is_deserted(self.clock.mono(), self.config.settings.hand_over_after)
    }

    pub(super) fn hand_over(&mut self) {
        if self.config.has_fault(Fault::NothingHandedOver)
            || self.shutting
            || !self.is_deserted()
            || self.partition_elsewhere(None).is_none()
        {
            return;
        }
        // Ready jobs come back through the driver, and are given back.
        if self.dispatch.has_ready() {
            self.recall_ready();
        }
        let wait = self.config.settings.hand_over_after;
        for _ in 0..AT_ONCE {
            // Those that have waited for long enough here, oldest first.
            let (items, now) = (&self.items, self.clock.mono());
            let waited = |r: Ref| items.get(r).is_none_or(|i| i.turn.plus(wait) <= now);
            if let Some(r) = self.dispatch.pop_on_demand_if(waited) {
                self.send_elsewhere(r);
                continue;
            }
            // Looked at first: it may be finished, or somebody else's.
            match self.windows.next_queued() {
                Some(place) => self.begin_turn(place, None),
                None => break,
            }
        }
    }

    fn send_elsewhere(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r).filter(|i| matches!(i.stage, Stage::OnDemand(_))) else {
            return;
        };
        if item.append.is_some() || item.store.is_some() || item.no_park_before > self.clock.mono() {
            return self.dispatch.push_on_demand(r);
        }
        item.stage = Stage::Closing;
        item.holder = Holder::None;
        let announce = matches!(item.seen, Seen::Missing);
        self.start_copy_to(r, self.clock.wall(), announce, true);
    }

    /// A partition of the wait topic that isn't this process's. A long lane may not be read for a while, so every other
    /// copy goes to one that is, if there is one; and every other one anywhere, since those may all belong to processes
    /// without callers.
    pub(super) fn partition_elsewhere(&self, of: Option<(&TaskId, u32)>) -> Option<i32> {
        let all = self.config.layout.wait_partitions;
        let (id, cover) = of.unzip();
        let first = id.map_or(0, |id| partitioner::for_key(id.as_str().as_bytes(), all));
        let is_other = |index: &i32| {
            let partition = Partition::new(self.config.layout.wait.clone(), *index);
            self.windows.of_partition(&partition).next().is_none()
        };
        let others = || (0..all).map(|n| (first + n) % all).filter(is_other);
        let soon = || others().find(|index| self.config.ladder.is_read_soon(*index));
        let is_soon = cover.is_some_and(|cover| cover % 2 == 1);
        is_soon.then(soon).flatten().or_else(|| others().next())
    }
}
