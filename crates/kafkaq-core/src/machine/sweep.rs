//! What is looked after by time, whatever else happens: commands whose lease has ended, jobs whose lease has ended with
//! their record still here, and records whose copy the log refuses.

use super::{
    Fault, Machine, Mono,
    item::{Holder, Item, Stage, StoreOp},
    slab::Ref,
};
use std::time::Duration;

/// Nothing is late by more than this.
const LONGEST: Duration = Duration::from_secs(1);
/// How long a command may take that came after the end of its lease.
const LATE_COMMAND: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(20);

/// What the sweep does about an item.
enum Late {
    Command,
    Waiting,
    Record,
    Park,
}

impl Machine {
    /// How often it sweeps.
    fn sweep_every(&self) -> Duration {
        (self.config.settings.lease / 16).clamp(SHORTEST, LONGEST)
    }

    pub(super) fn sweep(&mut self) {
        if self.next_sweep > self.clock.mono() {
            return;
        }
        self.next_sweep = self.clock.mono().plus(self.sweep_every());
        self.hand_over();
        for r in self.items.refs().collect::<Vec<_>>() {
            let Some(item) = self.items.get(r) else { continue };
            match self.what_is_late(item) {
                None => {}
                Some(Late::Command) => self.expire_command(r),
                Some(Late::Waiting) if self.is_ours(r) => {
                    if let Some(item) = self.items.get_mut(r) {
                        item.stage = Stage::Considered;
                    }
                    self.start(r, StoreOp::Look);
                }
                Some(Late::Waiting) => self.remove(r),
                Some(Late::Record) if self.is_ours(r) => self.reconsider_at(r, self.clock.mono()),
                Some(Late::Record) => {}
                Some(Late::Park) => self.park_held(r),
            }
        }
    }

    fn what_is_late(&self, item: &Item) -> Option<Late> {
        let now = self.clock.mono();
        let commanded = item.command.is_some() || item.next_command.is_some();
        // One that came after the lease had ended may still find that nobody else has the task.
        let late = |end: Mono| match item.commanded_at < end {
            true => end,
            false => item.commanded_at.plus(self.config.settings.lease.min(LATE_COMMAND)),
        };
        let expired = item.own.is_none_or(|own| late(own.ends) <= now);
        if commanded && expired && !self.config.has_fault(Fault::CommandNeverExpires) {
            return Some(Late::Command);
        }
        if item.stage == Stage::Waiting {
            return (item.wake <= now && item.store.is_none()).then_some(Late::Waiting);
        }
        let place = item.place?;
        // A copy that is not acknowledged when it comes to its turn helps nobody: the record itself is here.
        if let Some(copy) = item.copy() {
            return (copy.turn <= now && item.store.is_none()).then_some(Late::Record);
        }
        if item.stage != Stage::Held || item.append.is_some() || commanded {
            return None;
        }
        let ended = item.own.is_some_and(|own| own.ends.plus(self.config.settings.clock_skew) <= now);
        if ended && item.store.is_none() {
            return Some(Late::Record);
        }
        // From its head on, a window of the task topic is looked after when inputs come.
        let in_lane = self.windows.get(place.window).is_some_and(|w| w.is_lane());
        (in_lane && self.is_late(item) && item.no_park_before <= self.clock.mono()).then_some(Late::Park)
    }

    /// When the sweep has to run, if there is anything to look after.
    pub(super) fn sweep_at(&self) -> Option<Mono> {
        let queued = || self.windows.iter().any(|w| w.len() > 0);
        (!self.items.is_empty() || queued()).then_some(self.next_sweep)
    }

    /// The record is considered again at `when`, by an item of its own. Whoever holds the job may still end it, and an
    /// append that is under way may still cover the record.
    pub(super) fn reconsider_at(&mut self, r: Ref, when: Mono) {
        let Some(fresh) = self.detach(r) else { return self.close(r) };
        if let Some(item) = self.items.get_mut(fresh) {
            item.stage = Stage::Waiting;
            item.wake = when;
        }
        if when <= self.clock.mono() {
            if let Some(item) = self.items.get_mut(fresh) {
                item.stage = Stage::Considered;
            }
            self.start(fresh, StoreOp::Look);
        }
        let Some(item) = self.items.get_mut(r) else { return };
        if item.append.is_some() && !self.appends.is_under_way(r) {
            // Not under way: it is not sent any more.
            item.append = None;
        }
        // If nobody has had it yet, it is given back, not renewed.
        item.gone = true;
        let held = item.stage == Stage::Held && item.holder == Holder::Driver && item.own.is_some();
        if held { self.go_on(r) } else { self.close(r) }
    }
}
