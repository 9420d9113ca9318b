//! A partition while it is assigned to us, under one epoch.

use crate::commit::Committer;
use kafkaq_core::{Assignment, Cursor, Mark, Record};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

/// The maximum number of marks: more than a window has records. Beyond that the oldest are dropped, which makes a
/// commit's mark older, not wrong.
const MAX_MARKS: usize = 1 << 17;
/// After this many checks a client that returns nothing is considered stuck. A slow or throttled server must not count
/// as that.
const STALLED: u32 = 3;

/// What went wrong with the partition's earlier assignment here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    Nothing,
    /// Its records didn't fit what was read before.
    Records,
    /// It was another log; the consumer has been rebuilt since.
    Log,
}

pub(crate) struct Slot {
    pub(crate) assignment: Assignment,
    pub(crate) doubt: Doubt,
    /// The committer of the consumer to which the group assigned it. The poll thread owns both; a commit borrows them.
    pub(crate) committer: Weak<Committer>,
    /// Its queue in the client may hold records.
    pub(crate) ready: AtomicBool,
    /// The driver has paused it.
    pub(crate) paused: AtomicBool,
    /// One of its batches waits in the stream. There is never a second, so that a pause takes effect.
    pub(crate) queued: AtomicBool,
    /// The driver has released it.
    pub(crate) released: AtomicBool,
    /// Its records don't fit what was read before: it is given up and assigned again.
    pub(crate) doubted: AtomicBool,
    /// It is no longer ours under this epoch.
    pub(crate) gone: AtomicBool,
    /// A check of what was read is in progress.
    pub(crate) comparing: AtomicBool,
    /// Commits in flight: the partition is not released during them.
    pub(crate) committing: AtomicUsize,
    pub(crate) trail: Mutex<Trail>,
    /// Its notifications are lost.
    #[cfg(test)]
    pub(crate) is_deaf: AtomicBool,
}

impl Slot {
    pub(crate) fn new(assignment: Assignment, doubt: Doubt, committer: Weak<Committer>) -> Self {
        Slot {
            assignment,
            doubt,
            committer,
            ready: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            released: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            comparing: AtomicBool::new(false),
            committing: AtomicUsize::new(0),
            trail: Mutex::default(),
            #[cfg(test)]
            is_deaf: AtomicBool::new(false),
        }
    }

    /// Records that its queue holds records, and wakes the poll thread.
    pub(crate) fn ring(&self) {
        #[cfg(test)]
        if self.is_deaf.load(SeqCst) {
            return;
        }
        self.ready.store(true, SeqCst);
    }

    /// Returns whether a revoked partition can be given back: the driver has released it, or doesn't want it.
    pub(crate) fn is_released(&self) -> bool {
        self.released.load(SeqCst) || self.doubted.load(SeqCst)
    }
}

/// What was read under one epoch, as far as commits and checks of the log need it.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Where reading continues; `None` until its start is known.
    next: Option<i64>,
    /// Marks of records that were read and may not be committed yet, and of the last one below them.
    marks: VecDeque<Mark>,
    /// Since this record was read, the log is known to have been the same up to the last check.
    anchor: Option<Mark>,
    /// Where the log began, if no record identified it and something was missing before it.
    floor: Option<i64>,
    /// What was read may not be of the log in which reading started: a commit would wrongly confirm it.
    is_unproven: bool,
    /// Offsets that were skipped since the last check.
    gap: Option<Gap>,
    /// How many consecutive checks have found records that the client did not return.
    stalled: u32,
}

/// Offsets without a record: left by transactions, and by retention that overtakes reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) from: i64,
    pub(crate) to: i64,
}

/// Records went back in the log, or a batch is out of order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WentBack;

