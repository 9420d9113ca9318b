//! A process whose callers are all busy, or that has none, must not keep its share of the tasks waiting: what nobody
//! here has asked for within a while is copied to a partition of the wait topic that another process reads, due at
//! once. The copy covers the record, like any other. The only process of a group keeps its tasks.

use super::{Fault, Machine, item::Stage, slab::Ref};
use crate::{Partition, TaskId, partitioner};
use std::time::Duration;

/// Records that are handed over per sweep. If the whole fleet is busy, they come back at this rate.
const PER_SWEEP: usize = 100;
/// What counts as a short stay in a lane: 64 s, plus the slack.
const A_MINUTE: Duration = Duration::from_secs(70);

impl Machine {
    /// Returns whether nobody has asked for a job for a while.
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
                self.read_lease_instead(r);
                continue;
            }
            // Its lease is read first: the task may be finished, or held by another process.
            match self.windows.next_queued(1) {
                Some(place) => self.open_record(place, None),
                None => break,
            }
        }
    }

    /// Reads the lease of a record whose take has failed: then it is handed over like those of later attempts.
    fn read_lease_instead(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r).filter(|item| item.store.has_failed()) else { return };
        // The take may have won the lease, and a read would mistake that for another process's.
        if item.store.in_doubt {
            return self.retry(r);
        }
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

    /// Returns a partition of the wait topic that another process reads. A full lane isn't read further until its
    /// records are about to leave, so every other copy goes to a partition that is always read to its end, if there is
    /// one. Those may all belong to processes without callers, so the remaining copies go to any partition whose
    /// records leave within about a minute, and to a longer lane only if there is none.
    pub(super) fn partition_elsewhere(&self, of: Option<(&TaskId, u32)>) -> Option<i32> {
        let all = self.config.layout.wait_partitions;
        let (id, cover) = of.unzip();
        let first = id.map_or(0, |id| partitioner::for_key(id.as_str().as_bytes(), all));
        let first = first.wrapping_add_unsigned(cover.unwrap_or(0)).rem_euclid(all);
        let is_other = |index: &i32| {
            let partition = Partition::new(self.config.layout.wait.clone(), *index);
            self.windows.of_partition(&partition).next().is_none()
        };
        let others = || (0..all).map(|n| (first + n) % all).filter(is_other);
        let ladder = &self.config.ladder;
        let soon = || others().find(|index| ladder.is_read_soon(*index));
        let is_soon = cover.is_some_and(|cover| cover % 2 == 1);
        is_soon
            .then(soon)
            .flatten()
            .or_else(|| others().find(|index| ladder.longest_stay(*index) <= A_MINUTE))
            .or_else(soon)
            .or_else(|| others().next())
    }
}
