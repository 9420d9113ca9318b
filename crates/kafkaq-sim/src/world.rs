//! The world: one queue of events in virtual time, and spontaneous faults.

use crate::Outcome;
use crate::check::Checker;
use crate::digest::Digest;
use crate::log::{Kind, Log};
use crate::process::{Input, Process};
use crate::profile::{Plan, Profile};
use crate::rng::Rng;
use crate::store::Store;
use crate::trace::{MS, P, SEC, Stats, Trace, Us, tr};
use crate::workers::{Overdue, Worker};
use bytes::Bytes;
use kafkaq_core::machine::{Fault, OpId};
use kafkaq_core::{Commit, Key, NewRecord, Swap};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Ev {
    /// Reaches a process, in an incarnation.
    Input(usize, u32, Input),
    Pump(usize, u32),
    Timer(usize, u32, u64),
    Worker(usize, u32, usize, u64),
    /// A command has to be answered by now.
    Overdue(usize, u32, Overdue),
    /// A call reaches the store or the log.
    Swaps(usize, u32, Vec<(OpId, Swap)>),
    Gets(usize, u32, Vec<(OpId, Key)>),
    Appends(usize, u32, usize, Vec<(OpId, NewRecord)>),
    Commits(usize, u32, Vec<Commit>),
    LateSwap(Option<usize>, Swap),
    LateAppend(Option<usize>, usize, NewRecord),
    /// Of the consumer group: a partition and an epoch.
    Fetch(usize, u64),
    HoldLimit(usize, u64),
    Share,
    Assign(usize),
    SessionOver(usize, u32, u64),
    Leave(usize, u32),
    Crash(usize, u32),
    Start(usize),
    Wake(usize, u32),
    Publish(usize),
    Published(usize, bool),
    Cancel(usize),
    CancelSwap(usize, Option<Bytes>),
    Chaos(Chaos),
    ClockBack(usize),
    Calm,
    Tick,
}

/// What goes wrong repeatedly while the run is hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chaos {
    Wipe,
    Snapshot,
    Rollback,
    Evict,
    Damage,
    Outage,
    Rebalance,
    Crash,
    Pause,
    Shutdown,
    Jump,
    Recreate,
    Cut,
    Forget,
}

struct Entry {
    at: Us,
    seq: u64,
    ev: Ev,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap's greatest is the earliest.
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

pub(crate) struct World {
    pub(crate) now: Us,
    seq: u64,
    queue: BinaryHeap<Entry>,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) trace: Trace,
    pub(crate) stats: Stats,
    pub(crate) digest: Digest,
    pub(crate) log: Log,
    pub(crate) store: Store,
    pub(crate) procs: Vec<Process>,
    pub(crate) check: Checker,
    pub(crate) calm: bool,
    /// The process whose callers never ask again.
    pub(crate) deserted: Option<usize>,
    give_up_at: Us,
}

