//! Builds a worker.

use super::{
    Backoff, Options, WorkerReport,
    context::{Ctx, Execution},
    control::WorkerControl,
    exclusive::Exclusive,
    failure::IntoOutcome,
    handlers::{self, Handler},
    kinds::{Kind, KindQueue, Kinds},
    layers::Layers,
    observe::Observe,
    run::{self, Settings, WorkerHandle},
    share::{Set, Share},
    signals,
    typed::TaskType,
};
use crate::{Error, ErrorKind, Queue, Result};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

/// Stands for the kind of tasks that have no handler of their own.
const OTHERWISE: &str = "otherwise";
const MAX_CONCURRENCY: usize = 100_000;
/// Per second.
const RATES: RangeInclusive<f64> = 0.001..=1_000_000.0;

/// Settings and handlers of a worker: see [`Worker`](super::Worker).
#[must_use = "a worker does nothing until it is started"]
pub struct WorkerBuilder<S = ()> {
    queues: Vec<(Queue, Share)>,
    state: Arc<S>,
    kinds: HashMap<String, (Handler<S>, Options)>,
    otherwise: Option<(Handler<S>, Options)>,
    /// Why it can't be started: the first handler that was refused.
    refused: Option<Error>,
    backoff: Backoff,
    timeout: Option<Duration>,
    threads: Option<usize>,
    settings: Settings,
    control: WorkerControl,
    pub(super) layers: Layers,
}

impl WorkerBuilder {
    pub(super) fn new(queue: Queue) -> Self {
        WorkerBuilder {
            queues: vec![(queue, Share::weight(1))],
            state: Arc::new(()),
            kinds: HashMap::new(),
            otherwise: None,
            refused: None,
            backoff: Backoff::default(),
            timeout: None,
            threads: None,
            settings: Settings {
                concurrency: 64,
                grace: Duration::from_secs(5),
                per_second: None,
                shutdown_limit: Duration::from_secs(30),
                free_stuck_slots: false,
                warn_after: None,
                observer: None,
            },
            control: WorkerControl::default(),
            layers: Layers::default(),
        }
    }

    /// Sets the state that handlers get through [`Ctx::state`]. Handlers that were added before have none.
    pub fn state<S: Send + Sync + 'static>(self, state: S) -> WorkerBuilder<S> {
        let stateless = |(handler, options): (Handler<()>, Options)| {
            let handler: Handler<S> = Arc::new(move |ctx: Ctx<S>, version| handler(ctx.stateless(), version));
            (handler, options)
        };
        WorkerBuilder {
            queues: self.queues,
            state: Arc::new(state),
            kinds: self.kinds.into_iter().map(|(kind, entry)| (kind, stateless(entry))).collect(),
            otherwise: self.otherwise.map(stateless),
            refused: self.refused,
            backoff: self.backoff,
            timeout: self.timeout,
            threads: self.threads,
            settings: self.settings,
            control: self.control,
            layers: self.layers,
        }
    }
}

