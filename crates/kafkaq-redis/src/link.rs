//! One connection to the server: made when it is needed, and again after it broke.
//!
//! ```text
//!  Down ──connect──> Up ──timeout, broken, read-only──> Down        close ──> Closed, for ever
//! ```
//! A call makes at most one attempt to connect. Calls that wait meanwhile share its outcome, and failed attempts
//! are spaced by a backoff that all calls share, so any number of callers means one attempt at a time.
//!
//! A link to a node of a cluster is impatient: while its node is known to be away, one call tries to connect and all
//! others fail at once, so that what they have for other nodes needn't wait.

use crate::failure::{self, Op};
use kafkaq_core::Result;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value, aio::MultiplexedConnection};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout_at};

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

/// Requests that wait to be written. One request is a whole batch.
const SEND_QUEUE: usize = 256;
/// So that a batch is written at once, in bytes.
const WRITE_BUFFER: usize = 256 * 1024;

/// An operation with the time by which it has to be answered.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    op: Op,
    started: Instant,
    limit: Duration,
}

impl Call {
    pub(crate) fn new(op: Op, limit: Duration) -> Self {
        Call { op, started: Instant::now(), limit }
    }

    /// Another operation on the way to this one, by the same time.
    pub(crate) fn to(self, op: Op) -> Self {
        Call { op, ..self }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.limit
    }
}

pub(crate) struct Link {
    client: Client,
    address: String,
    config: AsyncConnectionConfig,
    state: Mutex<State>,
    impatient: bool,
    /// The last attempt to connect failed, or an answer didn't come in time.
    away: AtomicBool,
    /// Held while connecting.
    dial: tokio::sync::Mutex<Dial>,
}

enum State {
    Down,
    Up(Up),
    Closed,
}

#[derive(Clone)]
struct Up {
    connection: MultiplexedConnection,
    /// Which connection of this link it is, so that a late failure of an old one can't tear down its successor.
    number: u64,
}

/// When an attempt to connect failed, and by what; `None`: by the time it took.
struct Failure {
    at: Instant,
    source: Option<RedisError>,
}

#[derive(Default)]
struct Dial {
    connected: u64,
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
    pub(crate) fn new(client: Client, impatient: bool) -> Self {
        let address = client.get_connection_info().addr().to_string();
        // The limits of the redis crate don't know of the other half of the call, so ours stand around both.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(SEND_QUEUE)
            .set_write_backpressure_boundary(WRITE_BUFFER);
        Link {
            client,
            address,
            config,
            state: Mutex::new(State::Down),
            impatient,
            away: AtomicBool::new(false),
            dial: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends commands and returns one answer each; server errors are among the answers.
    ///
    /// Dropping the future, or the timeout, leaves the connection in step: the redis crate keeps its place in the
    /// queue of expected answers and throws the answer away.
    pub(crate) async fn send(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        let mut up = match self.up(call.op)? {
            Some(up) => up,
            None => self.connect(call).await?,
        };
        let sending = up.connection.send_packed_commands(commands, 0, commands.len());
        let error = match timeout_at(call.deadline(), sending).await {
            Ok(Ok(answers)) => {
                if answers.iter().any(is_readonly) {
                    self.hang_up(up.number, "the server is a replica now");
                }
                return Ok(answers);
            }
            Ok(Err(e)) => failure::broken(call.op, &self.address, e),
            // Nobody can tell a slow server from one that has vanished behind an open connection.
            Err(_) => {
                self.away.store(true, Relaxed);
                failure::timed_out(call.op, &self.address, call.limit)
            }
        };
        self.hang_up(up.number, &error);
        Err(error)
    }

    /// Calls that are under way still get their answers, or their timeouts.
    pub(crate) fn close(&self) {
        *self.state() = State::Closed;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self, op: Op) -> Result<Option<Up>> {
        match &*self.state() {
            State::Down => Ok(None),
            State::Up(up) => Ok(Some(up.clone())),
            State::Closed => Err(failure::closed(op)),
        }
    }

    async fn connect(&self, call: Call) -> Result<Up> {
        let failed = |source| failure::not_connected(call.op, &self.address, source);
        let late = |_elapsed| failed(None);
        let hurry = self.impatient && self.away.load(Relaxed);
        let mut dial = match self.dial.try_lock() {
            Ok(dial) => dial,
            Err(_) if hurry => return Err(failed(None)),
            Err(_) => timeout_at(call.deadline(), self.dial.lock()).await.map_err(late)?,
        };
        if let Some(up) = self.up(call.op)? {
            return Ok(up);
        }
        let not_before = dial.not_before().filter(|moment| *moment > Instant::now());
        let answered = |last: &&Failure| last.at >= call.started || (hurry && not_before.is_some());
        if let Some(last) = dial.last_failure.as_ref().filter(answered) {
            return Err(failed(last.source.clone()));
        }
        if let Some(not_before) = not_before {
            timeout_at(call.deadline(), sleep_until(not_before)).await.map_err(late)?;
        }
        let connecting = self.client.get_multiplexed_async_connection_with_config(&self.config);
        let source = match timeout_at(call.deadline(), connecting).await {
            Ok(Ok(connection)) => {
                let up = Up { connection, number: dial.connected };
                self.away.store(false, Relaxed);
                *dial = Dial { connected: dial.connected + 1, ..Dial::default() };
                return self.put_up(call.op, up);
            }
            Ok(Err(e)) => Some(e),
            Err(_elapsed) => None,
        };
        self.away.store(true, Relaxed);
        dial.failures = dial.failures.saturating_add(1);
        dial.last_failure = Some(Failure { at: Instant::now(), source: source.clone() });
        Err(failed(source))
    }

    /// Unless it was closed meanwhile.
    fn put_up(&self, op: Op, up: Up) -> Result<Up> {
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(failure::closed(op));
        }
        tracing::debug!(address = self.address, "connected to Redis");
        *state = State::Up(up.clone());
        Ok(up)
    }

    fn hang_up(&self, number: u64, why: impl std::fmt::Display) {
        let mut state = self.state();
        if matches!(&*state, State::Up(up) if up.number == number) {
            tracing::warn!(address = self.address, %why, "leaving the connection to Redis");
            *state = State::Down;
        }
    }
}

fn is_readonly(answer: &Value) -> bool {
    match answer {
        Value::ServerError(e) => failure::is_readonly(e),
        Value::Array(items) => items.iter().any(is_readonly),
        _ => false,
    }
}
