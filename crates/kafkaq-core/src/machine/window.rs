//! The window: the records of one assignment that were read and are not below the finished prefix.

use super::{FlowControl, Mono, config::Config, slab::Ref};
use crate::{Assignment, ErrorKind, Record, Result, Wall};
use std::{collections::VecDeque, ops::Range, time::Duration};

/// How much less of a lane must be read ahead than needed before a paused one is resumed.
const FURTHER: Duration = Duration::from_secs(2);

/// Number of a record in its assignment, from 0 and without gaps.
pub(super) type Seq = u64;

/// The state of a record.
#[derive(Debug)]
pub(super) enum Slot {
    /// Not yet considered.
    Queued(Record),
    /// Under consideration, or its job runs.
    Open(Ref),
    /// Taken out by [`Window::take_queued`], until [`Window::set`].
    Taken,
    Finished,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    bytes: usize,
    /// With `bytes`, distinguishes a repeated record from another log's record at the same offset.
    timestamp_ms: i64,
    slot: Slot,
}

/// The outcome of [`Window::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    New(Seq),
    /// It was read before.
    Repeated,
    /// At its offset another record was read before.
    OtherLog,
}

/// The topic of the records.
#[derive(Debug)]
enum Topic {
    /// The task topic. `cursor` is the first record that may not have been considered yet; all before it have been.
    Tasks { cursor: Seq },
    /// The wait topic: records leave in a different order than they arrived. `last_leaves` is when the last record that
    /// was read leaves its lane, of those with a plausible time.
    Lane { last_leaves: Wall },
}

/// The commits of a window: one at a time, and an interval apart.
#[derive(Debug)]
struct Commits {
    /// The last offset that was committed.
    committed: Option<i64>,
    /// The last one that the log has confirmed.
    confirmed: Option<i64>,
    under_way: bool,
    /// When the next one is due at the earliest.
    not_before: Mono,
    /// Whether the last one failed.
    failed: bool,
}

#[derive(Debug)]
pub(super) struct Window {
    pub(super) assignment: Assignment,
    topic: Topic,
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    base: Seq,
    finished: usize,
    /// Bytes of the unfinished records.
    bytes: usize,
    /// The offset of the first record that was read.
    first: Option<i64>,
    /// Where reading continues.
    next: i64,
    /// The end of the log, as last reported.
    end: Option<i64>,
    /// Everything below is finished.
    prefix: i64,
    commits: Commits,
    paused: bool,
    /// Set while it is being revoked: when it is released at the latest.
    release_by: Option<Mono>,
}

impl Window {
    pub(super) fn new(assignment: Assignment, is_lane: bool, now: Mono) -> Self {
        Window {
            assignment,
            topic: if is_lane { Topic::Lane { last_leaves: Wall(0) } } else { Topic::Tasks { cursor: 0 } },
            entries: VecDeque::new(),
            base: 0,
            finished: 0,
            bytes: 0,
            first: None,
            next: i64::MIN,
            end: None,
            prefix: i64::MIN,
            commits: Commits {
                committed: None,
                confirmed: None,
                under_way: false,
                not_before: now,
                failed: false,
            },
            paused: false,
            release_by: None,
        }
    }

    /// Whether it is of the wait topic.
    pub(super) fn is_lane(&self) -> bool {
        matches!(self.topic, Topic::Lane { .. })
    }

    // ---- reading

    /// Adds a record, unless it is a repeated delivery.
    pub(super) fn push(&mut self, record: Record) -> Pushed {
        if record.offset < self.next {
            let known = self.entries.binary_search_by_key(&record.offset, |e| e.offset);
            let same = |e: &Entry| (e.timestamp_ms, e.bytes) == (record.timestamp_ms, record.size());
            return match known {
                Ok(i) if same(&self.entries[i]) => Pushed::Repeated,
                _ => Pushed::OtherLog,
            };
        }
        if self.prefix == i64::MIN {
            self.prefix = record.offset;
        }
        self.first.get_or_insert(record.offset);
        self.next = record.offset + 1;
        let bytes = record.size();
        self.bytes += bytes;
        let (offset, timestamp_ms) = (record.offset, record.timestamp_ms);
        self.entries.push_back(Entry { offset, bytes, timestamp_ms, slot: Slot::Queued(record) });
        Pushed::New(self.base + self.entries.len() as u64 - 1)
    }

