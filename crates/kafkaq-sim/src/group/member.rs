//! A member: a minimal driver, a reader that finishes what it reads, and a user that commits.

use super::topic::at_once;
use super::world::{Call, Id, M, WAY, World, cursor};
use crate::trace::{MS, SEC, Us, tr};
use kafkaq_core::group::{Change, CommitOutcome, Group, GroupFault, Trail, start};
use kafkaq_core::{Assignment, Batch, Cursor, Error, ErrorKind, Partition, Standing, standing};
use std::collections::{BTreeMap, HashMap};

/// How often a reader checks that the log is still the one that was read.
const CHECK_EVERY: Us = 3 * SEC;
/// How often a member checks the topics.
pub(super) const LOOK_EVERY: Us = SEC;

pub(super) struct Proc {
    pub(super) id: Id,
    pub(super) group: Group,
    pub(super) paused_until: Us,
    /// What the member believes it holds.
    pub(super) held: BTreeMap<i32, Held>,
    /// Holds that are over, for calls that arrive late.
    past: Vec<Assignment>,
    commits: HashMap<u64, (Assignment, Cursor)>,
    /// Commits that named a hold which was over.
    late: HashMap<u64, Assignment>,
    last_commit: u64,
    pub(super) look_at: Us,
    pub(super) leaving: bool,
    /// It began to leave in the calm phase.
    pub(super) left_in_peace: bool,
    /// It never releases what is revoked.
    slow: bool,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) epoch: u64,
    /// How far it has read and finished.
    trail: Trail,
    /// The highest commit that was confirmed.
    pub(super) confirmed: Option<Cursor>,
    check_at: Us,
    /// Whether a check has found the log intact.
    checked: bool,
}

impl Proc {
    pub(super) fn new(id: Id, group: Group, slow: bool) -> Self {
        Proc {
            id,
            group,
            paused_until: 0,
            held: BTreeMap::new(),
            past: Vec::new(),
            commits: HashMap::new(),
            late: HashMap::new(),
            last_commit: 0,
            look_at: 0,
            leaving: false,
            left_in_peace: false,
            slow,
        }
    }

    pub(super) fn is_paused(&self, now: Us) -> bool {
        self.paused_until > now
    }

    /// Its reader has noticed a failure or a gap.
    pub(super) fn suspect(&mut self, p: i32, now: Us, fault: Option<GroupFault>) {
        if let Some(held) = self.held.get_mut(&p).filter(|_| fault != Some(GroupFault::GapsIgnored)) {
            held.check_at = now;
        }
    }

    fn forget(&mut self, gone: Assignment) {
        if self.held.get(&gone.partition.index).is_some_and(|held| held.epoch == gone.epoch) {
            self.held.remove(&gone.partition.index);
        }
        self.past.push(gone);
    }
}

/// Returns an assignment; partitions are identified by number.
fn assignment(p: i32, epoch: u64) -> Assignment {
    Assignment { partition: Partition::new("t", p), epoch }
}

impl World {
    pub(super) fn run_member(&mut self, n: usize) {
        let (now, id) = (self.mono(), self.procs[n].id);
        self.look(n);
        self.procs[n].group.handle_time(now);
        self.told(n);
        self.check_held(n);
        let away = self.now < self.away_until && !self.calm();
        if let Some((token, keys)) = self.procs[n].group.poll_read(now, 100) {
            let failed = || Err(Error::not_applied(ErrorKind::Unavailable, "get"));
            let found =
                keys.iter().map(|k| if away { failed() } else { Ok(self.store.get(k).cloned()) }).collect();
            self.later(WAY, id, Call::Read(token, found));
        }
        let mut swaps = Vec::new();
        self.procs[n].group.poll_swaps(now, 100, &mut swaps);
        for (token, swap) in swaps {
            self.send(id, token, swap, away);
        }
        while let Some((assignment, stored)) = self.procs[n].group.poll_locate(now) {
            let found = self.locate(id, &assignment, stored);
            self.procs[n].group.handle_located(&assignment, found, now);
        }
        let mut checkpoints = Vec::new();
        self.procs[n].group.poll_checkpoints(now, 100, &mut checkpoints);
        for (assignment, cursor) in checkpoints {
            self.check_checkpoint(id, &assignment);
            self.later(WAY, id, Call::Checkpoint(assignment, cursor));
        }
        self.told(n);
        self.read_and_commit(n);
        self.late_calls(n);
        self.told(n);
        self.answers(n);
    }

    /// Checks which partitions exist. A member that joins or was paused does so a little later than the others.
    fn look(&mut self, n: usize) {
        if self.now >= self.procs[n].look_at {
            self.procs[n].look_at = self.now + LOOK_EVERY;
            let there = self.partitions();
            self.procs[n].group.handle_partitions(there);
        }
    }

