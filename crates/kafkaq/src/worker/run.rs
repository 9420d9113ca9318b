//! A running worker: it takes jobs as slots become free, and has each executed.

use super::{
    active::Active,
    confirm::{self, Confirmer},
    control::WorkerControl,
    execute::{Begun, Conclusion, Verdict},
    keeper::{self, Keeper},
    kinds::Kinds,
    pace::Pace,
    panics,
    queues::{Queues, Source, Taken},
    report::{Counters, Ending, Finished, Observer, WorkerReport},
    share::Share,
    standstill, watchdog,
};
use crate::{Error, ErrorKind, Queue, Result, clock::FAR, driver::stop_within};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    runtime::{Builder, Handle, Runtime, RuntimeFlavor},
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// How many jobs are taken at once.
const BATCH: usize = 256;
/// How many executions may be confirmed concurrently, in addition to those that run: as many again, but at least this
/// many.
const CONFIRMING: usize = 64;
/// How long confirmations may take after the worker has stopped.
const AFTERWARDS: Duration = Duration::from_secs(6);

pub(super) struct Settings {
    pub(super) concurrency: usize,
    pub(super) per_second: Option<f64>,
    pub(super) grace: Duration,
    pub(super) shutdown_limit: Duration,
    pub(super) free_stuck_slots: bool,
    /// `None`: a few leases.
    pub(super) warn_after: Option<Duration>,
    pub(super) observer: Option<Observer>,
}

/// What executions share.
pub(super) struct Shared {
    began: Instant,
    pub(super) settings: Settings,
    /// For each queue.
    sources: Vec<Source>,
    pub(super) counters: Counters,
    pub(super) threads: Threads,
    /// Until when handlers may continue, once the worker stops.
    pub(super) stopping: watch::Sender<Option<Instant>>,
    pub(super) keeper: Keeper,
    /// Executions that are running.
    running: AtomicUsize,
    /// Signals that fewer are running or waiting, or that a kind was paused.
    pub(super) room: Arc<Notify>,
    pub(super) lost_while_queued: AtomicBool,
    pub(super) confirmer: Confirmer,
}

impl Shared {
    fn report(&self) -> WorkerReport {
        self.counters.report(self.began.elapsed())
    }

    pub(super) fn source(&self, active: &Active) -> &Source {
        &self.sources[active.execution.source]
    }

    /// Records that an execution has stopped running.
    pub(super) fn free(&self, active: &Active) {
        if active.leave_place() {
            active.kind.end();
            self.running.fetch_sub(1, SeqCst);
            self.room.notify_one();
        }
    }

    /// Counts an execution whose outcome is confirmed, or never will be.
    pub(super) fn count(&self, active: &Active, ending: Ending, reason: Option<String>) {
        active.observe().ended(ending);
        if active.leave_slow() {
            active.observe().slow_ended();
        }
        self.counters.count(ending);
        if let Some(observer) = &self.settings.observer {
            observer(Finished { id: active.execution.job.id().clone(), ending, reason });
        }
    }
}

/// The threads for handlers.
pub(super) struct Threads {
    own: Option<Runtime>,
    here: Handle,
}

