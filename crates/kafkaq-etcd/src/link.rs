//! Connects to a member of etcd: to the next one after each failure.
//!
//! The client's own balancer isn't used: it spreads requests over all members, including those that are down, and each
//! such request fails. A connection is tested with a read before it carries the first swap. So whatever fails until
//! then certainly had no effect.

use crate::{connector::Connector, failure};
use etcd_client::{Channel, Client, ConnectOptions, GetOptions, KvClient, LeaseClient, MaintenanceClient};
use kafkaq_core::{
    ErrorKind, Operation, Result,
    connection::{Call, Connect, Reply, SharedConnection, unreachable},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;

/// The maximum size of a response, in bytes: as many values as one request asks for, each as large as etcd stores by
/// default.
const MAX_ANSWER: usize = crate::request::MAX_OPS * 3 * 512 * 1024;

/// The connection of a store.
pub(crate) type Link = SharedConnection<Members>;

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
    address: String,
}

/// The members, of which one is used at a time.
pub(crate) struct Members {
    all: Box<[Member]>,
    options: ConnectOptions,
    /// Read to test a connection: a key that doesn't exist and may be read.
    probe: String,
    /// The member to try first.
    next: AtomicUsize,
}

impl Members {
    pub(crate) fn new(all: Box<[Member]>, options: ConnectOptions, probe: String) -> Self {
        Members { all, options, probe, next: AtomicUsize::new(0) }
    }

    pub(crate) fn addresses(&self) -> Vec<&str> {
        self.all.iter().map(|member| member.address.as_str()).collect()
    }

    pub(crate) fn probe(&self) -> &str {
        &self.probe
    }

    async fn open(&self, member: &Member) -> Result<Clients> {
        let address = &member.address;
        let failed = |e| failure::failed(Self::OPERATION, address, &e);
        let connecting = member.endpoint.connect_with_connector(Connector::of(&member.endpoint));
        let channel = connecting.await.map_err(|e| failure::refused_connection(address, &e))?;
        let client = Client::from_channel(Channel::Tonic(channel), Some(self.options.clone()))
            .await
            .map_err(failed)?;
        let clients = Clients {
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER),
            lease: client.lease_client(),
            maintenance: client.maintenance_client(),
            address: address.clone(),
        };
        self.read_probe(&clients).await.map_err(failed)?;
        Ok(clients)
    }

    /// Needs a majority: a member that is partitioned from the others fails here.
    async fn read_probe(&self, clients: &Clients) -> Result<(), etcd_client::Error> {
        let no_values = GetOptions::new().with_count_only();
        clients.kv.clone().get(self.probe.as_str(), Some(no_values)).await.map(drop)
    }
}

impl Connect for Members {
    const OPERATION: Operation = Operation::read("connect to etcd");
    type Connection = Arc<Clients>;

    /// Tries the members one after the other, each with its share of the remaining time.
    async fn connect(&self, call: Call) -> Result<Arc<Clients>> {
        let first = self.next.load(Relaxed);
        let mut last_error = None;
        for n in 0..self.all.len() {
            let place = (first + n) % self.all.len();
            let member = &self.all[place];
            let left = call.deadline().saturating_duration_since(Instant::now());
            let tries_left = u32::try_from(self.all.len() - n).unwrap_or(u32::MAX);
            let error = match timeout(left / tries_left, self.open(member)).await {
                Ok(Ok(clients)) => {
                    // If it fails, the next one may be better.
                    self.next.store(place + 1, Relaxed);
                    return Ok(Arc::new(clients));
                }
                Ok(Err(e)) if e.kind() == ErrorKind::Denied => return Err(e),
                Ok(Err(e)) => e,
                Err(_elapsed) => unreachable(Self::OPERATION, failure::server(&member.address), None),
            };
            last_error = Some(error);
        }
        Err(last_error.unwrap_or_else(|| unreachable(Self::OPERATION, self.server(None), None)))
    }

    async fn ping(&self, clients: &Arc<Clients>, call: Call) -> Result<()> {
        self.read_probe(clients).await.map_err(|e| failure::failed(call.operation, &clients.address, &e))
    }

    fn server(&self, clients: Option<&Arc<Clients>>) -> String {
        failure::server(
            &clients.map_or_else(|| self.addresses().join(", "), |clients| clients.address.clone()),
        )
    }
}

/// Sends one request. Dropping the future, or the timeout, cancels its stream; the connection stays usable.
pub(crate) async fn send<T, F>(link: &Link, call: Call, request: impl Fn(Arc<Clients>) -> F) -> Result<T>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    link.send(call, |clients: Arc<Clients>| {
        let answering = request(clients.clone());
        async move {
            match answering.await {
                Ok(answer) => Reply::Keep(Ok(answer)),
                Err(e) => {
                    let error = failure::failed(call.operation, &clients.address, &e);
                    if failure::is_of_connection(&e) {
                        Reply::Leave(Err(error))
                    } else {
                        Reply::Keep(Err(error))
                    }
                }
            }
        }
    })
    .await
}
