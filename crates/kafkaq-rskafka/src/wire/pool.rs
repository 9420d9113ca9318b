//! Connections to the brokers, shared by all calls: taken for one request and returned after the response.
//!
//! Kafka processes one request of a connection at a time, so a request behind another would also wait for a long poll.
//! The number of connections is bounded by the number of requests in flight.

use super::connection::{Connection, Request};
use crate::{failure::Failure, link::Settings, outage::Outages};
use kafkaq_core::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// The maximum number of writes in flight per broker, and the same number of reads; except for long polls.
const MAX_REQUESTS: usize = 4;
/// How many idle brokers are remembered.
const MAX_BROKERS: usize = 100;
/// A connection that was idle for this long is closed.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// Connecting may take this fraction of the request timeout: an address that drops packets must leave time for others.
pub(crate) const CONNECT_SHARE: u32 = 3;
/// A read over an idle connection may take this fraction: the connection can be dead without a sign.
const READ_SHARE: u32 = 4;

pub(crate) struct Connections {
    pub(crate) settings: Settings,
    brokers: Mutex<HashMap<Arc<str>, Broker>>,
    outages: Outages,
}

struct Broker {
    /// The most recently used one is last and is reused first, so that surplus connections expire.
    idle: Vec<Idle>,
    changes: Arc<Semaphore>,
    questions: Arc<Semaphore>,
}

struct Idle {
    since: Instant,
    connection: Connection,
}

impl Default for Broker {
    fn default() -> Self {
        let semaphore = || Arc::new(Semaphore::new(MAX_REQUESTS));
        Broker { idle: Vec::new(), changes: semaphore(), questions: semaphore() }
    }
}

impl Broker {
    fn close_old(&mut self) {
        self.idle.retain(|idle| idle.since.elapsed() < MAX_IDLE);
    }

    fn is_in_use(&self) -> bool {
        let is_in_use = |semaphore| Arc::strong_count(semaphore) > 1;
        !self.idle.is_empty() || is_in_use(&self.changes) || is_in_use(&self.questions)
    }
}

impl Connections {
    pub(crate) fn new(settings: Settings) -> Self {
        Connections { settings, brokers: Mutex::default(), outages: Outages::default() }
    }

    /// Sends a request to a broker, when there is room for it. A read that gets no response over an idle connection is
    /// sent once more, over a new one.
    pub(crate) async fn send<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let room = self.with(address, |broker| match R::CHANGES {
            true => broker.changes.clone(),
            false => broker.questions.clone(),
        });
        let permit = timeout_at(deadline, room.acquire()).await;
        // It is never closed.
        let Ok(Ok(_permit)) = permit else { return Err(Failure::crowded()) };
        if !R::CHANGES
            && let Some(connection) = self.take_alive(address)
        {
            let share = Instant::now() + self.settings.request_timeout / READ_SHARE;
            match self.exchange_over(connection, address, request, share.min(deadline)).await {
                Err(failure) if failure.is_silence() && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
        self.exchange(address, request, deadline).await
    }

    /// Sends a request to a broker at once.
    pub(crate) async fn exchange<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let connection = match self.take_alive(address) {
            Some(connection) => connection,
            None => self.open(address, deadline).await?,
        };
        self.exchange_over(connection, address, request, deadline).await
    }

    async fn exchange_over<R: Request>(
        &self,
        mut connection: Connection,
        address: &Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let response = timeout_at(deadline, connection.send(request)).await;
        let failure = match response.unwrap_or_else(|_| Err(Failure::silence())) {
            Ok(response) => {
                self.put_back(address, connection);
                return Ok(response);
            }
            Err(failure) => failure,
        };
        match failure.answered {
            true => self.put_back(address, connection),
            // Other connections to that broker were cut off as well, or hang too.
            false => self.forget(address),
        }
        if failure.is_silence() {
            self.outages.began(address, &failure);
        }
        let failure = if R::CHANGES { failure } else { failure.unsent() };
        Err(failure.at(address))
    }

    /// Takes an idle connection that the server has not closed.
    fn take_alive(&self, address: &Arc<str>) -> Option<Connection> {
        while let Some(mut idle) = self.take(address) {
            if idle.is_alive() {
                return Some(idle);
            }
        }
        None
    }

    async fn open(&self, address: &Arc<str>, deadline: Instant) -> Result<Connection, Failure> {
        let share = Instant::now() + self.settings.request_timeout / CONNECT_SHARE;
        let opened = timeout_at(share.min(deadline), Connection::open(&self.settings, address)).await;
        let failure = match opened.unwrap_or_else(|_| Err(Failure::not_connected())) {
            Ok(connection) => {
                self.outages.ended(address);
                return Ok(connection);
            }
            Err(failure) => failure.unsent(),
        };
        if !failure.answered {
            self.outages.began(address, &failure);
        }
        Err(failure.at(address))
    }

    /// Returns the addresses that have an idle connection.
    pub(crate) fn connected(&self) -> Vec<Arc<str>> {
        let brokers = lock(&self.brokers);
        let connected = brokers.iter().filter(|(_, broker)| !broker.idle.is_empty());
        connected.map(|(address, _)| address.clone()).collect()
    }

    fn take(&self, address: &Arc<str>) -> Option<Connection> {
        self.with(address, |broker| Some(broker.idle.pop()?.connection))
    }

    fn put_back(&self, address: &Arc<str>, connection: Connection) {
        self.outages.ended(address);
        self.with(address, |broker| broker.idle.push(Idle { since: Instant::now(), connection }));
    }

    fn forget(&self, address: &Arc<str>) {
        self.with(address, |broker| broker.idle.clear());
    }

    fn with<T>(&self, address: &Arc<str>, then: impl FnOnce(&mut Broker) -> T) -> T {
        let mut brokers = lock(&self.brokers);
        brokers.values_mut().for_each(Broker::close_old);
        if brokers.len() > MAX_BROKERS {
            brokers.retain(|_, broker| broker.is_in_use());
        }
        then(brokers.entry(address.clone()).or_default())
    }

    pub(crate) fn close_idle(&self) {
        lock(&self.brokers).clear();
    }
}
