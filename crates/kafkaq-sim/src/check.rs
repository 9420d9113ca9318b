//! The invariants, checked from outside: by what the log and the store contained at every moment. Written from the
//! specification, not from the machine.

use crate::later::own_envelope;
use crate::log::{Entry, Kind, Part};
use crate::process::{Job, Suspect};
use crate::profile::{Plan, WorldFault};
use crate::task::{Copied, Held, Task, TaskKind, TaskNo};
use crate::trace::{MS, SEC, Us, short, token};
use crate::workers::End;
use crate::world::World;
use bytes::Bytes;
use kafkaq_core::machine::{Answer, Content, JobKey, Ready};
use kafkaq_core::{
    DecodeError, Effect, Envelope, HEADER, History, Key, Lease, LeaseState, LeaseToken, LostReason,
    NewRecord, Position, Wall,
};
use std::collections::HashMap;
use std::{fmt, time::Duration};

/// A delayed task that comes later than this is late.
const LATE: Duration = Duration::from_millis(50);
/// Fewer delayed tasks than this may all be late by chance.
const FEW: u32 = 6;

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The invariant: I1 to I6.
    pub invariant: &'static str,
    /// What happened.
    pub what: String,
    /// When, in microseconds of virtual time.
    pub at: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.6}s: {}", self.invariant, self.at as f64 / 1e6, self.what)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) tasks: Vec<Task>,
    /// Looked up, never iterated.
    by_key: HashMap<Key, TaskNo>,
    /// Foreign records, by the required beginning of their ids.
    by_place: HashMap<String, TaskNo>,
    pub(crate) violation: Option<Violation>,
    /// Clocks have been further apart than the settings allow.
    pub(crate) clocks_broken: bool,
    pub(crate) latest_due: Us,
    /// Delayed tasks that a worker got, and those of them that it got late.
    delayed: u32,
    late: u32,
    /// The number of faults that the machines' calls have met.
    pub(crate) faults: u64,
    cancel_ttl: Duration,
    max_delay: Duration,
    world: Option<WorldFault>,
}

impl Checker {
    pub(crate) fn new(plan: &Plan) -> Checker {
        let s = &plan.settings;
        Checker {
            cancel_ttl: s.max_overdue + s.done_retention,
            max_delay: s.max_delay,
            world: plan.world,
            ..Self::default()
        }
    }

