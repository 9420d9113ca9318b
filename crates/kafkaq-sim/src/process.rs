//! A process: one machine, its workers, and its driver's calls in flight; how it starts, dies, and pauses.

use crate::trace::{MS, P, SEC, Us, tr};
use crate::workers::Worker;
use crate::world::{Ev, World};
use bytes::Bytes;
use kafkaq_core::machine::{JobKey, Machine, OpId, Ready};
use kafkaq_core::{Commit, Event, Key, LeaseToken, Position, Result, Swapped, Wall};
use std::collections::{BTreeSet, HashMap, VecDeque};

#[derive(Debug)]
pub(crate) enum Input {
    Event(Event),
    Swapped(Vec<(OpId, Key, Result<Swapped>)>),
    Got(Vec<(OpId, Result<Option<Bytes>>)>),
    Appended(Vec<(OpId, Result<i64>)>),
    Committed(Vec<(Commit, Result<()>)>),
}

/// What the simulation knows about a job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) task: usize,
    pub(crate) token: LeaseToken,
    pub(crate) deadline: Wall,
    pub(crate) origin: Position,
    /// Of that partition, when the job was handed out.
    pub(crate) epoch: Option<u64>,
}

/// A job of a task whose lease expired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect {
    /// When it became ready first.
    pub(crate) since: Us,
    pub(crate) last_chance: bool,
}

#[derive(Default)]
pub(crate) struct Process {
    pub(crate) machine: Option<Machine>,
    pub(crate) id: [u8; 16],
    pub(crate) inc: u32,
    /// The group has given it up.
    pub(crate) out: bool,
    pub(crate) paused: bool,
    pub(crate) paused_at: Us,
    pub(crate) woke_at: Us,
    pub(crate) stash: Vec<Ev>,
    pub(crate) skew: i64,
    /// The latest that its wall clock has shown, in all incarnations.
    pub(crate) max_wall: Wall,
    /// When the last event for it arrives.
    pub(crate) events_at: Us,
    pub(crate) stopping: bool,
    pub(crate) ready: VecDeque<Ready>,
    /// Looked up, never iterated: its order doesn't depend on the seed.
    pub(crate) jobs: HashMap<JobKey, Job>,
    /// When jobs became ready first, and which of those that workers had are suspects. Looked up, never iterated.
    pub(crate) ready_at: HashMap<JobKey, Us>,
    pub(crate) suspects: HashMap<JobKey, Suspect>,
    pub(crate) workers: Vec<Worker>,
    /// How many waiting callers were last reported to the machine, and when it last knew of one.
    pub(crate) told: usize,
    pub(crate) waited_at: Us,
    /// How many first attempts it has prefetched in a row, while redeliveries waited for a caller.
    pub(crate) firsts: usize,
    /// The numbers of the tokens that it has sent to the store.
    pub(crate) polled: BTreeSet<u64>,
    pub(crate) swap_calls: usize,
    pub(crate) get_calls: usize,
    pub(crate) append_calls: usize,
    pub(crate) commit_calls: usize,
    pub(crate) swapping: Vec<Key>,
    pub(crate) timer: Option<Us>,
    pub(crate) timer_generation: u64,
    /// It is of a later version.
    pub(crate) later: bool,
    pub(crate) second: Us,
    pub(crate) inputs: u32,
}

impl Process {
    pub(crate) fn new(workers: usize) -> Process {
        Process { workers: vec![Worker::default(); workers], ..Self::default() }
    }

    fn calls(&self) -> usize {
        self.swap_calls + self.get_calls + self.append_calls + self.commit_calls
    }

    /// Returns whether nothing is handed out or in flight, and it is neither stopping nor down.
    pub(crate) fn is_quiet(&self) -> bool {
        self.machine.is_some()
            && !self.stopping
            && self.ready.is_empty()
            && !self.works()
            && self.calls() == 0
    }

    pub(crate) fn works(&self) -> bool {
        self.workers.iter().any(Worker::is_running)
    }

    pub(crate) fn open(&self) -> String {
        format!(
            "up {} stopping {} ready {} working {} calls {}",
            self.machine.is_some(),
            self.stopping,
            self.ready.len(),
            self.works(),
            self.calls()
        )
    }

    pub(crate) fn ready_at(&self, job: JobKey) -> Us {
        self.ready_at.get(&job).copied().unwrap_or(0)
    }

    /// Returns the jobs whose workers have not reported an outcome yet.
    pub(crate) fn running(&self) -> impl Iterator<Item = JobKey> + '_ {
        self.workers.iter().filter_map(Worker::unended_job)
    }

    pub(crate) fn running_suspects(&self) -> Vec<Suspect> {
        self.running().filter_map(|job| self.suspects.get(&job).copied()).collect()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.workers.iter().filter(|w| w.is_waiting()).count()
    }
}

