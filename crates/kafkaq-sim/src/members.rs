//! The hostile consumer group: who has which partition, and what it takes from whom.

use crate::log::{Owner, Part};
use crate::task::Held;
use crate::trace::{MS, P, SEC, Us, tr};
use crate::world::{Ev, World};
use kafkaq_core::machine::Ready;
use kafkaq_core::{Assignment, Event};

impl World {
    pub(crate) fn flow(&mut self, p: usize, a: &Assignment, resume: bool) {
        let (inc, part) = (self.procs[p].inc, self.log.part(&a.partition));
        let Some(part) = part else { return };
        if let Some(o) = self.log.parts[part].owned(p, inc, a.epoch) {
            self.stats.flow_paused += u64::from(!resume);
            o.one_more = !resume && !o.paused;
            o.paused = !resume;
            self.wake_fetch(part);
        }
    }

    pub(crate) fn release(&mut self, p: usize, a: &Assignment) {
        let inc = self.procs[p].inc;
        let Some(part) = self.log.part(&a.partition) else { return };
        let asked_at = self.log.parts[part].owned(p, inc, a.epoch).and_then(|o| o.revoking);
        if let Some(asked_at) = asked_at {
            self.stats.released += 1;
            tr!(self, P(p), "releases {a}");
            let hold = self.plan.settings.release_hold.as_micros() as Us;
            if self.now < asked_at + hold {
                self.check_given_back(p, part);
                self.check_all_leased(p, part);
            }
            self.free(part);
        }
    }

    /// Checks that untaken jobs were given back before the partition, unless that took too long.
    fn check_given_back(&mut self, p: usize, part: usize) {
        let this = &self.log.parts[part];
        let kept = |r: &&Ready| {
            let at = &r.content.origin;
            at.partition == this.partition
                && at.offset >= this.committed
                && self.check.has_no_copy(&r.content)
        };
        if let Some(r) = self.procs[p].ready.iter().find(kept) {
            let what = format!("p{p} releases {} and keeps {} ready", this.partition, r.content.id);
            self.check.fail("I5", what);
        }
    }

    /// Checks that the next owner can know of running jobs, unless that took too long.
    fn check_all_leased(&mut self, p: usize, part: usize) {
        let (now, pauses) = (self.clocks(p).wall, self.plan.rates.pause > 0);
        let Part { partition, epoch, .. } = &self.log.parts[part];
        let process = &self.procs[p];
        let unknown = process.running().filter_map(|job| process.jobs.get(&job)).find(|job| {
            let task = &self.check.tasks[job.task];
            // A job that has outlived a lease that could not be written to the store matters only to its worker.
            let goes_on = |h: &Held| h.deadline > now || !(h.sent || pauses);
            let of_task = |h: &Held| h.token == job.token && h.unleased && goes_on(h);
            // For a task that was cancelled or published twice, the store has something else.
            let is_known = task.cancelled || self.log.records(job.task) > 1;
            let is_here = job.origin.partition == *partition && job.epoch == Some(*epoch);
            is_here && !is_known && task.held.iter().any(of_task)
        });
        if let Some(job) = unknown {
            let what = format!("p{p} releases {partition}, and nobody can know of t{}", job.task);
            self.check.fail("I2", what);
        }
    }

    /// The machine finds that an assignment's records don't fit together.
    pub(crate) fn reassign(&mut self, p: usize, a: &Assignment) {
        let inc = self.procs[p].inc;
        let Some(part) = self.log.part(&a.partition) else { return };
        if self.log.parts[part].owned(p, inc, a.epoch).is_some() {
            self.stats.reassigned += 1;
            tr!(self, P(p), "gives up {a}, whose log was replaced");
            self.lose(part);
        }
    }

    fn free(&mut self, part: usize) {
        self.log.parts[part].owner = None;
        let after = self.rng.between(MS, 60 * MS);
        self.after(after, Ev::Assign(part));
    }

    pub(crate) fn hold_limit(&mut self, part: usize, epoch: u64) {
        if self.log.parts[part].owner.as_ref().is_some_and(|o| o.epoch == epoch && o.revoking.is_some()) {
            self.stats.hold_limits += 1;
            self.lose(part);
        }
    }