impl<S: Send + Sync + 'static> WorkerBuilder<S> {
    /// Handles tasks of a type with an async function.
    pub fn on<T, F, Fut>(self, handler: F) -> Self
    where
        T: TaskType,
        F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.on_with(handler, Options::new())
    }

    /// Like [`on`](WorkerBuilder::on), with options for this kind.
    pub fn on_with<T, F, Fut>(self, handler: F, options: Options) -> Self
    where
        T: TaskType,
        F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.add::<T>(handlers::typed(handler), options)
    }

    /// Handles tasks of a type with a function that blocks its thread. It runs on threads for blocking work. It can't
    /// be stopped from outside: check [`Ctx::stop`] from time to time. One that doesn't stop counts as stuck: see
    /// [`free_stuck_slots`](WorkerBuilder::free_stuck_slots).
    pub fn on_blocking<T, F, R>(self, handler: F, options: Options) -> Self
    where
        T: TaskType,
        F: Fn(Ctx<S>, T) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.add::<T>(handlers::blocking(handler), options)
    }

    /// Handles tasks of a type in batches: up to `max` tasks, or those that arrive within `wait` of the first. The
    /// function returns one outcome per task, in order; if it returns more or fewer, all of them are retried. The
    /// concurrency of the worker and of the kind also limits a batch. A timeout counts from when the batch
    /// is complete.
    pub fn on_batch<T, F, Fut, R>(mut self, max: usize, wait: Duration, handler: F, options: Options) -> Self
    where
        T: TaskType,
        F: Fn(Vec<(Ctx<S>, T)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
        R: IntoOutcome + Send + 'static,
    {
        if options.exclusive.is_some() {
            let advice = "A task of a batch may end before the others, but its key is not free before all \
                          have ended: handle its tasks one by one";
            let what = format!("`{}`, batches that are exclusive by key", T::KIND);
            self.refused.get_or_insert(refused(what, advice));
        }
        self.add::<T>(handlers::batch(max, wait, handler), options)
    }

    /// Handles all tasks without a handler of their own: records of other programs, and unknown kinds. Without it they
    /// are dead-lettered.
    pub fn otherwise<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Ctx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.otherwise = Some((handlers::untyped(handler), Options::new()));
        self
    }

    fn add<T: TaskType>(mut self, handler: Handler<S>, options: Options) -> Self {
        if self.kinds.insert(T::KIND.to_owned(), (handler, options)).is_some() {
            let what = format!("two handlers for `{}`", T::KIND);
            self.refused.get_or_insert(refused(what, "Each kind of task needs exactly one handler"));
        }
        self
    }

    /// Takes tasks from another queue as well. Handlers serve all queues of the worker; [`Ctx::queue`] returns the one
    /// that a task came from. While there are fewer tasks than slots, every queue gets as many as it has tasks;
    /// otherwise slots are divided by the [`Share`] of each.
    ///
    /// Leases, delays and limits of attempts are per queue, and so are [key locks](super#one-at-a-time-per-key). The
    /// worker takes ownership of each queue. If one of them fails, because its log or its store has failed permanently,
    /// the worker stops with that error: otherwise its tasks would wait unnoticed.
    ///
    /// ```
    /// use kafkaq::{Queue, worker::{Ctx, Share, Worker}};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kafkaq::Result<()> {
    /// # let (logins, mails, reports) = (Queue::builder("logins"), Queue::builder("mails"), Queue::builder("reports"));
    /// # let (logins, mails, reports) = (logins.build().await?, mails.build().await?, reports.build().await?);
    /// let worker = Worker::builder(mails) // three of four places, ...
    ///     .share(Share::weight(3))
    ///     .queue(reports, Share::weight(1)) // ... one of four, ...
    ///     .queue(logins, Share::priority(1)) // ... and before both of them
    ///     .otherwise(async |ctx: Ctx| println!("{} of {}", ctx.id(), ctx.queue()));
    /// # worker.start()?.stop_now();
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue(mut self, queue: Queue, share: Share) -> Self {
        self.queues.push((queue, share));
        self
    }

    /// The share of the queue that was passed to [`Worker::builder`](super::Worker::builder). Default:
    /// `Share::weight(1)`.
    pub fn share(mut self, share: Share) -> Self {
        if let Some((_, first)) = self.queues.first_mut() {
            *first = share;
        }
        self
    }

    /// How many tasks are executed concurrently, of all queues. Default: 64.
    pub fn concurrency(mut self, n: usize) -> Self {
        self.settings.concurrency = n;
        self
    }

    /// How many tasks are started per second, of all kinds and queues, evenly spaced. Excess tasks stay in their
    /// queues, where other workers can take them. Default: no limit.
    pub fn rate(mut self, per_second: f64) -> Self {
        self.settings.per_second = Some(per_second);
        self
    }

    /// When a failed task is retried. Default: [`Backoff::default`].
    pub fn retry(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How long a handler may run, from its start. Default: no limit, since its lease is renewed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long a handler may continue after it was told to end, because of its timeout, a cancelled task or a lost
    /// lease. Then it is dropped at its next await. Default: 5 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// How long running handlers may continue when the worker stops. Then they are dropped and their tasks given back,
    /// which doesn't count as a failure. Default: 30 s.
    pub fn shutdown_limit(mut self, limit: Duration) -> Self {
        self.settings.shutdown_limit = limit;
        self
    }

    /// Whether to free the slot of a handler that can't be stopped because it blocks its thread. The thread stays
    /// blocked. Default: `false`; the slot is taken until the handler returns.
    pub fn free_stuck_slots(mut self, free: bool) -> Self {
        self.settings.free_stuck_slots = free;
        self
    }

    /// After how long a running handler is logged, with its kind, task and attempt; this is repeated each time the
    /// duration has doubled. The handler continues; use [`timeout`](WorkerBuilder::timeout) to end it. Default: ten
    /// [leases](crate::QueueBuilder::lease_duration) of its queue, that is ten minutes.
    pub fn warn_after(mut self, warn_after: Duration) -> Self {
        self.settings.warn_after = Some(warn_after);
        self
    }

    /// How many threads handlers run on. Default: the number of processors.
    ///
    /// They belong to the worker, so that a handler that blocks all of them doesn't keep the queue from renewing its
    /// lease. What a handler spawns runs on them too, and ends with the worker: create connection pools before it
    /// starts. On a current-thread runtime, as in tests, there are none, and handlers run where the worker does.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Returns a control that pauses and resumes kinds of task while the worker runs. For callers of
    /// [`run`](WorkerBuilder::run).
    #[must_use]
    pub fn control(&self) -> WorkerControl {
        self.control.clone()
    }

    /// Called for each execution that has ended, in addition to the report.
    #[cfg(feature = "testing")]
    pub(crate) fn observer(mut self, observer: super::report::Observer) -> Self {
        self.settings.observer = Some(observer);
        self
    }

    /// Starts the worker in the background. Requires a tokio runtime, preferably the one that the queue was built on.
    ///
    /// Leases are renewed there. If other code may block all threads of that runtime for as long as a lease, build the
    /// queue and start the worker on a runtime of their own.
    ///
    /// # Errors
    /// `Invalid` names the invalid setting; `Unavailable` if the system can't start threads.
    pub fn start(mut self) -> Result<WorkerHandle> {
        self.check()?;
        // If several get their first task at the same time, the higher priority comes first.
        self.queues.sort_by_key(|(_, share)| share.by_priority());
        let kinds = self.kinds();
        run::start(self.queues, kinds, self.settings, self.threads, self.control)
    }

    /// Runs the worker until the process receives SIGINT or SIGTERM (on other systems than Unix: Ctrl-C). A second
    /// signal stops it at once. Its queues are shut down with it.
    ///
    /// *Cancel-safety:* if the future is dropped, the worker stops in the background, as on a signal.
    ///
    /// # Errors
    /// The same as for [`start`](WorkerBuilder::start), and the error that has stopped a queue permanently.
    pub async fn run(self) -> Result<WorkerReport> {
        let running = self.start()?;
        signals::obey(running).await
    }

    fn check(&self) -> Result<()> {
        if let Some(e) = &self.refused {
            return Err(e.clone());
        }
        self.check_queues()?;
        if self.kinds.is_empty() && self.otherwise.is_none() {
            return Err(refused("no handler", "Add one: `.on(handler)`"));
        }
        if !(1..=MAX_CONCURRENCY).contains(&self.settings.concurrency) {
            let what = format!("a concurrency of {}", self.settings.concurrency);
            return Err(refused(what, "A worker executes 1 to 100,000 tasks at a time"));
        }
        if self.settings.warn_after == Some(Duration::ZERO) {
            return Err(refused("a warn_after of 0", "Every handler would be logged"));
        }
        check_rate("the worker", self.settings.per_second)?;
        if self.threads == Some(0) {
            return Err(refused("0 threads", "Handlers need at least one"));
        }
        for (kind, (_, options)) in &self.kinds {
            let name = format!("`{kind}`");
            if options.concurrency == Some(0) {
                return Err(refused(name, "Its concurrency is 0, so it would never be executed"));
            }
            if let Some(what) = options.exclusive.as_ref().and_then(|by| by.check(kind)) {
                return Err(refused(
                    what,
                    "`exclusive_by` needs a function of the type that the handler takes",
                ));
            }
            check_rate(&name, options.per_second)?;
        }
        let mut names: Vec<_> = self.kinds.keys().map(String::as_str).collect();
        if self.otherwise.is_some() && !self.kinds.contains_key(OTHERWISE) {
            names.push(OTHERWISE);
        }
        self.control.know(&names)
    }

    fn check_queues(&self) -> Result<()> {
        if self.queues.len() > Set::MAX {
            return Err(refused(format!("{} queues", self.queues.len()), "A worker takes at most 64"));
        }
        let mut names = HashSet::new();
        for (queue, share) in &self.queues {
            share.check(queue.name())?;
            if !names.insert(queue.name()) {
                let what = format!("two queues named `{}`", queue.name());
                return Err(refused(what, "Queue names must be unique"));
            }
        }
        Ok(())
    }

    /// Wraps the handlers in what surrounds each of their executions.
    fn kinds(&self) -> Kinds {
        let layered = self.layers.build();
        // At most half of all slots wait for keys, over all queues.
        let places = self.settings.concurrency / self.queues.len();
        let exclusive =
            self.queues.iter().map(|(queue, _)| Arc::new(Exclusive::new(queue, places))).collect::<Arc<_>>();
        let queue = |name: &str, (handler, options): &(Handler<S>, Options)| {
            let (handler, state) = (handler.clone(), self.state.clone());
            let observe: Arc<_> = self.queues.iter().map(|(queue, _)| Observe::new(queue, name)).collect();
            let (observers, layered) = (observe.clone(), layered.clone());
            let (exclusive, by) = (exclusive.clone(), options.exclusive.clone());
            let handler = move |execution: Arc<Execution>, version| {
                let (observer, exclusive) = (&observers[execution.source], &exclusive[execution.source]);
                let ctx = Ctx::new(execution, state.clone());
                // Layers run inside the span, as the handler does. Neither starts before the task has its key.
                let execute =
                    |ctx| observer.around(ctx, |ctx| layered.around(ctx, |ctx| handler(ctx, version)));
                match &by {
                    Some(by) => exclusive.around(by, ctx, version, execute),
                    None => execute(ctx),
                }
            };
            let backoff = options.backoff.clone().unwrap_or_else(|| self.backoff.clone());
            let timeout = options.timeout.or(self.timeout);
            let switch = self.control.switch(name);
            let kind = Kind::new(name, Box::new(handler), backoff, timeout, options, observe, switch);
            KindQueue::new(kind, options.per_second)
        };
        let nobody = (handlers::untyped(|_: Ctx<S>| async {}), Options::new());
        let mut queues: Vec<_> = self.kinds.iter().map(|(name, entry)| queue(name, entry)).collect();
        queues.push(queue(OTHERWISE, self.otherwise.as_ref().unwrap_or(&nobody)));
        Kinds {
            named: self.kinds.keys().cloned().zip(0..).collect(),
            otherwise: queues.len() - 1,
            queues,
            has_otherwise: self.otherwise.is_some(),
        }
    }
}

fn check_rate(of: &str, per_second: Option<f64>) -> Result<()> {
    match per_second {
        Some(rate) if !RATES.contains(&rate) => {
            Err(refused(of, "Its rate must be 0.001 to 1,000,000 per second"))
        }
        _ => Ok(()),
    }
}

/// The error about a setting of a worker.
pub(super) fn refused(what: impl fmt::Display, advice: &'static str) -> Error {
    Error::not_applied(ErrorKind::Invalid, "start a worker").on(what).with_advice(advice)
}

impl<S> fmt::Debug for WorkerBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("queues", &self.queues)
            .field("kinds", &self.kinds.keys())
            .field("concurrency", &self.settings.concurrency)
            .finish_non_exhaustive()
    }
}
