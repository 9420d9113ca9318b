//! What a reader remembers of the records it has read: see `continuity.rs`.

use crate::{Batch, Cursor, Mark};
use std::collections::VecDeque;

/// What one reader of a partition has read, as far as needed to detect that its log was replaced.
#[derive(Debug)]
pub struct Trail {
    start: Cursor,
    /// The log begins here, or later.
    floor: i64,
    next: i64,
    /// Marks of the last record below the last commit, and of all records since.
    marks: VecDeque<Mark>,
    anchor: Option<Mark>,
}

/// The maximum number of marks: more than a window has records. Beyond that the oldest are dropped, which makes a
/// cursor's mark older, not wrong.
const MAX_MARKS: usize = 1 << 17;

impl Trail {
    /// Creates the trail of a reader that starts at a cursor that [`standing`](crate::standing) has just found intact.
    #[must_use]
    pub fn new(start: Cursor) -> Self {
        let marks = start.mark.into_iter().collect();
        Trail { start, floor: start.offset, next: start.offset, marks, anchor: start.mark.or(start.anchor) }
    }

    /// Adds what was read next. Returns `false` if it doesn't follow what was read before: then it is of another log,
    /// and is not added.
    #[must_use]
    pub fn read(&mut self, batch: &Batch) -> bool {
        if Trail::begin(batch) < self.next || batch.next < self.next {
            return false;
        }
        let room = MAX_MARKS.saturating_sub(batch.records.len());
        let over = self.marks.len().saturating_sub(room);
        self.marks.drain(..over);
        self.marks.extend(batch.records.iter().map(Mark::of));
        self.next = batch.next;
        // Until the first check, the first record read is the anchor for all later ones.
        self.anchor = self.anchor.or(self.marks.back().copied());
        true
    }

    /// Whether the log has to be compared before the batch is added: offsets were skipped, whose records may be deleted
    /// by now, or nothing was read before that identifies the log.
    #[must_use]
    pub fn is_doubtful(&self, batch: &Batch) -> bool {
        let blind = self.marks.is_empty() && self.next > 0 && !batch.records.is_empty();
        blind || Trail::begin(batch) > self.next
    }

    /// Where the log began when last seen, if reading started at its first record: without a mark it can't have started
    /// elsewhere.
    #[must_use]
    pub fn floor(&self) -> Option<i64> {
        self.start.mark.is_none().then_some(self.floor)
    }

    fn begin(batch: &Batch) -> i64 {
        batch.records.first().map_or(batch.next, |record| record.offset)
    }

    /// Its position, to be compared with the log.
    #[must_use]
    pub fn position(&self) -> Cursor {
        Cursor { offset: self.next, mark: self.marks.back().copied(), anchor: self.anchor }
    }

    /// Records that the log was intact when it was compared with this [`Trail::position`], whatever was read since.
    pub fn confirm(&mut self, position: &Cursor) {
        self.anchor = position.mark.or(self.anchor);
    }

    /// The records below `first` were deleted: reading continues there, and no log that begins earlier is this one.
    pub fn skip_to(&mut self, first: i64) {
        self.next = self.next.max(first);
        self.floor = self.floor.max(first);
    }

    /// Returns the cursor to commit when everything below `offset` is finished. Offsets only ascend: marks below it are
    /// dropped.
    #[must_use]
    pub fn below(&mut self, offset: i64) -> Cursor {
        let below = self.marks.partition_point(|m| m.offset < offset);
        self.marks.drain(..below.saturating_sub(1));
        let mark = self.marks.front().copied().filter(|m| m.offset < offset);
        // A mark that was read no later than the anchor is as good as that.
        let anchor = self.anchor.filter(|anchor| mark.is_some_and(|mark| mark.offset > anchor.offset));
        Cursor { offset, mark, anchor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_from_below_the_position_is_of_another_log_and_is_not_added() {
        let record = |offset| crate::Record::new(offset, 0, None, None, crate::Headers::new());
        let mut trail = Trail::new(Cursor::new(5));
        assert!(trail.read(&Batch::new(vec![record(5), record(6)], 7, None)));
        let reached = trail.position();
        for (from, next) in [(3, 4), (6, 9)] {
            assert!(!trail.read(&Batch::new((from..next).map(record).collect(), next, None)));
            assert_eq!(trail.position(), reached);
        }
    }

    #[test]
    fn a_log_whose_beginning_was_deleted_unread_is_recognized_by_its_new_beginning() {
        let mut trail = Trail::new(Cursor::new(2));
        assert_eq!(trail.floor(), Some(2));
        trail.skip_to(9);
        assert_eq!((trail.position(), trail.floor()), (Cursor::new(9), Some(9)));
    }
}
