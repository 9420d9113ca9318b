//! Which swap may replace which value: the record rule, as the store sees it.

use crate::later::own_lease;
use crate::task::{Copied, Held, Task, TaskNo};
use crate::trace::{SEC, Us, lease, tr};
use crate::world::World;
use bytes::Bytes;
use kafkaq_core::{DecodeError, Lease, LeaseState, LeaseToken, Swap, Wall};
use std::time::Duration;

type Broken = Result<(), (&'static str, &'static str)>;

/// The author of a swap, and what it can know.
struct By {
    process: Option<[u8; 16]>,
    /// The latest that its wall clock has shown.
    max_wall: Wall,
}

impl By {
    fn owns(&self, token: LeaseToken) -> bool {
        self.process == Some(token.process)
    }

    /// A swap that a process sent before it died and was restarted belongs to the token that it names.
    fn as_sent(&self, new: &Lease) -> By {
        let (f, max_wall) = (new.token.process, self.max_wall);
        By { process: self.process.map(|now| if f[0] == now[0] { f } else { now }), max_wall }
    }
}

impl World {
    /// A swap that the driver fetches from the machine.
    pub(crate) fn check_polled_swap(&mut self, p: usize, swap: &Swap) {
        if self.procs[p].swapping.contains(&swap.key) {
            self.check.fail("I6", format!("p{p} has two swaps of {} under way", swap.key));
        }
        let (Some(n), Some(Ok(new))) =
            (self.check.task_of(&swap.key), swap.new.as_ref().map(|v| Lease::decode(v)))
        else {
            return;
        };
        if let Some(held) = self.check.tasks[n].holder(new.token) {
            held.sent = true;
        }
        // A resent swap was decided earlier.
        let held = self.procs[p].polled.contains(&new.token.number);
        let old = swap.expect.as_ref().and_then(|v| Lease::decode(v).ok());
        let take = new.state == LeaseState::Live && !held && old.is_none_or(|o| o.token != new.token);
        if take {
            self.procs[p].polled.insert(new.token.number);
            self.check_fair_share(p, new.prefetched);
        }
        // After the last failure it is taken only to be dead-lettered.
        let s = &self.plan.settings;
        let charged = new.attempt > 1 && new.failures < s.max_failures && new.attempt <= s.max_handouts;
        // It may have waited for another operation of the task since it was decided.
        let patience = 4 * SEC + 2 * self.plan.settings.lease.as_micros() as Us;
        let waited_at = self.procs[p].waited_at.max(self.procs[p].woke_at);
        if take && charged && waited_at + patience < self.now {
            self.check
                .fail("I6", format!("p{p} takes attempt {} of t{n} although no caller waits", new.attempt));
        }
    }

    /// I6: an endless stream of first attempts doesn't starve redeliveries.
    fn check_fair_share(&mut self, p: usize, prefetched: bool) {
        let process = &mut self.procs[p];
        let waiting = process.machine.as_ref().map_or(0, |m| m.stats().waiting_for_caller);
        process.firsts = if prefetched && waiting > 0 { process.firsts + 1 } else { 0 };
        // Some were decided before the redeliveries came, and some take the place of what was given back.
        let most = 4 * self.plan.settings.prefetch + process.workers.len() + 8;
        if process.firsts > most {
            let what =
                format!("p{p} takes more than {most} first attempts while {waiting} redeliveries wait");
            self.check.fail("I6", what);
        }
    }

    /// Attempts are in the records too: a wiped store does not set the count back.
    pub(crate) fn check_attempts_kept(&mut self, p: usize, swap: &Swap) {
        let s = &self.stats;
        let moved = s.pauses + s.partitions_lost + s.revocations + s.logs_cut + s.topics_recreated > 0;
        let (None, false, Some(n)) = (&swap.expect, moved, self.check.task_of(&swap.key)) else { return };
        let Some(Ok(new)) = swap.new.as_ref().map(|v| Lease::decode(v)) else { return };
        let own = self.check.tasks[n].holder(new.token).is_some();
        let known = self.log.fewest_attempts(n).unwrap_or(0);
        if new.state == LeaseState::Live && !own && new.attempt <= known {
            let what = format!("p{p} takes attempt {} of t{n}, whose records know of {known}", new.attempt);
            self.check.fail("I6", what);
        }
    }

