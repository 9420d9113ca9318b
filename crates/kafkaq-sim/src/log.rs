//! The hostile log: appends, fetches, commits, truncation and recreation.

use crate::check::Checker;
use crate::later::read_later;
use crate::process::Input;
use crate::profile::Plan;
use crate::task::TaskNo;
use crate::trace::{MS, P, SEC, Us, tr};
use crate::world::{Ev, World};
use kafkaq_core::machine::{Ladder, Layout, OpId};
use kafkaq_core::{
    Assignment, Batch, Commit, Error, ErrorKind, Event, Keyspace, NewRecord, Partition, Record, Result,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Task,
    Wait,
    Dead,
}

/// A record in the log.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: NewRecord,
    pub(crate) timestamp: i64,
    /// Whose it is, its cover number, and how many attempts it knows of.
    pub(crate) task: TaskNo,
    pub(crate) cover: u32,
    pub(crate) attempt: u32,
}

/// Who reads a partition.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) p: usize,
    pub(crate) inc: u32,
    pub(crate) epoch: u64,
    /// What is fetched next.
    pub(crate) pos: i64,
    /// Everything below was delivered.
    pub(crate) read: i64,
    /// Its log was truncated: commits before this time, or beyond what was delivered since, belong to the earlier log.
    pub(crate) cut: Option<(Us, i64)>,
    pub(crate) paused: bool,
    /// One more batch may arrive after a pause.
    pub(crate) one_more: bool,
    /// No fetch is scheduled.
    pub(crate) idle: bool,
    /// Since when it is being revoked.
    pub(crate) revoking: Option<Us>,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) partition: Partition,
    pub(crate) kind: Kind,
    /// By offset; `None` is a gap.
    pub(crate) entries: Vec<Option<Entry>>,
    pub(crate) committed: i64,
    pub(crate) epoch: u64,
    pub(crate) owner: Option<Owner>,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) parts: Vec<Part>,
    pub(crate) layout: Layout,
    pub(crate) ladder: Ladder,
    task_partitions: i32,
}

impl Log {
    pub(crate) fn new(plan: &Plan) -> Log {
        let s = &plan.settings;
        let lanes = Ladder::lanes(s.max_delay);
        let layout = Layout {
            keyspace: Keyspace::new("q", "g", "q").unwrap_or_else(|e| unreachable!("{e}")),
            task: "q".into(),
            wait: "q.g.wait".into(),
            wait_partitions: lanes,
            dead: "q.g.dead".into(),
            dead_partitions: 1,
        };
        let mut parts = Vec::new();
        for (kind, topic, n) in [
            (Kind::Task, &layout.task, plan.task_partitions),
            (Kind::Wait, &layout.wait, lanes),
            (Kind::Dead, &layout.dead, 1),
        ] {
            for index in 0..n {
                let partition = Partition { topic: topic.clone(), index };
                parts.push(Part {
                    partition,
                    kind,
                    entries: Vec::new(),
                    committed: 0,
                    epoch: 0,
                    owner: None,
                });
            }
        }
        let ladder = Ladder::new(s.lease + s.clock_skew, s.max_delay, lanes);
        Log { parts, layout, ladder, task_partitions: plan.task_partitions }
    }

    /// The number of a partition here.
    pub(crate) fn part(&self, partition: &Partition) -> Option<usize> {
        self.parts.iter().position(|p| p.partition == *partition)
    }

    pub(crate) fn wait_part(&self, index: i32) -> usize {
        (self.task_partitions + index) as usize
    }

    /// Returns how many published records of a task the log has accepted.
    pub(crate) fn records(&self, task: TaskNo) -> usize {
        let records = self.parts.iter().filter(|p| p.kind == Kind::Task).flat_map(|p| &p.entries);
        records.flatten().filter(|e| e.task == task).count()
    }

    /// The epoch under which a process reads a partition.
    pub(crate) fn epoch(&self, partition: &Partition, p: usize, inc: u32) -> Option<u64> {
        let owner = self.parts[self.part(partition)?].owner.as_ref()?;
        ((owner.p, owner.inc) == (p, inc)).then_some(owner.epoch)
    }

