//! One execution, shared by the dispatcher, the handler threads and the lease keeper. Whoever takes its job decides the
//! outcome of the task.

use super::{
    context::Execution,
    enqueue::Target,
    kinds::Kind,
    observe::Observe,
    queues::{Source, Taken},
    stop::StopReason,
};
use crate::{
    Job,
    clock::{FAR, system_now},
    sync::{lock, until},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// How long an async handler that is dropped may take to reach its next await before it counts as stuck.
const DROPPED: Duration = Duration::from_secs(1);
/// The shortest time between two checks of whether an execution still waits for its key or its batch.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Active {
    pub(super) execution: Arc<Execution>,
    pub(super) kind: Arc<Kind>,
    /// The version of the payload, or why nobody executes it.
    pub(super) version: Result<u16, String>,
    /// Its place in the keeper's table.
    pub(super) slot: usize,
    state: Mutex<State>,
    /// Notified when somebody waits for the job to return from its renewal.
    wanted: Notify,
    /// Notified when it is back.
    back: Notify,
}

struct State {
    job: Held,
    phase: Phase,
    /// It counts as running.
    has_place: bool,
    /// The latest time for its handler to start, until it does.
    start_by: Option<Instant>,
    renew_at: Instant,
    handler: Option<Handler>,
    /// The last reason to stop that was seen, and when.
    told: Option<(StopReason, Instant)>,
    dropped_at: Option<Instant>,
}

/// A handler that has started.
struct Handler {
    since: Instant,
    /// It runs on a thread for blocking work.
    blocks: bool,
    /// When to warn next that it has been running for a long time.
    warn_at: Instant,
    /// A warning was logged.
    is_slow: bool,
}

enum Held {
    Here(Job),
    Renewing { wanted: bool },
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    /// The handler has ended. The job is held until its outcome can be confirmed.
    Ended,
}

/// What the keeper must do.
pub(super) enum Due {
    Renew(Job),
    /// Warn: the handler has been running for this long.
    Slow(Duration),
    /// The handler doesn't end.
    Stuck(Job),
    /// The handler doesn't start: all threads are taken by others.
    NotStarted(Job),
    /// The lease was lost before the execution began.
    LostWhileQueued(Job),
}

/// The time limits of a worker.
pub(super) struct Times {
    pub(super) now: Instant,
    /// Until when handlers may continue, once the worker stops.
    pub(super) stopping: Option<Instant>,
    pub(super) grace: Duration,
}

impl Active {
    pub(super) fn new(
        Taken { source, job }: Taken,
        of: &Source,
        kind: Arc<Kind>,
        version: Result<u16, String>,
        slot: usize,
    ) -> Self {
        let target = Target::Publisher(of.publisher.clone());
        let execution = Execution::new(job.view(), job.deadline(), of.name.clone(), source, target);
        let execution = Arc::new(execution);
        // A prefetched job has had its lease for a while.
        let left = job.deadline().duration_since(system_now()).unwrap_or_default();
        let state = State {
            job: Held::Here(job),
            phase: Phase::Waiting,
            has_place: false,
            start_by: None,
            renew_at: Instant::now() + (of.lease / 3).min(left.saturating_sub(of.lease * 2 / 3)),
            handler: None,
            told: None,
            dropped_at: None,
        };
        Active {
            execution,
            kind,
            version,
            slot,
            state: Mutex::new(state),
            wanted: Notify::new(),
            back: Notify::new(),
        }
    }

    pub(super) fn observe(&self) -> &Observe {
        &self.kind.observe[self.execution.source]
    }

    /// Records that its turn has come: it counts as running now.
    pub(super) fn begin(&self, start_by: Instant) {
        let state = &mut *lock(&self.state);
        (state.phase, state.has_place) = (Phase::Running, true);
        state.start_by = Some(start_by);
    }

    /// Starts its handler's time limit, unless it is to wait first. Returns whether the handler may start, since it may
    /// have been given up meanwhile, and when to check it, if that is before its lease is due.
    pub(super) fn handler_starts(&self, warn_after: Duration, blocks: bool) -> (bool, Option<Instant>) {
        let since = Instant::now();
        let warn_at = since + warn_after.min(FAR);
        let state = &mut *lock(&self.state);
        state.start_by = None;
        let is_lost = self.execution.stop_reason().is_some_and(StopReason::means_lost);
        if is_lost || self.execution.is_dropped() || matches!(state.job, Held::Gone) {
            return (false, None);
        }
        state.handler = Some(Handler { since, blocks, warn_at, is_slow: false });
        self.execution.starts(since);
        (true, self.time_is_up(since).into_iter().chain([warn_at]).min().filter(|at| *at < state.renew_at))
    }

    /// Returns when its time is up. While it waits, returns when to check again, so that nobody has to notify the
    /// keeper when the time starts to count.
    fn time_is_up(&self, now: Instant) -> Option<Instant> {
        let timeout = self.kind.timeout?.min(FAR);
        Some(match self.execution.time_since() {
            Some(since) => since + timeout,
            None => now + timeout.max(LOOK_AGAIN),
        })
    }