    /// The swap takes effect.
    pub(crate) fn checked_transition(&mut self, who: Option<usize>, swap: &Swap, old: Option<&Bytes>) {
        let Some(n) = self.check.task_of(&swap.key) else {
            return self.check.fail("I3", format!("a lease of no task: {}", swap.key));
        };
        let by = By {
            process: who.map(|p| self.procs[p].id),
            max_wall: who.map_or(Wall(0), |p| self.procs[p].max_wall),
        };
        if let Err((invariant, what)) = self.transition(n, &by, swap, old) {
            let (before, after) = (lease(old), lease(swap.new.as_ref()));
            self.check.fail(invariant, format!("t{n}: {before} is replaced by {after}: {what}"));
        }
        if who.is_none() {
            tr!(self, "client", "  t{n} is now {}", lease(swap.new.as_ref()));
        }
    }

    fn transition(&mut self, n: TaskNo, by: &By, swap: &Swap, old: Option<&Bytes>) -> Broken {
        let Some(Ok(new)) = swap.new.as_ref().map(|v| Lease::decode(&own_lease(v))) else {
            return Err(("I3", "a lease is never removed or garbled"));
        };
        let old = match old.map(|v| Lease::decode(&own_lease(v))) {
            Some(Err(DecodeError::Newer(_))) => return Err(("I3", "a later version's lease is left alone")),
            Some(Ok(lease)) => Some(lease),
            Some(Err(_)) | None => None,
        };
        let old = old.as_ref();
        let by = &by.as_sent(&new);
        self.check_ttl(n, by, &new, swap)?;
        let task = &mut self.check.tasks[n];
        if new.state == LeaseState::Cancelled {
            task.cancelled = true;
            return if by.process.is_none() { Ok(()) } else { Err(("I3", "only clients cancel")) };
        }
        if !new.state.is_terminal() {
            cover(task, old, &new, self.plan.settings.clock_skew, by.max_wall)?;
        }
        if old.is_some_and(|o| o.state.is_terminal()) && new.state != LeaseState::Done {
            return Err(("I3", "a terminal lease is permanent"));
        }
        match new.state {
            LeaseState::Live => self.becomes_live(n, by, old, &new),
            LeaseState::Idle => self.becomes_idle(n, by, old, &new),
            LeaseState::Done => self.becomes_done(n, old, &new),
            LeaseState::Dead => self.becomes_dead(n, by, old, &new),
            LeaseState::Cancelled => Ok(()),
        }
    }