    /// Compares a cursor with the log by the production code, with a random number of fetches that fail.
    fn standing(&mut self, p: i32, mut cursor: Cursor, floor: Option<i64>) -> Option<Standing> {
        match self.fault {
            Some(GroupFault::MarkIgnored) => (cursor.mark, cursor.anchor) = (None, None),
            Some(GroupFault::AnchorIgnored) => cursor.anchor = None,
            _ => {}
        }
        let empty = match self.rng.chance(100) {
            _ if self.calm() => 0,
            true => self.rng.below(15) as u32,
            false => 0,
        };
        self.stats.empty_answers += u64::from(empty);
        let log = self.topics[&p].as_log(empty);
        match at_once(standing(&log, &Partition::new("t", p), &cursor, floor)) {
            Ok(standing) => Some(standing),
            Err(_) if self.fault == Some(GroupFault::EmptyIsProof) && empty > 0 => {
                Some(Standing::Replaced { first: self.topics[&p].first() })
            }
            Err(_) => None,
        }
    }

    /// As the driver does it: the store's cursor and the log's checkpoint, each compared with the records.
    fn locate(&mut self, id: Id, of: &Assignment, stored: Option<Cursor>) -> Option<Cursor> {
        let p = of.partition.index;
        let is_away = self.now < self.log_away_until && !self.calm();
        if self.topics[&p].missing || is_away || (!self.calm() && self.rng.chance(50)) {
            return None;
        }
        let kept = self.checkpoints.get(&p).copied().filter(|_| match self.fault {
            Some(GroupFault::CheckpointIgnored) => false,
            Some(GroupFault::StoreBelieved) => stored.is_none(),
            _ => true,
        });
        let mut known = Vec::new();
        for cursor in [stored, kept].into_iter().flatten() {
            known.push((cursor, self.standing(p, cursor, None)?));
        }
        let (found, told) = start(self.topics[&p].first(), &known);
        match told {
            Some((_, Standing::Replaced { .. })) => self.stats.starts_anew += 1,
            Some(_) => self.stats.starts_after_deleted += 1,
            None if found.mark.is_none() => self.stats.starts_first += 1,
            None if stored.is_some_and(|c| c.offset == found.offset) => self.stats.starts_stored += 1,
            None => self.stats.starts_kept += 1,
        }
        tr!(self, M(id), "partition {p} starts at {}", cursor(found));
        self.check_start(id, of, found);
        Some(found)
    }

    fn told(&mut self, n: usize) {
        while let Some(change) = self.procs[n].group.poll_change() {
            tr!(self, M(self.procs[n].id), "is told {change:?}");
            let now = self.now;
            let proc = &mut self.procs[n];
            match change {
                Change::Assigned(a, from) => {
                    let trail = Trail::new(from);
                    let held = Held {
                        epoch: a.epoch,
                        trail,
                        confirmed: None,
                        check_at: now + CHECK_EVERY,
                        checked: false,
                    };
                    proc.held.insert(a.partition.index, held);
                    self.check.found(proc.id, a.partition.index);
                }
                Change::Revoking(_) if proc.slow => self.stats.hold_limits += 1,
                Change::Revoking(a) => {
                    self.stats.revocations += 1;
                    proc.group.handle_release(&a);
                    proc.forget(a);
                }
                Change::Lost(a) => {
                    self.stats.lost += 1;
                    proc.forget(a);
                }
            }
        }
    }

    fn read_and_commit(&mut self, n: usize) {
        let held: Vec<_> = self.procs[n].held.iter().map(|(p, held)| (*p, held.epoch)).collect();
        for (p, epoch) in held {
            let goes_on = self.calm() || self.rng.chance(300);
            if !goes_on || self.procs[n].leaving {
                continue;
            }
            match self.read(n, p) {
                Some(true) => self.commit(n, p, epoch),
                Some(false) => {}
                None => {
                    self.stats.broken += 1;
                    tr!(self, M(self.procs[n].id), "partition {p} is another log");
                    let now = self.mono();
                    self.procs[n].group.handle_broken(&assignment(p, epoch), now);
                    self.told(n);
                }
            }
        }
    }

