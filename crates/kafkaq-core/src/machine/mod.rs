//! The pure machine: what one process of a queue does, without a clock, a random number, a thread or a socket.
//!
//! ```text
//!                 records                      lease missing              asks: done, retry, reject, extend
//!   consumer ───────────────▶ window ──turn──▶ or past: swap to live ───▶ held ────────────────┐
//!                               │                 │                        │ park_after         │ done, dead
//!                               │                 │ live, idle             ▼                    ▼
//!   commit ◀── finished prefix ◀┴──── acknowledged copy in the wait topic ◀─┘   terminal lease: finished
//! ```
//!
//! The methods come in three kinds. *Getters* look. `handle_*` takes what happened; it never fails and never waits.
//! `poll_*` gives what is to be done, by kind and with a limit: what isn't polled gathers and makes the next batch,
//! which is all the batching there is. Every input carries `Now`.
//!
//! Invariants, numbered as in ARCHITECTURE.md:
//! - **I1 cover** a record is finished only when the lease is terminal or a copy with a higher number is durable.
//! - **I2 exclusive** no job is handed out without a live lease that this process has just won.
//! - **I3 fenced** only the holder of the current token finishes, extends, retries or rejects.
//! - **I4 prefix** the committed offset never passes an unfinished record and never goes back.
//! - **I5 liveness** when faults stop, every task becomes terminal.
//! - **I6 bounded** windows, hand-out, retries and copies have limits.
//!
//! This module promises no stability: it is for kafkaq's driver and its simulation.

mod api;
mod appends;
mod clock;
mod commands;
mod config;
mod copies;
mod dispatch;
mod fault;
mod gate;
mod hand_over;
mod intake;
mod item;
mod ladder;
mod lanes;
mod leases;
mod notices;
mod open;
mod output;
mod partitions;
mod rule;
mod slab;
mod stats;
mod store_ops;
mod sweep;
#[cfg(test)]
mod tests;
mod window;
mod windows;

pub use api::*;
pub use fault::Fault;
pub use ladder::Ladder;

use crate::{History, Key, Position, TaskId};
use appends::Appends;
use clock::Clock;
use config::Config;
use dispatch::Dispatch;
use item::{Holder, Item, Place, Stage, StoreOp, TaskEntry};
use lanes::Lanes;
use notices::Notices;
use rule::{Meta, Seen};
use slab::{Ref, Slab};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use store_ops::StoreOps;
use window::{Slot, Window};
use windows::Windows;

/// The state of one process of a queue. See the [module](self).
#[derive(Debug)]
pub struct Machine {
    config: Config,
    clock: Clock,
    /// Inputs came in since the last [`Machine::work`].
    dirty: bool,

    windows: Windows,
    lanes: Lanes,
    items: Slab<Item>,
    tasks: Slab<TaskEntry>,
    by_id: HashMap<TaskId, Ref>,
    store: StoreOps,
    appends: Appends,
    dispatch: Dispatch,
    notices: Notices,
    next_sweep: Mono,
    shutting: bool,
}

impl Machine {
    /// A machine that has no partitions yet.
    #[must_use]
    pub fn new(settings: Settings, layout: Layout, now: Now) -> Self {
        let store = StoreOps::new(settings.process);
        Machine {
            config: Config::new(settings, layout),
            clock: Clock::new(now),
            dirty: false,
            windows: Windows::new(),
            lanes: Lanes::default(),
            items: Slab::new(),
            tasks: Slab::new(),
            by_id: HashMap::new(),
            store,
            appends: Appends::default(),
            dispatch: Dispatch::new(now.mono),
            notices: Notices::default(),
            next_sweep: now.mono,
            shutting: false,
        }
    }

    // ---- getters

