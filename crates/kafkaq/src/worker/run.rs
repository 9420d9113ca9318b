//! A running worker: it takes jobs as there is room, and lets each be executed.

use super::{
    execute::{self, Turn},
    handlers::{Ended, Executing},
    kinds::{Kind, Kinds},
    panics,
    report::{Counters, Ending, Finished, Observer, WorkerReport},
};
use crate::{
    Error, ErrorKind, Job, Publisher, Queue, Result, TaskId,
    driver::{FAR, stop_within},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    runtime::{Builder, Handle, Runtime, RuntimeFlavor},
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Jobs that are taken at once.
const BATCH: usize = 256;
/// Executions whose end is being confirmed, beside those that run: as many again, but at least this many.
const CONFIRMING: usize = 64;
/// How long executions may take to be confirmed when the worker has stopped.
const AFTERWARDS: Duration = Duration::from_secs(6);

pub(super) struct Settings {
    pub(super) concurrency: usize,
    pub(super) grace: Duration,
    pub(super) shutdown_limit: Duration,
    pub(super) free_stuck_slots: bool,
    pub(super) observer: Option<Observer>,
}

/// What executions share.
pub(super) struct Shared {
    began: Instant,
    pub(super) settings: Settings,
    pub(super) lease: Duration,
    pub(super) max_delay: Duration,
    pub(super) publisher: Publisher,
    pub(super) counters: Counters,
    pub(super) threads: Threads,
    /// Until when handlers may go on, once the worker stops.
    pub(super) stopping: watch::Sender<Option<Instant>>,
    /// An execution that waited for its turn has gone without one.
    pub(super) gone: Notify,
    pub(super) confirming: Arc<Semaphore>,
}

impl Shared {
    fn report(&self) -> WorkerReport {
        self.counters.report(self.began.elapsed())
    }

    /// An execution has ended.
    pub(super) fn count(&self, kind: &Kind, id: &TaskId, ending: Ending, reason: Option<String>) {
        kind.observe.ended(ending);
        self.counters.count(ending);
        if let Some(observer) = &self.settings.observer {
            observer(Finished { id: id.clone(), ending, reason });
        }
    }
}

/// Where handlers run.
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
        // None that blocks waits for a thread, nor do those that were given up and block on.
        builder.thread_name("kafkaq-worker").enable_all().max_blocking_threads(2 * concurrency + 64);
        if let Some(n) = n {
            builder.worker_threads(n);
        }
        let own = builder.build().map_err(|e| {
            Error::not_applied(ErrorKind::Unavailable, "start the threads of a worker").with_source(e)
        })?;
        Ok(Threads { own: Some(own), here })
    }

    pub(super) fn spawn(&self, handler: Executing) -> JoinHandle<Ended> {
        let runtime = self.own.as_ref().map_or(&self.here, Runtime::handle);
        match handler {
            Executing::Async(handler) => runtime.spawn(handler),
            Executing::Blocking(handler) => runtime.spawn_blocking(handler),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A handler that blocks its thread for ever must not keep anybody waiting.
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}

/// A worker that runs in the background. When this is dropped the worker stops, as by [`stop`](WorkerHandle::stop).
#[must_use = "the worker stops when this is dropped"]
pub struct WorkerHandle {
    shared: Arc<Shared>,
    outcome: watch::Receiver<Option<Result<WorkerReport>>>,
}

impl WorkerHandle {
    /// Stops the worker: it takes no more tasks, gives back what it has not begun, tells its handlers, and waits for
    /// them for as long as [`shutdown_limit`](super::WorkerBuilder::shutdown_limit) says. Returns at once.
    pub fn stop(&self) {
        stop_within(&self.shared.stopping, self.shared.settings.shutdown_limit);
    }

    /// Stops the worker without waiting for its handlers. Their tasks are given back. Returns at once.
    pub fn stop_now(&self) {
        stop_within(&self.shared.stopping, Duration::ZERO);
    }

    /// Returns what the worker has done so far.
    #[must_use]
    pub fn report(&self) -> WorkerReport {
        self.shared.report()
    }

    /// Waits until the worker has stopped. Cancel-safe.
    ///
    /// # Errors
    /// What has ended the queue for good.
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
    queue: Queue,
    kinds: Kinds,
    settings: Settings,
    threads: Option<usize>,
) -> Result<WorkerHandle> {
    panics::remember_places();
    let threads = Threads::start(threads, settings.concurrency)?;
    let shared = Arc::new(Shared {
        began: Instant::now(),
        lease: queue.lease_duration(),
        max_delay: queue.max_delay(),
        publisher: queue.publisher(),
        counters: Counters::default(),
        threads,
        stopping: watch::Sender::new(None),
        gone: Notify::new(),
        confirming: Arc::new(Semaphore::new(settings.concurrency.max(CONFIRMING))),
        settings,
    });
    let handle = shared.clone();
    let (freed, free) = mpsc::unbounded_channel();
    let (alive, ended) = mpsc::channel(1);
    let dispatcher = Dispatcher { queue, kinds, shared, freed, alive, active: 0 };
    let (tell, outcome) = watch::channel(None);
    tokio::spawn(async move {
        let outcome = dispatcher.run(free, ended).await;
        tell.send_replace(Some(outcome));
    });
    Ok(WorkerHandle { shared: handle, outcome })
}

struct Dispatcher {
    queue: Queue,
    kinds: Kinds,
    shared: Arc<Shared>,
    /// An execution sends one when its place is free again: never more than there are places.
    freed: mpsc::UnboundedSender<()>,
    /// Executions have a clone while they last.
    alive: mpsc::Sender<()>,
    /// Places that are taken.
    active: usize,
}

impl Dispatcher {
    async fn run(
        mut self,
        mut free: mpsc::UnboundedReceiver<()>,
        mut ended: mpsc::Receiver<()>,
    ) -> Result<WorkerReport> {
        let mut stopping = self.shared.stopping.subscribe();
        let failed = self.take_jobs(&mut free, &mut stopping).await.err();
        let Dispatcher { queue, shared, alive, .. } = self;
        if failed.is_some() {
            stop_within(&shared.stopping, shared.settings.shutdown_limit);
        }
        drop(alive);
        let (shut_down, _) = tokio::join!(shut_down(&queue, stopping), ended.recv());
        match failed.or_else(|| shut_down.err()) {
            Some(e) if e.kind() != ErrorKind::Timeout => Err(e),
            late => {
                if let Some(error) = late {
                    tracing::warn!(target: "kafkaq", %error, "the worker has stopped before all was confirmed");
                }
                Ok(shared.report())
            }
        }
    }

    /// Until the worker stops, or the queue has ended.
    async fn take_jobs(
        &mut self,
        free: &mut mpsc::UnboundedReceiver<()>,
        stopping: &mut watch::Receiver<Option<Instant>>,
    ) -> Result<()> {
        let concurrency = self.shared.settings.concurrency;
        loop {
            while free.try_recv().is_ok() {
                self.active -= 1;
            }
            let (waiting, next) = self.advance();
            // When as many wait as may run, whoever is taken next would most likely wait as well.
            let room = if waiting < concurrency { concurrency - self.active } else { 0 };
            let next = next.unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                biased;
                _ = stopping.wait_for(Option::is_some) => return Ok(()),
                Some(()) = free.recv() => self.active -= 1,
                () = self.shared.gone.notified() => {}
                jobs = self.queue.get_jobs(room.min(BATCH)), if room > 0 => {
                    for job in jobs? {
                        self.place(job);
                    }
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Lets those begin whose turn it is. Returns how many wait on, and when the next may begin.
    fn advance(&mut self) -> (usize, Option<Instant>) {
        let (now, mut waiting, mut next) = (Instant::now(), 0, None);
        for kind in self.kinds.all() {
            let (begun, at) = kind.advance(self.shared.settings.concurrency - self.active, now);
            self.active += begun;
            waiting += kind.waiting();
            next = [next, at].into_iter().flatten().min();
        }
        (waiting, next)
    }

    fn place(&mut self, job: Job) {
        let (shared, alive) = (self.shared.clone(), self.alive.clone());
        let (kind, version) = self.kinds.of(job.headers());
        let turn = match kind.begin(Instant::now()) {
            Ok(()) => {
                self.active += 1;
                Turn::Begun
            }
            Err(told) => Turn::Waits(told),
        };
        let freed = self.freed.clone();
        tokio::spawn(async move {
            let free = || {
                let _ = freed.send(());
            };
            execute::supervise(&shared, job, &kind, version, turn, free).await;
            drop(alive);
        });
    }
}

/// Shuts the queue down, sooner if the worker is told to stop sooner. What is given back at the end needs its time, too.
async fn shut_down(queue: &Queue, mut stopping: watch::Receiver<Option<Instant>>) -> Result<()> {
    loop {
        let until = stopping.borrow_and_update().unwrap_or_else(Instant::now);
        let limit = until.saturating_duration_since(Instant::now()) + AFTERWARDS;
        tokio::select! {
            shut_down = queue.shutdown(limit) => return shut_down,
            Ok(()) = stopping.changed() => {}
        }
    }
}