    /// Records when the last record that was read leaves its lane.
    pub(super) fn set_last_leaves(&mut self, leaves: Wall) {
        if let Topic::Lane { last_leaves } = &mut self.topic {
            *last_leaves = leaves;
        }
    }

    /// Records that reading continues at `next`, beyond the last record, and that the log ends at `end`, if known.
    pub(super) fn read_on(&mut self, next: i64, end: Option<i64>) {
        self.end = end.or(self.end);
        if next > self.next {
            self.next = next;
            if self.prefix == i64::MIN || self.entries.is_empty() {
                self.prefix = next;
            }
        }
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.base)?).ok().filter(|i| *i < self.entries.len())
    }

    /// Takes a queued record out of its slot. Follow it with [`Window::set`].
    pub(super) fn take_queued(&mut self, seq: Seq) -> Option<Record> {
        let i = self.index(seq)?;
        let slot = &mut self.entries[i].slot;
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Queued(record) => Some(record),
            other => {
                *slot = other;
                None
            }
        }
    }

    pub(super) fn set(&mut self, seq: Seq, slot: Slot) {
        if let Some(i) = self.index(seq) {
            self.entries[i].slot = slot;
        }
    }

    /// The next queued record of the task topic, in order.
    pub(super) fn next_queued(&mut self) -> Option<Seq> {
        if self.is_revoked() {
            return None;
        }
        let Topic::Tasks { cursor } = self.topic else { return None };
        let mut seq = cursor.max(self.base);
        while self.index(seq).is_some_and(|i| !matches!(self.entries[i].slot, Slot::Queued(_))) {
            seq += 1;
        }
        self.topic = Topic::Tasks { cursor: seq };
        self.index(seq).map(|_| seq)
    }

    /// Decides whether to pause or to resume reading.
    pub(super) fn control_flow(&mut self, config: &Config, now: Wall) -> Option<FlowControl> {
        if self.is_revoked() {
            return None;
        }
        let settings = &config.settings;
        // Reading of a lane resumes as soon as an eighth of it is free: records behind its head may have left before
        // it, and what is due next must not be kept out. More of a lane than of the task topic is read only if it may
        // be due soon. The sweep checks this every second.
        let (most, part, ahead) = match self.topic {
            Topic::Tasks { .. } => (settings.window, 2, None),
            Topic::Lane { last_leaves } => {
                let ahead = config.ladder.ahead(self.assignment.partition.index);
                (settings.lane_window, 8, ahead.map(|ahead| (ahead, last_leaves)))
            }
        };
        let below = |most: usize| most - most.div_ceil(part);
        let full = self.len() >= most || self.bytes >= settings.window_bytes;
        let room = self.len() <= below(most) && self.bytes <= below(settings.window_bytes);
        let is_far = |by: Duration| {
            let is_later = |(ahead, last): (Duration, Wall)| {
                last > now.plus(ahead.saturating_sub(by)).plus(settings.clock_skew)
            };
            self.len() >= settings.window && ahead.is_some_and(is_later)
        };
        let stop = full || is_far(Duration::ZERO);
        let control = match self.paused {
            false if stop => FlowControl::Pause,
            true if !stop && room && !is_far(FURTHER) => FlowControl::Resume,
            _ => return None,
        };
        self.paused = control == FlowControl::Pause;
        Some(control)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    // ---- what is finished, and its commit

    /// Returns the offsets of records that may be started without a lease: only their offset shows others that they may
    /// have been.
    ///
    /// No record that is `span` or more beyond the committed offset is started like this. So the next owner of the
    /// partition knows that records that far beyond its own start have not been started at all, and takes leases for
    /// the rest.
    pub(super) fn unleased(&self, span: i64) -> Range<i64> {
        let Some(first) = self.first else { return 0..0 };
        let committed = self.commits.confirmed.unwrap_or(first).max(first);
        first + span..committed + span
    }

    /// Returns the last finished record that can't be committed because of an unfinished one before it.
    pub(super) fn last_held_back(&self) -> Option<Seq> {
        if self.finished == 0 {
            return None;
        }
        let last = self.entries.iter().rposition(|e| matches!(e.slot, Slot::Finished))?;
        Some(self.base + last as u64)
    }

    /// Returns whether so much is finished and not committed that a commit is due before its time.
    fn is_behind(&self, span: i64) -> bool {
        !self.is_lane()
            && self.prefix.saturating_sub(self.commits.confirmed.or(self.first).unwrap_or(self.prefix))
                >= span / 4
    }

    /// Marks a record as finished and advances the prefix.
    pub(super) fn finish(&mut self, seq: Seq) {
        let Some(i) = self.index(seq) else { return };
        let entry = &mut self.entries[i];
        if matches!(entry.slot, Slot::Finished) {
            return;
        }
        entry.slot = Slot::Finished;
        self.finished += 1;
        self.bytes -= entry.bytes;
        if i == 0 {
            while let Some(Entry { slot: Slot::Finished, .. }) = self.entries.front() {
                self.entries.pop_front();
                self.base += 1;
                self.finished -= 1;
            }
            self.prefix = self.entries.front().map_or(self.next, |e| e.offset);
        }
    }

    /// The offset to commit, if it is beyond the last one and no commit is under way.
    fn to_commit(&self) -> Option<i64> {
        let has_news = self.prefix > self.commits.committed.unwrap_or(self.first_prefix());
        (has_news && !self.commits.under_way).then_some(self.prefix)
    }

    /// When the next commit is due, if there is something to commit.
    pub(super) fn commit_at(&self) -> Option<Mono> {
        self.to_commit().map(|_| self.commits.not_before)
    }

    /// Begins a commit, if one is due, and returns its offset. `urgent`: don't wait for its time, unless the last one
    /// failed. `span`: don't wait either if a quarter of it is finished since.
    pub(super) fn begin_commit(&mut self, now: Mono, urgent: bool, span: Option<i64>) -> Option<i64> {
        let is_behind = span.is_some_and(|span| self.is_behind(span));
        let urgent = (urgent || is_behind || self.is_revoked()) && !self.commits.failed;
        let offset = self.to_commit().filter(|_| urgent || self.commits.not_before <= now)?;
        self.commits.under_way = true;
        Some(offset)
    }

    /// A commit has ended; the next one is not due before `not_before`.
    pub(super) fn commit_ended(&mut self, offset: i64, outcome: Result<()>, not_before: Mono) {
        let commits = &mut self.commits;
        (commits.under_way, commits.not_before) = (false, not_before);
        match outcome {
            Ok(()) => {
                commits.failed = false;
                commits.confirmed = commits.confirmed.max(Some(offset));
            }
            // It isn't ours under this epoch: its owner commits.
            Err(e) if e.kind() == ErrorKind::NotOwner => {}
            Err(_) => {
                commits.failed = true;
                return;
            }
        }
        commits.committed = commits.committed.max(Some(offset));
    }

    /// Whether everything that is finished is committed.
    pub(super) fn is_committed(&self) -> bool {
        !self.commits.under_way && self.to_commit().is_none()
    }

    /// Whether everything that is finished is committed, or its commit failed.
    pub(super) fn is_committed_or_failed(&self) -> bool {
        !self.commits.under_way && (self.commits.failed || self.to_commit().is_none())
    }

    // ---- its end

    /// Marks it as revoked: it is released at `by` at the latest.
    pub(super) fn revoke(&mut self, by: Mono) {
        self.release_by.get_or_insert(by);
    }

    pub(super) fn release_by(&self) -> Option<Mono> {
        self.release_by
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.release_by.is_some()
    }

    // ---- what it holds

    fn first_prefix(&self) -> i64 {
        // Nothing was finished yet while the first entry is still the first one ever.
        if self.base == 0 && !self.entries.is_empty() { self.prefix } else { i64::MIN }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it is paused though more than half of it is finished: then its head blocks it.
    pub(super) fn is_blocked_by_head(&self) -> bool {
        self.paused && self.finished * 2 > self.entries.len()
    }

    pub(super) fn end(&self) -> Option<i64> {
        self.end
    }

    /// Everything below this offset is finished.
    pub(super) fn finished_below(&self) -> Option<i64> {
        (self.prefix != i64::MIN).then_some(self.prefix)
    }

    /// When the oldest unfinished record was appended.
    pub(super) fn oldest_unfinished(&self) -> Option<Wall> {
        let oldest = self.entries.iter().find(|e| !matches!(e.slot, Slot::Finished))?;
        u64::try_from(oldest.timestamp_ms).ok().map(Wall)
    }

    /// Unfinished records, oldest first.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = (Seq, &Slot)> {
        (self.base..)
            .zip(&self.entries)
            .map(|(seq, e)| (seq, &e.slot))
            .filter(|(_, s)| !matches!(s, Slot::Finished))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Headers, Partition};
    use proptest::prelude::*;

    fn window() -> Window {
        Window::new(Assignment { partition: Partition::new("t", 0), epoch: 1 }, false, Mono(0))
    }

    fn record(offset: i64) -> Record {
        Record::new(offset, 0, None, Some("12345".into()), Headers::new())
    }

    #[test]
    fn nothing_is_committed_before_a_record_is_finished() {
        let mut w = window();
        w.push(record(7));
        assert_eq!(w.to_commit(), None);
        w.finish(0);
        assert_eq!(w.to_commit(), Some(8));
    }

    #[test]
    fn empty_batch_with_a_higher_offset_is_committed() {
        let mut w = window();
        w.read_on(12, None);
        assert_eq!(w.to_commit(), Some(12));
        w.push(record(15));
        w.commits.committed = Some(12);
        assert_eq!(w.to_commit(), None);
    }

    #[test]
    fn repeated_record_is_ignored() {
        let mut w = window();
        assert_eq!(w.push(record(7)), Pushed::New(0));
        assert_eq!(w.push(record(7)), Pushed::Repeated);
        assert_eq!(w.push(record(9)), Pushed::New(1));
    }

    #[test]
    fn lower_offset_with_another_record_is_another_log() {
        let mut w = window();
        w.push(record(7));
        w.push(record(9));
        assert_eq!(w.push(record(3)), Pushed::OtherLog, "below all that was read");
        assert_eq!(w.push(record(8)), Pushed::OtherLog, "there was a gap");
        let later = Record { timestamp_ms: 1, ..record(7) };
        assert_eq!(w.push(later), Pushed::OtherLog, "another record at the same offset");
        w.finish(0);
        assert_eq!(
            w.push(record(7)),
            Pushed::OtherLog,
            "finished, and it is no longer known which record it \
            was"
        );
        assert_eq!(w.push(record(9)), Pushed::Repeated);
    }

    proptest! {
        /// I4: the prefix never passes an unfinished record and never goes back.
        #[test]
        fn only_the_finished_prefix_is_committed(gaps in proptest::collection::vec(1..4_i64, 1..60), order in any::<u64>()) {
            let mut w = window();
            let mut offsets = vec![];
            let mut offset = 5;
            for gap in gaps {
                offset += gap;
                offsets.push(offset);
                w.push(record(offset));
            }
            let mut left: Vec<usize> = (0..offsets.len()).collect();
            let (mut state, mut last) = (order, i64::MIN);
            while !left.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let i = left.remove((state >> 33) as usize % left.len());
                w.finish(i as u64);
                if let Some(to) = w.to_commit() {
                    prop_assert!(left.iter().all(|i| offsets[*i] >= to));
                    prop_assert!(to > last);
                    last = to;
                    w.commits.committed = Some(to);
                }
                let open_bytes: usize = left.len() * record(0).size();
                prop_assert_eq!(w.bytes, open_bytes);
            }
            prop_assert_eq!(last, offset + 1);
            prop_assert_eq!(w.len(), 0);
        }
    }
}
