//! The driver of a process, as a machine sees it: it passes outcomes in, polls outputs as far as calls are free, and
//! calls the machine at its timeouts, sometimes late.

use crate::process::Input;
use crate::trace::{MS, P, SEC, Us, WALL, token, tr};
use crate::world::{Ev, World};
use kafkaq_core::machine::{Answer, CommandId, FlowControl, Machine, Mono, Notice, Now, Ready};
use kafkaq_core::{Event, LostReason, Wall};

/// The maximum number of concurrent calls of each kind.
const SWAP_CALLS: usize = 2;
const GET_CALLS: usize = 1;
const APPEND_CALLS: usize = 4;
/// More inputs than this in a second of virtual time are a loop.
const INPUTS_A_SECOND: u32 = 6_000;

impl World {
    /// Returns the time by a process's clocks.
    pub(crate) fn clocks(&mut self, p: usize) -> Now {
        let process = &mut self.procs[p];
        if process.told > 0 {
            process.waited_at = self.now;
        }
        let wall = Wall((WALL + self.now / MS).saturating_add_signed(process.skew));
        process.max_wall = process.max_wall.max(wall);
        // Monotonic clocks of two processes have nothing in common.
        Now { mono: Mono((self.now + p as u64 * 777 * SEC) * 1000), wall }
    }

    fn from_mono(p: usize, mono: Mono) -> Us {
        mono.0.div_ceil(1000).saturating_sub(p as u64 * 777 * SEC)
    }

    pub(crate) fn tell(&mut self, p: usize, f: impl FnOnce(&mut Machine, Now)) {
        let now = self.clocks(p);
        if let Some(m) = &mut self.procs[p].machine {
            f(m, now);
        }
    }

    /// Sends an answer back to a process.
    pub(crate) fn answer(&mut self, p: usize, inc: u32, input: Input) {
        let late = match &input {
            Input::Swapped(a) => a.iter().any(|a| a.2.is_err()),
            Input::Appended(a) => a.iter().any(|a| a.1.is_err()),
            _ => false,
        };
        let delay = if late && !self.calm { self.rng.between(MS, 800 * MS) } else { self.latency() };
        self.after(delay, Ev::Input(p, inc, input));
    }

    pub(crate) fn latency(&mut self) -> Us {
        if self.trouble(self.plan.rates.slow_call) {
            self.rng.between(50 * MS, 2 * SEC)
        } else {
            self.rng.between(MS / 5, 3 * MS)
        }
    }

    fn count_input(&mut self, p: usize) {
        let (second, process) = (self.now / SEC, &mut self.procs[p]);
        if process.second != second {
            (process.second, process.inputs) = (second, 0);
        }
        process.inputs += 1;
        if process.inputs > INPUTS_A_SECOND {
            self.check.fail("I6", format!("p{p} handles more than {INPUTS_A_SECOND} inputs in a second"));
        }
    }

    pub(crate) fn input(&mut self, p: usize, input: Input) {
        self.count_input(p);
        let now = self.clocks(p);
        let process = &mut self.procs[p];
        let Some(m) = &mut process.machine else { return };
        match input {
            Input::Event(event) => {
                if matches!(event, Event::Revoking(_) | Event::Lost(_)) {
                    // Takes are given back, and first attempts are taken again.
                    process.firsts = 0;
                }
                m.handle_event(now, event);
            }
            Input::Swapped(answers) => {
                process.swap_calls -= 1;
                process.swapping.retain(|k| answers.iter().all(|(_, key, _)| key != k));
                answers.into_iter().for_each(|(op, _, a)| m.handle_swapped(now, op, a));
            }
            Input::Got(answers) => {
                process.get_calls -= 1;
                answers.into_iter().for_each(|(op, a)| m.handle_got(now, op, a));
            }
            Input::Appended(answers) => {
                process.append_calls -= 1;
                answers.into_iter().for_each(|(op, a)| m.handle_appended(now, op, a));
            }
            Input::Committed(answers) => {
                process.commit_calls -= 1;
                answers.into_iter().for_each(|(commit, a)| m.handle_committed(now, &commit, a));
            }
        }
        self.pump_soon(p);
    }

