//! A shared connection to a server for the calls of a store: opened on demand, and reopened when it breaks.
//!
//! ```text
//!  Down ──connect──> Up ──timeout, broken──> Down        close ──> Closed, forever
//! ```
//! Calls that wait for a connection share one attempt and its outcome. Failed attempts are spaced by a backoff, so any
//! number of callers means one attempt at a time.
//!
//! A server may close an idle connection, and a firewall may silently forget it. So a connection that was idle for a
//! while is pinged before it carries a request. And a request that certainly had no effect when its connection broke is
//! sent once more, over a new connection.
//!
//! For kafkaq's own stores. This module promises no stability.

mod call;
mod settings;

pub use call::{Call, unreachable};
pub use settings::{MAX_PREFIX, check_prefix, check_timeout, is_address, is_host, older_than};

use crate::{Effect, Error, Operation, Result, Retry, lock};
use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

/// A connection that was silent for this long is pinged before it is used.
pub const IDLE: Duration = Duration::from_secs(10);

/// The ping may take this fraction of the call's time, so that enough is left for a new connection.
const PING_SHARE: u32 = 4;

/// How long an impatient call waits for the attempt that it starts: a server that has recovered accepts sooner.
const MOMENT: Duration = Duration::from_millis(100);

/// An attempt that is overdue by this much never ends: nobody drives its runtime or polls its future.
const OVERDUE: Duration = Duration::from_secs(1);

/// The maximum number of calls in flight per connection. More wait.
const MAX_CALLS: u32 = 1 << 16;

/// How to connect to a server.
pub trait Connect: Send + Sync + 'static {
    /// The name of the operation in errors of connecting.
    const OPERATION: Operation;

    /// A handle that is cheap to clone.
    type Connection: Clone + Send + Sync + 'static;

    /// Opens a connection. Never called concurrently.
    ///
    /// # Errors
    /// `NotApplied`, with advice. They are shared by all callers that wait.
    fn connect(&self, call: Call) -> impl Future<Output = Result<Self::Connection>> + Send;

    /// Checks whether the connection is still alive.
    ///
    /// # Errors
    /// If it isn't. They are not reported.
    fn ping(&self, connection: &Self::Connection, call: Call) -> impl Future<Output = Result<()>> + Send;

    /// Whether it is known to be lost.
    fn is_lost(&self, _connection: &Self::Connection) -> bool {
        false
    }

    /// The name of the server in errors and log messages: `Redis at 127.0.0.1:6379`. Without a connection, of all
    /// servers that are tried.
    fn server(&self, connection: Option<&Self::Connection>) -> String;
}

/// A connection shared by calls.
pub struct SharedConnection<C: Connect> {
    endpoint: Arc<Endpoint<C>>,
    /// While the server is known to be down, calls fail at once, and an attempt to connect is made in the background.
    impatient: bool,
    calls: Arc<Semaphore>,
    /// The latest deadline of all calls so far.
    over_at: Mutex<Option<Instant>>,
}

/// The connection to a server, or how to get one.
struct Endpoint<C: Connect> {
    connect: C,
    state: Mutex<State<C::Connection>>,
    /// The server is known to be down.
    away: AtomicBool,
    dialing: Mutex<Dialing>,
}

#[derive(Clone, Default)]
struct Dialing {
    /// Held while connecting.
    dial: Arc<tokio::sync::Mutex<Dial>>,
    /// When the attempt under way counts as abandoned. Set by whoever takes `dial`.
    overdue: Option<Instant>,
}

enum State<T> {
    Down,
    Up(Up<T>),
    Closed,
}

/// A connection and its history.
#[derive(Clone, Debug)]
pub struct Up<T> {
    connection: T,
    made: Instant,
    last_answer: Arc<Mutex<Instant>>,
}

impl<T> Up<T> {
    fn new(connection: T) -> Self {
        let now = Instant::now();
        Up { connection, made: now, last_answer: Arc::new(Mutex::new(now)) }
    }

    /// Returns the client library's connection.
    pub fn connection(&self) -> &T {
        &self.connection
    }

    /// Records that the connection has proven to be alive.
    pub fn answered(&self) {
        *lock(&self.last_answer) = Instant::now();
    }