    /// The fewest attempts that a record of the task knows of, among those that are not committed.
    pub(crate) fn fewest_attempts(&self, task: TaskNo) -> Option<u32> {
        let open = |p: &Part| p.kind != Kind::Dead;
        let records = self.parts.iter().filter(|p| open(p)).flat_map(|p| &p.entries[p.committed as usize..]);
        records.flatten().filter(|e| e.task == task).map(|e| e.attempt).min()
    }

    /// A partition whose records are not all committed.
    pub(crate) fn first_behind(&self) -> Option<&Part> {
        self.parts.iter().find(|p| p.kind != Kind::Dead && p.committed < p.entries.len() as i64)
    }
}

impl Part {
    pub(crate) fn owned(&mut self, p: usize, inc: u32, epoch: u64) -> Option<&mut Owner> {
        self.owner.as_mut().filter(|o| (o.p, o.inc, o.epoch) == (p, inc, epoch))
    }
}

fn unavailable(op: &'static str) -> Error {
    Error::not_applied(ErrorKind::Unavailable, op)
}

fn timeout(op: &'static str) -> Error {
    Error::unknown(ErrorKind::Timeout, op)
}

// ---- appends
impl World {
    /// Puts the record into the log.
    pub(crate) fn append_effect(&mut self, part: usize, record: &NewRecord, who: Option<usize>) -> i64 {
        if self.plan.holes > 0 && self.rng.chance(self.plan.holes) {
            self.log.parts[part].entries.push(None);
        }
        let offset = self.log.parts[part].entries.len() as i64;
        let mut record = record.clone();
        record.headers = self.as_appended(who, &record.headers);
        let record = &record;
        let entry = self.checked_entry(part, offset, record, who);
        let whose = who.map_or("client".into(), |p| P(p).to_string());
        tr!(
            self,
            whose,
            "  log {} offset {offset} holds t{} {}",
            self.log.parts[part].partition,
            entry.as_ref().map_or(0, |e| e.task),
            self.describe(record)
        );
        self.log.parts[part].entries.push(entry);
        self.wake_fetch(part);
        offset
    }

    /// One append with its faults.
    pub(crate) fn append_once(&mut self, part: usize, record: &NewRecord, who: Option<usize>) -> Result<i64> {
        let r = &self.plan.rates;
        let faults = [
            r.append_refused / 2,
            r.append_refused - r.append_refused / 2,
            r.append_applied,
            r.append_lost,
            r.append_late,
            r.append_twice,
        ];
        let fine = 1000_u32.saturating_sub(faults.iter().sum());
        let [a, b, c, d, e, f] = faults;
        let pick = if self.calm { 6 } else { self.rng.weighted(&[a, b, c, d, e, f, fine]) };
        if who.is_some() && self.log.parts[part].kind == Kind::Wait && self.check.is_refused(record) {
            self.stats.refused += 1;
            return Err(Error::not_applied(ErrorKind::TooLarge, "append"));
        }
        self.check.faults += u64::from(who.is_some() && pick < 6);
        match pick {
            0 => Err(unavailable("append")),
            1 => Err(Error::not_applied(ErrorKind::TooLarge, "append")),
            2 => {
                self.stats.append_unknown_applied += 1;
                self.append_effect(part, record, who);
                Err(timeout("append"))
            }
            3 => {
                self.stats.append_unknown_lost += 1;
                Err(timeout("append"))
            }
            4 => {
                self.stats.append_late += 1;
                let after = self.rng.between(MS, 3000 * MS);
                self.after(after, Ev::LateAppend(who, part, record.clone()));
                Err(timeout("append"))
            }
            5 => {
                self.stats.append_twice += 1;
                self.append_effect(part, record, who);
                Ok(self.append_effect(part, record, who))
            }
            _ => Ok(self.append_effect(part, record, who)),
        }
    }