impl Trail {
    /// Reading starts at the cursor, whose marks were found in their places, in a log whose first offset is `first`.
    pub(crate) fn begin(&mut self, at: Cursor, first: i64) {
        let (marks, anchor) = (at.mark.into_iter().collect(), at.mark.or(at.anchor));
        let floor = Some(first).filter(|first| anchor.is_none() && *first > 0);
        let (next, is_unproven) = (Some(at.offset), floor.is_some());
        *self = Trail { next, marks, anchor, floor, is_unproven, gap: None, stalled: 0 };
    }

    /// Returns whether nothing may be committed until the log has been compared.
    pub(crate) fn is_unproven(&self) -> bool {
        self.is_unproven
    }

    /// Drops records that were already read. A rebalance makes librdkafka fetch again what it is about to return.
    pub(crate) fn leave_out_repeated(&self, records: &mut Vec<Record>) {
        let Some(next) = self.next else { return };
        let is_known = |record: &Record| {
            let at = self.marks.binary_search_by_key(&record.offset, |mark| mark.offset);
            at.is_ok_and(|at| self.marks[at] == Mark::of(record))
        };
        let repeated = records.iter().take_while(|record| record.offset < next && is_known(record)).count();
        records.drain(..repeated);
    }

    /// Records what is about to be delivered. Returns whether a gap was skipped that is larger than the end of a
    /// transaction.
    pub(crate) fn read(&mut self, records: &[Record]) -> Result<bool, WentBack> {
        let Some(mut next) = self.next else { return Err(WentBack) };
        let mut stepped_over = false;
        for record in records {
            if record.offset < next {
                return Err(WentBack);
            }
            if record.offset > next + 1 {
                stepped_over = true;
                self.gap.get_or_insert(Gap { from: next, to: record.offset });
            }
            next = record.offset + 1;
        }
        let over = (self.marks.len() + records.len()).saturating_sub(MAX_MARKS).min(self.marks.len());
        self.marks.drain(..over);
        self.marks.extend(records.iter().map(Mark::of));
        self.anchor = self.anchor.or(records.first().map(Mark::of));
        self.next = Some(next);
        Ok(stepped_over)
    }

    /// The cursor for a commit of this offset.
    pub(crate) fn cursor(&mut self, offset: i64) -> Cursor {
        let below = self.marks.partition_point(|mark| mark.offset < offset);
        self.marks.drain(..below.saturating_sub(1));
        let mark = self.marks.front().copied().filter(|mark| mark.offset < offset);
        // Everything read up to the anchor is of one log. So the commit's own mark identifies all of it.
        let anchor = match (self.anchor, mark) {
            (Some(anchor), Some(mark)) if anchor.offset > mark.offset => Some(mark),
            (anchor, _) => anchor,
        };
        Cursor { offset, mark, anchor }
    }

    /// Its position; `None` if nothing identifies the log.
    pub(crate) fn reached(&self) -> Option<Cursor> {
        let mark = Some(*self.marks.back()?);
        Some(Cursor { offset: self.next?, mark, anchor: self.anchor })
    }

    /// Returns what to compare with the log.
    pub(crate) fn to_check(&self) -> Option<Checked> {
        let next = self.next?;
        let offset = self.gap.map_or(next, |gap| gap.from);
        let cursor = Cursor { offset, mark: None, anchor: self.anchor };
        let last = self.marks.back().copied();
        Some(Checked { cursor, floor: self.floor, next, last, gap: self.gap })
    }

    /// Records that the log was found to be the same, with this end. `is_empty`: the client has no more records of it.
    /// Returns the offset from which on the client seems to have missed records.
    pub(crate) fn is_intact(&mut self, checked: &Checked, end: i64, is_empty: bool) -> Option<i64> {
        self.anchor = checked.last.or(self.anchor);
        self.is_unproven &= checked.last.is_none();
        self.gap = self.gap.filter(|gap| checked.gap != Some(*gap));
        let stands_still = is_empty && self.next == Some(checked.next) && end > checked.next;
        self.stalled = if stands_still { self.stalled + 1 } else { 0 };
        (self.stalled >= STALLED).then_some(checked.next)
    }

