//! The workers of a process: they wait for jobs, give up waiting, and do everything that a worker can do with a job.

use crate::process::Job;
use crate::trace::{MS, P, SEC, Us, tr};
use crate::world::{Ev, World};
use kafkaq_core::machine::{Answer, Command, CommandId, JobKey, Ready};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub(crate) struct Worker {
    state: State,
    /// Steps that were scheduled before the last change are void.
    generation: u64,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Idle,
    Waiting,
    Running(Run),
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Retry(u64),
    Reject,
    Drop,
    Snooze(u64),
    Release,
    /// It sends no more commands.
    Silent,
}

#[derive(Clone, Debug)]
struct Run {
    job: JobKey,
    no: u32,
    until: Us,
    extend_every: Us,
    extend_by: Duration,
    end: End,
    /// Whether its outcome was reported.
    ended: bool,
    /// For an answer.
    waits: bool,
}

/// A command that a worker waits for, by its job and number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overdue {
    job: JobKey,
    no: u32,
    /// It was overdue before: a process that stood still gets some time to catch up.
    again: bool,
}

impl Worker {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// The job that it runs, until it has reported its outcome.
    pub(crate) fn unended_job(&self) -> Option<JobKey> {
        match &self.state {
            State::Running(run) if !run.ended => Some(run.job),
            _ => None,
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    pub(crate) fn stop_waiting(&mut self) {
        if self.is_waiting() {
            self.state = State::Idle;
        }
    }

    fn hear(&mut self) {
        if let State::Running(run) = &mut self.state {
            run.waits = false;
        }
    }

    fn runs(&self, job: JobKey) -> Option<&Run> {
        match &self.state {
            State::Running(run) if run.job == job => Some(run),
            _ => None,
        }
    }
}

impl World {
    /// The worker's next step comes within `within`.
    pub(crate) fn worker_later(&mut self, p: usize, w: usize, within: Us) {
        let at = self.now + self.rng.below(within + 1);
        self.worker_at(p, w, at);
    }

    fn worker_at(&mut self, p: usize, w: usize, at: Us) {
        let inc = self.procs[p].inc;
        let worker = &mut self.procs[p].workers[w];
        worker.generation += 1;
        let generation = worker.generation;
        self.at(at, Ev::Worker(p, inc, w, generation));
    }

    pub(crate) fn worker(&mut self, p: usize, w: usize, generation: u64) {
        if self.procs[p].workers[w].generation != generation {
            return;
        }
        match self.procs[p].workers[w].state.clone() {
            State::Idle if self.procs[p].stopping || self.deserted == Some(p) => {}
            State::Idle => {
                self.procs[p].workers[w].state = State::Waiting;
                if self.trouble(self.plan.rates.give_up) {
                    self.worker_later(p, w, 500 * MS);
                }
                if !self.offer(p) || self.procs[p].waiting() > 0 {
                    self.tell_demand(p);
                }
                self.pump(p);
            }
            State::Waiting => {
                self.procs[p].workers[w].state = State::Idle;
                // A caller that went away is not always noticed.
                if self.rng.chance(500) {
                    self.tell_demand(p);
                    self.pump(p);
                }
                // The job that it requested is ready, and perhaps nobody else wants it.
                let lease = self.plan.settings.lease.as_micros() as Us;
                let away = if self.rng.chance(250) { 4 * lease } else { 1500 * MS };
                self.worker_later(p, w, away);
            }
            State::Running(run) => self.work(p, w, run),
        }
    }

    pub(crate) fn tell_demand(&mut self, p: usize) {
        let (waiting, ready) = (self.procs[p].waiting(), self.procs[p].ready.len());
        if waiting + self.procs[p].told > 0 {
            self.procs[p].waited_at = self.now;
        }
        self.procs[p].told = waiting;
        self.tell(p, |m, now| m.handle_demand(now, waiting, ready));
    }

    /// Hands ready jobs to waiting workers. Returns whether the machine got an input.
    pub(crate) fn offer(&mut self, p: usize) -> bool {
        let (mut told, mut taken) = (false, false);
        while let Some(w) = self.procs[p].workers.iter().position(Worker::is_waiting) {
            let Some(ready) = self.procs[p].ready.pop_front() else { break };
            if !ready.is_fresh(self.clocks(p)) {
                told = true;
                self.untaken(p, &ready);
                continue;
            }
            taken = true;
            self.take(p, w, ready);
        }
        if taken && self.procs[p].ready.len() * 2 < self.plan.settings.prefetch {
            told = true;
            self.tell_demand(p);
        }
        told
    }

    fn take(&mut self, p: usize, w: usize, ready: Ready) {
        self.stats.handed_out += 1;
        tr!(self, P(p), "worker {w} takes {} a{}", ready.content.id, ready.attempt);
        let Some(task) = self.check_taken(p, &ready) else { return };
        let lease = self.plan.settings.lease.as_micros() as Us;
        let park = self.plan.settings.park_after.as_micros() as Us;
        let work = if self.calm { 0 } else { self.rng.weighted(&self.plan.rates.work.clone()) };
        let quick = self.rng.between(MS, 40 * MS);
        let (takes, extend_every, end) = match work {
            0 => (quick, 0, End::Done),
            1 => (self.rng.between(park / 2, lease * 9 / 10), 0, End::Done),
            2 => (self.rng.between(lease, 3 * lease), lease / 3, End::Done),
            3 => (self.rng.between(lease, 2 * lease + lease / 2), 0, End::Done),
            4 if self.rng.chance(400) => (quick, 0, End::Retry(0)),
            4 => (quick, 0, End::Retry(self.rng.between(1, 2 * lease / MS))),
            5 => (quick, 0, End::Reject),
            6 => (quick, 0, End::Drop),
            7 => (quick, 0, End::Snooze(self.rng.between(1, 2 * lease / MS))),
            8 => (quick, 0, End::Release),
            _ => (quick, 0, End::Silent),
        };
        let leases = if extend_every > 0 && self.rng.chance(200) { self.rng.between(2, 8) } else { 1 };
        let run = Run {
            job: ready.job,
            no: 0,
            until: self.now + takes,
            extend_every,
            extend_by: self.plan.settings.lease * leases as u32,
            end,
            ended: false,
            waits: false,
        };
        let next = if extend_every > 0 { self.now + extend_every } else { run.until };
        let origin = ready.content.origin.clone();
        // While the process has yet to hear of something, it may mean an earlier epoch.
        let knows = self.procs[p].events_at <= self.now;
        let epoch = self.log.epoch(&origin.partition, p, self.procs[p].inc).filter(|_| knows);
        let job = Job { task, token: ready.token, deadline: ready.deadline, origin, epoch };
        self.procs[p].jobs.insert(ready.job, job);
        self.procs[p].workers[w].state = State::Running(run);
        self.worker_at(p, w, next);
        if self.check.is_poison(task) && !self.calm {
            let (after, inc) = (self.rng.between(MS / 10, 20 * MS), self.procs[p].inc);
            self.after(after, Ev::Crash(p, inc));
        }
    }

    fn work(&mut self, p: usize, w: usize, mut run: Run) {
        run.no += 1;
        run.waits = true;
        let command = if self.now < run.until && !self.calm {
            let next = (self.now + run.extend_every).min(run.until);
            self.worker_at(p, w, next);
            Command::Extend(run.extend_by)
        } else if run.ended {
            return;
        } else {
            if self.calm {
                run.end = End::Done;
            }
            run.ended = run.end != End::Silent;
            self.check_ends(p, run.job, run.end);
            match run.end {
                End::Done => Command::Done,
                End::Retry(ms) => Command::Retry(Duration::from_millis(ms), "not now".into()),
                End::Snooze(ms) => Command::Snooze(Duration::from_millis(ms)),
                End::Release => Command::Release,
                End::Reject => Command::Reject("no".into()),
                End::Drop => Command::Abandoned,
                End::Silent => {
                    // It hangs until all faults stop.
                    self.worker_later(p, w, 2 * self.plan.settings.lease.as_micros() as Us);
                    return;
                }
            }
        };
        tr!(self, P(p), "worker {w} commands {:?} no {} {command:?}", run.job, run.no);
        let (job, no) = (run.job, CommandId(run.no));
        if matches!(command, Command::Abandoned) {
            self.stats.abandoned += 1;
            self.over(p, w);
        } else {
            self.procs[p].workers[w].state = State::Running(run);
        }
        let answered = !matches!(command, Command::Abandoned);
        self.tell(p, |m, now| m.handle_command(now, job, no, command));
        if answered {
            let deadline = self.procs[p].jobs.get(&job).map(|j| j.deadline);
            let wall = self.clocks(p).wall;
            let lease = self.plan.settings.lease.as_micros() as Us;
            let left = deadline.map_or(0, |d| d.since(wall).as_micros() as Us);
            // After the end of the lease a command gets some time of its own.
            let left = if left == 0 { lease } else { left };
            let inc = self.procs[p].inc;
            self.after(left + SEC, Ev::Overdue(p, inc, Overdue { job, no: no.0, again: false }));
        }
        self.pump_soon(p);
    }

    /// I5: every command is answered by the end of its lease.
    pub(crate) fn overdue(&mut self, p: usize, overdue: Overdue) {
        let Overdue { job, no, again } = overdue;
        let waits = |w: &Worker| w.runs(job).is_some_and(|run| run.no == no && run.waits);
        if !self.procs[p].workers.iter().any(waits) || self.check.clocks_broken {
            return;
        }
        let deadline = self.known_deadline(p, job);
        let left = deadline.since(self.clocks(p).wall).as_micros() as Us;
        if again && left == 0 {
            return self.check.fail("I5", format!("p{p} doesn't answer command {no} of {job:?}"));
        }
        let inc = self.procs[p].inc;
        self.after(left + 2 * SEC, Ev::Overdue(p, inc, Overdue { again: left == 0, ..overdue }));
    }

    /// Frees the worker; its further commands for the job no longer count.
    fn over(&mut self, p: usize, w: usize) {
        if let State::Running(run) = std::mem::take(&mut self.procs[p].workers[w].state) {
            self.check_over(p, run.job);
        }
        let within = if self.calm { 50 * MS } else { 200 * MS };
        self.worker_later(p, w, within);
    }

    pub(crate) fn answered(&mut self, p: usize, job: JobKey, no: u32, answer: &Answer) {
        let Some(w) = self.procs[p].workers.iter().position(|w| w.runs(job).is_some()) else { return };
        let Some(run) = self.procs[p].workers[w].runs(job).filter(|r| r.no == no).cloned() else { return };
        self.procs[p].workers[w].hear();
        if let Answer::Extended(until) = answer
            && let Some(job) = self.procs[p].jobs.get_mut(&job)
        {
            job.deadline = *until;
        }
        self.check_answer(p, job, run.ended.then_some(run.end), answer);
        let goes_on = matches!(answer, Answer::Extended(_)) || (!run.ended && self.rng.chance(500));
        if !goes_on {
            self.over(p, w);
        }
    }

    /// Some workers stop when they learn of it; others continue and find out at their next command.
    pub(crate) fn lease_lost(&mut self, p: usize, job: JobKey) {
        // The machine watches it no longer.
        self.procs[p].suspects.remove(&job);
        let Some(w) = self.procs[p].workers.iter().position(|w| w.runs(job).is_some_and(|r| !r.ended)) else {
            return;
        };
        if self.rng.chance(500) {
            self.stats.abandoned += 1;
            self.over(p, w);
            self.tell(p, |m, now| m.handle_command(now, job, CommandId(u32::MAX), Command::Abandoned));
        }
    }
}
