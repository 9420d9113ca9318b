//! A task that was handed out, and what its holder can do with it.

use crate::clock::system_time;
use crate::driver::{JobSlot, Shared};
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

/// A task under a lease: this process holds it exclusively until its [`deadline`](Job::deadline). See [`JobView`] for
/// its content.
///
/// [`done`](Job::done), [`retry`](Job::retry), [`snooze`](Job::snooze), [`release`](Job::release) and
/// [`reject`](Job::reject) end it. If a job is dropped instead, its lease stays until the deadline; then the attempt
/// counts as failed, and the task is handed out again. *Cancel-safety:* once the future of one of these has been
/// polled, it takes effect even if it is dropped.
#[must_use = "a dropped job is handed out again when its lease expires"]
pub struct Job {
    view: JobView,
    shared: Arc<Shared>,
    deadline: Wall,
    /// It was ended, so dropping it has no effect.
    ended: bool,
}

/// A read-only view of a job, which doesn't hold it. Cheap to clone.
#[derive(Clone)]
pub struct JobView(Arc<JobSlot>);

impl JobView {
    fn content(&self) -> &Content {
        &self.0.ready.content
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.content().id
    }

    /// The payload. Empty for a foreign record without one. It may be a slice of the batch that it was read with, and
    /// then keeps the whole batch in memory.
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

    /// The task as it was published, without its delay. A task of a window has the id of that window, which has ended.
    #[must_use]
    pub fn task(&self) -> Task {
        let task =
            Task::new(self.payload().clone()).with_id(self.id().clone()).with_headers(self.headers().clone());
        match self.key() {
            Some(key) => task.with_key(key.clone()),
            None => task,
        }
    }

    /// When the task was first published.
    #[must_use]
    pub fn published(&self) -> SystemTime {
        system_time(self.content().published)
    }