    /// Records that there is no record from `from` up to `next`.
    pub(crate) fn nothing_until(&mut self, from: i64, next: i64) {
        if self.next == Some(from) {
            self.next = Some(next.max(from));
        }
    }
}

/// What a check compares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Where reading continues, or the first gap since the last check; with the anchor.
    pub(crate) cursor: Cursor,
    /// The log can't have earlier records.
    pub(crate) floor: Option<i64>,
    /// Where reading continues.
    next: i64,
    /// The last record that was read before. It becomes the anchor.
    last: Option<Mark>,
    pub(crate) gap: Option<Gap>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Headers;

    fn record(offset: i64) -> Record {
        Record::new(offset, offset, None, None, Headers::new())
    }

    fn records(offsets: impl IntoIterator<Item = i64>) -> Vec<Record> {
        offsets.into_iter().map(record).collect()
    }

    fn mark(offset: i64) -> Option<Mark> {
        Some(Mark::of(&record(offset)))
    }

    fn begun(at: Cursor) -> Trail {
        let mut trail = Trail::default();
        trail.begin(at, 0);
        trail
    }

    #[test]
    fn nothing_below_the_next_offset_is_read() {
        let mut trail = begun(Cursor::new(5));
        assert_eq!(trail.read(&records([4, 5])), Err(WentBack));
        assert_eq!(trail.read(&records([5, 6])), Ok(false));
        for offsets in [[6, 7], [7, 7], [8, 7], [0, 1]] {
            assert_eq!(trail.read(&records(offsets)), Err(WentBack), "{offsets:?}");
            assert_eq!(trail.next, Some(7), "and the batch is ignored as a whole");
        }
        assert_eq!(Trail::default().read(&records([0])), Err(WentBack), "before the start is known");
    }

    #[test]
    fn identical_repeated_records_are_skipped() {
        let mut trail = begun(Cursor::new(5));
        trail.read(&records(5..10)).unwrap();
        let _ = trail.cursor(8);
        let left = |mut records: Vec<Record>| {
            trail.leave_out_repeated(&mut records);
            records.iter().map(|record| record.offset).collect::<Vec<_>>()
        };
        assert_eq!(left(records([8, 9, 10, 11])), [10, 11]);
        assert_eq!(left(records([9])), [0; 0]);
        assert_eq!(left(records([10, 9])), [10, 9], "only at the beginning");
        assert_eq!(left(records([6, 7, 10])), [6, 7, 10], "it was committed, and is no longer remembered");
        let other = |offset| Record::new(offset, offset + 1, None, None, Headers::new());
        assert_eq!(left(vec![other(9), record(10)]), [9, 10], "another log");
    }

    #[test]
    fn a_commit_carries_the_mark_below_it_and_an_anchor_that_is_no_later() {
        let mut trail = begun(Cursor::new(10));
        trail.read(&records(10..20)).unwrap();
        assert_eq!(trail.cursor(10), Cursor { offset: 10, mark: None, anchor: mark(10) });
        assert_eq!(trail.cursor(15), Cursor { offset: 15, mark: mark(14), anchor: mark(10) });
        let checked = trail.to_check().unwrap();
        trail.read(&records(20..30)).unwrap();
        trail.is_intact(&checked, 0, true);
        assert_eq!(trail.cursor(15), Cursor { offset: 15, mark: mark(14), anchor: mark(14) });
        assert_eq!(trail.cursor(30), Cursor { offset: 30, mark: mark(29), anchor: mark(19) });
        assert_eq!(
            trail.cursor(30),
            Cursor { offset: 30, mark: mark(29), anchor: mark(19) },
            "also repeated"
        );
    }

    #[test]
    fn the_anchor_moves_only_by_a_check_and_only_to_what_was_read_before_it() {
        let at = Cursor { offset: 10, mark: mark(9), anchor: mark(3) };
        let mut trail = begun(at);
        assert_eq!(trail.cursor(10), Cursor { offset: 10, mark: mark(9), anchor: mark(9) });
        trail.read(&records(10..20)).unwrap();
        let checked = trail.to_check().unwrap();
        assert_eq!(checked.cursor, Cursor { offset: 20, mark: None, anchor: mark(9) });
        trail.read(&records(20..30)).unwrap();
        assert_eq!(trail.to_check().unwrap().cursor.anchor, mark(9));
        trail.is_intact(&checked, 0, true);
        let next = trail.to_check().unwrap().cursor;
        assert_eq!(next, Cursor { offset: 30, mark: None, anchor: mark(19) });
    }

    #[test]
    fn log_without_a_mark_is_identified_by_its_beginning() {
        for (at, first, floor) in [
            (Cursor::new(500), 400, Some(400)),
            (Cursor::new(0), 0, None),
            (Cursor { mark: mark(499), ..Cursor::new(500) }, 400, None),
            (Cursor { anchor: mark(410), ..Cursor::new(500) }, 400, None),
        ] {
            let mut trail = Trail::default();
            trail.begin(at, first);
            let early = trail.to_check().unwrap();
            assert_eq!((early.floor, trail.is_unproven()), (floor, floor.is_some()));
            trail.read(&records([500])).unwrap();
            let checked = trail.to_check().unwrap();
            assert_eq!(checked.floor, floor, "what was read may be of another log already");
            trail.is_intact(&early, 500, true);
            assert_eq!(trail.is_unproven(), floor.is_some(), "by a check from before it was read");
            trail.is_intact(&checked, 501, true);
            assert!(!trail.is_unproven());
        }
    }

    #[test]
    fn gap_is_reported_once_unless_it_is_the_end_of_a_transaction() {
        let mut trail = begun(Cursor::new(0));
        assert_eq!(trail.read(&records([0, 2, 3, 5])), Ok(false));
        assert_eq!(trail.read(&records([20, 40])), Ok(true));
        let checked = trail.to_check().unwrap();
        assert_eq!((checked.cursor.offset, checked.gap), (6, Some(Gap { from: 6, to: 20 })));
        assert_eq!(trail.to_check().unwrap().gap, checked.gap, "until a check has succeeded");
        trail.is_intact(&checked, 0, true);
        assert_eq!(trail.to_check().unwrap().gap, None);
    }

    #[test]
    fn client_that_returns_no_existing_records_is_noticed_after_some_checks() {
        let mut trail = begun(Cursor::new(5));
        let check = |trail: &mut Trail, end, is_empty| {
            let checked = trail.to_check().unwrap();
            trail.is_intact(&checked, end, is_empty)
        };
        for _ in 0..10 {
            assert_eq!(check(&mut trail, 5, true), None, "there is nothing");
            assert_eq!(check(&mut trail, 9, false), None, "the driver is slow, not the client");
        }
        assert_eq!([check(&mut trail, 9, true), check(&mut trail, 9, true)], [None, None]);
        assert_eq!(check(&mut trail, 9, true), Some(5));
        let checked = trail.to_check().unwrap();
        trail.read(&records([5])).unwrap();
        assert_eq!(trail.is_intact(&checked, 9, true), None, "it was read meanwhile");
        trail.nothing_until(5, 9);
        assert_eq!(trail.next, Some(6), "the outcome belongs to an earlier offset");
        trail.nothing_until(6, 9);
        assert_eq!(trail.next, Some(9));
        assert_eq!(check(&mut trail, 9, true), None);
    }

    #[test]
    fn marks_have_a_limit_and_the_newest_stay() {
        let mut trail = begun(Cursor::new(0));
        for n in 0..10 {
            trail.read(&records(n * 20_000..(n + 1) * 20_000)).unwrap();
        }
        assert_eq!(trail.marks.len(), MAX_MARKS);
        assert_eq!(trail.cursor(10), Cursor { offset: 10, mark: None, anchor: mark(0) }, "forgotten");
        assert_eq!(trail.cursor(199_000).mark, mark(198_999));
        assert_eq!(trail.cursor(200_000).mark, mark(199_999));
    }
}
