//! A process whose callers are all busy, or that has none, must not keep its share of the tasks waiting: what nobody
//! here has asked for within a while is copied to a partition of the wait topic that another process reads, due at once.
//! The copy covers the record, like any other. Alone, a process keeps what it has.

use super::{Fault, Machine, item::Stage, slab::Ref};
use crate::{Partition, TaskId, partitioner};

/// Records that are handed over per sweep. In a fleet that is busy all over, they come back at this rate.
const PER_SWEEP: usize = 100;

impl Machine {
    /// Nobody has asked for a job for a while.
    pub(super) fn has_no_callers(&self) -> bool {
        self.dispatch.is_deserted(self.clock.mono(), self.config.settings.hand_over_after)
    }

    pub(super) fn hand_over(&mut self) {
        if self.config.has_fault(Fault::NothingHandedOver)
            || self.shutting_down
            || !self.has_no_callers()
            || self.partition_elsewhere(None).is_none()
        {
            return;
        }
        // Ready jobs come back through the driver, and are given back.
        if self.dispatch.has_ready() {
            self.recall_ready();
        }
        let wait = self.config.settings.hand_over_after;
        for _ in 0..PER_SWEEP {
            // Those that have waited for long enough here, oldest first.
            let (items, now) = (&self.items, self.clock.mono());
            let has_waited = |r: Ref| items.get(r).is_none_or(|item| item.since.plus(wait) <= now);
            if let Some(r) = self.dispatch.pop_on_demand_if(has_waited) {
                self.copy_elsewhere(r);
                continue;
            }
            if let Some(r) = self.store.pop_failed_take() {
                self.look_instead(r);
                continue;
            }
            // Looked at first: it may be finished, or somebody else's.
            match self.windows.next_queued(1) {
                Some(place) => self.open_record(place, None),
                None => break,
            }
        }
    }

    /// Reads the lease of a record whose take has failed: then it is handed over like those of later attempts.
    fn look_instead(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r).filter(|item| item.store.has_failed()) else { return };
        (item.store.operation, item.stage) = (None, Stage::Considered);
        self.start_read(r);
    }

    fn copy_elsewhere(&mut self, r: Ref) {
        let now = self.clock.mono();
        let Some(item) = self.items.get_mut(r).filter(|item| matches!(item.stage, Stage::OnDemand(_))) else {
            return;
        };
        if item.append.is_some() || !item.store.is_idle() || item.copies.not_before > now {
            return self.wait_for_caller(r);
        }
        item.stage = Stage::Closing;
        self.start_first_copy(r, self.clock.wall(), true);
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