    /// Takes a partition from its owner, which learns of it too late.
    pub(crate) fn lose(&mut self, part: usize) {
        let this = &mut self.log.parts[part];
        let Some(o) = this.owner.take() else { return };
        self.stats.partitions_lost += 1;
        let a = Assignment { partition: this.partition.clone(), epoch: o.epoch };
        tr!(self, P(o.p), "has lost {a}");
        if self.procs[o.p].inc == o.inc && self.procs[o.p].machine.is_some() {
            self.deliver(o.p, Event::Lost(vec![a]));
        }
        self.free(part);
    }

    pub(crate) fn assign(&mut self, part: usize) {
        if self.log.parts[part].owner.is_some() {
            return;
        }
        let live: Vec<usize> = (0..self.procs.len())
            .filter(|p| self.procs[*p].machine.is_some() && !self.procs[*p].out)
            .collect();
        if live.is_empty() {
            return self.after(100 * MS, Ev::Assign(part));
        }
        let p = match self.deserted {
            None => live[self.rng.index(live.len())],
            // A real group gives each member its share of each topic.
            Some(_) => {
                let kind = self.log.parts[part].kind;
                let share = |p: usize| {
                    let owned = |of: &&Part| of.kind == kind && of.owner.as_ref().is_some_and(|o| o.p == p);
                    self.log.parts.iter().filter(owned).count()
                };
                live.into_iter().min_by_key(|p| share(*p)).unwrap_or_default()
            }
        };
        let inc = self.procs[p].inc;
        let this = &mut self.log.parts[part];
        this.epoch += 1;
        let (epoch, pos) = (this.epoch, this.committed);
        this.owner = Some(Owner {
            p,
            inc,
            epoch,
            pos,
            read: pos,
            cut: None,
            paused: false,
            one_more: false,
            idle: false,
            revoking: None,
        });
        let a = Assignment { partition: this.partition.clone(), epoch };
        tr!(self, P(p), "is assigned {a} from {pos}");
        self.deliver(p, Event::Assigned(vec![a]));
        self.after(5 * MS, Ev::Fetch(part, epoch));
    }

    /// Moves some partitions: most are revoked, some are lost.
    pub(crate) fn rebalance(&mut self) {
        let all = self.rng.chance(300);
        for part in 0..self.log.parts.len() {
            if !(all || self.rng.chance(300)) {
                continue;
            }
            if self.rng.chance(150) {
                self.lose(part);
                continue;
            }
            self.revoke(part);
        }
    }

    /// A real group distributes its partitions among all members. Here that matters to the process whose callers are
    /// gone: if it is the only one, it keeps everything.
    pub(crate) fn joined(&mut self) {
        if self.deserted.is_some() {
            self.after(SEC, Ev::Share);
        }
    }

    pub(crate) fn share(&mut self) {
        (0..self.log.parts.len()).for_each(|part| self.revoke(part));
    }

    fn revoke(&mut self, part: usize) {
        let this = &mut self.log.parts[part];
        let Some(o) = this.owner.as_mut().filter(|o| o.revoking.is_none()) else { return };
        o.revoking = Some(self.now);
        let (p, epoch) = (o.p, o.epoch);
        let a = Assignment { partition: this.partition.clone(), epoch };
        self.stats.revocations += 1;
        tr!(self, P(p), "is asked for {a}");
        self.deliver(p, Event::Revoking(vec![a]));
        self.after(self.plan.hold_limit, Ev::HoldLimit(part, epoch));
    }

    /// Ends a membership: the member died, was paused, or left.
    pub(crate) fn member_over(&mut self, p: usize, inc: u32) {
        for part in 0..self.log.parts.len() {
            if self.log.parts[part].owner.as_ref().is_some_and(|o| (o.p, o.inc) == (p, inc)) {
                self.lose(part);
            }
        }
    }

    pub(crate) fn session_over(&mut self, p: usize, inc: u32, pause: Us) {
        let process = &mut self.procs[p];
        let standing = process.inc == inc && process.machine.is_some();
        if standing && !(process.paused && process.paused_at == pause) {
            return;
        }
        if standing {
            process.out = true;
            self.stats.zombies += 1;
        }
        tr!(self, P(p), "its session is over");
        self.member_over(p, inc);
    }
}
