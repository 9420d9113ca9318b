//! The machine's statistics.

use super::{Machine, MachineStats, PartitionStats, item::Stage, window::Slot};

impl Machine {
    /// Returns its current statistics. Visits every record that was read and isn't finished.
    #[must_use]
    pub fn stats(&self) -> MachineStats {
        let partitions = self.windows.iter().map(|window| {
            let count = |of: fn(&Slot) -> bool| window.unfinished().filter(|(_, slot)| of(slot)).count();
            PartitionStats {
                partition: window.assignment.partition.clone(),
                finished_below: window.finished_below(),
                end: window.end(),
                oldest_unfinished: window.oldest_unfinished(),
                queued: count(|slot| matches!(slot, Slot::Queued(_))),
                in_flight: count(|slot| matches!(slot, Slot::Open(_))),
                paused: window.is_paused(),
            }
        });
        let items = || self.items.iter();
        MachineStats {
            partitions: partitions.collect(),
            held: items().filter(|item| item.is_held() && item.is_with_driver()).count(),
            waiting_for_caller: items().filter(|item| matches!(item.stage, Stage::OnDemand(_))).count(),
            appending: self.appends.len(),
        }
    }
}
