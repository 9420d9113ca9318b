//! The processes, the store, and the calls in flight.

use super::{
    KeyLockStats,
    check::{Check, token},
};
use crate::rng::Rng;
use crate::subject::Played;
use crate::trace::{MS, P, SEC, Trace, Us, lease, tr, true_wall};
use bytes::Bytes;
use kafkaq_core::key_lock::{KeyLock, KeyLockFault, KeyLockSettings, Standing};
use kafkaq_core::machine::{Mono, Now};
use kafkaq_core::{Error, ErrorKind, Key, LeaseToken, Result, Swap, Swapped};
use std::time::Duration;

pub(super) const LEASE: Us = 4 * SEC;
pub(super) const HOSTILE: Us = 60 * SEC;
/// From then on nothing of the hostile phase is left.
pub(super) const SETTLED: Us = HOSTILE + 12 * SEC;
const CRASH: Us = SETTLED + 8 * SEC;
const WIPE: Us = CRASH + 12 * SEC;
const END: Us = WIPE + 8 * SEC;
/// The longest that one way to the store takes.
pub(super) const WAY: Us = 100 * MS;
const TIMEOUT: Us = SEC;
/// Later than a lease is over.
const LATEST: Us = LEASE * 3 / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    Idle(Us),
    /// It waits for the lock, until then at most.
    Wants(Us),
    /// It runs under the lock.
    Runs(Us),
    GivesBack,
}

pub(super) struct Work {
    pub(super) lock: Option<KeyLock>,
    pub(super) token: Option<LeaseToken>,
    pub(super) activity: Activity,
    /// The last value that the store reported.
    pub(super) conflict: Option<Bytes>,
    /// A timer may be late, as a driver's jitter makes it.
    late: Us,
}

pub(super) struct Proc {
    pub(super) id: [u8; 16],
    tokens: u64,
    /// How far its wall clock is ahead.
    pub(super) ahead: Us,
    /// How long its monotonic clock has stood still, and what it shows at least.
    slept: Us,
    mono: Us,
    pub(super) works: Vec<Work>,
    /// Dead or paused until then.
    pub(super) away_until: Us,
}

struct Value {
    bytes: Bytes,
    forgotten: Us,
    /// It took effect after its response, and its writer doesn't know.
    is_late: bool,
}

enum Event {
    /// A swap takes place, and is answered this much later, if at all.
    Effect(Swap, Option<Us>),
    /// A swap takes place after its caller was told that it may have.
    LateEffect(Swap),
    Answer(Result<Swapped>),
}