    pub(crate) fn appends(&mut self, p: usize, inc: u32, part: usize, records: Vec<(OpId, NewRecord)>) {
        let mut answers = Vec::with_capacity(records.len());
        for (op, record) in records {
            let outcome = self.append_once(part, &record, Some(p));
            if let Err(e) = &outcome {
                tr!(self, P(p), "append {} -> {e}", self.describe(&record));
            }
            answers.push((op, outcome));
        }
        self.answer(p, inc, Input::Appended(answers));
    }
}

// ---- reading and committing
impl World {
    pub(crate) fn wake_fetch(&mut self, part: usize) {
        if let Some(o) =
            self.log.parts[part].owner.as_mut().filter(|o| o.idle && o.revoking.is_none() && !o.paused)
        {
            o.idle = false;
            let epoch = o.epoch;
            let after = self.rng.between(MS / 4, 8 * MS);
            self.after(after, Ev::Fetch(part, epoch));
        }
    }

    pub(crate) fn fetch(&mut self, part: usize, epoch: u64) {
        let max = self.plan.max_batch;
        let (repeated, empty) = (self.trouble(self.plan.rates.repeated), self.trouble(self.plan.rates.empty));
        let later = self.log.parts[part].owner.as_ref().is_some_and(|o| self.is_later(o.p));
        let this = &mut self.log.parts[part];
        let Some(o) = this.owner.as_mut().filter(|o| o.epoch == epoch && o.revoking.is_none()) else {
            return;
        };
        if self.procs[o.p].paused {
            return self.after(20 * MS, Ev::Fetch(part, epoch));
        }
        if self.procs[o.p].machine.is_none() || self.procs[o.p].inc != o.inc {
            return;
        }
        o.idle = true;
        if o.paused && !std::mem::take(&mut o.one_more) {
            return;
        }
        let (mut next, mut records) = (o.pos, Vec::new());
        while let Some(entry) = this.entries.get(next as usize) {
            if let Some(Entry { record: r, timestamp, .. }) = entry {
                if records.len() == max {
                    break;
                }
                let (key, value) = (r.key.clone(), r.value.clone());
                let headers = if later { read_later(&r.headers) } else { r.headers.clone() };
                records.push(Record::new(next, *timestamp, key, value, headers));
            }
            next += 1;
        }
        if next == o.pos {
            return;
        }
        if empty {
            // A broker may return nothing although there is something.
            self.stats.empty_fetches += 1;
            let (p, at) = (o.p, o.pos);
            let assignment = Assignment { partition: this.partition.clone(), epoch };
            self.deliver(p, Event::Records(assignment, Batch::new(Vec::new(), at, None)));
            return self.wake_fetch(part);
        }
        if repeated {
            self.stats.repeated += 1;
        } else {
            o.pos = next;
        }
        o.read = o.read.max(next);
        if let Some((_, upto)) = &mut o.cut {
            *upto = next;
        }
        let (p, end) = (o.p, this.entries.len() as i64);
        let assignment = Assignment { partition: this.partition.clone(), epoch };
        let outstanding = self.log.parts[part].open_records(&self.check);
        let bound = self.plan.settings.window.max(self.plan.settings.lane_window) + 8 * max;
        if outstanding > bound {
            let told = format!("{assignment}: {outstanding} records are read and not finished, over {bound}");
            self.check.fail("I6", told);
        }
        self.deliver(p, Event::Records(assignment, Batch::new(records, next, Some(end))));
        self.wake_fetch(part);
    }

    /// An event reaches a member after those before it.
    pub(crate) fn deliver(&mut self, p: usize, event: Event) {
        let delay = self.rng.between(MS / 10, 4 * MS);
        let process = &mut self.procs[p];
        process.events_at = process.events_at.max(self.now + delay);
        let (at, inc) = (process.events_at, process.inc);
        self.at(at, Ev::Input(p, inc, Input::Event(event)));
    }