    fn is_idle(&self) -> bool {
        lock(&self.last_answer).elapsed() >= IDLE
    }

    /// Identifies the connection, so that a late failure of an old one can't tear down its successor.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.last_answer, &other.last_answer)
    }
}

#[derive(Default)]
struct Dial {
    failures: u32,
    last_failure: Option<(Instant, Error)>,
}

impl Dial {
    /// Returns the time before which no attempt is made.
    fn not_before(&self) -> Option<Instant> {
        let (at, _) = self.last_failure.as_ref()?;
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        Some(*at + backoff.min(LAST_BACKOFF))
    }

    fn is_too_soon(&self) -> bool {
        self.not_before().is_some_and(|moment| moment > Instant::now())
    }
}

/// The outcome of a request, and whether its connection is kept.
#[derive(Debug)]
pub enum Reply<T> {
    /// The connection is healthy.
    Keep(Result<T>),
    /// Another connection, perhaps to another server, is preferable.
    Leave(Result<T>),
}

impl<C: Connect> SharedConnection<C> {
    /// Creates a connection that is opened by the first call.
    pub fn new(connect: C) -> Self {
        let endpoint = Endpoint {
            connect,
            state: Mutex::new(State::Down),
            away: AtomicBool::new(false),
            dialing: Mutex::default(),
        };
        let calls = Arc::new(Semaphore::new(MAX_CALLS as usize));
        SharedConnection { endpoint: Arc::new(endpoint), impatient: false, calls, over_at: Mutex::default() }
    }

    /// Makes calls fail at once while the server is known to be down: for callers that can use other servers and must
    /// not wait for this one. From time to time a call starts an attempt to connect and waits for it briefly; the
    /// attempt continues in the background.
    #[must_use]
    pub fn impatient(self) -> Self {
        SharedConnection { impatient: true, ..self }
    }

    /// Returns the connector.
    pub fn connect(&self) -> &C {
        &self.endpoint.connect
    }

    /// Sends a request and returns its response, within the call's time. A request that certainly had no effect when
    /// its connection broke is sent once more, over a new one. Dropping the future drops that of the request.
    ///
    /// # Errors
    /// Those of the request, of connecting, of a timeout, and `Closed`.
    pub async fn send<T, F>(&self, call: Call, mut request: impl FnMut(C::Connection) -> F) -> Result<T>
    where
        F: Future<Output = Reply<T>>,
    {
        let _counted = self.begin(call)?;
        let up = self.up(call).await?;
        match self.try_send(call, &up, &mut request).await {
            Reply::Leave(Err(error)) if self.is_worth_another(call, &up, &error) => {}
            Reply::Keep(outcome) | Reply::Leave(outcome) => return outcome,
        }
        let up = self.up(call).await?;
        let (Reply::Keep(outcome) | Reply::Leave(outcome)) = self.try_send(call, &up, &mut request).await;
        outcome
    }

    /// Counts a call as in flight until the permit is dropped: [`SharedConnection::close`] waits for it.
    ///
    /// # Errors
    /// `Closed`.
    pub fn begin(&self, call: Call) -> Result<Option<OwnedSemaphorePermit>> {
        self.current(call)?;
        {
            let mut over_at = lock(&self.over_at);
            *over_at = (*over_at).max(Some(call.deadline()));
        }
        // Permits run out only with an absurd number of callers; the excess is not waited for.
        Ok(self.calls.clone().try_acquire_owned().ok())
    }

    /// How many calls are in flight.
    pub fn calls(&self) -> usize {
        MAX_CALLS as usize - self.calls.available_permits()
    }

    /// Whether a call that failed with this error over this connection can be sent again over a new one.
    pub fn is_worth_another(&self, call: Call, up: &Up<C::Connection>, error: &Error) -> bool {
        let had_no_effect = (error.effect(), error.retry()) == (Effect::NotApplied, Retry::Yes);
        // A connection that was opened for this call reflects the server, not an idle period.
        had_no_effect && up.made < call.started && Instant::now() < call.deadline()
    }

