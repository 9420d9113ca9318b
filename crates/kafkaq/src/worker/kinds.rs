//! The kinds of task that a worker knows, and how many of each it executes.

use super::{Backoff, Options, context::Execution, handlers::Executing};
use crate::{Headers, sync::lock};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

type Execute = Box<dyn Fn(Arc<Execution>, u16) -> Executing + Send + Sync>;

pub(super) struct Kind {
    pub(super) name: String,
    pub(super) execute: Execute,
    pub(super) backoff: Backoff,
    pub(super) timeout: Option<Duration>,
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
    ) -> Self {
        Kind {
            name: name.to_owned(),
            execute,
            backoff,
            timeout,
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
        load.next = self.spacing.map(|spacing| load.next.map_or(now, |next| next.max(now)) + spacing);
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
    pub(super) otherwise: Option<Arc<Kind>>,
}

impl Kinds {
    /// Who executes a task, and the version of its payload.
    ///
    /// # Errors
    /// Why nobody does, for the dead letter.
    pub(super) fn of(&self, headers: &Headers) -> Result<(Arc<Kind>, u16), String> {
        let otherwise = |why: String| self.otherwise.clone().map(|kind| (kind, 1)).ok_or(why);
        match super::headers::kind(headers) {
            None => otherwise("the task has no kind, and the worker no handler for such".into()),
            Some((name, version)) => match (self.named.get(name), version) {
                (Some(kind), Ok(version)) => Ok((kind.clone(), version)),
                (Some(_), Err(version)) => Err(format!("`{version}` is not the version of a `{name}`")),
                (None, _) => otherwise(format!("the worker has no handler for `{name}`")),
            },
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.named.values().chain(&self.otherwise)
    }
}
