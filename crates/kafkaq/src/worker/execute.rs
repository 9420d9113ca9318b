//! One execution: its handler runs on the handler threads, and then the outcome is reported to the queue.

use super::{
    Backoff,
    active::Active,
    failure::Outcome,
    handlers::{Ended, Executing},
    headers::{self, Expired},
    panics,
    report::Ending,
    run::Shared,
    stop::StopReason,
};
use crate::{Job, JobError, RetryOutcome, TaskId, clock::system_now};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// The reason of the dead letter.
const EXPIRED: &str = "expired before it was started";

/// A handler counts as long-running after this many leases.
const SLOW_LEASES: u32 = 10;

/// How an execution ended.
pub(super) enum Conclusion {
    /// Its handler ended; `None` if it was dropped.
    Handler(Option<Ended>),
    /// It has no handler, or the handler was not started.
    Verdict(Verdict),
}

/// What to do with the task.
pub(super) enum Verdict {
    Outcome(Outcome),
    Expired(Expired),
    /// It is given back.
    Release,
    /// It is snoozed by the worker itself, for as long as that takes: if `max_delay` cut it, waiting would use up the
    /// hand-outs.
    Snooze(Duration),
    /// Another worker has it.
    Lost,
}

impl Verdict {
    /// Why the execution failed.
    fn reason(&self) -> Option<String> {
        match self {
            Verdict::Outcome(Outcome::Retry { reason, .. } | Outcome::Reject(reason)) => Some(reason.clone()),
            Verdict::Expired(Expired::Dead) => Some(EXPIRED.to_owned()),
            _ => None,
        }
    }
}

/// An execution whose turn has come.
pub(super) struct Begun {
    shared: Arc<Shared>,
    active: Arc<Active>,
    has_ended: bool,
}

impl Begun {
    pub(super) fn new(shared: Arc<Shared>, active: Arc<Active>) -> Self {
        Begun { shared, active, has_ended: false }
    }

    /// Runs the handler, and has the outcome reported to the queue.
    pub(super) async fn run(self) {
        let execution = &self.active.execution;
        let version = match &self.active.version {
            Ok(version) => *version,
            Err(why) => {
                let reject = Verdict::Outcome(Outcome::Reject(why.clone()));
                return self.end(Conclusion::Verdict(reject));
            }
        };
        // If it was handed out before, it may have been started.
        if execution.job.attempt() == 1
            && let Some(expired) = headers::expired(execution.job.headers(), system_now())
        {
            self.active.observe().expired(expired);
            return self.end(Conclusion::Verdict(Verdict::Expired(expired)));
        }
        match (self.active.kind.execute)(execution.clone(), version) {
            Executing::Async(handler) => {
                if !self.starts(false) {
                    return self.end(Conclusion::Handler(None));
                }
                let told = async {
                    tokio::select! {
                        () = execution.dropped() => return,
                        _ = execution.stop_requested(StopReason::means_lost) => {}
                    }
                    // The handler's grace period starts now.
                    self.shared.keeper.look_at(Instant::now());
                    execution.dropped().await;
                };
                let ended = tokio::select! {
                    biased;
                    ended = handler => Some(ended),
                    () = told => None,
                };
                self.end(Conclusion::Handler(ended));
            }
            Executing::Blocking(handler) => {
                tokio::task::spawn_blocking(move || {
                    let ended = self.starts(true).then(handler);
                    self.end(Conclusion::Handler(ended));
                });
            }
        }
    }

    /// Snoozes the task, since its kind is paused.
    pub(super) fn put_off(self, delay: Duration) {
        self.end(Conclusion::Verdict(Verdict::Snooze(delay)));
    }

    /// Whether the handler may start.
    fn starts(&self, blocks: bool) -> bool {
        let warn_after = self.shared.settings.warn_after;
        let warn_after = warn_after.unwrap_or_else(|| SLOW_LEASES * self.shared.source(&self.active).lease);
        let (starts, look_at) = self.active.handler_starts(warn_after, blocks);
        if let Some(at) = look_at {
            self.shared.keeper.look_at(at);
        }
        starts
    }