    async fn try_send<T, F>(
        &self,
        call: Call,
        up: &Up<C::Connection>,
        request: &mut impl FnMut(C::Connection) -> F,
    ) -> Reply<T>
    where
        F: Future<Output = Reply<T>>,
    {
        if Instant::now() >= call.deadline() {
            return Reply::Keep(Err(call.not_sent(self.connect().server(Some(&up.connection)))));
        }
        let reply = match timeout_at(call.deadline(), request(up.connection.clone())).await {
            Ok(reply) => reply,
            Err(_elapsed) => {
                self.endpoint.away.store(true, Relaxed);
                // A slow server can't be told from one that has vanished behind an open connection.
                Reply::Leave(Err(call.timed_out(self.connect().server(Some(&up.connection)))))
            }
        };
        match &reply {
            Reply::Keep(_) => up.answered(),
            Reply::Leave(Err(error)) => self.leave(up, error),
            Reply::Leave(Ok(_)) => self.leave(up, "its response calls for another one"),
        }
        reply
    }

    /// Returns the connection, which is opened if there is none.
    ///
    /// # Errors
    /// Those of connecting, and `Closed`.
    pub async fn up(&self, call: Call) -> Result<Up<C::Connection>> {
        let Some(up) = self.current(call)? else { return self.make(call).await };
        if !up.is_idle() {
            return Ok(up);
        }
        let limit = call.deadline().saturating_duration_since(Instant::now()) / PING_SHARE;
        match timeout(limit, self.connect().ping(&up.connection, call)).await {
            Ok(Ok(())) => {
                up.answered();
                return Ok(up);
            }
            Ok(Err(error)) => self.leave(&up, error),
            Err(_elapsed) => self.leave(&up, "it was idle, and a ping got no response"),
        }
        self.make(call).await
    }

    /// Drops a connection, unless a newer one has replaced it.
    pub fn leave(&self, up: &Up<C::Connection>, why: impl fmt::Display) {
        let mut state = lock(&self.endpoint.state);
        if matches!(&*state, State::Up(current) if current.is_same(up)) {
            let server = self.connect().server(Some(&up.connection));
            tracing::debug!(target: "kafkaq", "dropping the connection to {server}: {why}");
            *state = State::Down;
        }
    }

    /// Closes the connection. When it returns, calls in flight have completed or timed out; a call that nobody polls is
    /// not waited for beyond its deadline. Returns the last connection.
    pub async fn close(&self) -> Option<C::Connection> {
        let before = std::mem::replace(&mut *lock(&self.endpoint.state), State::Closed);
        let over_at = *lock(&self.over_at);
        if let Some(over_at) = over_at {
            let _all = timeout_at(over_at + OVERDUE, self.calls.acquire_many(MAX_CALLS)).await;
        }
        match before {
            State::Up(up) => Some(up.connection),
            State::Down | State::Closed => None,
        }
    }

    /// Whether there is a connection, as far as is known.
    pub fn is_up(&self) -> bool {
        matches!(&*lock(&self.endpoint.state), State::Up(up) if !self.connect().is_lost(&up.connection))
    }

    /// Connects in the background, unless an attempt is in progress or it is too soon for one.
    pub fn wake(&self, call: Call) {
        if let Ok(dial) = self.endpoint.try_dial(call)
            && !dial.is_too_soon()
            && self.current(call).is_ok_and(|up| up.is_none())
        {
            self.endpoint.clone().start_attempt(call, dial);
        }
    }

    fn current(&self, call: Call) -> Result<Option<Up<C::Connection>>> {
        match &*lock(&self.endpoint.state) {
            State::Up(up) if !self.connect().is_lost(&up.connection) => Ok(Some(up.clone())),
            State::Up(_) | State::Down => Ok(None),
            State::Closed => Err(call.operation.closed()),
        }
    }

