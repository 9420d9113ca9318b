//! One execution: the handler runs on the worker's threads, and everything about it is decided here, beside it.

use super::{
    Backoff,
    context::Execution,
    enqueue::Target,
    failure::Outcome,
    handlers::Ended,
    headers::{self, Expired},
    kinds::Kind,
    panics,
    report::Ending,
    run::Shared,
    stop::{Stop, StopReason},
};
use crate::{
    Job, JobError, RetryOutcome, TaskId,
    driver::{FAR, system_now},
};
use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    task::{JoinError, JoinHandle},
    time::{Instant, sleep, sleep_until, timeout},
};

/// How long an async handler that is dropped may take to reach its next await before it counts as stuck.
const DROPPED: Duration = Duration::from_secs(1);

/// The reason of the dead letter.
const EXPIRED: &str = "expired before it was started";

/// Whether an execution may begin.
pub(super) enum Turn {
    Begun,
    Waits(oneshot::Receiver<()>),
}

/// What is to become of the task.
enum Verdict {
    Outcome(Outcome),
    Expired(Expired),
    /// It is given back.
    Release,
    /// It is somebody else's.
    Lost,
}

impl Verdict {
    /// Why the execution has failed.
    fn reason(&self) -> Option<String> {
        match self {
            Verdict::Outcome(Outcome::Retry { reason, .. } | Outcome::Reject(reason)) => Some(reason.clone()),
            Verdict::Expired(Expired::Dead) => Some(EXPIRED.to_owned()),
            _ => None,
        }
    }
}

/// Lets a task be executed, and tells the queue what became of it. `free` is called when its place is free again, if it
/// had one.
pub(super) async fn supervise(
    shared: &Shared,
    mut job: Job,
    kind: &Kind,
    version: Result<u16, String>,
    mut turn: Turn,
    free: impl FnOnce(),
) {
    let execution = Arc::new(Execution::new(&job, Target::Publisher(shared.publisher.clone())));
    let mut stuck = None;
    let (verdict, permit) = {
        let decided = async {
            let verdict = match (wait(&mut turn, shared, execution.stop()).await, version) {
                (Some(verdict), _) => verdict,
                (None, Ok(version)) => execute(shared, kind, version, &execution, &mut stuck).await,
                (None, Err(why)) => Verdict::Outcome(Outcome::Reject(why)),
            };
            // Still under its lease: whoever confirms may have to wait for the store.
            (verdict, shared.confirming.clone().acquire_owned().await.ok())
        };
        tokio::select! {
            biased;
            decided = decided => decided,
            never = keep(&mut job, shared.lease, &execution) => match never {},
        }
    };
    if matches!(turn, Turn::Waits(_)) {
        shared.gone.notify_one();
    }
    let mut free = matches!(turn, Turn::Begun).then_some(|| {
        kind.end();
        free();
    });
    let keeps_place = stuck.is_some() && !shared.settings.free_stuck_slots;
    if !keeps_place && let Some(free) = free.take() {
        free();
    }
    end(shared, job, kind, verdict, permit).await;
    if let (Some(handler), Some(free)) = (stuck, free) {
        let mut stopping = shared.stopping.subscribe();
        tokio::select! {
            _ = handler => {}
            _ = stopping.wait_for(Option::is_some) => {}
        }
        free();
    }
}

/// Renews the lease, until it is lost.
async fn keep(job: &mut Job, lease: Duration, execution: &Execution) -> Infallible {
    // One that was read ahead has had its lease for a while.
    let left = job.deadline().duration_since(system_now()).unwrap_or_default();
    let mut pause = (lease / 3).min(left.saturating_sub(lease * 2 / 3));
    let reason = loop {
        tokio::select! {
            why = job.lost() => break StopReason::of(why),
            () = sleep(pause) => {}
        }
        pause = lease / 3;
        match job.extend(lease).await {
            Ok(()) => execution.renewed(job.deadline()),
            Err(JobError::LeaseLost(why)) => break StopReason::of(why),
            Err(e) => {
                tracing::warn!(target: "kafkaq", task = %job.id(), error = %e, "a lease was not renewed");
                break StopReason::LeaseLost;
            }
        }
    };
    execution.stop().tell(reason);
    pending().await
}