struct Call {
    at: Us,
    p: usize,
    k: usize,
    id: [u8; 16],
    event: Event,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: Us,
    pub(super) skew: Us,
    fault: Option<KeyLockFault>,
    /// How long the store may keep expired values.
    lag: Us,
    wipes: bool,
    store: Vec<Option<Value>>,
    away_until: Us,
    pub(super) procs: Vec<Proc>,
    calls: Vec<Call>,
    next_chaos: Us,
    born: u8,
    pub(super) check: Check,
    pub(super) stats: KeyLockStats,
    pub(super) trace: Trace,
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<KeyLockFault>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let keys = 1 + rng.index(2);
        let mut world = World {
            now: 0,
            skew: rng.between(0, 500) * MS,
            fault,
            lag: if rng.chance(500) { 0 } else { 3 * LEASE },
            wipes: rng.chance(300),
            store: (0..keys).map(|_| None).collect(),
            away_until: 0,
            procs: Vec::new(),
            calls: Vec::new(),
            next_chaos: 0,
            born: 0,
            check: Check::new(keys),
            stats: KeyLockStats::default(),
            trace: Trace { on: traced, ..Trace::default() },
            rng,
        };
        for _ in 0..world.rng.between(2, 4) {
            let proc = world.born(0);
            world.procs.push(proc);
        }
        world
    }

    fn born(&mut self, away_until: Us) -> Proc {
        self.born += 1;
        let works = (0..self.store.len()).map(|_| {
            let until = away_until + self.rng.between(0, 2000) * MS;
            Work { lock: None, token: None, activity: Activity::Idle(until), conflict: None, late: 0 }
        });
        let works = works.collect();
        Proc {
            id: [self.born; 16],
            tokens: 0,
            ahead: self.rng.between(0, self.skew),
            slept: 0,
            mono: 0,
            works,
            away_until,
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.now >= HOSTILE
    }

    pub(super) fn clock(&self, p: usize) -> Now {
        let Proc { ahead, slept, mono: least, .. } = self.procs[p];
        Now { mono: mono(self.now.saturating_sub(slept).max(least)), wall: true_wall(self.now + ahead) }
    }

    pub(super) fn run(mut self) -> (Played<KeyLockStats>, Vec<String>) {
        let (mut crash, mut wipe) = (false, false);
        while self.now < END && self.check.violation.is_none() {
            self.now = self.next().max(self.now).min(END);
            if self.now >= self.next_chaos {
                self.chaos();
            }
            if self.now >= CRASH && !crash {
                let holder = (0..self.procs.len()).find(|p| self.holds(*p, 0));
                crash = holder.is_some();
                holder.into_iter().for_each(|p| self.crash(p));
            }
            if self.now >= WIPE && !wipe {
                wipe = true;
                self.wipe();
            }
            self.calls();
            for p in 0..self.procs.len() {
                for k in 0..self.store.len() {
                    self.act(p, k);
                }
            }
            self.check_all();
        }
        (Played { violation: self.check.violation, stats: self.stats }, self.trace.lines)
    }

    /// When something happens next.
    fn next(&self) -> Us {
        let calls = self.calls.iter().map(|call| call.at);
        let timers = self.procs.iter().flat_map(|proc| {
            proc.works.iter().map(move |work| {
                let acts = match work.activity {
                    Activity::Idle(at) | Activity::Wants(at) | Activity::Runs(at) => at,
                    Activity::GivesBack => Us::MAX,
                };
                let timer = work.lock.as_ref().and_then(KeyLock::poll_timeout);
                let timer =
                    timer.map_or(Us::MAX, |at| at.0.div_ceil(1000).saturating_add(work.late + proc.slept));
                acts.min(timer).max(proc.away_until).max(self.now + MS)
            })
        });
        calls.chain(timers).chain([self.next_chaos]).min().unwrap_or(END)
    }

    fn holds(&mut self, p: usize, k: usize) -> bool {
        matches!(self.standing(p, k), Some(Standing::Held(_)))
    }

    /// Lets a process act on a key.
    fn act(&mut self, p: usize, k: usize) {
        if self.now < self.procs[p].away_until {
            return;
        }
        let (now, clock) = (self.now, self.clock(p));
        let standing = self.standing(p, k);
        let work = &mut self.procs[p].works[k];
        let timer = work.lock.as_ref().and_then(KeyLock::poll_timeout);
        let due = timer.is_none_or(|at| clock.mono.0 >= at.0 + work.late * 1000);
        match (work.activity, standing) {
            (Activity::Idle(at), _) if now >= at => self.want(p, k),
            (Activity::Wants(_), Some(Standing::Held(_))) => {
                let takes = self.rng.between(10, 6000) * MS;
                self.stats.takes += 1;
                self.procs[p].works[k].activity = Activity::Runs(now + takes);
                tr!(self, P(p), "k{k} has it, for {} ms", takes / MS);
            }
            (Activity::Wants(at), _) if now >= at => {
                self.stats.given_up += 1;
                self.give_back(p, k);
            }
            (Activity::Runs(_), Some(Standing::Lost)) => {
                tr!(self, P(p), "k{k} is told that it is lost");
                self.give_back(p, k);
            }
            (Activity::Runs(at), _) if now >= at => {
                self.stats.releases += 1;
                self.give_back(p, k);
            }
            (Activity::GivesBack, Some(Standing::Over)) => {
                self.check_over(p, k);
                let rest = self.rng.between(0, if self.is_calm() { 300 } else { 3000 }) * MS;
                let work = &mut self.procs[p].works[k];
                (work.lock, work.activity) = (None, Activity::Idle(now + rest));
                tr!(self, P(p), "k{k} is over");
            }
            _ => {}
        }
        let late = self.rng.between(0, 100) * MS;
        let work = &mut self.procs[p].works[k];
        let gives_back = work.activity == Activity::GivesBack;
        if (due || gives_back)
            && let Some(swap) = work.lock.as_mut().and_then(|lock| lock.poll_swap(clock))
        {
            work.late = late;
            self.send(p, k, swap);
        }
    }

    pub(super) fn standing(&mut self, p: usize, k: usize) -> Option<Standing> {
        let now = self.clock(p);
        self.procs[p].works[k].lock.as_mut().map(|lock| lock.standing(now))
    }

    fn want(&mut self, p: usize, k: usize) {
        let patience = if self.is_calm() { 1000 * SEC } else { self.rng.between(50, 8000) * MS };
        let (lease, skew) = (Duration::from_micros(LEASE), Duration::from_micros(self.skew));
        let settings = KeyLockSettings { planted: self.fault.into(), ..KeyLockSettings::new(lease, skew) };
        let proc = &mut self.procs[p];
        proc.tokens += 1;
        let own = LeaseToken { process: proc.id, number: proc.tokens };
        let work = &mut proc.works[k];
        (work.lock, work.token) = (Some(KeyLock::new(key(k), own, settings)), Some(own));
        work.activity = Activity::Wants(self.now + patience);
        (work.conflict, work.late) = (None, 0);
        tr!(self, P(p), "k{k} wants it");
    }

    fn give_back(&mut self, p: usize, k: usize) {
        let now = self.clock(p).mono;
        let work = &mut self.procs[p].works[k];
        work.activity = Activity::GivesBack;
        if let Some(lock) = &mut work.lock {
            lock.release(now);
        }
        tr!(self, P(p), "k{k} gives it back");
    }

    fn send(&mut self, p: usize, k: usize, swap: Swap) {
        let (to, back) = (self.rng.between(1, WAY / MS) * MS, self.rng.between(1, WAY / MS) * MS);
        let away = self.now < self.away_until;
        let weights = match (self.is_calm(), away) {
            (true, _) => [1, 0, 0, 0, 0, 0],
            (false, true) => [0, 50, 25, 25, 0, 0],
            (false, false) => [700, 60, 60, 60, 60, 60],
        };
        let (at, unknown) = (self.now + to, self.now + TIMEOUT);
        let timeout = || Event::Answer(Err(Error::unknown(ErrorKind::Timeout, "swap")));
        match self.rng.weighted(&weights) {
            0 => self.call(at, p, k, Event::Effect(swap, Some(back))),
            1 => {
                self.stats.swap_refused += 1;
                let refused = Error::not_applied(ErrorKind::Unavailable, "swap");
                self.call(at, p, k, Event::Answer(Err(refused)));
            }
            2 => {
                self.stats.swap_unknown_lost += 1;
                self.call(unknown, p, k, timeout());
            }
            3 => {
                self.stats.swap_unknown_applied += 1;
                self.call(at, p, k, Event::Effect(swap, None));
                self.call(unknown, p, k, timeout());
            }
            4 => {
                self.stats.swap_late += 1;
                let late = self.now + self.rng.between(TIMEOUT, LATEST);
                self.call(late, p, k, Event::LateEffect(swap));
                self.call(unknown, p, k, timeout());
            }
            _ => {
                self.stats.answers_slow += 1;
                let slow = self.rng.between(WAY, LEASE * 3 / 2);
                self.call(at, p, k, Event::Effect(swap, Some(slow)));
            }
        }
    }

    fn call(&mut self, at: Us, p: usize, k: usize, event: Event) {
        let id = self.procs[p].id;
        self.calls.push(Call { at, p, k, id, event });
    }

    fn calls(&mut self) {
        while let Some(i) = self.calls.iter().position(|call| call.at <= self.now) {
            let Call { p, k, id, event, .. } = self.calls.remove(i);
            match event {
                Event::Effect(swap, answer) => {
                    let outcome = self.swap(p, k, &swap);
                    if let Some(after) = answer {
                        let event = Event::Answer(Ok(outcome));
                        self.calls.push(Call { at: self.now + after, p, k, id, event });
                    }
                }
                Event::LateEffect(swap) => {
                    let done = self.swap(p, k, &swap) == Swapped::Done;
                    if let Some(value) = self.store[k].as_mut().filter(|_| done) {
                        value.is_late = true;
                    }
                }
                Event::Answer(outcome) if self.procs[p].id == id => {
                    // A suspended one reads it when it wakes up.
                    let away_until = self.procs[p].away_until;
                    if self.now < away_until {
                        self.calls.push(Call { at: away_until, p, k, id, event: Event::Answer(outcome) });
                    } else {
                        self.answered(p, k, outcome);
                    }
                }
                Event::Answer(_) => {}
            }
        }
    }

    fn answered(&mut self, p: usize, k: usize, outcome: Result<Swapped>) {
        let before = self.standing(p, k);
        let clock = self.clock(p);
        let work = &mut self.procs[p].works[k];
        if let Ok(Swapped::Conflict(found)) = &outcome {
            self.stats.conflicts += 1;
            work.conflict.clone_from(found);
            self.told_of(p, k, found.as_ref());
        }
        if self.trace.on {
            let told = format!("{outcome:?}");
            tr!(self, P(p), "k{k} is told {}", told.split(" { ").next().unwrap_or_default());
        }
        if let Some(lock) = &mut self.procs[p].works[k].lock {
            lock.handle_swapped(outcome, clock);
        }
        self.check_answered(p, k, before);
    }

    /// An acquisition has learned of a value. If it is its own, it knows now what it has left.
    fn told_of(&mut self, p: usize, k: usize, found: Option<&Bytes>) {
        let own = self.procs[p].works[k].token;
        if let (Some(value), Some(found)) = (&mut self.store[k], found)
            && value.bytes == *found
            && token(found) == own
        {
            value.is_late = false;
        }
    }

    /// Returns the store's value.
    pub(super) fn value(&mut self, k: usize) -> Option<Bytes> {
        if self.store[k].as_ref().is_some_and(|value| value.forgotten <= self.now) {
            self.stats.expired += 1;
            self.store[k] = None;
        }
        self.store[k].as_ref().map(|value| value.bytes.clone())
    }

    pub(super) fn is_late(&self, k: usize) -> bool {
        self.store[k].as_ref().is_some_and(|value| value.is_late)
    }

    fn swap(&mut self, p: usize, k: usize, swap: &Swap) -> Swapped {
        let there = self.value(k);
        let done = there == swap.expect;
        tr!(
            self,
            P(p),
            "k{k} swap {} => {}: {}",
            lease(swap.expect.as_ref()),
            lease(swap.new.as_ref()),
            if done { "done".into() } else { format!("there is {}", lease(there.as_ref())) }
        );
        if !done {
            return Swapped::Conflict(there);
        }
        let own = |bytes: &Bytes| token(bytes).is_some_and(|token| token.process == self.procs[p].id);
        if swap.new.is_some() {
            self.stats.renewals += u64::from(there.as_ref().is_some_and(own));
            self.stats.takeovers += u64::from(there.as_ref().is_some_and(|bytes| !own(bytes)));
        }
        let lag = self.rng.between(0, self.lag);
        self.store[k] = swap.new.clone().map(|bytes| {
            let ttl = swap.ttl.map_or(Us::MAX / 2, |ttl| ttl.as_micros() as Us);
            Value { bytes, forgotten: self.now + ttl + lag, is_late: false }
        });
        Swapped::Done
    }

    fn chaos(&mut self) {
        self.next_chaos = if self.is_calm() { Us::MAX } else { self.now + self.rng.between(100, 3000) * MS };
        if self.is_calm() {
            return;
        }
        let p = self.rng.index(self.procs.len());
        match self.rng.weighted(&[3, 4, 2, 2, 2, u32::from(self.wipes)]) {
            0 => self.crash(p),
            1 | 3 if self.now < self.procs[p].away_until => {}
            1 => {
                self.stats.pauses += 1;
                self.procs[p].away_until = self.now + self.rng.between(100, 7000) * MS;
                tr!(self, P(p), "is suspended");
            }
            3 => {
                self.stats.suspended += 1;
                let time = self.rng.between(100, 7000) * MS;
                let proc = &mut self.procs[p];
                proc.away_until = self.now + time;
                proc.mono = self.now - proc.slept;
                proc.slept += time;
                tr!(self, P(p), "is suspended, and its monotonic clock with it");
            }
            4 => {
                self.stats.clocks_set += 1;
                self.procs[p].ahead = self.rng.between(0, self.skew);
                tr!(self, P(p), "has its wall clock set to {} us ahead", self.procs[p].ahead);
            }
            2 => {
                self.stats.outages += 1;
                self.away_until = self.now + self.rng.between(200, 5000) * MS;
                tr!(self, "store", "is away");
            }
            _ => self.wipe(),
        }
    }

    fn wipe(&mut self) {
        self.stats.wipes += 1;
        self.store.iter_mut().for_each(|value| *value = None);
        self.check.forgot = Some(self.now);
        tr!(self, "store", "is wiped");
    }

    fn crash(&mut self, p: usize) {
        self.stats.crashes += 1;
        let held = (0..self.store.len()).filter(|k| self.holds(p, *k)).count();
        self.stats.crashed_holders += held as u64;
        tr!(self, P(p), "dies");
        let back = self.now + self.rng.between(100, 3000) * MS;
        self.procs[p] = self.born(back);
        self.check.crashed(self.now);
    }
}

fn key(k: usize) -> Key {
    // Segments that need no escape and are short enough.
    Key::of(&["x", "q", "g", ["a", "b"][k]]).unwrap_or_else(|e| unreachable!("{e}"))
}

pub(super) fn mono(now: Us) -> Mono {
    Mono(now * 1000)
}
