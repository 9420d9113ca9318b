//! The kinds of task that a worker knows, and their limits.

use super::{
    Backoff, Options, active::Active, context::Execution, control::Switch, handlers::Executing,
    observe::Observe, pace::Pace,
};
use crate::Headers;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::Instant;

type Execute = Box<dyn Fn(Arc<Execution>, u16) -> Executing + Send + Sync>;

pub(super) struct Kind {
    pub(super) name: String,
    pub(super) execute: Execute,
    pub(super) backoff: Backoff,
    pub(super) timeout: Option<Duration>,
    /// For each queue.
    pub(super) observe: Arc<[Observe]>,
    pub(super) switch: Arc<Switch>,
    concurrency: usize,
    running: AtomicUsize,
}

impl Kind {
    pub(super) fn new(
        name: &str,
        execute: Execute,
        backoff: Backoff,
        timeout: Option<Duration>,
        options: &Options,
        observe: Arc<[Observe]>,
        switch: Arc<Switch>,
    ) -> Self {
        Kind {
            name: name.to_owned(),
            execute,
            backoff,
            timeout,
            observe,
            switch,
            concurrency: options.concurrency.unwrap_or(usize::MAX),
            running: AtomicUsize::new(0),
        }
    }

    /// Counts an execution as running, whatever the limits are.
    pub(super) fn begin(&self) {
        self.running.fetch_add(1, SeqCst);
    }

    /// An execution has ended.
    pub(super) fn end(&self) {
        self.running.fetch_sub(1, SeqCst);
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A kind, and its executions that wait for their turn.
pub(super) struct KindQueue {
    kind: Arc<Kind>,
    pace: Pace,
    /// Oldest first.
    waiting: VecDeque<Arc<Active>>,
}

impl KindQueue {
    pub(super) fn new(kind: Kind, per_second: Option<f64>) -> Self {
        KindQueue { kind: Arc::new(kind), pace: Pace::new(per_second), waiting: VecDeque::new() }
    }

    pub(super) fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    /// Whether an execution may start at once. It then counts as running.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.waiting.is_empty() && self.has_room(now);
        if begins {
            self.start(now);
        }
        begins
    }

    /// Queues an execution until its turn.
    pub(super) fn push(&mut self, active: Arc<Active>) {
        self.waiting.push_back(active);
    }

    fn has_room(&self, now: Instant) -> bool {
        // Only the dispatcher increments it.
        self.kind.running.load(SeqCst) < self.kind.concurrency && self.pace.allows(now) > 0
    }

    fn start(&mut self, now: Instant) {
        self.kind.begin();
        self.pace.started(1, now);
    }

    /// Returns the next execution whose turn it is. It then counts as running.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Arc<Active>> {
        while self.has_room(now)
            && let Some(active) = self.waiting.pop_front()
        {
            if !active.is_over() {
                self.start(now);
                return Some(active);
            }
        }
        None
    }

    /// Keeps the waiting executions for which the predicate holds.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Arc<Active>) -> bool) {
        self.waiting.retain(keep);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When to check again at the latest, whatever ends meanwhile.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.pace.next(now).filter(|_| !self.waiting.is_empty())
    }

    /// Removes and returns all that wait.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Arc<Active>> {
        self.waiting.drain(..)
    }
}

/// The kinds and their queues.
pub(super) struct Kinds {
    pub(super) queues: Vec<KindQueue>,
    /// The index of each kind's queue.
    pub(super) named: HashMap<String, usize>,
    /// The queue of all other tasks, with or without a handler.
    pub(super) otherwise: usize,
    pub(super) has_otherwise: bool,
}

impl Kinds {
    /// The queue of a task, and the version of its payload, or why it can't be executed.
    pub(super) fn of(&mut self, headers: &Headers) -> (&mut KindQueue, Result<u16, String>) {
        let has_otherwise = self.has_otherwise;
        let otherwise = |why: String| if has_otherwise { Ok(1) } else { Err(why) };
        let (queue, version) = match super::headers::kind(headers) {
            None => {
                (None, otherwise("the task has no kind, and the worker has no handler for such tasks".into()))
            }
            Some((name, version)) => match self.named.get(name) {
                None => (None, otherwise(format!("the worker has no handler for `{name}`"))),
                Some(queue) => {
                    let unreadable = |version| format!("`{version}` is not the version of a `{name}`");
                    (Some(*queue), version.map_err(unreadable))
                }
            },
        };
        (&mut self.queues[queue.unwrap_or(self.otherwise)], version)
    }
}