    fn end(mut self, conclusion: Conclusion) {
        self.has_ended = true;
        self.active.handler_ended();
        self.shared.confirmer.push(self.active.clone(), conclusion);
    }
}

/// Its handler panicked when it was dropped.
impl Drop for Begun {
    fn drop(&mut self) {
        if !self.has_ended {
            let told = "the handler panicked when it was dropped".to_owned();
            Begun::new(self.shared.clone(), self.active.clone())
                .end(Conclusion::Handler(Some(Ended::Panicked(told))));
        }
    }
}

/// Reports the outcome to the queue.
pub(super) async fn confirm(shared: Arc<Shared>, active: Arc<Active>, conclusion: Conclusion) {
    // Otherwise the keeper has already given it up.
    if let Some(job) = active.take().await {
        let _close = Close(&shared, &active);
        let verdict = match conclusion {
            Conclusion::Handler(ended) => judge(&shared, &active, ended),
            Conclusion::Verdict(verdict) => verdict,
        };
        end(&shared, &active, job, verdict).await;
    }
}

/// Ends an execution whose handler doesn't end.
pub(super) async fn end_unfinished(shared: &Shared, active: &Active, job: Job) {
    let _close = Close(shared, active);
    match judge(shared, active, None) {
        // Another worker should not get it before its lease expires.
        Verdict::Lost => drop_lost(shared, active, job),
        verdict => end(shared, active, job, verdict).await,
    }
}

/// Gives back a task whose handler has not started.
pub(super) async fn release(shared: Arc<Shared>, active: Arc<Active>, job: Job) {
    let _close = Close(&shared, &active);
    end(&shared, &active, job, Verdict::Release).await;
}

/// Drops a job that was lost before its execution started.
pub(super) fn lose(shared: &Shared, active: &Active, job: Job) {
    let _close = Close(shared, active);
    drop_lost(shared, active, job);
}

fn drop_lost(shared: &Shared, active: &Active, job: Job) {
    tell(active, &Verdict::Lost);
    drop(job);
    shared.count(active, Ending::Lost, None);
}

/// Makes the keeper forget an execution when dropped, even after a panic. Whoever takes the job creates one.
struct Close<'a>(&'a Shared, &'a Active);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.keeper.close(self.1);
    }
}

/// Decides the outcome of a task from how its handler ended; `None` if it was dropped, or doesn't end.
fn judge(shared: &Shared, active: &Active, ended: Option<Ended>) -> Verdict {
    let told = active.execution.stop_reason();
    if told == Some(StopReason::TimedOut) {
        shared.counters.timed_out.fetch_add(1, Relaxed);
        active.observe().timed_out();
    }
    let failed = |reason| Verdict::Outcome(Outcome::Retry { delay: None, reason });
    match (ended, told) {
        (Some(Ended::Returned(Outcome::Done)), _) => Verdict::Outcome(Outcome::Done),
        (_, Some(StopReason::LeaseLost | StopReason::Cancelled)) => Verdict::Lost,
        // It was interrupted.
        (Some(Ended::Returned(Outcome::Retry { delay: None, .. })), Some(StopReason::ShuttingDown)) => {
            Verdict::Release
        }
        (Some(Ended::Returned(outcome)), _) => Verdict::Outcome(outcome),
        (Some(Ended::NotStarted(delay)), _) => delay.map_or(Verdict::Release, Verdict::Snooze),
        (Some(Ended::Panicked(told)), _) => {
            shared.counters.panicked.fetch_add(1, Relaxed);
            active.observe().panicked();
            failed(told)
        }
        (None, Some(StopReason::ShuttingDown)) => Verdict::Release,
        (None, Some(StopReason::TimedOut)) => {
            failed(format!("timed out after {:?}", active.kind.timeout.unwrap_or_default()))
        }
        // It was given up before it started.
        (None, None) => Verdict::Release,
    }
}

