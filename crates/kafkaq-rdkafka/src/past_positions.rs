//! Positions of partitions under earlier epochs: committed offsets are deleted with their topic, and then only these
//! positions show that a returning partition has another log.

use crate::slot::Slot;
use kafkaq_core::{Cursor, Partition, lock};
use std::{collections::HashMap, sync::Mutex};

/// One entry per partition that this member has read.
#[derive(Debug, Default)]
pub(crate) struct PastPositions(Mutex<HashMap<Partition, Cursor>>);

impl PastPositions {
    /// Records the position of an epoch that ends. Without a record that identifies the log, the previous epoch's
    /// position stays. Returns whether there is one.
    pub(crate) fn leave(&self, slot: &Slot) -> bool {
        let reached = lock(&slot.trail).reached();
        reached.map(|reached| lock(&self.0).insert(slot.assignment.partition.clone(), reached)).is_some()
    }

    pub(crate) fn of(&self, partition: &Partition) -> Option<Cursor> {
        lock(&self.0).get(partition).copied()
    }

    /// Drops the position once the replacement of the log was reported. Earlier, the report could get lost with an
    /// assignment that ends soon.
    pub(crate) fn replacement_reported(&self, partition: &Partition) {
        lock(&self.0).remove(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Doubt;
    use kafkaq_core::{Assignment, Headers, Mark, Record};
    use std::sync::Weak;

    #[test]
    fn position_is_kept_until_more_is_read_or_a_replacement_is_reported() {
        let (past_positions, of) = (PastPositions::default(), Partition::new("t", 0));
        let record = |offset| Record::new(offset, 0, None, None, Headers::new());
        let slot = |read: &[i64]| {
            let slot = Slot::new(Assignment { partition: of.clone(), epoch: 1 }, Doubt::Nothing, Weak::new());
            let records: Vec<_> = read.iter().map(|offset| record(*offset)).collect();
            lock(&slot.trail).begin(Cursor::new(0), 0);
            lock(&slot.trail).read(&records).unwrap();
            slot
        };
        let reached = |next: i64| {
            let mark = Some(Mark::of(&record(next - 1)));
            Some(Cursor { offset: next, mark, anchor: Some(Mark::of(&record(0))) })
        };
        assert!(!past_positions.leave(&slot(&[])));
        assert_eq!(past_positions.of(&of), None);
        assert!(past_positions.leave(&slot(&[0, 1, 2])));
        assert_eq!(past_positions.of(&of), reached(3));
        past_positions.leave(&slot(&[]));
        assert_eq!(
            past_positions.of(&of),
            reached(3),
            "an assignment that ended before anything was read under it"
        );
        past_positions.leave(&slot(&[0]));
        assert_eq!(past_positions.of(&of), reached(1));
        past_positions.replacement_reported(&of);
        assert_eq!(past_positions.of(&of), None);
    }
}
