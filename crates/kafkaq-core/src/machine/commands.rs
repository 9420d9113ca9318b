//! The commands of job holders.

use super::{
    Answer, Command, CommandId, DeadReason, Fault, JobKey, Machine, Notice,
    item::{PendingCommand, SwapOp},
    slab::Ref,
};
use crate::{Effect, Error, ErrorKind, LostReason};
use std::time::Duration;

impl Machine {
    pub(super) fn command(&mut self, job: JobKey, id: CommandId, command: Command) {
        let now = self.clock.mono();
        let is_abandoned = matches!(command, Command::Abandoned);
        let r = Ref::from(job);
        // Only the holder of a job can send commands.
        let Some(item) = self.items.get_mut(r).filter(|item| item.is_with_driver()) else {
            if !is_abandoned {
                self.notices.push(Notice::Answered(job, id, Answer::Lost(LostReason::Over)));
            }
            return;
        };
        item.handed_out = true;
        if !is_abandoned {
            item.commands.push(PendingCommand { id, command }, now);
        } else if let Some(held) = item.held_mut() {
            held.with_driver = false;
        }
        self.advance(r);
    }

    pub(super) fn begin_command(&mut self, r: Ref, pending: PendingCommand) {
        let Some(item) = self.items.get_mut(r) else { return };
        let appends = !matches!(pending.command, Command::Done | Command::Extend(_) | Command::Abandoned);
        if appends && item.append.is_some() {
            // One append at a time: its acknowledgement resumes this command, or the end of the lease ends it.
            return item.commands.put_back(pending);
        }
        let command = pending.command.clone();
        item.commands.begin(pending);
        match command {
            // I1: executed to the end here, and its record is still assigned to this process.
            Command::Done if item.is_unleased() && item.place().is_some() => {
                self.finish_record(r);
                self.answer(r, Answer::Ok);
                self.close(r);
            }
            Command::Done => self.start_swap(r, SwapOp::Done),
            Command::Retry(length, reason) => {
                let Some(failures) = self.count_failure(r, Some(&reason)) else { return };
                if failures >= self.config.limits.max_failures {
                    let reason = format!("failed {failures} times, most recently: {reason}");
                    return self.dead_letter(r, reason, DeadReason::Failures);
                }
                self.start_swap(r, SwapOp::Idle { length, released: false });
            }
            Command::Snooze(length) => self.start_swap(r, SwapOp::Idle { length, released: false }),
            Command::Release => {
                if self.config.has_fault(Fault::ReleaseCharged) {
                    self.count_failure(r, None);
                }
                self.start_swap(r, SwapOp::Idle { length: Duration::ZERO, released: true });
            }
            Command::Reject(reason) => {
                self.count_failure(r, Some(&reason));
                self.dead_letter(r, reason, DeadReason::Rejected);
            }
            Command::Extend(length) => self.start_swap(r, SwapOp::Extend { length }),
            Command::Abandoned => {}
        }
    }

    /// Counts the attempt as failed. Returns the number of failures.
    fn count_failure(&mut self, r: Ref, reason: Option<&str>) -> Option<u32> {
        let item = self.items.get_mut(r)?;
        let own = &mut item.held_mut()?.lease;
        own.failures = own.failures.saturating_add(1);
        let (attempt, failures) = (own.attempt, own.failures);
        if let Some(reason) = reason {
            item.history = item.history.with(self.clock.wall(), attempt, reason);
        }
        Some(failures)
    }

    /// Answers the command of a task that was dead-lettered. A retry that was its last failure learns of that.
    pub(super) fn answer_dead_lettered(&mut self, r: Ref) {
        let command = self.items.get(r).and_then(|item| item.commands.current());
        let is_retry = matches!(command, Some(Command::Retry(..)));
        self.answer(r, if is_retry { Answer::DeadLettered } else { Answer::Ok });
    }

    /// Answers the command that is in progress or waits, if there is one. Unless the job continues, this ends it.
    pub(super) fn answer(&mut self, r: Ref, answer: Answer) {
        let Some(item) = self.items.get_mut(r) else { return };
        let Some(answered) = item.commands.end_first() else { return };
        let job = JobKey::from(r);
        if !matches!(answer, Answer::Extended(_)) {
            if let Some(held) = item.held_mut() {
                held.with_driver = false;
            }
            if let Some(next) = item.commands.end_next() {
                let over = if matches!(answer, Answer::Ok | Answer::DeadLettered) {
                    Answer::Lost(LostReason::Over)
                } else {
                    answer.clone()
                };
                self.notices.push(Notice::Answered(job, next.id, over));
            }
        }
        self.notices.push(Notice::Answered(job, answered.id, answer));
    }

    /// Notes that an operation for the current command may have taken effect.
    pub(super) fn doubt(&mut self, r: Ref) {
        if !self.config.has_fault(Fault::DoubtForgotten)
            && let Some(item) = self.items.get_mut(r)
        {
            item.commands.doubt();
        }
    }

    /// Answers the current command, and leaves the one behind it.
    pub(super) fn answer_current(&mut self, r: Ref, answer: Answer) {
        if let Some(answered) = self.items.get_mut(r).and_then(|item| item.commands.end_current()) {
            self.notices.push(Notice::Answered(r.into(), answered.id, answer));
        }
    }

    /// Answers a command that is not confirmed although the lease has ended, with what is known of it.
    pub(super) fn expire_command(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        let has_begun = item.commands.current().is_some();
        let error = unconfirmed(item.last_error.as_ref(), has_begun || item.store.in_doubt);
        self.answer(r, Answer::Failed(error));
        self.advance(r);
    }
}

/// Returns an error that says whether any attempt at the command may have taken effect, not only the last one.
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
