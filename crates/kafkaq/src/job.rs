//! A task that was handed out, and what its holder can do with it.

use crate::driver::{Shared, Slot, system_time};
use bytes::Bytes;
use kafkaq_core::{
    Error, ErrorKind, FailureRecord, Headers, LeaseToken, LostReason, Task, TaskId, Wall,
    machine::{Answer, Command, Content},
};
use std::{
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A task under a lease: this process has it alone until [`deadline`](Job::deadline). What it is says [`JobView`].
///
/// [`done`](Job::done), [`retry`](Job::retry), [`snooze`](Job::snooze), [`release`](Job::release) and
/// [`reject`](Job::reject) end it. A job that is dropped instead keeps its lease until the deadline; then its attempt
/// has failed and its task is handed out again.
///
/// *Cancel-safety:* once the future of one of these has been polled it takes effect, even if it is dropped then.
#[must_use = "a job that is dropped is handed out again when its lease ends"]
pub struct Job {
    view: JobView,
    shared: Arc<Shared>,
    deadline: Wall,
    /// It was ended, so that dropping it means nothing.
    ended: bool,
}

/// What is known of a job, also for whoever does not hold it. Cheap to clone.
#[derive(Clone)]
pub struct JobView(Arc<Slot>);

impl JobView {
    fn content(&self) -> &Content {
        &self.0.ready.content
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.content().id
    }

    /// The payload. Empty for a foreign record that has none.
    ///
    /// It may be a slice of the batch that it was read with, and keeps that in memory while it lives.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        static NOTHING: Bytes = Bytes::new();
        self.content().payload.as_ref().unwrap_or(&NOTHING)
    }

    /// The task's key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.content().key.as_ref()
    }

    /// The task's headers, without kafkaq's own.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.content().headers
    }

    /// The task as it was published, without its delay. One of a window has the window's id, which is over.
    #[must_use]
    pub fn task(&self) -> Task {
        let task =
            Task::new(self.payload().clone()).with_id(self.id().clone()).with_headers(self.headers().clone());
        match self.key() {
            Some(key) => task.with_key(key.clone()),
            None => task,
        }
    }

    /// When the task was published first.
    #[must_use]
    pub fn published(&self) -> SystemTime {
        system_time(self.content().published)
    }

    /// Which hand-out of the task this is, from 1. It names this execution: two of a task never share one, unless the
    /// store lost its data.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.ready.attempt
    }

    /// How many earlier attempts count against the queue's `max_failures`: those that were retried, and those whose
    /// lease ran out.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.0.ready.failures
    }

    /// The last of these failures, oldest first: five at the most.
    #[must_use]
    pub fn history(&self) -> Vec<FailureRecord> {
        self.0.ready.history.entries()
    }

    /// The lease's token: never used twice, so a system that the handler writes to can tell holders apart. It has no
    /// order; see [`LeaseToken`] for what to store with it.
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.0.ready.token
    }

    /// Whether the lease is known to be lost. `false` is no promise: the store may know more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.loss().is_some()
    }

    /// Waits until the lease is known to be lost, for ever if it never is. Cancel-safe; made for a `select!` beside
    /// the work.
    pub async fn lost(&self) -> LostReason {
        self.0.dialogue.until_lost().await
    }

    /// Why the lease is lost; `None` while nothing is known of that, also after the job has ended.
    #[must_use]
    pub fn loss(&self) -> Option<LostReason> {
        self.0.dialogue.lost()
    }

    /// The first execution of a task that no queue has handed out.
    #[cfg(feature = "testing")]
    pub(crate) fn made_up(ready: kafkaq_core::machine::Ready) -> Self {
        JobView(Arc::new(Slot::new(ready)))
    }
}

impl fmt::Debug for JobView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobView")
            .field("id", self.id())
            .field("attempt", &self.attempt())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

impl Deref for Job {
    type Target = JobView;

    fn deref(&self) -> &JobView {
        &self.view
    }
}

impl Job {
    pub(crate) fn new(slot: Arc<Slot>, shared: Arc<Shared>) -> Self {
        let deadline = slot.ready.deadline;
        Job { view: JobView(slot), shared, deadline, ended: false }
    }

    /// Returns what is known of it, for whoever does not hold it.
    #[must_use]
    pub fn view(&self) -> JobView {
        self.view.clone()
    }

    /// Until when the lease holds, as far as this handle knows.
    #[must_use]
    pub fn deadline(&self) -> SystemTime {
        system_time(self.deadline)
    }

    /// The task ran to its end and is never handed out again. Returns when the store has confirmed it; the driver
    /// tries again until the lease ends.
    ///
    /// # Errors
    /// [`JobError::LeaseLost`] if somebody else has the task by now, [`JobError::Unconfirmed`] if the store did not
    /// answer: the task may be executed once more.
    pub async fn done(self) -> Result<(), JobError> {
        self.end(Command::Done).await.map(drop)
    }