/// Waits for the execution's turn. Returns what became of it if it has none.
async fn wait(turn: &mut Turn, shared: &Shared, stop: &Stop) -> Option<Verdict> {
    let Turn::Waits(told) = turn else { return None };
    let mut stopping = shared.stopping.subscribe();
    let verdict = tokio::select! {
        biased;
        begun = &mut *told => {
            if begun.is_ok() {
                *turn = Turn::Begun;
                return None;
            }
            Verdict::Release
        }
        _ = stop.requested() => Verdict::Lost,
        _ = stopping.wait_for(Option::is_some) => Verdict::Release,
    };
    told.close();
    if told.try_recv().is_ok() {
        *turn = Turn::Begun;
    }
    Some(verdict)
}

async fn execute(
    shared: &Shared,
    kind: &Kind,
    version: u16,
    execution: &Arc<Execution>,
    stuck: &mut Option<JoinHandle<Ended>>,
) -> Verdict {
    // Once it was handed out it may have been started.
    if execution.attempt() == 1
        && let Some(expired) = headers::expired(execution.headers(), system_now())
    {
        kind.observe.expired(expired);
        return Verdict::Expired(expired);
    }
    let stop = execution.stop();
    let mut stopping = shared.stopping.subscribe();
    let mut handler = shared.threads.spawn((kind.execute)(execution.clone(), version));
    let time_is_up = kind.timeout.map(|timeout| Instant::now() + timeout.min(FAR));
    // It runs, and is told when it is to end.
    let told = tokio::select! {
        biased;
        ended = &mut handler => return judge(shared, kind, stop, come_back(ended)),
        reason = stop.requested() => reason,
        () = at(time_is_up) => StopReason::TimedOut,
        _ = stopping.wait_for(Option::is_some) => StopReason::ShuttingDown,
    };
    stop.tell(told);
    // It may come to its end.
    let limit = async {
        if told == StopReason::ShuttingDown {
            // Until the worker's limit, unless something worse comes.
            tokio::select! {
                () = stopped(&mut stopping) => return,
                () = worse(stop) => {}
                () = at(time_is_up) => stop.tell(StopReason::TimedOut),
            }
        }
        tokio::select! {
            () = sleep(shared.settings.grace) => {}
            () = stopped(&mut stopping) => {}
        }
    };
    tokio::select! {
        biased;
        ended = &mut handler => return judge(shared, kind, stop, come_back(ended)),
        () = limit => {}
    }
    handler.abort();
    match timeout(DROPPED, &mut handler).await {
        Ok(ended) => judge(shared, kind, stop, come_back(ended)),
        Err(_) => {
            let reason = stop.reason();
            tracing::warn!(
                target: "kafkaq", kind = kind.name, task = %execution.id(), ?reason,
                "a handler blocks its thread and can't be stopped; its lease is let go"
            );
            *stuck = Some(handler);
            judge(shared, kind, stop, None)
        }
    }
}

