//! A place for one session: opened when it is needed, and again after it was lost.
//!
//! ```text
//!  Down ──connect──> Up ──timeout, lost──> Down        close ──> Closed, for ever
//! ```
//! A call makes at most one attempt to connect. Calls that wait meanwhile share its outcome, and failed attempts
//! are spaced by a backoff that all calls share, so any number of callers means one attempt at a time.

use crate::{
    builder::Settings,
    failure::{self, ConnectError, Op},
    session::{Cut, Item, Session},
};
use kafkaq_core::{ErrorKind, Result};
use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout_at};
use zookeeper_async::ZooKeeper;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

pub(crate) struct Link {
    settings: Arc<Settings>,
    /// Which of the store's links it is. The first looks after old nodes.
    number: usize,
    calls: AtomicUsize,
    state: Mutex<State>,
    /// Held while connecting.
    dial: tokio::sync::Mutex<Dial>,
}

enum State {
    Down,
    Up(Arc<Session>),
    Closed,
}

/// When an attempt to connect failed, and by what; `None`: by the time it took.
struct Failure {
    at: Instant,
    why: Option<ConnectError>,
}

#[derive(Default)]
struct Dial {
    /// Of all times.
    attempts: usize,
    failures: u32,
    last_failure: Option<Failure>,
}

impl Dial {
    /// No attempt before this.
    fn not_before(&self) -> Option<Instant> {
        let last = self.last_failure.as_ref()?;
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        Some(last.at + backoff.min(LAST_BACKOFF))
    }
}

impl Link {
    pub(crate) fn new(settings: Arc<Settings>, number: usize) -> Self {
        Link {
            settings,
            number,
            calls: AtomicUsize::new(0),
            state: Mutex::new(State::Down),
            dial: tokio::sync::Mutex::default(),
        }
    }

    /// One call more, until this is dropped: also when the call's future is.
    pub(crate) fn count(&self) -> Counted<'_> {
        self.calls.fetch_add(1, Relaxed);
        Counted(&self.calls)
    }

    /// How many calls it has under way.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    /// One outcome for each of what is asked, in the same order, within the request timeout.
    pub(crate) async fn each<Q, A, W, F>(&self, op: Op, asks: Vec<Q>, work: W) -> Vec<Result<A>>
    where
        Q: Send + Sync + 'static,
        A: Send + 'static,
        W: Fn(Arc<ZooKeeper>, Arc<Item<Q>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<A>> + Send,
    {
        let _counted = self.count();
        let started = Instant::now();
        let deadline = started + self.settings.request_timeout;
        let session = match self.session(op, started, deadline).await {
            Ok(session) => session,
            Err(e) => return asks.iter().map(|_| Err(e.clone())).collect(),
        };
        let items: Vec<_> = asks.into_iter().map(Item::new).collect();
        let (outcomes, cut) = session.each(deadline, &items, work).await;
        let outcomes: Vec<Result<A>> = outcomes
            .into_iter()
            .zip(&items)
            .map(|(outcome, item)| outcome.unwrap_or_else(|| Err(self.unanswered(op, cut, item.is_sent()))))
            .collect();
        // Nobody can tell a slow server from one that has vanished behind an open connection.
        let broken = |outcome: &Result<A>| {
            outcome.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout))
        };
        if cut.is_some() || outcomes.iter().any(broken) {
            self.leave(&session);
        }
        outcomes
    }

    fn unanswered(&self, op: Op, cut: Option<Cut>, sent: bool) -> kafkaq_core::Error {
        let address = self.settings.address();
        match cut {
            Some(Cut::Late) => failure::timed_out(op, &address, self.settings.request_timeout, sent),
            Some(Cut::Lost) | None => failure::lost(op, &address, sent),
        }
    }

    /// Calls that are under way still get their answers, or their timeouts.
    pub(crate) async fn close(&self) {
        let before = std::mem::replace(&mut *lock(&self.state), State::Closed);
        if let State::Up(session) = before {
            session.close().await;
        }
    }

    fn up(&self, op: Op) -> Result<Option<Arc<Session>>> {
        match &*lock(&self.state) {
            State::Up(session) if !session.is_lost() => Ok(Some(session.clone())),
            State::Up(_) | State::Down => Ok(None),
            State::Closed => Err(failure::closed(op)),
        }
    }

    async fn session(&self, op: Op, started: Instant, deadline: Instant) -> Result<Arc<Session>> {
        if let Some(session) = self.up(op)? {
            return Ok(session);
        }
        let address = self.settings.address();
        let failed = |why| failure::not_connected(op, &address, why);
        let late = |_elapsed| failed(None);
        let mut dial = timeout_at(deadline, self.dial.lock()).await.map_err(late)?;
        if let Some(session) = self.up(op)? {
            return Ok(session);
        }
        if let Some(last) = dial.last_failure.as_ref().filter(|last| last.at >= started) {
            return Err(failed(last.why.clone()));
        }
        if let Some(not_before) = dial.not_before() {
            timeout_at(deadline, sleep_until(not_before)).await.map_err(late)?;
        }
        let first = self.number.wrapping_add(dial.attempts);
        dial.attempts = dial.attempts.wrapping_add(1);
        let opening = Session::open(self.settings.clone(), first, self.number == 0);
        let why = match timeout_at(deadline, opening).await {
            Ok(Ok(session)) => {
                *dial = Dial { attempts: dial.attempts, ..Dial::default() };
                return self.put_up(op, session);
            }
            Ok(Err(why)) => Some(why),
            Err(_elapsed) => None,
        };
        dial.failures = dial.failures.saturating_add(1);
        dial.last_failure = Some(Failure { at: Instant::now(), why: why.clone() });
        Err(failed(why))
    }

    /// Unless it was closed meanwhile.
    fn put_up(&self, op: Op, session: Session) -> Result<Arc<Session>> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Closed) {
            return Err(failure::closed(op));
        }
        tracing::debug!(address = self.settings.address(), "connected to ZooKeeper");
        let session = Arc::new(session);
        *state = State::Up(session.clone());
        Ok(session)
    }

    /// A late failure of an old session spares its successor.
    fn leave(&self, session: &Arc<Session>) {
        let mut state = lock(&self.state);
        if matches!(&*state, State::Up(up) if Arc::ptr_eq(up, session)) {
            tracing::warn!(address = self.settings.address(), "leaving the session with ZooKeeper");
            *state = State::Down;
        }
    }
}

pub(crate) struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What a panic left behind is still whole: every change is a single assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