    pub(crate) fn fail(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what, at: 0 });
    }

    pub(crate) fn add(&mut self, task: Task) {
        if let Some(key) = &task.store_key {
            self.by_key.insert(key.clone(), task.n);
        }
        self.tasks.push(task);
    }

    /// Returns whether the log refuses copies of the record's task.
    pub(crate) fn is_refused(&self, record: &NewRecord) -> bool {
        numbered(record.value.as_ref()).and_then(|n| self.tasks.get(n)).is_some_and(|task| task.refused)
    }

    pub(crate) fn is_poison(&self, task: TaskNo) -> bool {
        self.tasks[task].poison
    }

    pub(crate) fn key(&self, task: TaskNo) -> Option<Key> {
        self.tasks[task].store_key.clone()
    }

    /// Returns the task whose lease has this key. The id of a foreign record begins with where and when it was
    /// appended.
    pub(crate) fn task_of(&mut self, key: &Key) -> Option<TaskNo> {
        if let Some(n) = self.by_key.get(key) {
            return Some(*n);
        }
        let id = short(key).replace("%2F", "/").replace("%40", "@").replace("%3A", ":");
        let place = id.rsplit_once('-').map_or(&*id, |(place, _)| place);
        let n = *self.by_place.get(place)?;
        self.by_key.insert(key.clone(), n);
        Some(n)
    }

    pub(crate) fn damaged(&mut self, key: &Key) {
        if let Some(n) = self.task_of(key) {
            self.tasks[n].damage += 1;
        }
    }

    /// Returns whether nothing keeps this record open any more. `epoch` is its partition's.
    pub(crate) fn is_finished(&self, entry: &Entry, epoch: u64) -> bool {
        let task = &self.tasks[entry.task];
        if entry.cover == 0 && task.held.iter().any(|h| h.done_unleased == Some(epoch)) {
            return true;
        }
        // A record that was forwarded unchanged is in the wait topic with its own cover number.
        task.is_covered(entry.cover) || task.forwarded.contains(&entry.cover)
    }

    /// Returns whether the task has no records but the published ones.
    pub(crate) fn has_no_copy(&self, content: &Content) -> bool {
        numbered(content.payload.as_ref())
            .and_then(|n| self.tasks.get(n))
            .is_some_and(|t| t.copies.is_empty())
    }

    /// I1 and I4, at the moment at which a commit takes effect.
    pub(crate) fn committed(&mut self, part: &Part, offset: i64) {
        let at = &part.partition;
        if offset < part.committed {
            self.fail(
                "I4",
                format!("the committed offset of {at} goes back from {} to {offset}", part.committed),
            );
        }
        if offset > part.entries.len() as i64 {
            return self
                .fail("I4", format!("{at} is committed to {offset}, beyond its end {}", part.entries.len()));
        }
        for n in part.committed..offset {
            if let Some(entry) = &part.entries[n as usize]
                && !self.is_finished(entry, part.epoch)
            {
                let Entry { task, cover, .. } = entry;
                let what = format!(
                    "{at} is committed to {offset}, but the record at {n} (t{task}, cover {cover}) is neither \
                     terminal nor covered"
                );
                return self.fail("I1", what);
            }
        }
    }

    /// Gives up the tasks of deleted records: that is what deleting a topic means.
    pub(crate) fn deleted(&mut self, entries: &[Option<Entry>]) {
        for entry in entries.iter().flatten() {
            self.tasks[entry.task].deleted = true;
        }
    }

    /// I5: returns what is still unfinished.
    pub(crate) fn unfinished(&self) -> Option<String> {
        self.tasks.iter().find_map(|t| {
            let promised = !t.acknowledged_at.is_empty() && !t.deleted;
            let open = match t.kind.is_undecodable() {
                true => t.dead_records == 0,
                false => !t.is_terminal() && !t.is_executed(),
            };
            if promised && open {
                return Some(format!("t{} ({:?}) was published and is not finished", t.n, t.kind));
            }
            let last = *t.acknowledged_at.last()?;
            let again = t.acknowledged_at.len() > 1 && t.started_at < last && !t.cancelled;
            (self.world == Some(WorldFault::IdMeansNewTask) && promised && again)
                .then(|| format!("t{} was published again and did not run again", t.n))
        })
    }

    /// I5, for a punctual run: one delayed task may find all workers busy or its lane full, but not every one.
    pub(crate) fn none_in_time(&self) -> Option<String> {
        let none = self.delayed >= FEW && self.late == self.delayed;
        none.then(|| format!("all {} delayed tasks came more than {LATE:?} late", self.delayed))
    }

    /// Records that a process has ended, and its workers with it.
    pub(crate) fn process_over(&mut self, id: [u8; 16]) {
        for held in self.tasks.iter_mut().flat_map(|t| &mut t.held) {
            if held.token.process == id {
                held.running = None;
            }
        }
    }

    /// Returns what a client writes to cancel a task; `None` if there is nothing to cancel.
    pub(crate) fn cancelled_lease(&self, seen: Option<&Bytes>, now: Wall) -> Option<(Bytes, Duration)> {
        let (mut lease, ttl) = match seen.map(|v| Lease::decode(v)) {
            Some(Err(DecodeError::Newer(_))) => return None,
            Some(Ok(lease)) if lease.state.is_terminal() => return None,
            Some(Ok(lease)) => (lease, self.cancel_ttl),
            None | Some(Err(_)) => {
                let token = LeaseToken { process: [255; 16], number: now.0 };
                let (state, length) = (LeaseState::Cancelled, Duration::ZERO);
                (Lease::new(state, token, now, length), self.cancel_ttl + self.max_delay)
            }
        };
        (lease.state, lease.deadline, lease.length) = (LeaseState::Cancelled, now, Duration::ZERO);
        Some((lease.encode(), ttl))
    }
}

fn numbered(payload: Option<&Bytes>) -> Option<TaskNo> {
    std::str::from_utf8(payload?).ok()?.strip_prefix('t')?.parse().ok()
}

