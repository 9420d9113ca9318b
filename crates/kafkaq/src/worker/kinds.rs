//! The kinds of task that a worker knows, and how many of each it executes.

use super::{Backoff, Options, context::Execution, handlers::Executing, observe::Observe};
use crate::{Headers, sync::lock};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// How far behind its rate a kind may be and still come up with it.
const LATE: Duration = Duration::from_millis(100);

type Execute = Box<dyn Fn(Arc<Execution>, u16) -> Executing + Send + Sync>;

pub(super) struct Kind {
    pub(super) name: String,
    pub(super) execute: Execute,
    pub(super) backoff: Backoff,
    pub(super) timeout: Option<Duration>,
    pub(super) observe: Observe,
    concurrency: usize,
    /// Between two starts.
    spacing: Option<Duration>,
    load: Mutex<Load>,
}

#[derive(Default)]
struct Load {
    running: usize,
    /// When the next one may start.
    next: Option<Instant>,
    /// Executions that wait for their turn, oldest first.
    waiting: VecDeque<oneshot::Sender<()>>,
}

impl Kind {
    pub(super) fn new(
        name: &str,
        execute: Execute,
        backoff: Backoff,
        timeout: Option<Duration>,
        options: &Options,
        observe: Observe,
    ) -> Self {
        Kind {
            name: name.to_owned(),
            execute,
            backoff,
            timeout,
            observe,
            concurrency: options.concurrency.unwrap_or(usize::MAX),
            spacing: options.per_second.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            load: Mutex::default(),
        }
    }

    /// Lets an execution begin, or has it wait for its turn.
    pub(super) fn begin(&self, now: Instant) -> Result<(), oneshot::Receiver<()>> {
        let mut load = lock(&self.load);
        if load.waiting.is_empty() && self.has_room(&mut load, now) {
            return Ok(());
        }
        let (turn, told) = oneshot::channel();
        load.waiting.push_back(turn);
        Err(told)
    }

    fn has_room(&self, load: &mut Load, now: Instant) -> bool {
        if load.running >= self.concurrency || load.next.is_some_and(|next| next > now) {
            return false;
        }
        load.running += 1;
        // A timer that is late is made up for.
        let late = now.checked_sub(LATE).unwrap_or(now);
        load.next = self.spacing.map(|spacing| load.next.map_or(now, |next| next.max(late)) + spacing);
        true
    }

    /// An execution has ended.
    pub(super) fn end(&self) {
        lock(&self.load).running -= 1;
    }

    /// Lets those begin whose turn it is, at most `room`. Returns how many, and when to look again at the latest.
    pub(super) fn advance(&self, room: usize, now: Instant) -> (usize, Option<Instant>) {
        let mut load = lock(&self.load);
        // Whoever has lost its lease waits no more.
        load.waiting.retain(|turn| !turn.is_closed());
        let mut begun = 0;
        while begun < room && !load.waiting.is_empty() && self.has_room(&mut load, now) {
            match load.waiting.pop_front().map(|turn| turn.send(())) {
                Some(Ok(())) => begun += 1,
                _ => load.running -= 1,
            }
        }
        let next = load.next.filter(|next| *next > now && !load.waiting.is_empty());
        (begun, next)
    }

    pub(super) fn waiting(&self) -> usize {
        lock(&self.load).waiting.iter().filter(|turn| !turn.is_closed()).count()
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Kinds {
    pub(super) named: HashMap<String, Arc<Kind>>,
    /// Of those that no other is for, with a handler or without.
    pub(super) otherwise: Arc<Kind>,
    pub(super) has_otherwise: bool,
}

impl Kinds {
    /// The kind of a task, and the version of its payload, or why nobody executes it.
    pub(super) fn of(&self, headers: &Headers) -> (Arc<Kind>, Result<u16, String>) {
        let otherwise =
            |why: String| (self.otherwise.clone(), if self.has_otherwise { Ok(1) } else { Err(why) });
        match super::headers::kind(headers) {
            None => otherwise("the task has no kind, and the worker no handler for such".into()),
            Some((name, version)) => match self.named.get(name) {
                None => otherwise(format!("the worker has no handler for `{name}`")),
                Some(kind) => {
                    let unreadable = |version| format!("`{version}` is not the version of a `{name}`");
                    (kind.clone(), version.map_err(unreadable))
                }
            },
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.named.values().chain([&self.otherwise])
    }
}