impl Threads {
    fn start(n: Option<usize>, concurrency: usize) -> Result<Self> {
        let here = Handle::try_current().map_err(|e| {
            Error::not_applied(ErrorKind::Invalid, "start a worker")
                .with_source(e)
                .with_advice("Start it within a tokio runtime")
        })?;
        if here.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Ok(Threads { own: None, here });
        }
        let mut builder = Builder::new_multi_thread();
        // Enough that no blocking handler waits for a thread, even if handlers that were given up still block theirs.
        builder.thread_name("kafkaq-worker").enable_all().max_blocking_threads(2 * concurrency + 64);
        if let Some(n) = n {
            builder.worker_threads(n);
        }
        let own = builder.build().map_err(|e| {
            Error::not_applied(ErrorKind::Unavailable, "start the threads of a worker").with_source(e)
        })?;
        Ok(Threads { own: Some(own), here })
    }

    /// The worker's own threads, if it has any.
    pub(super) fn own(&self) -> Option<&Handle> {
        self.own.as_ref().map(Runtime::handle)
    }

    /// Runs executions. Several are passed on at once, since waking a thread costs more than a short handler.
    fn run(&self, mut begun: Vec<Begun>) {
        let handle = self.own().unwrap_or(&self.here);
        match begun.len() {
            0 => {}
            1 => begun.drain(..).for_each(|one| drop(handle.spawn(one.run()))),
            _ => drop(handle.spawn(async move {
                begun.drain(..).for_each(|one| drop(tokio::spawn(one.run())));
            })),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A handler that blocks its thread forever must not keep anybody waiting.
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}

/// A handle to a worker that runs in the background. Dropping it stops the worker, like [`stop`](WorkerHandle::stop).
#[must_use = "the worker stops when this is dropped"]
pub struct WorkerHandle {
    shared: Arc<Shared>,
    control: WorkerControl,
    outcome: watch::Receiver<Option<Result<WorkerReport>>>,
}

impl WorkerHandle {
    /// Stops the worker: it takes no more tasks, gives back those that it has not started, tells its handlers, and
    /// waits for them for up to [`shutdown_limit`](super::WorkerBuilder::shutdown_limit). Returns immediately.
    pub fn stop(&self) {
        stop_within(&self.shared.stopping, self.shared.settings.shutdown_limit);
    }

    /// Stops the worker without waiting for its handlers. Their tasks are given back. Returns immediately.
    pub fn stop_now(&self) {
        stop_within(&self.shared.stopping, Duration::ZERO);
    }

    /// Returns a control that pauses and resumes kinds of task.
    #[must_use]
    pub fn control(&self) -> WorkerControl {
        self.control.clone()
    }

    /// Returns the worker's counts so far.
    #[must_use]
    pub fn report(&self) -> WorkerReport {
        self.shared.report()
    }

    /// Waits until the worker has stopped. Cancel-safe.
    ///
    /// # Errors
    /// The error that has stopped a queue permanently.
    pub async fn stopped(&mut self) -> Result<WorkerReport> {
        match self.outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Error::unknown(ErrorKind::Other, "run a worker")
                .with_advice("The worker's task was aborted or panicked")),
        }
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("report", &self.report()).finish_non_exhaustive()
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) fn start(
    queues: Vec<(Queue, Share)>,
    kinds: Kinds,
    settings: Settings,
    threads: Option<usize>,
    control: WorkerControl,
) -> Result<WorkerHandle> {
    panics::remember_places();
    let threads = Threads::start(threads, settings.concurrency)?;
    let shared = Arc::new(Shared {
        began: Instant::now(),
        sources: queues.iter().map(|(queue, _)| Source::of(queue)).collect(),
        counters: Counters::default(),
        threads,
        stopping: watch::Sender::new(None),
        keeper: Keeper::default(),
        running: AtomicUsize::new(0),
        room: control.room.clone(),
        lost_while_queued: AtomicBool::new(false),
        confirmer: Confirmer::default(),
        settings,
    });
    let handle = shared.clone();
    let most_confirming = shared.settings.concurrency.max(CONFIRMING);
    let mut beside = vec![
        tokio::spawn(keeper::keep(shared.clone())).abort_handle(),
        tokio::spawn(watchdog::watch(shared.clone())).abort_handle(),
        tokio::spawn(confirm::confirm(shared.clone(), most_confirming)).abort_handle(),
    ];
    beside.extend(
        queues.iter().map(|(queue, _)| tokio::spawn(standstill::watch(queue.clone())).abort_handle()),
    );
    let pace = Pace::new(shared.settings.per_second);
    let dispatcher = Dispatcher { queues: Queues::new(queues), kinds, pace, shared };
    let (tell, outcome) = watch::channel(None);
    tokio::spawn(async move {
        let outcome = dispatcher.run().await;
        beside.iter().for_each(AbortHandle::abort);
        tell.send_replace(Some(outcome));
    });
    Ok(WorkerHandle { shared: handle, control, outcome })
}

struct Dispatcher {
    queues: Queues,
    kinds: Kinds,
    pace: Pace,
    shared: Arc<Shared>,
}

impl Dispatcher {
    async fn run(mut self) -> Result<WorkerReport> {
        let mut stopping = self.shared.stopping.subscribe();
        let failed = self.take_jobs(&mut stopping).await.err();
        let Dispatcher { queues, mut kinds, shared, .. } = self;
        // Some may have started since the keeper told all to stop.
        shared.keeper.look_at(Instant::now());
        if failed.is_some() {
            stop_within(&shared.stopping, shared.settings.shutdown_limit);
        }
        for queue in &mut kinds.queues {
            queue
                .drain()
                .for_each(|active| shared.confirmer.push(active, Conclusion::Verdict(Verdict::Release)));
        }
        let (shut_down, ()) = tokio::join!(shut_down_all(queues, stopping), shared.keeper.all_closed());
        match (failed, shut_down) {
            (Some(error), _) => Err(error),
            (None, Err(error)) if error.kind() != ErrorKind::Timeout => Err(error),
            (None, shut_down) => {
                if let Err(error) = shut_down {
                    tracing::warn!(target: "kafkaq", %error, "the worker stopped before everything was confirmed");
                }
                Ok(shared.report())
            }
        }
    }

