//! The hostile store: compare-and-swap per key, and everything that can go wrong with it.

use crate::process::Input;
use crate::trace::{MS, P, SEC, Us, lease, short, tr, true_wall};
use crate::world::{Chaos, Ev, World};
use bytes::Bytes;
use kafkaq_core::machine::OpId;
use kafkaq_core::{Error, ErrorKind, Key, Result, Swap, Swapped};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Value {
    bytes: Bytes,
    expires: Us,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    values: BTreeMap<Key, Value>,
    snapshot: BTreeMap<Key, Value>,
    pub(crate) away_until: Us,
    /// The node that is down; `None`: the whole store is.
    away_node: Option<u64>,
}

/// The number of nodes of a store that loses one of them.
const NODES: u64 = 3;

/// The node that has the key.
fn node(key: &Key) -> u64 {
    key.as_str().bytes().fold(0, |sum, byte| sum + u64::from(byte)) % NODES
}

impl World {
    /// Returns the current value.
    pub(crate) fn value(&mut self, key: &Key) -> Option<Bytes> {
        let v = self.store.values.get(key)?;
        if v.expires <= self.now {
            self.stats.expired += 1;
            tr!(self, "store", "{} has aged out", short(key));
            self.lose_value(&key.clone());
            return None;
        }
        Some(v.bytes.clone())
    }

    fn lose_value(&mut self, key: &Key) {
        self.store.values.remove(key);
        self.check.damaged(key);
    }

    /// Applies a swap.
    pub(crate) fn swap_effect(&mut self, who: Option<usize>, swap: &Swap) -> Swapped {
        let current = self.value(&swap.key);
        let swap = &self.as_swapped(who, swap, current.as_ref());
        if current != swap.expect {
            self.stats.conflicts += 1;
            return Swapped::Conflict(who.map_or(current.clone(), |p| self.as_got(p, current)));
        }
        self.checked_transition(who, swap, current.as_ref());
        match &swap.new {
            None => {
                self.store.values.remove(&swap.key);
            }
            Some(bytes) => {
                let ttl = swap.ttl.map_or(u64::MAX / 2, |t| t.as_micros() as Us);
                let value = Value { bytes: bytes.clone(), expires: self.now.saturating_add(ttl) };
                self.store.values.insert(swap.key.clone(), value);
            }
        }
        Swapped::Done
    }

    fn is_away(&self, key: &Key) -> bool {
        let hit = self.store.away_node.is_none_or(|away| away == node(key));
        hit && !self.calm && self.now < self.store.away_until
    }

    fn swap_once(&mut self, p: usize, swap: &Swap) -> Result<Swapped> {
        let r = &self.plan.rates;
        let fine = 1000 - r.swap_refused - r.swap_applied - r.swap_lost - r.swap_late;
        let weights = [fine, r.swap_refused, r.swap_applied, r.swap_lost, r.swap_late];
        let mut pick = if self.calm { 0 } else { self.rng.weighted(&weights) };
        if self.is_away(&swap.key) {
            pick = if self.rng.chance(500) { 1 } else { 3 };
        }
        self.check.faults += u64::from(pick > 0);
        self.check_attempts_kept(p, swap);
        let unknown = Err(Error::unknown(ErrorKind::Timeout, "swap"));
        match pick {
            0 => Ok(self.swap_effect(Some(p), swap)),
            1 => Err(Error::not_applied(ErrorKind::Unavailable, "swap")),
            2 => {
                if self.swap_effect(Some(p), swap) == Swapped::Done {
                    self.stats.swap_unknown_applied += 1;
                }
                unknown
            }
            3 => {
                self.stats.swap_unknown_lost += 1;
                unknown
            }
            _ => {
                self.stats.swap_late += 1;
                let after = self.rng.between(MS, 2500 * MS);
                self.after(after, Ev::LateSwap(Some(p), swap.clone()));
                unknown
            }
        }
    }

    pub(crate) fn swaps(&mut self, p: usize, inc: u32, swaps: Vec<(OpId, Swap)>) {
        let mut answers = Vec::with_capacity(swaps.len());
        for (op, swap) in swaps {
            let outcome = self.swap_once(p, &swap);
            if self.trace.on {
                let told = match &outcome {
                    Ok(Swapped::Done) => "Done".into(),
                    Ok(Swapped::Conflict(v)) => format!("Conflict({})", lease(v.as_ref())),
                    Err(e) => e.to_string(),
                };
                let (expect, new) = (lease(swap.expect.as_ref()), lease(swap.new.as_ref()));
                tr!(self, P(p), "swap {} {expect} => {new} -> {told}", short(&swap.key));
            }
            answers.push((op, swap.key, outcome));
        }
        self.answer(p, inc, Input::Swapped(answers));
    }