    async fn make(&self, call: Call) -> Result<Up<C::Connection>> {
        let unreachable = || unreachable(C::OPERATION, self.connect().server(None), None);
        let hurry = self.impatient && self.endpoint.away.load(Relaxed);
        let Some(dial) = self.endpoint.dial(call, hurry).await else { return Err(unreachable()) };
        if let Some(up) = self.current(call)? {
            return Ok(up);
        }
        let last = dial.last_failure.as_ref();
        if hurry {
            let error = last.map_or_else(unreachable, |(_, error)| error.clone());
            if dial.is_too_soon() {
                return Err(error);
            }
            let until = call.deadline().min(Instant::now() + MOMENT);
            return match timeout_at(until, self.endpoint.clone().start_attempt(call, dial)).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(error),
            };
        }
        if let Some((_, error)) = last.filter(|(at, _)| *at > call.started) {
            return Err(error.clone());
        }
        if let Some(not_before) = dial.not_before() {
            timeout_at(call.deadline(), sleep_until(not_before)).await.map_err(|_elapsed| unreachable())?;
        }
        self.endpoint.attempt(call, dial).await
    }
}

impl<C: Connect> Endpoint<C> {
    /// Waits until no other attempt is in progress. In a hurry, it returns `None` instead of waiting.
    async fn dial(&self, call: Call, hurry: bool) -> Option<OwnedMutexGuard<Dial>> {
        while Instant::now() < call.deadline() {
            let Dialing { dial, overdue } = match self.try_dial(call) {
                Ok(dial) => return Some(dial),
                Err(_) if hurry => return None,
                Err(under_way) => under_way,
            };
            let until = overdue.map_or(call.deadline(), |overdue| overdue.min(call.deadline()));
            if let Ok(dial) = timeout_at(until, dial.lock_owned()).await {
                self.note(&dial, call);
                return Some(dial);
            }
        }
        None
    }

    /// Returns the right to connect, or the attempt in progress. An overdue attempt is abandoned.
    fn try_dial(&self, call: Call) -> Result<OwnedMutexGuard<Dial>, Dialing> {
        let mut dialing = lock(&self.dialing);
        let mut dial = dialing.dial.clone().try_lock_owned();
        if dial.is_err() && dialing.overdue.is_some_and(|overdue| overdue <= Instant::now()) {
            *dialing = Dialing::default();
            dial = dialing.dial.clone().try_lock_owned();
        }
        let dial = dial.map_err(|_| dialing.clone())?;
        dialing.overdue = Some(call.deadline() + OVERDUE);
        Ok(dial)
    }

    /// Starts an attempt in the background, with the whole time limit of a call.
    fn start_attempt(
        self: Arc<Self>,
        call: Call,
        dial: OwnedMutexGuard<Dial>,
    ) -> JoinHandle<Result<Up<C::Connection>>> {
        let call = Call::new(call.operation, call.limit);
        self.note(&dial, call);
        tokio::spawn(async move { self.attempt(call, dial).await })
    }

    async fn attempt(&self, call: Call, mut dial: OwnedMutexGuard<Dial>) -> Result<Up<C::Connection>> {
        let unreachable = |_elapsed| Err(unreachable(C::OPERATION, self.connect.server(None), None));
        match timeout_at(call.deadline(), self.connect.connect(call)).await.unwrap_or_else(unreachable) {
            Ok(connection) => {
                self.away.store(false, Relaxed);
                *dial = Dial::default();
                self.put_up(call, Up::new(connection))
            }
            Err(error) => {
                self.away.store(true, Relaxed);
                dial.failures = dial.failures.saturating_add(1);
                dial.last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Notes when the attempt of this call is overdue, unless others have abandoned it.
    fn note(&self, dial: &OwnedMutexGuard<Dial>, call: Call) {
        let mut dialing = lock(&self.dialing);
        if Arc::ptr_eq(OwnedMutexGuard::mutex(dial), &dialing.dial) {
            dialing.overdue = Some(call.deadline() + OVERDUE);
        }
    }

    /// Publishes the connection, unless the handle was closed meanwhile.
    fn put_up(&self, call: Call, up: Up<C::Connection>) -> Result<Up<C::Connection>> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Closed) {
            return Err(call.operation.closed());
        }
        tracing::debug!(target: "kafkaq", "connected to {}", self.connect.server(Some(&up.connection)));
        *state = State::Up(up.clone());
        Ok(up)
    }
}

impl<C: Connect> fmt::Debug for SharedConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedConnection").field(&self.connect().server(None)).finish()
    }
}

#[cfg(test)]
mod tests;
