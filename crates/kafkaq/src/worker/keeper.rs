//! The lease keeper. It renews leases, tells handlers when to stop, and ends executions whose handlers don't. It runs
//! on the queue's runtime, so it works whatever handlers do to their threads.

use super::{
    active::{Active, Due, Times},
    execute,
    run::Shared,
    stop::StopReason,
};
use crate::{
    Job, JobError,
    clock::FAR,
    sync::{lock, until},
};
use slab::Slab;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// The minimum time between two checks of all executions, also as a multiple of how long a check takes.
const PAUSE: Duration = Duration::from_millis(5);
const SHARE: u32 = 10;

/// All executions whose end is not confirmed yet.
#[derive(Default)]
pub(super) struct Keeper {
    open: Mutex<Open>,
    /// Signals that an execution has to be checked sooner than planned.
    sooner: Notify,
    closed: Notify,
}

#[derive(Default)]
struct Open {
    all: Slab<Arc<Active>>,
    /// The time of the next check. `None` before the first.
    planned: Option<Instant>,
}

impl Open {
    /// Plans a check. Returns whether it is sooner than what was planned.
    fn plan(&mut self, at: Instant) -> bool {
        let is_sooner = self.planned.is_some_and(|planned| planned > at);
        if is_sooner {
            self.planned = Some(at);
        }
        is_sooner
    }
}

impl Keeper {
    /// Adds an execution, and checks it when its lease is due. `make` gets its slot.
    pub(super) fn open(&self, make: impl FnOnce(usize) -> Active) -> Arc<Active> {
        let open = &mut *lock(&self.open);
        let entry = open.all.vacant_entry();
        let active = Arc::new(make(entry.key()));
        entry.insert(active.clone());
        if open.plan(active.renew_at()) {
            self.sooner.notify_one();
        }
        active
    }

    /// Removes an execution. Only whoever has taken its job does that, so it happens once.
    pub(super) fn close(&self, active: &Active) {
        let is_empty = {
            let all = &mut lock(&self.open).all;
            all.try_remove(active.slot);
            all.is_empty()
        };
        if is_empty {
            self.closed.notify_waiters();
        }
    }

    /// Schedules a check of all executions at this time, at the latest.
    pub(super) fn look_at(&self, at: Instant) {
        if lock(&self.open).plan(at) {
            self.sooner.notify_one();
        }
    }

    /// Waits until all executions have ended.
    pub(super) async fn all_closed(&self) {
        until(&self.closed, || lock(&self.open).all.is_empty().then_some(())).await;
    }

    /// Schedules the next check. Returns what is due by now.
    fn look(&self, times: &Times) -> Vec<(Arc<Active>, Due)> {
        let open = &mut *lock(&self.open);
        let (mut all_due, mut next) = (Vec::new(), times.now + FAR);
        for (_, active) in &open.all {
            let (due, at) = active.look(times);
            next = next.min(at);
            all_due.extend(due.map(|due| (active.clone(), due)));
        }
        let now = Instant::now();
        open.planned = Some(next.max(now + PAUSE.max(SHARE * now.duration_since(times.now))));
        all_due
    }

    /// Describes the handlers that occupy the threads for async handlers.
    pub(super) fn on_threads(&self) -> String {
        let mut kinds = BTreeMap::<String, (usize, Instant)>::new();
        for (_, active) in &lock(&self.open).all {
            if let Some(since) = active.on_thread_since() {
                let (n, oldest) = kinds.entry(active.kind.name.clone()).or_insert((0, since));
                (*n, *oldest) = (*n + 1, since.min(*oldest));
            }
        }
        let told = kinds
            .iter()
            .map(|(kind, (n, oldest))| format!("{n} of `{kind}` for up to {:.1?}", oldest.elapsed()));
        told.collect::<Vec<_>>().join(", ")
    }

    fn planned(&self) -> Instant {
        lock(&self.open).planned.unwrap_or_else(|| Instant::now() + FAR)
    }
}

/// If the queue's runtime ends before the worker, nobody renews leases anymore.
struct Abandon<'a>(&'a Keeper);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        lock(&self.0.open).all.iter().for_each(|(_, active)| active.abandon());
    }
}

/// Keeps the worker's executions.
pub(super) async fn keep(shared: Arc<Shared>) -> Infallible {
    let _abandon = Abandon(&shared.keeper);
    let mut stopping = shared.stopping.subscribe();
    loop {
        let times = Times {
            now: Instant::now(),
            stopping: *stopping.borrow_and_update(),
            grace: shared.settings.grace,
        };
        for (active, due) in shared.keeper.look(&times) {
            let shared = shared.clone();
            match due {
                Due::Renew(job) => drop(tokio::spawn(renew(shared, active, job))),
                Due::Slow(ran) => tell_slow(&shared, &active, ran),
                Due::Stuck(job) => drop(tokio::spawn(end_stuck(shared, active, job))),
                Due::NotStarted(job) => {
                    tracing::warn!(
                        target: "kafkaq", kind = active.kind.name, task = %active.execution.job.id(),
                        "all handler threads are blocked; a task that could not start is given back"
                    );
                    drop(tokio::spawn(execute::release(shared, active, job)));
                }
                Due::LostWhileQueued(job) => {
                    execute::lose(&shared, &active, job);
                    shared.lost_while_queued.store(true, SeqCst);
                    shared.room.notify_one();
                }
            }
        }
        loop {
            tokio::select! {
                () = sleep_until(shared.keeper.planned()) => break,
                () = shared.keeper.sooner.notified() => {}
                // The sender lives as long as this.
                _ = stopping.changed() => break,
            }
        }
    }
}

fn tell_slow(shared: &Shared, active: &Active, ran: Duration) {
    let (execution, queue) = (&active.execution, &*shared.source(active).name);
    let (task, kind, attempt) = (execution.job.id(), &*active.kind.name, execution.job.attempt());
    tracing::warn!(target: "kafkaq", queue, kind, %task, attempt, ?ran, "a handler has been running for a long time");
}

async fn renew(shared: Arc<Shared>, active: Arc<Active>, mut job: Job) {
    let lease = shared.source(&active).lease;
    let next = Instant::now() + lease / 3;
    tokio::select! {
        biased;
        // Ending it takes precedence.
        () = active.wanted() => {}
        renewed = job.extend(lease) => match renewed {
            Ok(()) => active.execution.renewed(job.deadline()),
            Err(JobError::LeaseLost(why)) => active.execution.tell(StopReason::of(why)),
            Err(error) => {
                tracing::warn!(target: "kafkaq", task = %job.id(), %error, "a lease was not renewed");
                active.execution.tell(StopReason::LeaseLost);
            }
        }
    }
    active.bring_back(job, next);
    // Also to see what the job has learned.
    shared.keeper.look_at(next.min(Instant::now() + PAUSE));
}

async fn end_stuck(shared: Arc<Shared>, active: Arc<Active>, job: Job) {
    let reason = active.execution.stop_reason();
    tracing::warn!(
        target: "kafkaq", kind = active.kind.name, task = %active.execution.job.id(), ?reason,
        "a handler blocks its thread and can't be stopped; its lease is no longer renewed"
    );
    if shared.settings.free_stuck_slots {
        shared.free(&active);
    }
    execute::end_unfinished(&shared, &active, job).await;
}