// ---- life and death
impl World {
    pub(crate) fn start(&mut self, p: usize) {
        if self.procs[p].machine.is_some() {
            return;
        }
        let (inc, workers) = (self.procs[p].inc + 1, self.plan.workers);
        let mut id = [0; 16];
        id[8..].copy_from_slice(&self.rng.next().to_be_bytes());
        (id[0], id[1]) = (p as u8, inc as u8);
        let within = self.plan.skew;
        let skew = if self.calm { 0 } else { self.rng.between(0, 2 * within) as i64 - within as i64 };
        self.check.clocks_broken |= 2 * within > self.plan.settings.clock_skew.as_millis() as u64;
        let max_wall = self.procs[p].max_wall;
        let mut process = Process { id, inc, skew, max_wall, ..Process::new(workers) };
        process.events_at = self.now;
        process.later = self.plan.mixed && self.rng.chance(500);
        self.procs[p] = process;
        let now = self.clocks(p);
        let settings = kafkaq_core::machine::Settings { process: id, ..self.plan.settings.clone() };
        self.procs[p].machine = Some(Machine::new(settings, self.log.layout.clone(), now));
        tr!(self, P(p), "starts, incarnation {inc}, clock {skew} ms off");
        for w in 0..workers {
            self.worker_later(p, w, 30 * MS);
        }
        self.joined();
        self.pump(p);
    }

    pub(crate) fn crash(&mut self, p: usize, inc: u32) {
        if self.procs[p].machine.is_none() || self.procs[p].inc != inc || self.calm {
            return;
        }
        self.stats.crashes += 1;
        tr!(self, P(p), "dies");
        self.gone(p);
        self.after(self.plan.session, Ev::SessionOver(p, inc, 0));
    }

    /// Drops the machine; it starts again later.
    fn gone(&mut self, p: usize) {
        let Process { inc, id, max_wall, .. } = self.procs[p];
        self.check.process_over(id);
        self.procs[p] = Process { inc, id, max_wall, ..Process::new(self.plan.workers) };
        let after = self.rng.between(50 * MS, 3 * SEC);
        self.after(after, Ev::Start(p));
    }

    pub(crate) fn pause(&mut self, p: usize) {
        let (now, inc) = (self.now, self.procs[p].inc);
        if self.procs[p].machine.is_none() || self.procs[p].paused {
            return;
        }
        self.stats.pauses += 1;
        (self.procs[p].paused, self.procs[p].paused_at) = (true, now);
        let lease = self.plan.settings.lease.as_micros() as Us;
        let long = self.rng.between(100 * MS, 3 * lease + 2 * self.plan.session);
        tr!(self, P(p), "is suspended for {} ms", long / MS);
        self.after(long, Ev::Wake(p, inc));
        self.after(self.plan.session, Ev::SessionOver(p, inc, now));
    }

    /// Everything that accumulated arrives at once: the group's events in order, everything else in any order.
    pub(crate) fn wake(&mut self, p: usize, inc: u32) {
        if self.procs[p].inc != inc || !self.procs[p].paused {
            return;
        }
        // What is still on its way arrives after what has accumulated.
        let events_at = self.procs[p].events_at;
        if events_at > self.now {
            return self.at(events_at + 1, Ev::Wake(p, inc));
        }
        tr!(self, P(p), "wakes up");
        self.joined();
        let now = self.now;
        let process = &mut self.procs[p];
        (process.paused, process.out, process.woke_at) = (false, false, now);
        let stash = std::mem::take(&mut process.stash);
        let (mut events, mut others): (VecDeque<Ev>, Vec<Ev>) = (VecDeque::new(), Vec::new());
        for ev in stash {
            match ev {
                Ev::Input(_, _, Input::Event(_)) => events.push_back(ev),
                ev => others.push(ev),
            }
        }
        let mut at = self.now;
        while !(events.is_empty() && others.is_empty()) {
            at += 20;
            let ev = if !events.is_empty() && (others.is_empty() || self.rng.chance(400)) {
                events.pop_front()
            } else {
                let i = self.rng.index(others.len());
                Some(others.swap_remove(i))
            };
            if let Some(ev) = ev {
                self.at(at, ev);
            }
        }
        self.procs[p].events_at = self.procs[p].events_at.max(at);
    }

    pub(crate) fn shutdown(&mut self, p: usize) {
        if self.procs[p].machine.is_none() || self.procs[p].stopping || self.procs[p].paused {
            return;
        }
        tr!(self, P(p), "shuts down");
        self.procs[p].stopping = true;
        for w in &mut self.procs[p].workers {
            w.stop_waiting();
        }
        self.tell(p, |m, now| m.handle_shutdown(now));
        let hold = self.plan.settings.release_hold.as_micros() as Us;
        self.after(hold, Ev::Leave(p, self.procs[p].inc));
        self.pump(p);
    }

    /// Leaves the group early, although jobs still run here, so that its partitions can be read elsewhere.
    pub(crate) fn leave(&mut self, p: usize, inc: u32) {
        let process = &mut self.procs[p];
        if process.inc != inc || process.machine.is_none() || process.paused || process.out {
            return;
        }
        process.out = true;
        self.stats.left_early += 1;
        tr!(self, P(p), "leaves the group");
        self.tell(p, |m, now| m.handle_left(now));
        self.member_over(p, inc);
        self.pump(p);
    }

    pub(crate) fn drained(&mut self, p: usize) {
        let process = &self.procs[p];
        let Some(m) = &process.machine else { return };
        if process.stopping && !process.works() && m.is_drained() && process.calls() == 0 {
            self.stats.drained += 1;
            tr!(self, P(p), "is drained and leaves");
            let inc = process.inc;
            self.gone(p);
            self.member_over(p, inc);
        }
    }
}
