//! What the holder of a job does with it.

use super::{
    Answer, Command, CommandId, DeadReason, Fault, JobKey, Machine, Notice, Now,
    item::{Holder, PendingCommand, StoreOp},
    slab::Ref,
};
use crate::{Effect, Error, ErrorKind, LostReason};

impl Machine {
    /// The holder of a job wants something.
    pub fn handle_command(&mut self, now: Now, job: JobKey, id: CommandId, command: Command) {
        self.observe_time(now);
        let r = Ref::from(job);
        let item = self.items.get_mut(r).filter(|i| i.holder == Holder::Driver && i.own.is_some());
        let Some(item) = item else {
            if !matches!(command, Command::Abandoned) {
                self.notices.push(Notice::Answered(job, id, Answer::Lost(LostReason::Over)));
            }
            return;
        };
        if matches!(command, Command::Abandoned) {
            item.holder = Holder::None;
            item.handed_out = true;
            return self.go_on(r);
        }
        // Only who has the job can command it.
        item.handed_out = true;
        // An earlier command that has not begun was dropped by its caller.
        item.next_command = Some(PendingCommand { id, command });
        item.commanded_at = now.mono;
        self.go_on(r);
    }

    /// A ready job that was not handed out: it is stale, or [`Machine::poll_recall`] asked for it. Depending on why,
    /// it is renewed and becomes ready again, or is given back.
    pub fn handle_untaken(&mut self, now: Now, job: JobKey) {
        self.observe_time(now);
        self.dispatch.came_back();
        self.come_back(Ref::from(job), false);
    }

    pub(super) fn begin_command(&mut self, r: Ref, pending: PendingCommand) {
        let Some(item) = self.items.get_mut(r) else { return };
        let appends = !matches!(pending.command, Command::Done | Command::Extend(_) | Command::Abandoned);
        if appends && item.append.is_some() {
            // One append at a time; its acknowledgement goes on with this, or the end of the lease ends it.
            item.next_command = Some(pending);
            return;
        }
        let command = pending.command.clone();
        item.command = Some(pending);
        match command {
            Command::Done => self.start(r, StoreOp::Done),
            Command::Retry(length, reason) => {
                let now = self.clock.wall();
                let Some(own) = &mut item.own else { return };
                own.failures = own.failures.saturating_add(1);
                item.history = item.history.with(now, own.attempt, &reason);
                if own.failures >= self.config.limits.max_failures {
                    let reason = format!("failed {} times, at last: {reason}", own.failures);
                    return self.bury(r, reason, DeadReason::Failures);
                }
                self.start(r, StoreOp::Idle { length, released: false });
            }
            Command::Snooze(length) => self.start(r, StoreOp::Idle { length, released: false }),
            Command::Release => {
                if self.config.has_fault(Fault::ReleaseCharged)
                    && let Some(item) = self.items.get_mut(r)
                    && let Some(own) = &mut item.own
                {
                    own.failures = own.failures.saturating_add(1);
                }
                self.start(r, StoreOp::Idle { length: std::time::Duration::ZERO, released: true });
            }
            Command::Reject(reason) => {
                if let Some(own) = &mut item.own {
                    own.failures = own.failures.saturating_add(1);
                    item.history = item.history.with(self.clock.wall(), own.attempt, &reason);
                }
                self.bury(r, reason, DeadReason::Rejected);
            }
            Command::Extend(length) => self.start(r, StoreOp::Keep { length, renewal: false }),
            Command::Abandoned => {}
        }
    }

    /// The task is in the dead letters: a retry that was its last failure is told so.
    pub(super) fn answer_dead(&mut self, r: Ref) {
        let command = self.items.get(r).and_then(|i| i.command.as_ref()).map(|c| &c.command);
        let retried = matches!(command, Some(Command::Retry(..)));
        self.answer(r, if retried { Answer::DeadLettered } else { Answer::Ok });
    }

    /// Answers the command that is under way or waits, if there is one.
    pub(super) fn answer(&mut self, r: Ref, answer: Answer) {
        let Some(item) = self.items.get_mut(r) else { return };
        let Some(asked) = item.command.take().or_else(|| item.next_command.take()) else { return };
        let job = JobKey::from(r);
        if !matches!(answer, Answer::Extended(_)) {
            item.holder = Holder::None;
            if let Some(next) = item.next_command.take() {
                let over = if matches!(answer, Answer::Ok | Answer::DeadLettered) {
                    Answer::Lost(LostReason::Over)
                } else {
                    answer.clone()
                };
                self.notices.push(Notice::Answered(job, next.id, over));
            }
        }
        self.notices.push(Notice::Answered(job, asked.id, answer));
    }

    /// Answers the command that is under way, and leaves the one behind it.
    pub(super) fn answer_alone(&mut self, r: Ref, answer: Answer) {
        if let Some(asked) = self.items.get_mut(r).and_then(|item| item.command.take()) {
            self.notices.push(Notice::Answered(JobKey::from(r), asked.id, answer));
        }
    }

    /// The lease has ended and the command is not confirmed: its caller learns now what is known of it.
    pub(super) fn expire_command(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        let begun = item.command.is_some();
        let error = unconfirmed(item.last_error.as_ref(), begun || item.in_doubt);
        self.answer(r, Answer::Failed(error));
        self.go_on(r);
    }
}

/// An error that says whether the whole of a command may have taken effect, not only its last try.
pub(super) fn unconfirmed(last: Option<&Error>, in_doubt: bool) -> Error {
    const OP: &str = "confirm a job";
    let kind = last.map_or(ErrorKind::Timeout, Error::kind);
    let doubtful = in_doubt || last.is_some_and(|e| e.effect() == Effect::Unknown);
    let error = if doubtful { Error::unknown(kind, OP) } else { Error::not_applied(kind, OP) };
    let error = match last {
        Some(last) => error.with_source(last.clone()),
        None => error,
    };
    error.with_advice("It was not confirmed before the lease ended, so the task may run again")
}