    pub(crate) fn pump_soon(&mut self, p: usize) {
        if self.rng.chance(850) {
            self.pump(p);
        } else {
            let (after, inc) = (self.rng.below(2 * MS), self.procs[p].inc);
            self.after(after, Ev::Pump(p, inc));
        }
    }

    pub(crate) fn timer(&mut self, p: usize, generation: u64) {
        if self.procs[p].timer_generation == generation {
            self.procs[p].timer = None;
            self.count_input(p);
            tr!(self, P(p), "timer");
            self.tell(p, |m, now| m.handle_timeout(now));
            self.pump(p);
        }
    }

    /// Executes the machine's outputs, as far as calls are free.
    pub(crate) fn pump(&mut self, p: usize) {
        for _ in 0..100 {
            self.pump_calls(p);
            if !self.pump_jobs(p) {
                self.set_timer(p);
                return self.drained(p);
            }
        }
        self.check.fail("I6", format!("p{p} never runs out of things to do at one moment"));
    }

    fn pump_calls(&mut self, p: usize) {
        let max = if self.rng.chance(300) { self.rng.between(1, 3) } else { 500 } as usize;
        let inc = self.procs[p].inc;
        while self.procs[p].swap_calls < SWAP_CALLS {
            let mut out = Vec::new();
            let Some(m) = &mut self.procs[p].machine else { return };
            m.poll_swaps(max, &mut out);
            if out.is_empty() {
                break;
            }
            for (_, swap) in &out {
                self.digest.swap(self.now, p, swap);
                self.check_polled_swap(p, swap);
                self.procs[p].swapping.push(swap.key.clone());
            }
            self.procs[p].swap_calls += 1;
            let after = self.latency();
            self.after(after, Ev::Swaps(p, inc, out));
        }
        while self.procs[p].get_calls < GET_CALLS {
            let mut out = Vec::new();
            let Some(m) = &mut self.procs[p].machine else { return };
            m.poll_gets(max, &mut out);
            if out.is_empty() {
                break;
            }
            out.iter().for_each(|(_, key)| self.digest.add(self.now, p, key));
            self.procs[p].get_calls += 1;
            let after = self.latency();
            self.after(after, Ev::Gets(p, inc, out));
        }
        while self.procs[p].append_calls < APPEND_CALLS {
            let mut out = Vec::new();
            let Some(m) = &mut self.procs[p].machine else { return };
            let Some(partition) = m.poll_appends(max, &mut out) else { break };
            let Some(part) = self.log.part(&partition) else {
                return self.check.fail("I1", format!("p{p} appends to {partition}, which does not exist"));
            };
            out.iter().for_each(|(_, record)| self.digest.append(self.now, p, part, record));
            self.procs[p].append_calls += 1;
            let after = self.latency();
            self.after(after, Ev::Appends(p, inc, part, out));
        }
        if self.procs[p].commit_calls == 0 {
            let mut out = Vec::new();
            let Some(m) = &mut self.procs[p].machine else { return };
            m.poll_commits(&mut out);
            if !out.is_empty() {
                out.iter().for_each(|c| self.digest.add(self.now, p, &(&c.assignment, c.offset)));
                self.procs[p].commit_calls += 1;
                let after = self.latency();
                self.after(after, Ev::Commits(p, inc, out));
            }
        }
        let mut out = Vec::new();
        let Some(m) = &mut self.procs[p].machine else { return };
        m.poll_releases(&mut out);
        let (mut flow, mut replaced) = (Vec::new(), Vec::new());
        m.poll_reassigns(&mut replaced);
        while let Some((assignment, control)) = m.poll_flow() {
            flow.push((assignment, control == FlowControl::Resume));
        }
        self.digest.add(self.now, p, &(&out, &flow, &replaced));
        out.iter().for_each(|a| self.release(p, a));
        flow.iter().for_each(|(a, resume)| self.flow(p, a, *resume));
        replaced.iter().for_each(|a| self.reassign(p, a));
    }

