//! Periodic checks, independent of other inputs: commands whose lease has ended, jobs whose lease has ended with their
//! record still here, and records whose copy the log refuses.

use super::{
    Fault, Machine, Mono, Recall,
    item::{Held, Item, Stage},
    slab::Ref,
};
use std::time::Duration;

/// The longest time between two sweeps.
const LONGEST: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(20);
/// How long a command that came after the end of its lease may take.
const LATE_COMMAND: Duration = Duration::from_secs(10);

/// What is overdue for an item.
enum Overdue {
    /// The answer to a command.
    Answer,
    /// A record that waited here is to be considered.
    Waiting,
    /// The job or the copy of a record that is still here.
    Record,
    /// The copy of a held job.
    Park,
    /// The lease of a job that was started without one.
    Lease,
}

/// Returns whether its job is due for renewal if it is still ready, which only the driver knows.
fn may_need_renewal(item: &Item, now: Mono) -> bool {
    let is_untouched = !item.handed_out && item.is_held();
    is_untouched && item.held().is_some_and(|held| held.with_driver && held.renew_at <= now)
}

impl Machine {
    pub(super) fn sweep(&mut self) {
        let now = self.clock.mono();
        if self.next_sweep > now {
            return;
        }
        self.next_sweep = now.plus((self.config.settings.lease / 16).clamp(SHORTEST, LONGEST));
        self.hand_over();
        let has_ready = self.dispatch.has_ready() && !self.config.has_fault(Fault::ReadyForgotten);
        let mut renews = false;
        for r in self.items.refs() {
            let Some(item) = self.items.get(r) else { continue };
            renews |= has_ready && may_need_renewal(item, now);
            match self.overdue(item) {
                None => {}
                Some(Overdue::Answer) => self.expire_command(r),
                Some(Overdue::Waiting) if self.is_ours(r) => {
                    if let Some(item) = self.items.get_mut(r) {
                        item.stage = Stage::Considered;
                    }
                    self.start_read(r);
                }
                Some(Overdue::Waiting) => self.remove(r),
                Some(Overdue::Record) if self.is_ours(r) => self.reconsider_at(r, now),
                Some(Overdue::Record) => {}
                Some(Overdue::Park) => self.park_held(r),
                Some(Overdue::Lease) => self.lease_unleased(r),
            }
        }
        // An expired lease would count as a failure, although nobody has had the job.
        if renews {
            self.dispatch.recall(Recall::ToRenew);
        }
    }

    fn overdue(&self, item: &Item) -> Option<Overdue> {
        let now = self.clock.mono();
        let has_command = !item.commands.is_empty();
        // One that came after the lease had ended may still find that nobody else has the task.
        let answer_by = |ends: Mono| match item.commands.last_at() < ends {
            true => ends,
            false => item.commands.last_at().plus(self.config.settings.lease.min(LATE_COMMAND)),
        };
        let has_expired = item.own().is_none_or(|own| answer_by(own.ends) <= now);
        if has_command && has_expired && !self.config.has_fault(Fault::CommandNeverExpires) {
            return Some(Overdue::Answer);
        }
        let is_idle = item.store.is_idle();
        if let Stage::Waiting { until } = item.stage {
            return (until <= now && is_idle).then_some(Overdue::Waiting);
        }
        if let Stage::Held(Held { offered_at: Some(since), unleased: Some(_), .. }) = item.stage
            && let Some(after) = self.config.settings.track_after
            && !self.config.has_fault(Fault::NeverLeased)
        {
            return (since.plus(after) <= now).then_some(Overdue::Lease);
        }
        let place = item.place()?;
        // A copy that is not acknowledged by the time it is due is useless: the record itself is here.
        if let Some(copy) = item.copy() {
            return (copy.give_up_at <= now && is_idle).then_some(Overdue::Record);
        }
        let Stage::Held(held) = item.stage else { return None };
        if item.append.is_some() || has_command {
            return None;
        }
        if is_idle && held.lease.ends.plus(self.config.settings.clock_skew) <= now {
            return Some(Overdue::Record);
        }
        // A window of the task topic is checked from its head whenever inputs arrive.
        let in_lane = self.windows.get(place.window).is_some_and(|window| window.is_lane());
        (in_lane && self.is_late(item) && item.copies.not_before <= now).then_some(Overdue::Park)
    }

    /// Returns when the sweep has to run, if there is anything to check.
    pub(super) fn sweep_at(&self) -> Option<Mono> {
        let is_needed = !self.items.is_empty() || self.windows.iter().any(|window| window.len() > 0);
        is_needed.then_some(self.next_sweep)
    }

    /// The record is considered again at `when`, by an item of its own. The holder of the job may still end it, and an
    /// append in flight may still cover the record.
    pub(super) fn reconsider_at(&mut self, r: Ref, when: Mono) {
        let Some(fresh) = self.detach(r) else { return self.close(r) };
        if when <= self.clock.mono() {
            self.start_read(fresh);
        } else if let Some(item) = self.items.get_mut(fresh) {
            item.stage = Stage::Waiting { until: when };
        }
        self.cancel_append(r);
        let Some(item) = self.items.get(r) else { return };
        // If nobody has had the job yet, it is given back, not renewed.
        if item.is_held() && item.is_with_driver() { self.advance(r) } else { self.close(r) }
    }
}