impl World {
    pub(crate) fn new(seed: u64, profile: &Profile, fault: Option<Fault>, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, profile, fault);
        let log = Log::new(&plan);
        let check = Checker::new(&plan);
        let mut world = World {
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            trace: Trace { on: trace, lines: Vec::new() },
            stats: Stats::default(),
            digest: Digest::default(),
            store: Store::default(),
            procs: (0..plan.processes).map(|_| Process::new(plan.workers)).collect(),
            log,
            check,
            calm: false,
            deserted: None,
            give_up_at: Us::MAX,
            rng,
            plan,
        };
        tr!(world, "plan", "seed {seed} {:?}", world.plan);
        world.set_out();
        world
    }

    fn set_out(&mut self) {
        for p in 0..self.procs.len() {
            let at = self.rng.below(50 * MS);
            self.at(at, Ev::Start(p));
        }
        for part in 0..self.log.parts.len() {
            if self.log.parts[part].kind != Kind::Dead {
                let at = 60 * MS + self.rng.below(50 * MS);
                self.at(at, Ev::Assign(part));
            }
        }
        self.draw_tasks();
        let r = self.plan.rates.clone();
        for (chaos, mean) in [
            (Chaos::Wipe, r.wipe),
            (Chaos::Snapshot, r.rollback / 2),
            (Chaos::Rollback, r.rollback),
            (Chaos::Evict, r.evict),
            (Chaos::Damage, r.damage),
            (Chaos::Outage, r.outage),
            (Chaos::Rebalance, r.rebalance),
            (Chaos::Crash, r.crash),
            (Chaos::Pause, r.pause),
            (Chaos::Shutdown, r.shutdown),
            (Chaos::Jump, r.jump),
            (Chaos::Recreate, r.recreate),
            (Chaos::Cut, r.cut),
            (Chaos::Forget, r.forget),
        ] {
            self.again(chaos, mean);
        }
        self.at(self.plan.hostile, Ev::Calm);
    }

    fn again(&mut self, chaos: Chaos, mean: Us) {
        if mean > 0 {
            let after = self.rng.between(mean / 10, mean * 2);
            self.after(after, Ev::Chaos(chaos));
        }
    }

    pub(crate) fn at(&mut self, at: Us, ev: Ev) {
        self.seq += 1;
        self.queue.push(Entry { at: at.max(self.now), seq: self.seq, ev });
    }

    pub(crate) fn after(&mut self, d: Us, ev: Ev) {
        self.at(self.now + d, ev);
    }

    /// Returns `true` with a probability of `per_mille` in a thousand, while the run is hostile.
    pub(crate) fn trouble(&mut self, per_mille: u32) -> bool {
        !self.calm && self.rng.chance(per_mille)
    }

    /// Runs the world. Returns the outcome and the trace.
    pub(crate) fn run(mut self) -> (Outcome, Vec<String>) {
        while let Some(Entry { at, ev, .. }) = self.queue.pop() {
            self.now = at;
            self.stats.events += 1;
            self.dispatch(ev);
            if self.check.violation.is_some() || self.now >= self.give_up_at && self.finish() {
                break;
            }
            if self.calm && self.queue.is_empty() {
                break;
            }
        }
        if let Some(v) = &mut self.check.violation {
            v.at = self.now;
            let told = v.to_string();
            tr!(self, "!!!", "{told}");
        }
        let digest = self.digest.value();
        (Outcome { violation: self.check.violation, stats: self.stats, digest }, self.trace.lines)
    }

    pub(crate) fn dispatch(&mut self, ev: Ev) {
        // Inputs of a process wait while it is paused, and are dropped when it dies.
        if let Ev::Input(p, inc, _)
        | Ev::Pump(p, inc)
        | Ev::Timer(p, inc, _)
        | Ev::Worker(p, inc, ..)
        | Ev::Overdue(p, inc, _) = &ev
        {
            let process = &mut self.procs[*p];
            if process.inc != *inc || process.machine.is_none() {
                return;
            }
            if process.paused {
                process.stash.push(ev);
                return;
            }
        }
        match ev {
            Ev::Input(p, _, input) => self.input(p, input),
            Ev::Pump(p, _) => self.pump(p),
            Ev::Timer(p, _, generation) => self.timer(p, generation),
            Ev::Worker(p, _, w, generation) => self.worker(p, w, generation),
            Ev::Overdue(p, _, overdue) => self.overdue(p, overdue),
            Ev::Swaps(p, inc, swaps) => self.swaps(p, inc, swaps),
            Ev::Gets(p, inc, gets) => self.gets(p, inc, gets),
            Ev::Appends(p, inc, part, records) => self.appends(p, inc, part, records),
            Ev::Commits(p, inc, commits) => self.commits(p, inc, commits),
            Ev::LateSwap(who, swap) => {
                let outcome = self.swap_effect(who, &swap);
                tr!(
                    self,
                    who.map_or("client".into(), |p| P(p).to_string()),
                    "late swap {} -> {outcome:?}",
                    swap.key
                );
            }
            Ev::LateAppend(who, part, record) => {
                self.append_effect(part, &record, who);
            }
            Ev::Fetch(part, epoch) => self.fetch(part, epoch),
            Ev::HoldLimit(part, epoch) => self.hold_limit(part, epoch),
            Ev::Share => self.share(),
            Ev::Assign(part) => self.assign(part),
            Ev::SessionOver(p, inc, pause) => self.session_over(p, inc, pause),
            Ev::Leave(p, inc) => self.leave(p, inc),
            Ev::Crash(p, inc) => self.crash(p, inc),
            Ev::Start(p) => self.start(p),
            Ev::Wake(p, inc) => self.wake(p, inc),
            Ev::Publish(task) => self.publish(task),
            Ev::Published(task, ok) => self.published(task, ok),
            Ev::Cancel(task) => self.cancel(task),
            Ev::CancelSwap(task, seen) => self.cancel_swap(task, seen),
            Ev::Chaos(chaos) => self.chaos(chaos),
            Ev::ClockBack(p) => self.procs[p].skew = 0,
            Ev::Calm => self.begin_calm(),
            Ev::Tick => {
                if self.quiet() {
                    self.give_up_at = self.now;
                } else {
                    self.after(200 * MS, Ev::Tick);
                }
            }
        }
    }

    fn chaos(&mut self, chaos: Chaos) {
        if self.calm {
            return;
        }
        let r = &self.plan.rates;
        let mean = match chaos {
            Chaos::Wipe => r.wipe,
            Chaos::Snapshot => r.rollback / 2,
            Chaos::Rollback => r.rollback,
            Chaos::Evict => r.evict,
            Chaos::Damage => r.damage,
            Chaos::Outage => r.outage,
            Chaos::Rebalance => r.rebalance,
            Chaos::Crash => r.crash,
            Chaos::Pause => r.pause,
            Chaos::Shutdown => r.shutdown,
            Chaos::Jump => r.jump,
            Chaos::Recreate => r.recreate,
            Chaos::Cut => r.cut,
            Chaos::Forget => r.forget,
        };
        self.again(chaos, mean);
        let p = self.rng.index(self.procs.len());
        match chaos {
            Chaos::Rebalance => self.rebalance(),
            Chaos::Crash => self.crash(p, self.procs[p].inc),
            Chaos::Pause => self.pause(p),
            Chaos::Shutdown => self.shutdown(p),
            Chaos::Recreate => self.recreate(),
            Chaos::Cut => self.cut(),
            Chaos::Forget => self.forget_offsets(),
            Chaos::Jump => {
                self.stats.clock_jumps += 1;
                self.check.clocks_broken = true;
                let ahead = 1000 * self.rng.between(60, 40_000) as i64;
                self.procs[p].skew = ahead;
                tr!(self, P(p), "clock jumps {ahead} ms ahead");
                let back = self.rng.between(100 * MS, 6 * SEC);
                self.after(back, Ev::ClockBack(p));
            }
            _ => self.store_chaos(chaos),
        }
    }

    /// All faults stop; what is down starts again.
    fn begin_calm(&mut self) {
        tr!(self, "calm", "all faults stop");
        self.calm = true;
        self.store.away_until = 0;
        self.forget_newer_values();
        self.check_marks();
        for p in 0..self.procs.len() {
            self.procs[p].skew = 0;
            if self.procs[p].machine.is_none() {
                self.after(100 * MS, Ev::Start(p));
            } else if self.procs[p].paused {
                let inc = self.procs[p].inc;
                self.after(50 * MS, Ev::Wake(p, inc));
            }
        }
        if self.plan.deserted {
            let p = self.rng.index(self.procs.len());
            tr!(self, P(p), "is deserted by its callers");
            self.stats.deserted += 1;
            self.deserted = Some(p);
            self.joined();
            self.procs[p].workers.iter_mut().for_each(Worker::stop_waiting);
            if self.procs[p].machine.is_some() {
                self.tell_demand(p);
            }
        }
        let s = &self.plan.settings;
        let lease = (s.lease + s.clock_skew).as_micros() as Us;
        let due = self.check.latest_due.max(self.now);
        self.give_up_at = due + self.plan.session + 30 * SEC + 12 * lease;
        if self.check.clocks_broken {
            // A due time that was set by a wrong clock is accepted up to the longest delay.
            self.give_up_at += s.max_delay.as_micros() as Us;
        }
        if self.plan.deserted {
            // The tasks it has read are handed over to others gradually.
            self.give_up_at += self.plan.tasks as u64 * s.hand_over_after.as_micros() as Us;
        }
        self.at(self.give_up_at, Ev::Tick);
        self.after(200 * MS, Ev::Tick);
    }

    fn quiet(&self) -> bool {
        self.check.unfinished().is_none()
            && self.log.first_behind().is_none()
            && self.procs.iter().all(Process::is_quiet)
    }

    /// The end of a run; what is still open now breaks a rule.
    fn finish(&mut self) -> bool {
        if let Some(open) = self.check.unfinished() {
            self.check.fail("I5", open);
        } else if let Some(part) = self.log.first_behind() {
            let behind = format!(
                "{} is committed to {} of {} long after all faults have stopped",
                part.partition,
                part.committed,
                part.entries.len()
            );
            self.check.fail("I5", behind);
        } else if let Some(p) = self.procs.iter().position(|p| !p.is_quiet()) {
            let open = format!("p{p} still has something open: {}", self.procs[p].open());
            self.check.fail("I5", open);
        } else if let Some(late) = self.check.none_in_time().filter(|_| self.plan.is_punctual) {
            self.check.fail("I5", late);
        }
        true
    }
}