    pub(crate) fn commits(&mut self, p: usize, inc: u32, commits: Vec<Commit>) {
        let mut answers = Vec::with_capacity(commits.len());
        for commit in commits {
            let r = &self.plan.rates;
            let fine = 1000 - r.commit_refused - r.commit_applied - r.commit_lost;
            let weights = [fine, r.commit_refused, r.commit_applied, r.commit_lost];
            let pick = if self.calm { 0 } else { self.rng.weighted(&weights) };
            let outcome = match pick {
                0 => self.commit_effect(p, inc, &commit),
                1 => Err(unavailable("commit")),
                2 => self.commit_effect(p, inc, &commit).and(Err(timeout("commit"))),
                _ => Err(timeout("commit")),
            };
            match &outcome {
                Ok(()) => self.stats.commits += 1,
                Err(e) if e.kind() == ErrorKind::NotOwner => self.stats.commits_refused += 1,
                Err(_) => self.stats.commits_failed += 1,
            }
            tr!(self, P(p), "commit {} below {} -> {outcome:?}", commit.assignment, commit.offset);
            answers.push((commit, outcome));
        }
        self.answer(p, inc, Input::Committed(answers));
    }

    fn commit_effect(&mut self, p: usize, inc: u32, commit: &Commit) -> Result<()> {
        let refused = Err(Error::not_applied(ErrorKind::NotOwner, "commit"));
        let Some(part) = self.log.part(&commit.assignment.partition) else { return refused };
        let now = self.now;
        let this = &mut self.log.parts[part];
        let Some(owner) = this.owned(p, inc, commit.assignment.epoch) else { return refused };
        if owner.cut.is_some_and(|(until, upto)| now < until || commit.offset > upto) {
            // Its mark belongs to the earlier log, which the next owner will notice.
            return Ok(());
        }
        self.check.committed(this, commit.offset);
        this.committed = commit.offset;
        Ok(())
    }
}

impl Part {
    /// Records that are read and not finished.
    fn open_records(&self, check: &Checker) -> usize {
        let Some(o) = &self.owner else { return 0 };
        let range = self.committed.min(o.pos) as usize..o.pos as usize;
        self.entries[range].iter().flatten().filter(|e| !check.is_finished(e, self.epoch)).count()
    }
}

impl World {
    /// Truncates a topic, or deletes and recreates it, such that the adapter notices only that offsets went back.
    pub(crate) fn cut(&mut self) {
        let part = self.rng.index(self.log.parts.len());
        let kept = self.rng.index(self.log.parts[part].entries.len() + 1);
        let this = &mut self.log.parts[part];
        if this.kind == Kind::Dead || kept == this.entries.len() {
            return;
        }
        self.stats.logs_cut += 1;
        let now = self.now;
        tr!(self, "log", "{} is truncated to {kept}", self.log.parts[part].partition);
        let this = &mut self.log.parts[part];
        let gone = this.entries.split_off(kept);
        self.check.deleted(&gone);
        this.committed = if this.committed > kept as i64 { 0 } else { this.committed };
        if let Some(o) = this.owner.as_mut()
            && o.read > kept as i64
        {
            (o.pos, o.read) = (0, 0);
            o.cut = Some((now + 3 * SEC, 0));
        }
        self.wake_fetch(part);
    }

    /// Adapters compare their marks with the log every few seconds.
    pub(crate) fn check_marks(&mut self) {
        for part in 0..self.log.parts.len() {
            if self.log.parts[part].owner.as_ref().is_some_and(|o| o.cut.is_some()) {
                self.lose(part);
            }
        }
    }

    /// Deletes the group's offsets; the store still knows what is done.
    pub(crate) fn forget_offsets(&mut self) {
        let part = self.rng.index(self.log.parts.len());
        if self.log.parts[part].kind != Kind::Dead {
            self.stats.offsets_forgotten += 1;
            self.lose(part);
            self.log.parts[part].committed = 0;
        }
    }

    /// Deletes and recreates the task topic; the group's commits are gone with it.
    pub(crate) fn recreate(&mut self) {
        self.stats.topics_recreated += 1;
        tr!(self, "log", "the task topic is deleted and recreated");
        for part in 0..self.log.parts.len() {
            if self.log.parts[part].kind == Kind::Task {
                let entries = std::mem::take(&mut self.log.parts[part].entries);
                self.check.deleted(&entries);
                self.lose(part);
                self.log.parts[part].committed = 0;
            }
        }
    }
}