    /// Returns whether the machine was told anything.
    fn pump_jobs(&mut self, p: usize) -> bool {
        let mut told = false;
        let mut out = Vec::new();
        let Some(m) = &mut self.procs[p].machine else { return false };
        m.poll_ready(&mut out);
        let mut notices = Vec::new();
        while let Some(n) = m.poll_notice() {
            notices.push(n);
        }
        let recall = m.poll_recall();
        for ready in out {
            self.became_ready(p, ready);
        }
        for notice in notices {
            told = true;
            self.notice(p, notice);
        }
        if let Some(recall) = recall {
            self.digest.add(self.now, p, &recall);
            self.stats.recalls += 1;
            let now = self.clocks(p);
            for ready in recall.take_back(&mut self.procs[p].ready, now, |ready| ready) {
                told = true;
                self.untaken(p, &ready);
            }
        }
        self.offer(p) || told
    }

    fn became_ready(&mut self, p: usize, ready: Ready) {
        tr!(self, P(p), "ready {} a{} {}", ready.content.id, ready.attempt, token(&ready.token));
        self.digest.ready(self.now, p, &ready);
        self.check_ready(p, &ready);
        let now = self.now;
        self.procs[p].ready_at.entry(ready.job).or_insert(now);
        self.procs[p].ready.push_back(ready);
    }

    pub(crate) fn untaken(&mut self, p: usize, ready: &Ready) {
        self.stats.untaken += 1;
        tr!(self, P(p), "untaken {}", ready.content.id);
        let job = ready.job;
        if let Some((_, held)) = self.held(p, job) {
            held.returned = true;
        }
        self.tell(p, |m, now| m.handle_untaken(now, job));
    }

    fn set_timer(&mut self, p: usize) {
        let wake = self.procs[p].machine.as_ref().and_then(Machine::poll_timeout);
        let wake = wake.map(|t| Self::from_mono(p, t).max(self.now));
        self.digest.add(self.now, p, &wake);
        if self.procs[p].timer == wake {
            return;
        }
        self.procs[p].timer = wake;
        self.procs[p].timer_generation += 1;
        if let Some(at) = wake {
            let late = if self.trouble(self.plan.rates.late_timer) { self.rng.below(300 * MS) } else { 0 };
            let (generation, inc) = (self.procs[p].timer_generation, self.procs[p].inc);
            self.at(at + late, Ev::Timer(p, inc, generation));
        }
    }

    fn notice(&mut self, p: usize, notice: Notice) {
        match notice {
            Notice::Alarm(alarm) => {
                self.digest.add(self.now, p, &format!("{alarm:?}"));
                self.stats.alarms += 1;
                tr!(self, P(p), "alarm {alarm:?}");
            }
            // The checks see it in the log.
            Notice::DeadLettered(_) => {}
            Notice::LeaseLost(job, reason) => {
                tr!(self, P(p), "lease lost {job:?} {reason:?}");
                self.count_lost(reason);
                self.lease_lost(p, job);
            }
            Notice::Answered(job, CommandId(no), answer) => {
                self.digest.add(self.now, p, &(no, format!("{answer:?}")));
                tr!(self, P(p), "answer {job:?} no {no} {answer:?}");
                match &answer {
                    Answer::Lost(reason) => self.count_lost(*reason),
                    Answer::Failed(_) => self.stats.ask_failed += 1,
                    Answer::Ok | Answer::DeadLettered | Answer::Extended(_) => {}
                }
                self.answered(p, job, no, &answer);
            }
        }
    }

    fn count_lost(&mut self, reason: LostReason) {
        match reason {
            LostReason::TakenOver => self.stats.lost_taken_over += 1,
            LostReason::Over => self.stats.lost_over += 1,
            _ => self.stats.lost_cancelled += 1,
        }
    }
}