    /// The number of this hand-out of the task, from 1. It identifies the execution: no two executions of a task share
    /// it, unless the store lost its data, or a process crashed with [`Tracking::Slow`](crate::Tracking::Slow). The
    /// [`token`](JobView::token) tells these apart.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.ready.attempt
    }

    /// How many earlier attempts count against the queue's `max_failures`: those that were retried, and those whose
    /// lease expired.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.0.ready.failures
    }

    /// The last of these failures, oldest first: at most five.
    #[must_use]
    pub fn history(&self) -> Vec<FailureRecord> {
        self.0.ready.history.entries()
    }

    /// The lease's token. It is never reused, so a system that the handler writes to can tell holders apart. Tokens
    /// have no order; see [`LeaseToken`] for what to store.
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.0.ready.token
    }

    /// Whether the lease is known to be lost. `false` is no guarantee: this process may not have noticed yet.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.loss().is_some()
    }

    /// Waits until the lease is known to be lost, forever if it never is. Cancel-safe; meant for a `select!` next to
    /// the work.
    pub async fn lost(&self) -> LostReason {
        self.0.commands.until_lost().await
    }

    /// Why the lease is lost; `None` as long as it isn't known to be, also after the job has ended.
    #[must_use]
    pub fn loss(&self) -> Option<LostReason> {
        self.0.commands.lost()
    }

    /// A view for the first execution of a task that no queue has handed out.
    #[cfg(feature = "testing")]
    pub(crate) fn fake(ready: kafkaq_core::machine::Ready) -> Self {
        JobView(Arc::new(JobSlot::new(ready)))
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
    pub(crate) fn new(slot: Arc<JobSlot>, shared: Arc<Shared>) -> Self {
        let deadline = slot.ready.deadline;
        Job { view: JobView(slot), shared, deadline, ended: false }
    }

    /// Returns a view that doesn't hold the job.
    #[must_use]
    pub fn view(&self) -> JobView {
        self.view.clone()
    }

    /// When the lease expires, as far as this handle knows.
    #[must_use]
    pub fn deadline(&self) -> SystemTime {
        system_time(self.deadline)
    }

    /// Marks the task as done: it is never handed out again. Returns when the store has confirmed it; failed calls are
    /// retried until the lease expires.
    ///
    /// # Errors
    /// [`JobError::LeaseLost`] if somebody else has the task by now, [`JobError::Unconfirmed`] if the store did not
    /// respond: the task may be executed again.
    pub async fn done(self) -> Result<(), JobError> {
        self.end(Command::Done).await.map(drop)
    }

    /// Reports a failed attempt: the task is handed out again after `delay`, at the earliest. The reason is kept with
    /// the task, truncated to 512 bytes. After the queue's `max_failures` the task is dead-lettered instead, and the
    /// outcome says so. Returns when it is durable.
    ///
    /// # Errors
    /// The same as for [`done`](Job::done); [`JobError::Refused`] for a delay beyond the queue's `max_delay`: the task
    /// is then handed out again when its lease expires.
    pub async fn retry(self, delay: Duration, reason: impl Into<String>) -> Result<RetryOutcome, JobError> {
        refuse_beyond(self.shared.limits.delay, delay, "retry")?;
        match self.end(Command::Retry(delay, reason.into())).await? {
            Ended::DeadLettered => Ok(RetryOutcome::DeadLettered),
            Ended::Done => Ok(RetryOutcome::Scheduled),
        }
    }

    /// Postpones the task: it is handed out again after `delay`, at the earliest. This doesn't count as a failure.
    /// Returns when it is durable.
    ///
    /// # Errors
    /// The same as for [`retry`](Job::retry).
    pub async fn snooze(self, delay: Duration) -> Result<(), JobError> {
        refuse_beyond(self.shared.limits.delay, delay, "snooze")?;
        self.end(Command::Snooze(delay)).await.map(drop)
    }

    /// Like [`snooze`](Job::snooze), but not limited by the queue's `max_delay`: that determines the number of lanes,
    /// and a longer delay merely passes through the longest lane several times.
    #[cfg(feature = "worker")]
    pub(crate) async fn put_off(self, delay: Duration) -> Result<(), JobError> {
        self.end(Command::Snooze(delay)).await.map(drop)
    }

    /// Gives the task back: it is handed out again at once. This doesn't count as a failure.
    ///
    /// # Errors
    /// The same as for [`done`](Job::done).
    pub async fn release(self) -> Result<(), JobError> {
        self.end(Command::Release).await.map(drop)
    }

    /// Dead-letters the task: it is never handed out again. The dead letter has its payload, key, headers and the
    /// `reason`, truncated to 512 bytes. Returns when that is durable.
    ///
    /// # Errors
    /// The same as for [`done`](Job::done).
    pub async fn reject(self, reason: impl Into<String>) -> Result<(), JobError> {
        self.end(Command::Reject(reason.into())).await.map(drop)
    }

    async fn end(mut self, ask: Command) -> Result<Ended, JobError> {
        self.ended = true;
        let asked = self.shared.meter.asked(&ask);
        self.shared.ask(&self.view.0, ask);
        let answer = self.view.0.commands.answered().await;
        self.shared.meter.answered(asked, &answer);
        match answer {
            Answer::Ok | Answer::Extended(_) => Ok(Ended::Done),
            Answer::DeadLettered => Ok(Ended::DeadLettered),
            Answer::Lost(why) => Err(JobError::LeaseLost(why)),
            Answer::Failed(e) => Err(JobError::Unconfirmed(e)),
        }
    }

    /// Extends the lease to `duration` from now, replacing the current deadline.
    ///
    /// # Errors
    /// After [`JobError::LeaseLost`] and [`JobError::Unconfirmed`], stop working on the task: the job is over.
    /// [`JobError::Refused`] for a duration longer than both `max_delay` and `lease_duration`: the lease is unchanged.
    pub async fn extend(&mut self, duration: Duration) -> Result<(), JobError> {
        refuse_beyond(self.shared.limits.extension, duration, "extend")?;
        self.shared.ask(&self.view.0, Command::Extend(duration));
        match self.view.0.commands.answered().await {
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

/// How a job ended.
enum Ended {
    Done,
    DeadLettered,
}

/// The outcome of [`Job::retry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    /// The task is handed out again after the delay.
    Scheduled,
    /// That was its last failure: the task is in the dead-letter topic.
    DeadLettered,
}

fn refuse_beyond(limit: Duration, asked: Duration, op: &'static str) -> Result<(), JobError> {
    if asked <= limit {
        return Ok(());
    }
    let e = Error::not_applied(ErrorKind::Invalid, op).on(format!("a time of {asked:?}"));
    Err(JobError::Refused(e.with_advice(format!("The queue's settings allow at most {limit:?}"))))
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
    /// Somebody else holds the job, or it is over. This holder's work may be repeated, or was already done by another
    /// holder.
    LeaseLost(LostReason),
    /// It was not confirmed, and the error says why: the store or the log didn't respond before the lease expired, or
    /// refused it. The error's effect says whether it may have happened; if it has not, the task is handed out again.
    Unconfirmed(Error),
    /// The argument is invalid. Nothing was changed.
    Refused(Error),
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::LeaseLost(why) => write!(
                f,
                "the lease is lost: {}",
                match why {
                    LostReason::TakenOver => "it expired, and the task was handed out again",
                    LostReason::Cancelled => "the task was cancelled",
                    LostReason::Dead => "the task was dead-lettered",
                    LostReason::Over => "the job had already ended",
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
