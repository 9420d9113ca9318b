//! A member: the driver's part in a few lines, a reader that finishes what it reads, and a user who commits.

use super::world::{Call, Id, M, Topic, WAY, World, cursor};
use crate::trace::{Us, tr};
use kafkaq_core::{Assignment, Error, ErrorKind, Offsets, Partition};
use kafkaq_core::{
    Cursor,
    group::{Change, CommitOutcome, Group, GroupFault, start},
};
use std::collections::{BTreeMap, HashMap};

pub(super) struct Proc {
    pub(super) id: Id,
    pub(super) group: Group,
    pub(super) paused_until: Us,
    /// What the member believes to hold.
    pub(super) held: BTreeMap<i32, Held>,
    commits: HashMap<u64, (i32, u64, Cursor)>,
    last_commit: u64,
    pub(super) leaving: bool,
    /// It began to leave in the calm phase.
    pub(super) left_in_peace: bool,
    /// It never releases what is revoked.
    slow: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) epoch: u64,
    /// What it reads.
    pub(super) topic: Topic,
    /// How far it has read and finished.
    pub(super) at: i64,
    /// The highest commit that was confirmed.
    pub(super) confirmed: i64,
    /// When it finds out that the topic was made anew.
    pub(super) notices: Option<Us>,
}

impl Proc {
    pub(super) fn new(id: Id, group: Group, slow: bool) -> Self {
        Proc {
            id,
            group,
            paused_until: 0,
            held: BTreeMap::new(),
            commits: HashMap::new(),
            last_commit: 0,
            leaving: false,
            left_in_peace: false,
            slow,
        }
    }

    pub(super) fn is_paused(&self, now: Us) -> bool {
        self.paused_until > now
    }
}

impl World {
    pub(super) fn run_member(&mut self, n: usize) {
        let (now, id) = (self.mono(), self.procs[n].id);
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
        while let Some((assignment, cursor)) = self.procs[n].group.poll_checkpoint(now) {
            self.later(WAY, id, Call::Checkpoint(assignment, cursor));
        }
        self.told(n);
        self.notice(n);
        self.read_and_commit(n);
        self.answers(n);
    }

    /// As the driver does it: the store's cursor and the log's checkpoint, and whether the records still say so.
    fn locate(&mut self, id: Id, of: &Assignment, stored: Option<Cursor>) -> Option<Cursor> {
        if !self.calm() && self.rng.chance(50) {
            return None;
        }
        let p = of.partition.index;
        let topic = self.topics[&p];
        let kept = self.checkpoints.get(&p).copied().filter(|_| match self.fault {
            Some(GroupFault::CheckpointIgnored) => false,
            Some(GroupFault::StoreBelieved) => stored.is_none(),
            _ => true,
        });
        let mut cursors = Vec::new();
        for mut c in [stored, kept].into_iter().flatten() {
            if self.fault == Some(GroupFault::MarkIgnored) {
                c.mark = None;
            }
            let at_mark = c.mark.filter(|m| m.offset < topic.end).map(|m| topic.record(m.offset));
            cursors.push((c, at_mark));
        }
        let found = start(Offsets { first: 0, next: topic.end }, &cursors);
        match found.offset {
            0 => self.stats.starts_first += 1,
            at if stored.is_some_and(|c| c.offset == at) => self.stats.starts_stored += 1,
            _ => self.stats.starts_kept += 1,
        }
        self.stats.starts_anew += u64::from(stored.is_some_and(|c| !topic.made(c)));
        tr!(self, M(id), "partition {p} starts at {}", cursor(found));
        self.check_start(id, of, found);
        Some(found)
    }

    fn told(&mut self, n: usize) {
        while let Some(change) = self.procs[n].group.poll_change() {
            tr!(self, M(self.procs[n].id), "is told {change:?}");
            let (topics, proc) = (&self.topics, &mut self.procs[n]);
            match change {
                Change::Assigned(a, from) => {
                    let (p, at) = (a.partition.index, from.offset);
                    let topic = topics[&p];
                    proc.held.insert(p, Held { epoch: a.epoch, topic, at, confirmed: 0, notices: None });
                    self.check.found(proc.id, p);
                }
                Change::Revoking(_) if proc.slow => self.stats.hold_limits += 1,
                Change::Revoking(a) => {
                    self.stats.revocations += 1;
                    proc.held.remove(&a.partition.index);
                    proc.group.handle_release(&a);
                }
                Change::Lost(a) => {
                    self.stats.lost += 1;
                    proc.held.remove(&a.partition.index);
                }
            }
        }
    }

    fn notice(&mut self, n: usize) {
        let now = self.now;
        let proc = &mut self.procs[n];
        for (p, held) in proc.held.iter_mut().filter(|(_, h)| h.notices.is_some_and(|at| at <= now)) {
            held.notices = None;
            proc.group.handle_broken(&Assignment { partition: Partition::new("t", *p), epoch: held.epoch });
        }
        self.told(n);
    }

    fn read_and_commit(&mut self, n: usize) {
        let held = self.procs[n].held.clone();
        for (p, held) in held {
            let end = self.topics[&p].end;
            let gone = self.topics[&p].incarnation != held.topic.incarnation;
            let goes_on = self.calm() || self.rng.chance(300);
            if gone || held.at >= end || !goes_on || self.procs[n].leaving {
                continue;
            }
            let to = (held.at + 1 + self.rng.below(3) as i64).min(end);
            self.check.finished(p, to);
            let (now, again) = (self.mono(), self.rng.chance(50));
            let proc = &mut self.procs[n];
            if let Some(held) = proc.held.get_mut(&p) {
                held.at = to;
            }
            proc.last_commit += 1;
            let (commit, at) = (proc.last_commit, held.topic.cursor(to));
            proc.commits.insert(commit, (p, held.epoch, at));
            let assignment = Assignment { partition: Partition::new("t", p), epoch: held.epoch };
            proc.group.handle_commit(commit, &assignment, at, now);
            if again && held.at > 0 {
                // A caller that is late with an earlier commit.
                proc.group.handle_commit(u64::MAX, &assignment, held.topic.cursor(held.at), now);
            }
        }
    }

    fn answers(&mut self, n: usize) {
        for (commit, outcome) in self.procs[n].group.poll_answers() {
            let Some((p, epoch, to)) = self.procs[n].commits.remove(&commit) else { continue };
            match outcome {
                CommitOutcome::Done => self.stats.commits_done += 1,
                CommitOutcome::NotOwner => self.stats.commits_refused += 1,
                CommitOutcome::Unknown => self.stats.commits_unknown += 1,
            }
            if outcome == CommitOutcome::Done {
                if let Some(held) = self.procs[n].held.get_mut(&p).filter(|h| h.epoch == epoch) {
                    held.confirmed = held.confirmed.max(to.offset);
                }
                self.check_confirmed(self.procs[n].id, p, epoch, to);
            }
        }
    }
}