    /// The attempt has failed: hands the task out again, not before `delay` has passed. The reason is kept with the
    /// task, cut to 512 bytes. After the queue's `max_failures` the task goes to the dead letters instead, and the
    /// outcome says so. Returns when it is durable.
    ///
    /// # Errors
    /// As [`done`](Job::done); [`JobError::Refused`] for a delay beyond the queue's `max_delay`: the task is then
    /// handed out again when its lease ends.
    pub async fn retry(self, delay: Duration, reason: impl Into<String>) -> Result<RetryOutcome, JobError> {
        refuse_beyond(self.shared.limits.delay, delay, "retry")?;
        match self.end(Command::Retry(delay, reason.into())).await? {
            Ended::DeadLettered => Ok(RetryOutcome::DeadLettered),
            Ended::Done => Ok(RetryOutcome::Scheduled),
        }
    }

    /// The task's time has not come: hands it out again, not before `delay` has passed. That is no failure. Returns
    /// when it is durable.
    ///
    /// # Errors
    /// As [`retry`](Job::retry).
    pub async fn snooze(self, delay: Duration) -> Result<(), JobError> {
        refuse_beyond(self.shared.limits.delay, delay, "snooze")?;
        self.end(Command::Snooze(delay)).await.map(drop)
    }

    /// Gives the task back at once: whoever asks next may have it. That is no failure.
    ///
    /// # Errors
    /// As [`done`](Job::done).
    pub async fn release(self) -> Result<(), JobError> {
        self.end(Command::Release).await.map(drop)
    }

    /// Never hands the task out again: it goes to the dead-letter topic, with its payload, key, headers and
    /// `reason`, cut to 512 bytes. Returns when that is durable.
    ///
    /// # Errors
    /// As [`done`](Job::done).
    pub async fn reject(self, reason: impl Into<String>) -> Result<(), JobError> {
        self.end(Command::Reject(reason.into())).await.map(drop)
    }

    async fn end(mut self, ask: Command) -> Result<Ended, JobError> {
        self.ended = true;
        let asked = self.shared.meter.asked(&ask);
        self.shared.ask(&self.view.0, ask);
        let answer = self.view.0.dialogue.answered().await;
        self.shared.meter.answered(asked, &answer);
        match answer {
            Answer::Ok | Answer::Extended(_) => Ok(Ended::Done),
            Answer::DeadLettered => Ok(Ended::DeadLettered),
            Answer::Lost(why) => Err(JobError::LeaseLost(why)),
            Answer::Failed(e) => Err(JobError::Unconfirmed(e)),
        }
    }

    /// Holds the task for `duration` from now, instead of until the present deadline.
    ///
    /// # Errors
    /// After [`JobError::LeaseLost`] and [`JobError::Unconfirmed`] stop working on it: the job is over.
    /// [`JobError::Refused`] for longer than `max_delay` and `lease_duration`: the lease is as it was.
    pub async fn extend(&mut self, duration: Duration) -> Result<(), JobError> {
        refuse_beyond(self.shared.limits.extension, duration, "extend")?;
        self.shared.ask(&self.view.0, Command::Extend(duration));
        match self.view.0.dialogue.answered().await {
            Answer::Extended(until) => {
                self.deadline = until;
                Ok(())
            }
            Answer::Ok | Answer::DeadLettered => Ok(()),
            Answer::Lost(why) => Err(JobError::LeaseLost(why)),
            Answer::Failed(e) => Err(JobError::Unconfirmed(e)),
        }
    }
}

/// How a job came to its end.
enum Ended {
    Done,
    DeadLettered,
}

/// What became of a task whose attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It is handed out again after the delay.
    Scheduled,
    /// That was its last failure: it is in the dead-letter topic.
    DeadLettered,
}

fn refuse_beyond(limit: Duration, asked: Duration, op: &'static str) -> Result<(), JobError> {
    if asked <= limit {
        return Ok(());
    }
    let e = Error::not_applied(ErrorKind::Invalid, op).on(format!("a time of {asked:?}"));
    Err(JobError::Refused(e.with_advice(format!("The queue's settings allow {limit:?} at most"))))
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.meter.dropped(|| self.is_lost());
            self.shared.ask(&self.view.0, Command::Abandoned);
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", self.id())
            .field("attempt", &self.attempt())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

/// Why a job could not be ended or extended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobError {
    /// The job is somebody else's, or over. What this holder did may be done again, or was done by another.
    LeaseLost(LostReason),
    /// It was not confirmed, and the error says why: the store or the log didn't answer before the lease ended, or
    /// refused it. Its effect says whether it may have happened; if it has not, the task is handed out again.
    Unconfirmed(Error),
    /// The input makes no sense. Nothing was changed.
    Refused(Error),
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::LeaseLost(why) => write!(
                f,
                "the lease is lost: {}",
                match why {
                    LostReason::TakenOver => "it ran out, and the task was handed out again",
                    LostReason::Cancelled => "the task was cancelled",
                    LostReason::Dead => "the task went to the dead letters",
                    LostReason::Over => "the job has ended before",
                    _ => "the job is over",
                }
            ),
            JobError::Unconfirmed(e) => write!(f, "not confirmed: {e}"),
            JobError::Refused(e) => write!(f, "refused: {e}"),
        }
    }
}

impl std::error::Error for JobError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            JobError::LeaseLost(_) => None,
            // Printed with this error, so a chain begins below it.
            JobError::Unconfirmed(e) | JobError::Refused(e) => e.source(),
        }
    }
}