    /// Takes jobs until the worker stops, or a queue has ended.
    async fn take_jobs(&mut self, stopping: &mut watch::Receiver<Option<Instant>>) -> Result<()> {
        let mut taken = Vec::new();
        loop {
            let (mut begun, concurrency) = (Vec::new(), self.shared.settings.concurrency);
            let (waiting, next) = self.advance(&mut begun);
            self.shared.threads.run(begun);
            // If as many are waiting as may run, the next one would most likely wait as well.
            let room = if waiting < concurrency { self.room() } else { 0 };
            let now = Instant::now();
            let room = room.min(self.pace.allows(now));
            // With free slots and empty queues, it doesn't matter how many are running.
            let all_alike = room > 0 && waiting == 0;
            let next = [next, self.pace.next(now)].into_iter().flatten().min();
            tokio::select! {
                biased;
                _ = stopping.wait_for(Option::is_some) => return Ok(()),
                () = self.shared.room.notified(), if !all_alike => {}
                all_well = self.queues.take(room.min(BATCH), &mut taken), if room > 0 => {
                    self.pace.started(taken.len(), Instant::now());
                    self.place(&mut taken);
                    all_well?;
                }
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + FAR)), if next.is_some() => {}
            }
        }
    }

    fn room(&self) -> usize {
        self.shared.settings.concurrency.saturating_sub(self.shared.running.load(SeqCst))
    }

    /// Starts the executions whose turn it is. Returns how many are still waiting, and when the next may start.
    fn advance(&mut self, begun: &mut Vec<Begun>) -> (usize, Option<Instant>) {
        let (shared, now) = (&self.shared, Instant::now());
        let (mut room, mut waiting, mut next) = (self.room(), 0, None);
        if shared.lost_while_queued.swap(false, SeqCst) {
            self.kinds.queues.iter_mut().for_each(|queue| queue.retain(|active| !active.is_over()));
        }
        for queue in self.kinds.queues.iter_mut().filter(|queue| queue.waiting() > 0) {
            if queue.kind().switch.is_paused() {
                queue.retain(|active| !put_off(shared, active, now));
            }
            while room > 0
                && let Some(active) = queue.advance(now)
            {
                room -= 1;
                begun.push(begin(shared, active, now));
            }
            waiting += queue.waiting();
            next = [next, queue.next(now)].into_iter().flatten().min();
        }
        (waiting, next)
    }

    fn place(&mut self, taken: &mut Vec<Taken>) {
        let (shared, now) = (&self.shared, Instant::now());
        let mut begun = Vec::with_capacity(taken.len());
        for one in taken.drain(..) {
            let (queue, version) = self.kinds.of(one.job.headers());
            let (source, kind) = (&shared.sources[one.source], queue.kind().clone());
            let active = shared.keeper.open(|slot| Active::new(one, source, kind, version, slot));
            if put_off(shared, &active, now) {
                continue;
            }
            if queue.begin(now) {
                begun.push(begin(shared, active, now));
            } else {
                queue.push(active);
            }
        }
        shared.threads.run(begun);
    }
}

/// Its handler may take as long as a lease to start.
fn begin(shared: &Arc<Shared>, active: Arc<Active>, now: Instant) -> Begun {
    shared.running.fetch_add(1, SeqCst);
    active.begin(now + shared.source(&active).lease.min(FAR));
    Begun::new(shared.clone(), active)
}

/// Snoozes a task if its kind is paused. Meanwhile it occupies a slot, so that no more are in flight than may run.
fn put_off(shared: &Arc<Shared>, active: &Arc<Active>, now: Instant) -> bool {
    let (kind, max_handouts) = (&active.kind, shared.source(active).max_handouts);
    let Some(delay) = kind.switch.put_off(active.execution.job.attempt(), max_handouts, now) else {
        return false;
    };
    kind.begin();
    begin(shared, active.clone(), now).put_off(delay);
    true
}

/// Shuts all queues down concurrently. Returns the worst of their errors.
async fn shut_down_all(queues: Queues, stopping: watch::Receiver<Option<Instant>>) -> Result<()> {
    let shut_down = |queue| tokio::spawn(shut_down(queue, stopping.clone()));
    let shutting_down: Vec<_> = queues.into_all().into_iter().map(shut_down).collect();
    let mut outcome = Ok(());
    for one in shutting_down {
        let ended = one
            .await
            .unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, "shut down a queue").with_source(e)));
        let is_worse = |e: &Error| e.kind() != ErrorKind::Timeout;
        if outcome.is_ok() || ended.as_ref().is_err_and(is_worse) {
            outcome = ended;
        }
    }
    outcome
}

/// Shuts a queue down, sooner if the worker is told to stop sooner. Giving tasks back at the end takes time, too.
async fn shut_down(queue: Queue, mut stopping: watch::Receiver<Option<Instant>>) -> Result<()> {
    loop {
        let until = stopping.borrow_and_update().unwrap_or_else(Instant::now);
        let limit = until.saturating_duration_since(Instant::now()) + AFTERWARDS;
        tokio::select! {
            shut_down = queue.shutdown(limit) => return shut_down,
            Ok(()) = stopping.changed() => {}
        }
    }
}