// ---- appends
impl World {
    /// Returns the task of a record, its cover number and its attempt. Checks what a machine appends.
    pub(crate) fn check_append(
        &mut self,
        kind: Kind,
        at: &Position,
        timestamp: i64,
        record: &NewRecord,
        who: Option<usize>,
    ) -> Option<(TaskNo, u32, u32)> {
        let now = self.now;
        let Some(n) = numbered(record.value.as_ref()).filter(|n| *n < self.check.tasks.len()) else {
            self.check.fail("I1", format!("a record of no task is appended to {}", at.partition));
            return None;
        };
        let envelope = record.headers.get(HEADER).and_then(|h| Envelope::decode(&own_envelope(h)).ok());
        let forwarded = record.headers.get("kafkaq-forward").is_some();
        let (cover, attempt) = envelope.as_ref().map_or((0, 0), |e| (e.cover, e.attempt));
        let task = &mut self.check.tasks[n];
        if let Some(e) = &envelope {
            task.attempt = task.attempt.max(e.attempt);
        }
        let Some(p) = who else {
            if task.kind == TaskKind::Foreign {
                let place =
                    format!("{}/{}/{}@{timestamp}", at.partition.topic, at.partition.index, at.offset);
                self.check.by_place.insert(place, n);
            }
            task.first_timestamp = timestamp;
            return Some((n, cover, attempt));
        };
        let same =
            record.key == task.key && (record.headers.get("user").is_some_and(|h| h == &format!("h{n}")));
        if !same {
            self.check.fail("I1", format!("p{p} appends t{n} without the key or the headers of its user"));
            return None;
        }
        match kind {
            Kind::Dead => {
                self.stats.dead_letters += 1;
                task.dead_records += 1;
            }
            Kind::Task => self.check.fail("I1", format!("p{p} appends t{n} to the task topic")),
            Kind::Wait => {
                let Some(e) = envelope else {
                    self.check.fail("I1", format!("p{p} appends a copy of t{n} that can't be decoded"));
                    return None;
                };
                self.stats.copies += 1;
                self.stats.hops += u64::from(e.lane_due < e.due);
                task.copies.push(Copied { cover, due: e.due, at: now, running: e.running });
                if forwarded {
                    // As it was, by a process that can't read it.
                    self.stats.forwarded += 1;
                    self.check.tasks[n].forwarded.push(cover);
                } else if cover == 0 {
                    self.check.fail("I1", format!("p{p} appends a copy of t{n} with cover number 0"));
                } else {
                    self.check_number_of_copies(n);
                }
            }
        }
        Some((n, cover, attempt))
    }

    /// I6: a task gets a few copies per lease, and some per fault; their number doesn't grow without bound.
    fn check_number_of_copies(&mut self, n: TaskNo) {
        let faults = self.check.faults;
        let moves =
            self.stats.revocations + self.stats.partitions_lost + self.stats.crashes + self.stats.pauses;
        let task = &self.check.tasks[n];
        let lease = self.plan.settings.lease.as_micros() as Us;
        let since = |age: Us| {
            let recent = task.copies.iter().rev().take_while(|c| c.at + age > self.now);
            recent.count() as u64
        };
        let damage = u64::from(task.damage);
        let allowed = 32 + damage + 2 * (self.now / lease) + 2 * task.retries + moves + faults;
        // Two processes that disagree on the time send a copy back and forth; and no cover number can be raised in a
        // lease of a later version.
        let excused = self.check.clocks_broken || self.stats.damaged > 0 || self.plan.mixed;
        let allowed = if excused { 3 * allowed } else { allowed };
        let (all, lately) = (task.copies.len() as u64, if excused { 0 } else { since(1000 * MS) });
        if all > allowed || lately > 16 + task.retries + moves / 2 + faults / 3 {
            let what = format!("t{n} has {all} copies ({allowed} allowed), {lately} of the last second");
            self.check.fail("I6", what);
        }
    }
}

// ---- jobs
impl World {
    pub(crate) fn held(&mut self, p: usize, job: JobKey) -> Option<(TaskNo, &mut Held)> {
        let Job { task, token, .. } = self.procs[p].jobs.get(&job)?.clone();
        self.check.tasks[task].holder(token).map(|h| (task, h))
    }

