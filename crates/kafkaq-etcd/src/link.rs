//! One connection to one member of etcd: made when it is needed, and again, to the next member, after it failed.
//!
//! ```text
//!  Down ──connect──> Up ──timeout, broken, no leader──> Down        close ──> Closed, for ever
//! ```
//! A call makes at most one round of attempts to connect. Calls that wait meanwhile share its outcome, and failed
//! rounds are spaced by a backoff that all calls share, so any number of callers means one attempt at a time.
//!
//! The client's own balancer isn't used: it spreads requests over all members, also those that are down, and each
//! such request fails. A connection is tried with a read before it carries the first swap. So whatever fails until
//! then had certainly no effect.

use crate::failure::{self, Op};
use etcd_client::{Channel, Client, ConnectOptions, GetOptions, KvClient, LeaseClient, MaintenanceClient};
use kafkaq_core::{Error, ErrorKind, Result};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::transport::Endpoint;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_millis(500);

/// The most that one answer may take, in bytes: as many values as one request asks for, each as large as etcd
/// stores by default.
const MAX_ANSWER: usize = crate::request::MAX_OPS * 3 * 512 * 1024;

/// An operation with the time by which it has to be answered.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) op: Op,
    started: Instant,
    pub(crate) limit: Duration,
}

impl Call {
    pub(crate) fn new(op: Op, limit: Duration) -> Self {
        Call { op, started: Instant::now(), limit }
    }

    /// A part of this call that has a name of its own.
    pub(crate) fn part(self, op: Op) -> Self {
        Call { op, ..self }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.limit
    }
}

/// A member of etcd.
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) endpoint: Endpoint,
}

/// The parts of the client that are needed.
pub(crate) struct Clients {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) maintenance: MaintenanceClient,
}

pub(crate) struct Link {
    members: Box<[Member]>,
    options: ConnectOptions,
    /// Read to try a connection.
    probe: String,
    state: Mutex<State>,
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
    clients: Arc<Clients>,
    /// Which of the members.
    member: usize,
    /// Which connection of this link it is, so that a late failure of an old one can't tear down its successor.
    number: u64,
}

#[derive(Default)]
struct Dial {
    connected: u64,
    /// The member to try first.
    next: usize,
    failures: u32,
    last_failure: Option<(Instant, Error)>,
}

impl Dial {
    /// No attempt before this.
    fn not_before(&self) -> Option<Instant> {
        let (at, _) = self.last_failure.as_ref()?;
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        Some(*at + backoff.min(LAST_BACKOFF))
    }
}

impl Link {
    pub(crate) fn new(members: Box<[Member]>, options: ConnectOptions, probe: String) -> Self {
        Link { members, options, probe, state: Mutex::new(State::Down), dial: tokio::sync::Mutex::default() }
    }

    pub(crate) fn addresses(&self) -> Vec<&str> {
        self.members.iter().map(|m| m.address.as_str()).collect()
    }

    /// A key that doesn't exist and may be read.
    pub(crate) fn probe(&self) -> &str {
        &self.probe
    }

    /// Sends one request. Dropping the future, or the timeout, cancels its stream; the connection stays in step.
    pub(crate) async fn send<T, F>(&self, call: Call, request: impl FnOnce(Arc<Clients>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let up = match self.up(call.op)? {
            Some(up) => up,
            None => self.connect(call).await?,
        };
        if Instant::now() >= call.deadline() {
            return Err(failure::not_sent(call.op, call.limit));
        }
        let address = &self.members[up.member].address;
        match timeout_at(call.deadline(), request(up.clients)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => {
                let error = failure::failed(call.op, address, &e);
                if failure::is_of_connection(&e) {
                    self.hang_up(up.number, address, &error);
                }
                Err(error)
            }
            Err(_elapsed) => {
                let error = failure::timed_out(call.op, address, call.limit);
                // Nobody can tell a slow server from one that has vanished behind an open connection.
                self.hang_up(up.number, address, &error);
                Err(error)
            }
        }
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
        let late = |_elapsed| failure::not_connected(&self.addresses().join(", "));
        let mut dial = timeout_at(call.deadline(), self.dial.lock()).await.map_err(late)?;
        if let Some(up) = self.up(call.op)? {
            return Ok(up);
        }
        if let Some((_, error)) = dial.last_failure.as_ref().filter(|(at, _)| *at >= call.started) {
            return Err(error.clone());
        }
        if let Some(not_before) = dial.not_before() {
            timeout_at(call.deadline(), sleep_until(not_before)).await.map_err(late)?;
        }
        match self.try_members(call, dial.next).await {
            Ok((clients, member)) => {
                let up = Up { clients: Arc::new(clients), member, number: dial.connected };
                // If it fails, the next one may be better.
                *dial = Dial { connected: dial.connected + 1, next: member + 1, ..Dial::default() };
                self.put_up(call.op, up)
            }
            Err(error) => {
                dial.failures = dial.failures.saturating_add(1);
                dial.last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// One after the other, each with its share of the time that is left.
    async fn try_members(&self, call: Call, first: usize) -> Result<(Clients, usize)> {
        let mut last_error = None;
        for n in 0..self.members.len() {
            let place = (first + n) % self.members.len();
            let member = &self.members[place];
            let left = call.deadline().saturating_duration_since(Instant::now());
            let tries_left = u32::try_from(self.members.len() - n).unwrap_or(u32::MAX);
            let error = match timeout(left / tries_left, self.open(member)).await {
                Ok(Ok(clients)) => return Ok((clients, place)),
                Ok(Err(e)) if e.kind() == ErrorKind::Denied => return Err(e),
                Ok(Err(e)) => e,
                Err(_elapsed) => failure::not_connected(&member.address),
            };
            last_error = Some(error);
        }
        Err(last_error.unwrap_or_else(|| failure::not_connected("")))
    }

    async fn open(&self, member: &Member) -> Result<Clients> {
        let address = &member.address;
        let failed = |e| failure::failed(Op::CONNECT, address, &e);
        let channel =
            member.endpoint.connect().await.map_err(|e| failure::refused_connection(address, &e))?;
        let client = Client::from_channel(Channel::Tonic(channel), Some(self.options.clone()))
            .await
            .map_err(failed)?;
        let mut clients = Clients {
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER),
            lease: client.lease_client(),
            maintenance: client.maintenance_client(),
        };
        // Needs a majority: a member that is cut off from the others fails here.
        let no_values = GetOptions::new().with_count_only();
        clients.kv.get(self.probe.as_str(), Some(no_values)).await.map_err(failed)?;
        Ok(clients)
    }

    /// Unless it was closed meanwhile.
    fn put_up(&self, op: Op, up: Up) -> Result<Up> {
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(failure::closed(op));
        }
        tracing::debug!(address = self.members[up.member].address, "connected to etcd");
        *state = State::Up(up.clone());
        Ok(up)
    }

    fn hang_up(&self, number: u64, address: &str, why: impl std::fmt::Display) {
        let mut state = self.state();
        if matches!(&*state, State::Up(up) if up.number == number) {
            tracing::warn!(address, %why, "leaving the connection to etcd");
            *state = State::Down;
        }
    }
}