    /// Reads further. Returns whether there was anything; `None` if the log was replaced.
    fn read(&mut self, n: usize, p: i32) -> Option<bool> {
        let (now, fault) = (self.now, self.fault);
        let held = self.procs[n].held.get(&p)?;
        let at = held.trail.position().offset;
        if now >= held.check_at && !self.check_log(n, p)? {
            return Some(false);
        }
        let at = self.procs[n].held.get(&p)?.trail.position().offset.max(at);
        let hostile = !self.calm();
        let wanted = 1 + self.rng.below(if hostile { 3 } else { 40 });
        let fetched = match self.topics[&p].read(at, wanted) {
            // A broker that is short of memory, or waits for a remote disk.
            Ok(_) if hostile && self.rng.chance(30) => {
                self.stats.empty_answers += 1;
                let next = if fault == Some(GroupFault::EmptyMovesOn) { at + 1 } else { at };
                Ok(Batch::new(Vec::new(), next, None))
            }
            // A client whose position went back by itself.
            Ok(_) if hostile && at > 0 && self.rng.chance(3) => {
                self.stats.repeated += 1;
                self.topics[&p].read(self.rng.below(at as u64) as i64, wanted)
            }
            fetched => fetched,
        };
        let Ok(batch) = fetched else {
            self.stats.fetches_failed += 1;
            self.procs[n].suspect(p, now, fault);
            return Some(false);
        };
        if self.procs[n].held.get(&p)?.trail.is_doubtful(&batch) && fault != Some(GroupFault::GapsIgnored) {
            self.stats.gaps += 1;
            if !self.check_log(n, p)? {
                return Some(false);
            }
        }
        let held = self.procs[n].held.get_mut(&p)?;
        if !held.trail.read(&batch) {
            let position = held.trail.position();
            let passed = fault == Some(GroupFault::RepeatsPassed);
            return passed.then(|| {
                self.check_passed(p, position);
                false
            });
        }
        if let Some(topic) = self.topics.get_mut(&p) {
            topic.mark_read(&batch);
        }
        Some(!batch.records.is_empty())
    }

    /// Returns whether the log could be compared; `None` if it was replaced.
    fn check_log(&mut self, n: usize, p: i32) -> Option<bool> {
        if self.fault == Some(GroupFault::NeverChecks) {
            return Some(true);
        }
        let trail = &self.procs[n].held.get(&p)?.trail;
        let (position, floor) = (trail.position(), trail.floor());
        let Some(found) = self.standing(p, position, floor) else { return Some(false) };
        let (now, held) = (self.now, self.procs[n].held.get_mut(&p)?);
        match found {
            Standing::Replaced { .. } => return None,
            Standing::DeletedUnread { first } => held.trail.skip_to(first),
            Standing::Intact => {
                held.trail.confirm(&position);
                held.checked = true;
            }
        }
        held.check_at = now + CHECK_EVERY;
        Some(true)
    }

    fn commit(&mut self, n: usize, p: i32, epoch: u64) {
        let now = self.mono();
        let again = self.rng.chance(50);
        let fault = self.fault;
        let proc = &mut self.procs[n];
        let Some(held) = proc.held.get_mut(&p) else { return };
        let before = held.trail.position().offset - 1;
        let mut at = held.trail.below(held.trail.position().offset);
        if fault == Some(GroupFault::NoFirstAnchor) && !held.checked {
            at.anchor = None;
        }
        proc.last_commit += 1;
        proc.commits.insert(proc.last_commit, (assignment(p, epoch), at));
        proc.group.handle_commit(proc.last_commit, &assignment(p, epoch), at, now);
        if again {
            // A caller that is late with an earlier commit.
            proc.group.handle_commit(u64::MAX, &assignment(p, epoch), Cursor::new(before), now);
        }
    }

    /// Calls that name a hold which is over.
    fn late_calls(&mut self, n: usize) {
        if !self.rng.chance(20) || self.procs[n].past.is_empty() {
            return;
        }
        let (now, i) = (self.mono(), self.rng.index(self.procs[n].past.len()));
        let (way, ahead) = (self.rng.below(3), self.rng.below(50) as i64);
        let proc = &mut self.procs[n];
        let late = proc.past.swap_remove(i);
        self.stats.late_calls += 1;
        match way {
            0 => proc.group.handle_release(&late),
            1 => proc.group.handle_broken(&late, now),
            _ => {
                proc.last_commit += 1;
                proc.late.insert(proc.last_commit, late.clone());
                proc.group.handle_commit(proc.last_commit, &late, Cursor::new(ahead), now);
            }
        }
    }

    fn answers(&mut self, n: usize) {
        for (commit, outcome) in self.procs[n].group.poll_answers() {
            if let Some(of) = self.procs[n].late.remove(&commit) {
                self.check_late(&of, outcome);
            }
            let Some((of, to)) = self.procs[n].commits.remove(&commit) else { continue };
            match outcome {
                CommitOutcome::Done => self.stats.commits_done += 1,
                CommitOutcome::NotOwner => self.stats.commits_refused += 1,
                CommitOutcome::Unknown => self.stats.commits_unknown += 1,
            }
            if outcome == CommitOutcome::Done {
                let held = self.procs[n].held.get_mut(&of.partition.index);
                if let Some(held) = held.filter(|h| h.epoch == of.epoch)
                    && held.confirmed.is_none_or(|c| c.offset < to.offset)
                {
                    held.confirmed = Some(to);
                }
                self.check_confirmed(self.procs[n].id, &of, to);
            }
        }
    }
}

/// Returns whether a pause, in which a member's readers read nothing, counts as a gap.
pub(super) fn gap(long: Us) -> bool {
    long > 250 * MS
}