    /// The latest deadline of a job that was in the store, as far as anybody may know.
    pub(crate) fn known_deadline(&mut self, p: usize, job: JobKey) -> Wall {
        self.held(p, job).map_or(Wall(0), |(_, held)| held.deadline)
    }

    /// I2: a ready job has a live lease that this process has won.
    pub(crate) fn check_ready(&mut self, p: usize, ready: &Ready) {
        let (id, now) = (self.procs[p].id, self.clocks(p));
        let Some(n) = numbered(ready.content.payload.as_ref()).filter(|n| *n < self.check.tasks.len()) else {
            return self.check.fail("I2", format!("p{p} has a job of no task"));
        };
        let most = self.plan.settings.prefetch + self.plan.workers;
        if self.procs[p].ready.len() >= most {
            self.check.fail("I6", format!("p{p} has more than {most} ready jobs"));
        }
        let (max_wall, broken) = (self.procs[p].max_wall, self.check.clocks_broken);
        if self.check.tasks[n].holder(ready.token).is_none() {
            match self.may_be_unleased(n, ready) {
                Ok(()) => {
                    self.stats.unleased += 1;
                    let faults = self.check.faults;
                    self.check.tasks[n].hold(ready.token, ready.attempt, ready.deadline, true, faults);
                }
                Err(why) => self.check.fail("I2", format!("p{p} makes t{n} ready without a lease: {why}")),
            }
        }
        let task = &mut self.check.tasks[n];
        let (kind, due, key) = (task.kind, task.due, task.key.clone());
        let what = match task.holder(ready.token) {
            _ if kind.is_undecodable() => "which can't be decoded".into(),
            _ if ready.content.key != key => "with another key".into(),
            _ if due.is_some_and(|due| due > max_wall) && !broken => "before it is due".into(),
            _ if ready.token.process != id => "with another process's token".into(),
            None => format!("under {}, which was never in the store", token(&ready.token)),
            Some(h) if h.job.is_some_and(|j| j != ready.job) => "under a token of another job".into(),
            Some(h) if h.running.is_some() || h.handed => "that a worker has or had".into(),
            Some(h) if h.attempt != ready.attempt => format!("as attempt {}", ready.attempt),
            Some(_) if ready.attempt > self.plan.settings.max_handouts => "beyond the last hand-out".into(),
            Some(_) if ready.failures >= self.plan.settings.max_failures => "after its last failure".into(),
            Some(h) if h.deadline < ready.deadline => "until later than the store says".into(),
            Some(_) if ready.deadline <= now.wall && ready.stale_at > now.mono && !broken => {
                "when its lease is over".into()
            }
            Some(h) => {
                h.job = Some(ready.job);
                return;
            }
        };
        self.check.fail("I2", format!("p{p} makes t{n} ready {what}"));
    }