    pub(crate) fn gets(&mut self, p: usize, inc: u32, gets: Vec<(OpId, Key)>) {
        let mut answers = Vec::with_capacity(gets.len());
        for (op, key) in gets {
            let fails = self.is_away(&key) || self.trouble(self.plan.rates.get_error);
            let outcome = if fails {
                Err(Error::not_applied(ErrorKind::Unavailable, "get"))
            } else {
                let value = self.value(&key);
                Ok(self.as_got(p, value))
            };
            if self.trace.on {
                let told = outcome.as_ref().map_or_else(ToString::to_string, |v| lease(v.as_ref()));
                tr!(self, P(p), "get {} -> {told}", short(&key));
            }
            answers.push((op, outcome));
        }
        self.answer(p, inc, Input::Got(answers));
    }

    pub(crate) fn store_chaos(&mut self, chaos: Chaos) {
        match chaos {
            Chaos::Wipe => {
                self.stats.wipes += 1;
                tr!(self, "store", "is wiped");
                for key in std::mem::take(&mut self.store.values).into_keys() {
                    self.check.damaged(&key);
                }
            }
            Chaos::Snapshot => self.store.snapshot = self.store.values.clone(),
            Chaos::Rollback => {
                self.stats.rollbacks += 1;
                tr!(self, "store", "comes back with older data");
                let newer = std::mem::replace(&mut self.store.values, self.store.snapshot.clone());
                for key in newer.keys().chain(self.store.values.keys()) {
                    let same =
                        |a: Option<&Value>, b: Option<&Value>| a.map(|v| &v.bytes) == b.map(|v| &v.bytes);
                    if !same(newer.get(key), self.store.values.get(key)) {
                        self.check.damaged(key);
                    }
                }
            }
            Chaos::Evict => {
                if let Some(key) = self.any_key() {
                    self.stats.evictions += 1;
                    tr!(self, "store", "evicts {}", short(&key));
                    self.lose_value(&key);
                }
            }
            Chaos::Damage => {
                let newer = self.rng.chance(300);
                if let Some(key) = self.any_key()
                    && let Some(v) = self.store.values.get_mut(&key)
                {
                    self.stats.damaged += 1;
                    let mut bytes = v.bytes.to_vec();
                    if newer {
                        bytes[0] = 0x99;
                    } else {
                        bytes.truncate(20);
                    }
                    v.bytes = bytes.into();
                    tr!(self, "store", "{} is damaged (newer: {newer})", short(&key));
                    self.check.damaged(&key);
                }
            }
            Chaos::Outage => {
                self.store.away_until = self.now + self.rng.between(200 * MS, 4 * SEC);
                self.store.away_node = self.rng.chance(500).then(|| self.rng.below(NODES));
                match self.store.away_node {
                    Some(node) => {
                        self.stats.partial_outages += 1;
                        tr!(self, "store", "its node {node} is away for a while");
                    }
                    None => {
                        self.stats.outages += 1;
                        tr!(self, "store", "is away for a while");
                    }
                }
            }
            _ => {}
        }
    }

    fn any_key(&mut self) -> Option<Key> {
        let n = self.rng.index(self.store.values.len());
        self.store.values.keys().nth(n).cloned()
    }

    /// Removes the values of a later version that is gone.
    pub(crate) fn forget_newer_values(&mut self) {
        let newer = |v: &Value| v.bytes.first().is_some_and(|b| *b == 0x99);
        let keys: Vec<Key> =
            self.store.values.iter().filter(|(_, v)| newer(v)).map(|(k, _)| k.clone()).collect();
        for key in keys {
            self.lose_value(&key);
        }
    }

    /// A client cancels, as a `JobController` does: read, then swap what was read.
    pub(crate) fn cancel(&mut self, task: usize) {
        let Some(key) = self.check.key(task) else { return };
        if self.is_away(&key) {
            return;
        }
        let seen = self.value(&key);
        let after = self.rng.between(MS, 20 * MS);
        self.after(after, Ev::CancelSwap(task, seen));
    }

    pub(crate) fn cancel_swap(&mut self, task: usize, seen: Option<Bytes>) {
        let Some(key) = self.check.key(task) else { return };
        let Some((new, ttl)) = self.check.cancelled_lease(seen.as_ref(), true_wall(self.now)) else { return };
        let outcome = self.swap_effect(None, &Swap::new(key, seen, Some(new), Some(ttl)));
        tr!(self, "client", "cancels t{task} -> {outcome:?}");
        if outcome != Swapped::Done {
            self.after(5 * MS, Ev::Cancel(task));
        }
    }
}