/// Logs failures for the operator.
fn tell(active: &Active, verdict: &Verdict) {
    let job = &active.execution.job;
    let (task, kind, attempt) = (job.id(), &*active.kind.name, job.attempt());
    match verdict {
        Verdict::Outcome(Outcome::Reject(reason)) => {
            tracing::warn!(target: "kafkaq", %task, kind, attempt, reason, "a task was rejected");
        }
        Verdict::Outcome(Outcome::Retry { reason, .. }) => {
            tracing::warn!(target: "kafkaq", %task, kind, attempt, reason, "an execution has failed");
        }
        Verdict::Expired(_) => tracing::info!(target: "kafkaq", %task, kind, "a task has expired"),
        Verdict::Lost => {
            tracing::info!(target: "kafkaq", %task, kind, attempt, "an execution lost its lease or its key");
        }
        Verdict::Outcome(_) | Verdict::Release | Verdict::Snooze(_) => {}
    }
}

/// Ends the job with this verdict. The caller makes the keeper forget the execution.
async fn end(shared: &Shared, active: &Active, job: Job, verdict: Verdict) {
    tell(active, &verdict);
    let max_delay = shared.source(active).max_delay;
    let reason = shared.settings.observer.as_ref().and_then(|_| verdict.reason());
    let (asked, ending) = match verdict {
        Verdict::Lost if job.is_lost() => {
            drop(job);
            (Ok(()), Ending::Lost)
        }
        // Perhaps the lock of its key was lost, and the job is still held.
        Verdict::Lost => match job.release().await {
            Err(JobError::LeaseLost(_)) => (Ok(()), Ending::Lost),
            released => (released, Ending::Released),
        },
        Verdict::Release => (job.release().await, Ending::Released),
        Verdict::Snooze(delay) => (job.put_off(delay).await, Ending::Snoozed),
        Verdict::Expired(Expired::Dropped) => (job.done().await, Ending::Expired),
        Verdict::Expired(Expired::Dead) => (job.reject(EXPIRED).await, Ending::DeadLettered),
        Verdict::Outcome(Outcome::Done) => (job.done().await, Ending::Done),
        Verdict::Outcome(Outcome::Snooze(delay)) => (job.snooze(delay.min(max_delay)).await, Ending::Snoozed),
        Verdict::Outcome(Outcome::Reject(reason)) => (job.reject(reason).await, Ending::DeadLettered),
        Verdict::Outcome(Outcome::Retry { delay, reason }) => {
            let after = backoff(active, job.failures() + 1, &reason);
            match (after, delay) {
                (None, _) => (job.reject(reason).await, Ending::DeadLettered),
                (Some(after), delay) => {
                    match job.retry(delay.unwrap_or(after).min(max_delay), reason).await {
                        Ok(RetryOutcome::DeadLettered) => (Ok(()), Ending::DeadLettered),
                        outcome => (outcome.map(drop), Ending::Retried),
                    }
                }
            }
        }
    };
    shared.count(active, confirmed(active.execution.job.id(), asked, ending), reason);
}

/// Calls the backoff function, which is the user's and may panic.
fn backoff(active: &Active, failure: u32, reason: &str) -> Option<Duration> {
    let kind = &active.kind;
    panics::caught_blocking(|| kind.backoff.after(failure, reason)).unwrap_or_else(|told| {
        tracing::error!(target: "kafkaq", kind = kind.name, told, "a backoff function panicked; the default is used");
        Backoff::default().after(failure, reason)
    })
}

fn confirmed(id: &TaskId, asked: Result<(), JobError>, ending: Ending) -> Ending {
    let Err(error) = asked else { return ending };
    tracing::warn!(target: "kafkaq", task = %id, %error, "the outcome of an execution was not confirmed");
    if matches!(error, JobError::LeaseLost(_)) { Ending::Lost } else { Ending::Unconfirmed }
}