    /// How it is set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// After [`Machine::handle_shutdown`]: nothing is under way, no job is held, and what is finished is committed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.shutting
            && !self.dispatch.is_recalling()
            && self.items.is_empty()
            && self.windows.iter().all(Window::is_committed)
    }

    // ---- handle_*: what happened

    /// How many callers wait for a job, and how many ready jobs wait for a caller. Told whenever a caller begins to
    /// wait or the ready ones have fallen below half of the prefetch.
    pub fn handle_demand(&mut self, now: Now, waiting: usize, ready: usize) {
        self.observe_time(now);
        self.dispatch.set_demand(now.mono, waiting, ready);
    }

    /// The time of [`Machine::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.observe_time(now);
    }

    /// No more intake; what was not handed out is given back; what runs may finish.
    pub fn handle_shutdown(&mut self, now: Now) {
        self.observe_time(now);
        if !self.shutting {
            self.shutting = true;
            self.lanes.clear();
            self.drop_unstarted(None);
            self.recall_ready();
        }
    }

    /// The process has left its group, or is about to: what it has read is the others'. What runs may finish.
    pub fn handle_left(&mut self, now: Now) {
        self.observe_time(now);
        for w in self.windows.refs() {
            self.drop_window(w);
        }
    }

    fn observe_time(&mut self, now: Now) {
        self.dirty = true;
        if self.clock.observe(now, self.config.settings.clock_skew) {
            self.clock_was_set_back();
        }
    }

    // ---- items

    fn new_item(
        &mut self,
        content: Arc<Content>,
        meta: Meta,
        history: History,
        place: Place,
        at: Position,
    ) -> Ref {
        let task = match self.by_id.get(&content.id) {
            Some(task) => *task,
            None => {
                let entry =
                    TaskEntry { id: content.id.clone(), items: 0, busy: false, waiting: VecDeque::new() };
                let task = self.tasks.insert(entry);
                self.by_id.insert(content.id.clone(), task);
                task
            }
        };
        if let Some(entry) = self.tasks.get_mut(task) {
            entry.items += 1;
        }
        let item = Item {
            key: Key::task(&self.config.layout.keyspace, &content.id),
            content,
            task,
            meta,
            history,
            place: Some(place),
            gone: false,
            at,
            stage: Stage::Considered,
            turn: self.clock.mono(),
            seen: Seen::Missing,
            own: None,
            holder: Holder::None,
            renew: false,
            handed_out: false,
            store: None,
            sent: None,
            in_doubt: false,
            last_error: None,
            waits: false,
            has_key: false,
            taking: false,
            append: None,
            no_park_before: Mono(0),
            wake: Mono(0),
            copies: 0,
            command: None,
            next_command: None,
            commanded_at: Mono(0),
            raise: None,
            whole: None,
        };
        let r = self.items.insert(item);
        if let Some(window) = self.windows.get_mut(place.window) {
            window.set(place.seq, Slot::Open(r));
        }
        r
    }

    /// The item goes; its record stays as it is in the window.
    fn remove(&mut self, r: Ref) {
        self.cancel_store_op(r);
        self.let_go(r);
        let Some(item) = self.items.remove(r) else { return };
        if let Some(entry) = self.tasks.get_mut(item.task) {
            entry.items -= 1;
            if entry.items == 0
                && let Some(entry) = self.tasks.remove(item.task)
            {
                self.by_id.remove(&entry.id);
            }
        }
        self.dirty = true;
    }

    /// I1, I4: only here a record becomes finished.
    fn finish_record(&mut self, r: Ref) {
        let Some(place) = self.items.get_mut(r).and_then(|i| i.place.take()) else { return };
        if let Some(window) = self.windows.get_mut(place.window) {
            window.finish(place.seq);
        }
        self.dirty = true;
    }

    /// Whether the item's record is this process's to consider.
    fn is_ours(&self, r: Ref) -> bool {
        let window = self.items.get(r).and_then(|i| i.place).and_then(|p| self.windows.get(p.window));
        !self.shutting && window.is_some_and(|w| !w.is_revoked())
    }

    /// The record is considered afresh, by an item of its own: a handle of the old one must not reach the new job.
    fn reconsider(&mut self, r: Ref) {
        if let Some(fresh) = self.detach(r) {
            self.start(fresh, StoreOp::Look);
        }
        self.close(r);
    }

    /// Gives the item's record to a fresh one, if it still is this process's to consider.
    fn detach(&mut self, r: Ref) -> Option<Ref> {
        if !self.is_ours(r) {
            return None;
        }
        let item = self.items.get_mut(r)?;
        let place = item.place.take()?;
        // What nobody has had may have been given back meanwhile, with its attempt: then the lease tells.
        let attempt = if item.handed_out { item.attempt() } else { item.meta.attempt };
        let meta = Meta { attempt, failures: item.failures(), ..item.meta };
        // The number of a copy that may yet become durable is not given to another.
        let copies = item.copies.max(item.copy().map_or(0, |copy| copy.cover));
        let (content, history, at) = (item.content.clone(), item.history.clone(), item.at.clone());
        let no_park_before = item.no_park_before;
        let fresh = self.new_item(content, meta, history, place, at);
        if let Some(item) = self.items.get_mut(fresh) {
            (item.copies, item.no_park_before) = (copies, no_park_before);
        }
        Some(fresh)
    }

    /// Nothing is left to do but what is under way.
    fn close(&mut self, r: Ref) {
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Closing;
            item.own = None;
            item.holder = Holder::None;
        }
        self.go_on(r);
    }

    /// After an operation: the next one that waits for it, or the end.
    fn go_on(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        if item.store.is_some() {
            return;
        }
        if item.command.is_none()
            && item.stage == Stage::Held
            && let Some(next) = item.next_command.take()
        {
            return self.begin_command(r, next);
        }
        // The swap to dead follows its append at once.
        if item.stage != Stage::Burying
            && let Some((cover, due)) = item.raise.take()
        {
            return self.raise(r, cover, due);
        }
        if item.stage == Stage::Held && item.renew {
            item.renew = false;
            return self.come_back(r, false);
        }
        let abandoned = item.stage == Stage::Held
            && item.holder == Holder::None
            && item.command.is_none()
            && (item.place.is_none() || self.shutting);
        if item.append.is_none() && (item.stage == Stage::Closing || abandoned) {
            self.remove(r);
        }
    }

    /// Tells an operator.
    fn alarm(&mut self, alarm: Alarm) {
        self.notices.alarm(alarm, self.clock.mono());
    }
}
