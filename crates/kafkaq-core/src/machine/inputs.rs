//! All inputs. Each observes the time, records what happened, and leaves the consequences to the next poll.

use super::{Command, CommandId, JobKey, Machine, News, Now, OpId};
use crate::{Commit, Event, Result, Swapped};
use bytes::Bytes;

impl Machine {
    /// An event of the consumer: assignments come and go, records arrive.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        self.observe_time(now);
        match event {
            Event::Assigned(assignments) => assignments.into_iter().for_each(|a| self.assigned(a)),
            Event::Records(assignment, batch) => self.records(&assignment, batch),
            Event::Revoking(assignments) => assignments.iter().for_each(|a| self.revoking(a)),
            Event::Lost(assignments) => {
                for assignment in &assignments {
                    if let Some(w) = self.windows.find(assignment) {
                        self.drop_window(w);
                    }
                }
                self.recall_ready();
            }
        }
    }

    /// The outcome of a get.
    pub fn handle_got(&mut self, now: Now, op: OpId, outcome: Result<Option<Bytes>>) {
        self.observe_time(now);
        self.read_ended(op.into(), outcome);
    }

    /// The outcome of a swap.
    pub fn handle_swapped(&mut self, now: Now, op: OpId, outcome: Result<Swapped>) {
        self.observe_time(now);
        self.swap_ended(op.into(), outcome);
    }

    /// The outcome of an append.
    pub fn handle_appended(&mut self, now: Now, op: OpId, outcome: Result<i64>) {
        self.observe_time(now);
        self.append_ended(op.into(), outcome);
    }

    /// The outcome of a commit.
    pub fn handle_committed(&mut self, now: Now, commit: &Commit, outcome: Result<()>) {
        self.observe_time(now);
        let not_before = now.mono.plus(self.config.settings.commit_interval);
        if let Some(window) = self.windows.find(&commit.assignment).and_then(|w| self.windows.get_mut(w)) {
            window.commit_ended(commit.offset, outcome, not_before);
        }
    }

    /// How many callers wait for a job, and how many ready jobs wait for a caller. To be called whenever a caller
    /// starts to wait or fewer jobs than half of the prefetch are ready.
    pub fn handle_demand(&mut self, now: Now, waiting: usize, ready: usize) {
        self.observe_time(now);
        self.dispatch.set_demand(now.mono, waiting, ready);
    }

    /// A command of a job's holder.
    pub fn handle_command(&mut self, now: Now, job: JobKey, id: CommandId, command: Command) {
        self.observe_time(now);
        self.command(job, id, command);
    }

    /// A ready job that was not handed out: it is stale, or [`Machine::poll_recall`] asked for it. Depending on why,
    /// it is renewed and becomes ready again, or is given back.
    pub fn handle_untaken(&mut self, now: Now, job: JobKey) {
        self.observe_time(now);
        self.dispatch.came_back();
        self.renew_or_offer(job.into(), false);
    }

    /// The time of [`Machine::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.observe_time(now);
    }

    /// Stops intake and gives back jobs that were not handed out. Running jobs may finish.
    pub fn handle_shutdown(&mut self, now: Now) {
        self.observe_time(now);
        if !self.shutting_down {
            self.shutting_down = true;
            self.lanes.clear();
            self.drop_unstarted(None);
            self.recall_ready();
        }
    }

    /// The process has left its group or is about to: the records it has read now belong to other members. Running jobs
    /// may finish.
    pub fn handle_left(&mut self, now: Now) {
        self.observe_time(now);
        for w in self.windows.refs() {
            self.drop_window(w);
        }
    }

    fn observe_time(&mut self, now: Now) {
        self.news = News::Input;
        if self.clock.observe(now, self.config.settings.clock_skew) {
            self.clock_was_set_back();
        }
    }
}
