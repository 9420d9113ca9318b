//! What a reader keeps of what it has read: see the module on continuity.

use crate::{Batch, Cursor, Mark};
use std::collections::VecDeque;

/// What one reader of a partition has read, as far as that is needed to tell that its log was replaced by another.
#[derive(Debug)]
pub struct Trail {
    start: Cursor,
    next: i64,
    /// Of the last record below the last commit, and of all records since.
    marks: VecDeque<Mark>,
    anchor: Option<Mark>,
}

/// More marks than records that a window holds. Beyond it the oldest go, which makes a cursor's mark older, not wrong.
const MAX_MARKS: usize = 1 << 17;

impl Trail {
    /// A reader that begins at a cursor which [`standing`](crate::standing) has just found intact.
    #[must_use]
    pub fn new(start: Cursor) -> Self {
        let marks = start.mark.into_iter().collect();
        Trail { start, next: start.offset, marks, anchor: start.mark.or(start.anchor) }
    }

    /// Takes in what was read next. Returns `false` if it doesn't follow what was read before: then it is of another
    /// log, and is not taken in.
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
        // Until the first check, the first that was read is what all later ones have to stand beside.
        self.anchor = self.anchor.or(self.marks.back().copied());
        true
    }

    /// Whether the log has to be compared before the batch is taken in: offsets were passed over, whose records may be
    /// deleted by now, or nothing was read before that tells which log this is.
    #[must_use]
    pub fn is_doubtful(&self, batch: &Batch) -> bool {
        let blind = self.marks.is_empty() && self.next > 0 && !batch.records.is_empty();
        blind || Trail::begin(batch) > self.next
    }

    /// Where the log began, if reading did so at its first record, as the owner of the trail knows: without a mark it
    /// can't have been elsewhere.
    #[must_use]
    pub fn floor(&self) -> Option<i64> {
        self.start.mark.is_none().then_some(self.start.offset)
    }

    fn begin(batch: &Batch) -> i64 {
        batch.records.first().map_or(batch.next, |record| record.offset)
    }

    /// How far it has read: what to compare with the log.
    #[must_use]
    pub fn position(&self) -> Cursor {
        Cursor { offset: self.next, mark: self.marks.back().copied(), anchor: self.anchor }
    }

    /// The log was intact when it was compared with this [`Trail::position`], whatever was read since.
    pub fn confirm(&mut self, position: &Cursor) {
        self.anchor = position.mark.or(self.anchor);
    }

    /// The records below `first` were deleted: reading goes on there.
    pub fn skip_to(&mut self, first: i64) {
        self.next = self.next.max(first);
    }

    /// What to commit when everything below `offset` is finished. Offsets only ascend: marks below it are forgotten.
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