/// How the handler ended; `None` if it was dropped.
fn come_back(joined: Result<Ended, JoinError>) -> Option<Ended> {
    match joined {
        Ok(ended) => Some(ended),
        Err(e) if e.is_panic() => Some(Ended::Panicked(e.to_string())),
        Err(_) => None,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Until the time is over that handlers have when the worker stops. It may become shorter meanwhile.
async fn stopped(stopping: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let until = *stopping.borrow_and_update();
        tokio::select! {
            () = at(until) => return,
            // The sender lives as long as the worker.
            _ = stopping.changed() => {}
        }
    }
}

/// Until there is another reason than that the worker stops.
async fn worse(stop: &Stop) {
    stop.until(|reason| reason != StopReason::ShuttingDown).await;
}

/// What becomes of a task whose handler has ended like this; `None` if it was dropped, or doesn't end.
fn judge(shared: &Shared, kind: &Kind, stop: &Stop, ended: Option<Ended>) -> Verdict {
    let told = stop.reason();
    if told == Some(StopReason::TimedOut) {
        shared.counters.timed_out.fetch_add(1, Relaxed);
        kind.observe.timed_out();
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
        (Some(Ended::Panicked(told)), _) => {
            shared.counters.panicked.fetch_add(1, Relaxed);
            failed(told)
        }
        (None, Some(StopReason::ShuttingDown)) => Verdict::Release,
        (None, Some(StopReason::TimedOut)) => {
            failed(format!("timed out after {:?}", kind.timeout.unwrap_or_default()))
        }
        // The runtime of the handlers is gone.
        (None, None) => Verdict::Release,
    }
}

/// What an operator should see.
fn tell(job: &Job, kind: &Kind, verdict: &Verdict) {
    let (task, kind, attempt) = (job.id(), &*kind.name, job.attempt());
    match verdict {
        Verdict::Outcome(Outcome::Reject(reason)) => {
            tracing::warn!(target: "kafkaq", %task, kind, attempt, reason, "a task was rejected");
        }
        Verdict::Outcome(Outcome::Retry { reason, .. }) => {
            tracing::warn!(target: "kafkaq", %task, kind, attempt, reason, "an execution has failed");
        }
        Verdict::Expired(_) => tracing::info!(target: "kafkaq", %task, kind, "a task has expired"),
        Verdict::Lost => {
            tracing::info!(target: "kafkaq", %task, kind, attempt, "an execution has lost its lease");
        }
        Verdict::Outcome(_) | Verdict::Release => {}
    }
}

async fn end(shared: &Shared, job: Job, kind: &Kind, verdict: Verdict, permit: Option<OwnedSemaphorePermit>) {
    let id = job.id().clone();
    tell(&job, kind, &verdict);
    let reason = shared.settings.observer.as_ref().and_then(|_| verdict.reason());
    let (asked, ending) = match verdict {
        // It is let go by being dropped, if it is not somebody else's already.
        Verdict::Lost => {
            drop(job);
            return shared.count(kind, &id, Ending::Lost, None);
        }
        Verdict::Release => (job.release().await, Ending::Released),
        Verdict::Expired(Expired::Dropped) => (job.done().await, Ending::Expired),
        Verdict::Expired(Expired::Dead) => (job.reject(EXPIRED).await, Ending::DeadLettered),
        Verdict::Outcome(Outcome::Done) => (job.done().await, Ending::Done),
        Verdict::Outcome(Outcome::Snooze(delay)) => {
            (job.snooze(delay.min(shared.max_delay)).await, Ending::Snoozed)
        }
        Verdict::Outcome(Outcome::Reject(reason)) => (job.reject(reason).await, Ending::DeadLettered),
        Verdict::Outcome(Outcome::Retry { delay, reason }) => {
            let after = backoff(kind, job.failures() + 1, &reason);
            match (after, delay) {
                (None, _) => (job.reject(reason).await, Ending::DeadLettered),
                (Some(after), delay) => {
                    match job.retry(delay.unwrap_or(after).min(shared.max_delay), reason).await {
                        Ok(RetryOutcome::DeadLettered) => (Ok(()), Ending::DeadLettered),
                        outcome => (outcome.map(drop), Ending::Retried),
                    }
                }
            }
        }
    };
    drop(permit);
    shared.count(kind, &id, confirmed(&id, asked, ending), reason);
}

/// A backoff of the user's own may panic.
fn backoff(kind: &Kind, failure: u32, reason: &str) -> Option<Duration> {
    panics::caught_blocking(|| kind.backoff.after(failure, reason)).unwrap_or_else(|told| {
        tracing::error!(target: "kafkaq", kind = kind.name, told, "a backoff has panicked; the default is used");
        Backoff::default().after(failure, reason)
    })
}

fn confirmed(id: &TaskId, asked: Result<(), JobError>, ending: Ending) -> Ending {
    let Err(error) = asked else { return ending };
    tracing::warn!(target: "kafkaq", task = %id, %error, "the end of an execution was not confirmed");
    if matches!(error, JobError::LeaseLost(_)) { Ending::Lost } else { Ending::Unconfirmed }
}