    /// Since when its handler has been on one of the threads for async handlers.
    pub(super) fn on_thread_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        let handler = state.handler.as_ref().filter(|_| state.phase == Phase::Running);
        handler.filter(|handler| !handler.blocks).map(|handler| handler.since)
    }

    /// Returns whether its handler was reported as long-running, and stops such reports.
    pub(super) fn leave_slow(&self) -> bool {
        lock(&self.state).handler.take().is_some_and(|handler| handler.is_slow)
    }

    pub(super) fn renew_at(&self) -> Instant {
        lock(&self.state).renew_at
    }

    /// The handler has ended.
    pub(super) fn handler_ended(&self) {
        lock(&self.state).phase = Phase::Ended;
    }

    /// Frees its slot. Returns whether it had one.
    pub(super) fn leave_place(&self) -> bool {
        std::mem::take(&mut lock(&self.state).has_place)
    }

    /// Whether somebody has taken the job.
    pub(super) fn is_over(&self) -> bool {
        matches!(lock(&self.state).job, Held::Gone)
    }

    /// Takes the job, once it is back from its renewal. `None` if somebody else has taken it.
    pub(super) async fn take(&self) -> Option<Job> {
        until(&self.back, || {
            {
                let state = &mut *lock(&self.state);
                match &mut state.job {
                    Held::Renewing { wanted } => *wanted = true,
                    Held::Here(_) | Held::Gone => return Some(state.take()),
                }
            }
            self.wanted.notify_waiters();
            None
        })
        .await
    }

    /// Waits until somebody wants a job back that is being renewed.
    pub(super) async fn wanted(&self) {
        let is_wanted = || matches!(lock(&self.state).job, Held::Renewing { wanted: true });
        until(&self.wanted, || is_wanted().then_some(())).await;
    }

    /// Brings the job back from its renewal.
    pub(super) fn bring_back(&self, job: Job, renew_at: Instant) {
        {
            let state = &mut *lock(&self.state);
            (state.job, state.renew_at) = (Held::Here(job), renew_at);
        }
        self.back.notify_waiters();
    }

    /// The keeper has forgotten it: whoever has the job must end it.
    pub(super) fn abandon(&self) {
        self.execution.tell(StopReason::ShuttingDown);
        self.execution.drop_handler();
        let state = &mut *lock(&self.state);
        if matches!(state.job, Held::Renewing { .. }) {
            // The task that renewed it is gone as well.
            state.job = Held::Gone;
            self.back.notify_waiters();
        }
    }

    /// Returns what is due by now, and when to check again.
    pub(super) fn look(&self, times: &Times) -> (Option<Due>, Instant) {
        let state = &mut *lock(&self.state);
        let never = times.now + FAR;
        match state.phase {
            _ if matches!(state.job, Held::Gone) => return (None, never),
            Phase::Ended => {}
            Phase::Waiting => {
                if self.execution.stop_reason().is_some_and(StopReason::means_lost)
                    && let Some(job) = state.take()
                {
                    return (Some(Due::LostWhileQueued(job)), never);
                }
            }
            Phase::Running => {
                if let Some(ran) = self.look_at_age(state, times.now) {
                    return (Some(Due::Slow(ran)), times.now);
                }
                let mut next = self.look_at_handler(state, times).unwrap_or(never);
                let give_up = if let Some(start_by) = state.start_by
                    && start_by < next
                {
                    next = start_by;
                    Due::NotStarted
                } else {
                    Due::Stuck
                };
                let warn_at = state.handler.as_ref().map_or(never, |handler| handler.warn_at);
                if next > times.now {
                    return self.look_at_lease(state, times, next.min(warn_at));
                }
                if let Held::Renewing { wanted } = &mut state.job {
                    *wanted = true;
                    self.wanted.notify_waiters();
                    return (None, times.now);
                }
                return (state.take().map(give_up), never);
            }
        }
        self.look_at_lease(state, times, never)
    }

    /// Returns how long the handler has been running if a warning is due; the interval doubles each time.
    fn look_at_age(&self, state: &mut State, now: Instant) -> Option<Duration> {
        let handler = state.handler.as_mut().filter(|handler| handler.warn_at <= now)?;
        let ran = now - handler.since;
        handler.warn_at = now + ran.min(FAR);
        if !std::mem::replace(&mut handler.is_slow, true) {
            self.observe().slow();
        }
        Some(ran)
    }

    /// Asks the handler to stop, and drops it if it doesn't in time. Returns when to check again; a time in the past if
    /// it is stuck.
    fn look_at_handler(&self, state: &mut State, times: &Times) -> Option<Instant> {
        let time_is_up = self.time_is_up(times.now);
        if time_is_up.is_some_and(|at| at <= times.now) {
            self.execution.tell(StopReason::TimedOut);
        }
        if times.stopping.is_some() {
            self.execution.tell(StopReason::ShuttingDown);
        }
        let Some(reason) = self.execution.stop_reason() else { return time_is_up };
        let since = match state.told {
            Some((told, since)) if told == reason => since,
            _ => times.now,
        };
        state.told = Some((reason, since));
        // If only the worker stops, it may continue until the worker's limit, unless something more urgent happens.
        let grace = (reason != StopReason::ShuttingDown).then(|| since + times.grace.min(FAR));
        let limit = [grace, times.stopping].into_iter().flatten().min()?;
        if limit > times.now {
            let time_is_up = time_is_up.filter(|at| *at > times.now);
            return [Some(limit), time_is_up].into_iter().flatten().min();
        }
        let dropped_at = *state.dropped_at.get_or_insert(times.now);
        self.execution.drop_handler();
        Some(dropped_at + DROPPED)
    }

    fn look_at_lease(&self, state: &mut State, times: &Times, next: Instant) -> (Option<Due>, Instant) {
        if !matches!(state.job, Held::Here(_))
            || self.execution.stop_reason().is_some_and(StopReason::means_lost)
        {
            return (None, next);
        }
        if state.renew_at > times.now {
            return (None, next.min(state.renew_at));
        }
        match std::mem::replace(&mut state.job, Held::Renewing { wanted: false }) {
            Held::Here(job) => (Some(Due::Renew(job)), next),
            held => {
                state.job = held;
                (None, next)
            }
        }
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        match std::mem::replace(&mut self.job, Held::Gone) {
            Held::Here(job) => Some(job),
            held => {
                self.job = held;
                None
            }
        }
    }
}
