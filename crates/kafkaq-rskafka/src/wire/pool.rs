//! Connections to the brokers, shared by all calls: taken for one request and put back when the server has answered.
//!
//! Kafka works on one request of a connection at a time, so a request that waits for another would wait for a long poll,
//! too. How many there are is bounded by how many requests may be under way.

use super::connection::{Connection, Request};
use crate::{failure::Failure, link::Settings, locked, outage::Outages};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Requests under way at a time that change something, and as many that ask; long polls aside.
const MAX_REQUESTS: usize = 4;
/// A connection that nobody has used for so long is closed.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// Connecting may take this part of the request timeout: one address that swallows packets must leave time for others.
pub(crate) const CONNECT_SHARE: u32 = 3;

pub(crate) struct Network {
    pub(crate) settings: Settings,
    idle: Mutex<HashMap<Arc<str>, Vec<Idle>>>,
    changes: Semaphore,
    questions: Semaphore,
    outages: Outages,
}

struct Idle {
    since: Instant,
    connection: Connection,
}

impl Network {
    pub(crate) fn new(settings: Settings) -> Self {
        Network {
            settings,
            idle: Mutex::default(),
            changes: Semaphore::new(MAX_REQUESTS),
            questions: Semaphore::new(MAX_REQUESTS),
            outages: Outages::default(),
        }
    }

    /// Sends a request to a broker, when there is room for it.
    pub(crate) async fn send<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let room = if R::CHANGES { &self.changes } else { &self.questions };
        let permit = timeout_at(deadline, room.acquire()).await;
        // It is never closed.
        let Ok(Ok(_permit)) = permit else { return Err(Failure::crowded()) };
        self.exchange(address, request, deadline).await
    }

    /// Sends a request to a broker at once.
    pub(crate) async fn exchange<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let mut connection = self.connect(address, deadline).await?;
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
            // The others to that broker were cut off with it, or hang like it.
            false => self.forget(address),
        }
        if failure.is_silence() {
            self.outages.began(address, &failure);
        }
        let failure = if R::CHANGES { failure } else { failure.unsent() };
        Err(failure.at(address))
    }

    /// An idle connection, or a new one.
    async fn connect(&self, address: &Arc<str>, deadline: Instant) -> Result<Connection, Failure> {
        while let Some(mut idle) = self.take(address) {
            if idle.is_alive() {
                return Ok(idle);
            }
        }
        self.open(address, deadline).await
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

    /// The addresses to which there is an idle connection.
    pub(crate) fn connected(&self) -> Vec<Arc<str>> {
        locked(&self.idle).keys().cloned().collect()
    }

    fn take(&self, address: &Arc<str>) -> Option<Connection> {
        let mut idle = locked(&self.idle);
        close_old(&mut idle);
        let connection = idle.get_mut(address)?.pop()?.connection;
        idle.retain(|_, of_one| !of_one.is_empty());
        Some(connection)
    }

    fn put_back(&self, address: &Arc<str>, connection: Connection) {
        self.outages.ended(address);
        let mut idle = locked(&self.idle);
        idle.entry(address.clone()).or_default().push(Idle { since: Instant::now(), connection });
        close_old(&mut idle);
    }

    fn forget(&self, address: &Arc<str>) {
        locked(&self.idle).remove(address);
    }

    pub(crate) fn close_idle(&self) {
        locked(&self.idle).clear();
    }
}

/// The last of a list is taken first, so that those that are not needed grow old.
fn close_old(idle: &mut HashMap<Arc<str>, Vec<Idle>>) {
    idle.retain(|_, of_one| {
        of_one.retain(|idle| idle.since.elapsed() < MAX_IDLE);
        !of_one.is_empty()
    });
}