    /// No lease expires from the store while a copy may still be waiting.
    fn check_ttl(&self, n: TaskNo, by: &By, new: &Lease, swap: &Swap) -> Broken {
        let s = &self.plan.settings;
        let ahead =
            if new.state.is_terminal() { Default::default() } else { new.deadline.since(by.max_wall) };
        match swap.ttl {
            Some(ttl) if by.process.is_some() && ttl < ahead + s.max_overdue + s.done_retention => {
                Err(("I5", "its time to live is too short"))
            }
            Some(ttl) if by.process.is_some() && new.state.is_terminal() && !self.check.clocks_broken => {
                let left = |copy: &Copied| copy.due.since(by.max_wall) + s.max_overdue;
                match self.check.tasks[n].copies.iter().any(|copy| copy.running && ttl < left(copy)) {
                    true => Err(("I5", "it is forgotten before a copy can find it")),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn becomes_live(&mut self, n: TaskNo, by: &By, old: Option<&Lease>, new: &Lease) -> Broken {
        let skew = self.plan.settings.clock_skew;
        let (clocks_broken, faults) = (self.check.clocks_broken, self.check.faults);
        let was_kept = old.is_some_and(|old| self.was_kept(n, old));
        let task = &mut self.check.tasks[n];
        let damage = task.damage;
        if let Some(old) = old.filter(|o| o.token == new.token) {
            if old.state != LeaseState::Live {
                return Err(("I2", "a token is used twice"));
            }
            if (old.attempt, old.failures) != (new.attempt, new.failures) {
                return Err(("I2", "the attempt or its failures change under a token"));
            }
            let raised = new.cover > old.cover;
            // A corrected clock may shorten it a little.
            let back = new.deadline.plus(skew) < old.deadline;
            self.stats.covers_raised += u64::from(raised);
            if back {
                self.stats.brought_back += 1;
                if !clocks_broken {
                    return Err(("I3", "a correct deadline is shortened"));
                }
            } else if new.deadline > old.deadline {
                self.stats.renewals += 1;
                if !by.owns(new.token) {
                    return Err(("I3", "somebody else renews it"));
                }
            }
            if let Some(h) = task.holder(new.token) {
                (h.deadline, h.faults) = (h.deadline.max(new.deadline), faults);
            } else {
                // A rollback or a late swap has restored a lease that this history doesn't know.
                task.win(new, faults);
            }
            return Ok(());
        }
        if !by.owns(new.token) {
            return Err(("I2", "a lease is taken on behalf of another process"));
        }
        // If a job is still with its driver when its record is considered again, its attempt counts, even if it then
        // turns out that nobody has had it.
        let counts = |h: &Held| h.began_unleased && (h.handed || h.sent || !h.returned);
        let begun = u32::from(task.held.iter().any(counts));
        let known = task.attempt.max(old.map_or(0, |o| o.attempt)).max(begun);
        if old.is_none()
            && let Some(h) = task.holder(new.token).filter(|h| h.unleased)
        {
            (h.unleased, h.deadline) = (false, h.deadline.max(new.deadline));
            self.stats.leased_late += 1;
            return Ok(());
        }
        let again = task.holder(new.token).map(|h| h.damage);
        if let Some(then) = again {
            if then == damage {
                return Err(("I2", "a token is used twice"));
            }
        } else if new.attempt > known + 1 && damage == 0 {
            return Err(("I6", "attempts are skipped"));
        }
        let ran_out = old.is_some_and(|o| o.state == LeaseState::Live && !o.prefetched);
        if ran_out && was_kept {
            return Err((
                "I6",
                "a process lets the lease of an untaken job expire, and it counts as a failure",
            ));
        }
        if ran_out {
            self.stats.ran_out += 1;
            task.failures += 1;
        }
        if damage == 0 && new.failures > task.failures {
            return Err(("I6", "a failure is counted that nobody had"));
        }
        if let Some(old) = old {
            if new.attempt <= old.attempt {
                return Err(("I6", "the attempt does not grow"));
            }
            if new.failures < old.failures + u32::from(ran_out) {
                return Err(("I6", "a failure is not counted"));
            }
            match old.state {
                LeaseState::Live if by.max_wall < old.deadline.plus(skew) && !by.owns(old.token) => {
                    return Err(("I2", "it is taken over before it has expired"));
                }
                LeaseState::Live if by.max_wall < old.deadline => {
                    return Err(("I2", "it is taken over from its own process before it has expired"));
                }
                LeaseState::Live => self.stats.takeovers += 1,
                _ if by.max_wall < old.deadline => return Err(("I2", "it is taken before it is due")),
                _ => self.stats.idle_taken += 1,
            }
        }
        self.stats.takes += 1;
        match again {
            None => task.win(new, faults),
            Some(_) => {
                if let Some(h) = task.holder(new.token) {
                    h.deadline = h.deadline.max(new.deadline);
                }
            }
        }
        Ok(())
    }

    /// A process that runs has not given the job of this lease to anybody, although nothing kept it from renewing it.
    fn was_kept(&self, n: TaskNo, lease: &Lease) -> bool {
        let s = &self.stats;
        let moved = s.pauses + s.partitions_lost + s.logs_cut + s.topics_recreated > 0;
        let excused = moved || self.check.clocks_broken || self.plan.mixed || self.plan.rates.slow_call > 0;
        let runs =
            self.procs.iter().any(|p| p.id == lease.token.process && p.machine.is_some() && !p.stopping);
        let task = &self.check.tasks[n];
        let held = task.held.iter().find(|h| h.token == lease.token && h.damage == task.damage);
        !excused && runs && held.is_some_and(|h| !h.handed && h.faults == self.check.faults)
    }

    fn becomes_idle(&mut self, n: TaskNo, by: &By, old: Option<&Lease>, new: &Lease) -> Broken {
        let (max_failures, max_handouts) = (self.plan.settings.max_failures, self.plan.settings.max_handouts);
        let task = &mut self.check.tasks[n];
        let damage = task.damage;
        let Some(old) = old else {
            match task.holder(new.token) {
                Some(h) if h.damage == damage && !h.unleased => {
                    return Err(("I3", "nothing was there, and nothing was lost"));
                }
                Some(h) => (h.idle, h.unleased) = (true, false),
                None => {
                    task.announced = task.announced.max(new.attempt);
                    self.stats.idle_made += 1;
                }
            }
            return Ok(());
        };
        if old.token != new.token {
            return Err(("I3", "another token's lease is made idle"));
        }
        if old.state == LeaseState::Idle {
            self.stats.covers_raised += u64::from(new.cover > old.cover);
            self.stats.brought_back += u64::from(new.deadline < old.deadline);
            return Ok(());
        }
        if !by.owns(new.token) {
            return Err(("I3", "somebody else makes it idle"));
        }
        let Some(held) = task.holder(new.token) else { return Ok(()) };
        held.idle = true;
        if new.attempt == old.attempt {
            self.stats.retries_swapped += 1;
            let used_up = new.failures >= max_failures || new.attempt > max_handouts;
            if !held.handed && !used_up {
                return Err(("I6", "nobody had it, and its attempt is used up"));
            }
            let most = old.failures + u32::from(held.asked_fail);
            return if new.failures <= most {
                Ok(())
            } else {
                Err(("I6", "a failure is counted, but it has not failed"))
            };
        }
        self.stats.hand_backs += 1;
        if new.attempt + 1 != old.attempt {
            return Err(("I6", "a give-back takes one attempt off"));
        }
        if held.handed {
            return Err(("I3", "it is given back, and a worker has or had it"));
        }
        Ok(())
    }

    fn becomes_done(&mut self, n: TaskNo, old: Option<&Lease>, new: &Lease) -> Broken {
        let task = &mut self.check.tasks[n];
        let (damage, was_done) = (task.damage, task.done);
        let Some(held) = task.holder(new.token) else { return Err(("I3", "nobody has held it")) };
        if !held.asked_done {
            return Err(("I3", "its worker has not said so"));
        }
        let excused = held.damage != damage || held.unleased;
        (held.done, task.done) = (true, true);
        match old {
            None if !excused => Err(("I3", "nothing was there, and nothing was lost")),
            None => {
                self.stats.done_over_nothing += 1;
                Ok(())
            }
            Some(o) if o.token == new.token && !o.state.is_terminal() => Ok(()),
            Some(o) if o.token == new.token && o.state == LeaseState::Done && was_done => Ok(()),
            Some(o) if o.token != new.token && o.attempt < new.attempt && excused => {
                self.stats.done_over_older += 1;
                Ok(())
            }
            Some(_) => Err(("I3", "it was not the holder's")),
        }
    }

    fn becomes_dead(&mut self, n: TaskNo, by: &By, old: Option<&Lease>, new: &Lease) -> Broken {
        let s = &self.plan.settings;
        let task = &mut self.check.tasks[n];
        let damage = task.damage;
        if task.dead_records == 0 {
            return Err(("I1", "there is no record of it in the dead-letter topic"));
        }
        let held = task.holder(new.token);
        let reject = held.as_ref().is_some_and(|h| h.asked_reject);
        if let Some(h) = held {
            h.dead = true;
        }
        let foreign = |o: &Lease| o.token != new.token && by.owns(new.token) && o.state == LeaseState::Live;
        if old.is_some_and(|o| foreign(o) && by.max_wall < o.deadline.plus(s.clock_skew)) {
            return Err(("I3", "somebody holds it"));
        }
        let failed = new.failures >= s.max_failures && task.failures >= s.max_failures;
        if !reject && !task.rejected && damage == 0 && !failed && new.attempt <= s.max_handouts {
            return Err(("I6", "it has not failed often enough"));
        }
        task.dead = true;
        self.stats.died += 1;
        Ok(())
    }
}

/// I1: a lease's cover number is that of a durable copy. It is raised only for a copy that is due no later than the
/// lease ends, since otherwise the task would have to wait for the copy.
fn cover(task: &Task, old: Option<&Lease>, new: &Lease, skew: Duration, now: Wall) -> Broken {
    let highest = task.copies.iter().map(|c| c.cover).max().unwrap_or(0);
    if new.cover > highest {
        return Err(("I1", "no durable copy has this cover number"));
    }
    let Some(old) = old else { return Ok(()) };
    if new.cover < old.cover {
        return Err(("I6", "the cover number goes down"));
    }
    if new.cover > old.cover && old.token == new.token {
        let end = if new.state == LeaseState::Live { new.deadline.plus(skew) } else { new.deadline };
        let in_time = |c: &Copied| c.cover >= new.cover && c.due <= end.max(now);
        if !task.copies.iter().any(in_time) {
            return Err(("I5", "the copy is due after the lease ends"));
        }
    }
    Ok(())
}