    /// I2: a job that starts without a lease is a first attempt, at an offset where no earlier owner of the partition
    /// has started one like this.
    fn may_be_unleased(&self, n: TaskNo, ready: &Ready) -> Result<(), &'static str> {
        let (task, settings, stats) = (&self.check.tasks[n], &self.plan.settings, &self.stats);
        let origin = &ready.content.origin;
        let committed = self.log.part(&origin.partition).map_or(0, |part| self.log.parts[part].committed);
        let moved_back = stats.logs_cut + stats.topics_recreated + stats.offsets_forgotten > 0;
        if settings.track_after.is_none() {
            Err("it was never in the store")
        } else if task.kind != TaskKind::Fresh || (ready.attempt, ready.failures) != (1, 0) {
            Err("it may not be started without a lease")
        } else if origin.offset >= committed + settings.unleased_span && !moved_back {
            Err("the next owner would assume that nobody has started it")
        } else if task.held.iter().any(|h| h.began_unleased && h.handed)
            && self.log.records(n) == 1
            && !moved_back
        {
            Err("it was already started without a lease")
        } else {
            Ok(())
        }
    }

    /// Every job that runs for long gets a lease in the store.
    pub(crate) fn check_leased(&mut self, p: usize, job: JobKey) {
        let Some(after) = self.plan.settings.track_after else { return };
        let excused = self.plan.rates.pause > 0 || self.check.clocks_broken;
        // All concurrent calls of the store may be slow.
        let patience = if self.plan.rates.slow_call > 0 { 8 * SEC } else { 2 * SEC };
        let until = self.procs[p].ready_at(job) + after.as_micros() as Us + patience;
        let Some((n, held)) = self.held(p, job) else { return };
        if held.unleased && !held.sent && held.done_unleased.is_none() && !excused && until < self.now {
            self.check.fail("I2", format!("p{p} still executes t{n} without a lease"));
        }
    }

    /// I2: no other lease is live when a worker starts. A job without a lease in the store can't be seen by others, and
    /// doesn't see theirs.
    pub(crate) fn check_taken(&mut self, p: usize, ready: &Ready) -> Option<TaskNo> {
        let n = numbered(ready.content.payload.as_ref())?;
        let now = self.clocks(p);
        // The driver goes by the monotonic clock, which a wrong wall clock does not touch.
        if ready.deadline <= now.wall && !self.check.clocks_broken {
            self.check.fail("I2", format!("p{p} hands out t{n} when its lease is over"));
        }
        // A lease that the store has lost since it was won can't be seen by others, and its holder doesn't see theirs.
        let damage = self.check.tasks[n].damage;
        let intact =
            self.check.tasks[n].holder(ready.token).is_some_and(|h| h.damage == damage && !h.unleased);
        let broken = self.check.clocks_broken || !intact;
        for i in 0..self.check.tasks[n].held.len() {
            let other = &self.check.tasks[n].held[i];
            let Some(q) = other.running.filter(|_| other.token != ready.token) else { continue };
            let (job, excused) = (other.job, other.damage != damage || other.unleased || broken);
            let wall = self.clocks(q).wall;
            let holds = job.and_then(|j| self.procs[q].jobs.get(&j)).is_some_and(|j| j.deadline > wall);
            if holds && !excused {
                self.check.fail("I2", format!("p{p} hands out t{n} while p{q} holds it"));
            }
        }
        self.check_apart(p, ready);
        let started = self.now;
        let task = &mut self.check.tasks[n];
        let first_due = task.due.filter(|_| task.handed_out == 0);
        let is_again =
            task.handed_out < task.publications && task.held.iter().any(|h| h.began_unleased && h.handed);
        task.handed_out += 1;
        task.started_at = started;
        if let Some(h) = task.holder(ready.token) {
            (h.handed, h.running) = (true, Some(p));
        }
        self.stats.unleased_again += u64::from(is_again);
        if let Some(due) = first_due {
            self.check.delayed += 1;
            self.check.late += u32::from(now.wall.since(due) > LATE);
        }
        Some(n)
    }

    pub(crate) fn check_ends(&mut self, p: usize, job: JobKey, end: End) {
        self.check_leased(p, job);
        let inc = self.procs[p].inc;
        let origin = self.procs[p].jobs.get(&job).map(|job| job.origin.partition.clone());
        let epoch = origin.and_then(|at| self.log.epoch(&at, p, inc));
        let Some((n, held)) = self.held(p, job) else { return };
        if held.unleased && end == End::Done {
            // There is no epoch 0: it may have lost the partition, and not know.
            held.done_unleased = Some(epoch.unwrap_or(0));
        }
        held.asked_done |= end == End::Done;
        held.asked_reject |= end == End::Reject;
        let is_first = end == End::Reject && held.letters.is_none();
        let failed = matches!(end, End::Retry(_) | End::Reject);
        let first = failed && !held.asked_fail;
        held.asked_fail |= failed;
        // Its worker has sent its last command: from here on the store may know the outcome before the worker does.
        held.running = None;
        let token = held.token;
        let task = &mut self.check.tasks[n];
        let letters = task.dead_records;
        if is_first && let Some(held) = task.holder(token) {
            held.letters = Some(letters);
        }
        task.rejected |= end == End::Reject;
        task.failures += u32::from(first);
        task.retries += u64::from(!matches!(end, End::Done | End::Reject | End::Silent));
    }

    pub(crate) fn check_over(&mut self, p: usize, job: JobKey) {
        if let Some((_, held)) = self.held(p, job) {
            held.running = None;
        }
        self.procs[p].jobs.remove(&job);
    }

    /// I6: a task that kills its process doesn't repeatedly use up its neighbors' last chances. A task whose lease
    /// expired runs alone on its last chance, unless the other suspects have been running here for a while.
    fn check_apart(&mut self, p: usize, ready: &Ready) {
        let ran_out = |ready: &Ready| {
            ready.history.entries().last().is_some_and(|f| f.reason == History::LEASE_RAN_OUT)
        };
        if !ran_out(ready) {
            return;
        }
        let (lease, most) = (self.plan.settings.lease, self.plan.settings.max_failures);
        let last_chance = ready.failures + 1 >= most;
        let suspect = Suspect { since: self.procs[p].ready_at(ready.job), last_chance };
        // The machine watches for a quarter of a lease, from a moment before it makes the job ready.
        let watch = lease.as_micros() as Us / 8;
        for other in self.procs[p].running_suspects() {
            if suspect.since < other.since + watch && (last_chance || other.last_chance) {
                let what = format!("p{p} starts {} beside another whose lease expired", ready.content.id);
                self.check.fail("I6", what);
            }
        }
        self.procs[p].suspects.insert(ready.job, suspect);
    }

    /// I3: what is confirmed has been in the store, by this token.
    pub(crate) fn check_answer(&mut self, p: usize, job: JobKey, end: Option<End>, answer: &Answer) {
        let Some((n, held)) = self.held(p, job) else { return };
        if matches!((answer, end), (Answer::Lost(LostReason::TakenOver), Some(End::Done))) {
            let (token, attempt) = (held.token, held.attempt);
            // A store that was rolled back has a lower attempt, which yields.
            let task = &self.check.tasks[n];
            let taken = task.held.iter().any(|h| h.token != token && h.attempt >= attempt);
            let excused = self.stats.damaged > 0 || self.plan.mixed || task.announced >= attempt;
            if !taken && !task.is_terminal() && !excused {
                self.check.fail("I3", format!("p{p} is told that t{n} was taken over, and nobody has it"));
            }
        }
        let Some((n, held)) = self.held(p, job) else { return };
        let token = held.token;
        let task = &mut self.check.tasks[n];
        let letters = task.dead_records;
        let Some(held) = task.holder(token) else { return };
        let held_done = held.done;
        let fine = match (answer, end) {
            (Answer::Ok, Some(End::Done)) => held.done || held.done_unleased.is_some(),
            (Answer::Ok, Some(End::Retry(_) | End::Snooze(_) | End::Release)) => held.idle,
            (Answer::DeadLettered, Some(End::Retry(_))) => held.dead,
            (Answer::DeadLettered, _) => false,
            (Answer::Ok, Some(End::Reject)) => held.dead,
            (Answer::Ok, _) => false,
            (Answer::Extended(until), _) => held.deadline >= *until,
            // If the answer says that it did not take effect, it didn't.
            (Answer::Failed(e), Some(End::Done)) if e.effect() == Effect::NotApplied => !held.done,
            (Answer::Failed(e), Some(End::Retry(_) | End::Snooze(_))) if e.effect() == Effect::NotApplied => {
                !held.idle && !held.dead
            }
            (Answer::Failed(e), Some(End::Reject)) if e.effect() == Effect::NotApplied => {
                !held.dead && held.letters.is_none_or(|before| before == letters)
            }
            (Answer::Lost(_) | Answer::Failed(_), _) => true,
        };
        if !fine {
            let what = format!("p{p} is told {answer:?} for {end:?} of t{n}, which the store never held so");
            self.check.fail("I3", what);
        }
        let unleased = matches!(answer, Answer::Ok) && end == Some(End::Done) && !held_done;
        self.stats.done_unleased += u64::from(unleased);
        match (answer, end) {
            (Answer::Ok, Some(End::Done)) => self.stats.done_ok += 1,
            (Answer::Ok, Some(End::Retry(_))) => self.stats.retry_ok += 1,
            (Answer::Ok, Some(End::Snooze(_) | End::Release)) => self.stats.freed_ok += 1,
            (Answer::DeadLettered, _) => self.stats.retried_to_death += 1,
            (Answer::Ok, _) => self.stats.reject_ok += 1,
            (Answer::Extended(_), _) => self.stats.extend_ok += 1,
            _ => {}
        }
    }
}
