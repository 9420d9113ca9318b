//! The store against real servers, which the tests start for themselves; what every store has to do is in
//! `tests/conformance.rs`.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cluster;
mod failures;
mod leases;
mod requests;
#[cfg(feature = "tls")]
mod tls;

use kafkaq_adapter_tests::Adapter;
use kafkaq_etcd::EtcdStore;
use std::{net::SocketAddr, time::Duration};
use xtask::services::{Server, Service};

struct Etcd;

impl Adapter for Etcd {
    type Store = EtcdStore;
    const SERVICE: Service = Service::Etcd;
    /// Whether tonic notices that a connection has ended before it uses it is random. If it does, it reconnects, with
    /// the pauses of `connector.rs`.
    const MAX_CONNECT_ATTEMPTS: usize = 12;

    fn at(addr: SocketAddr, limit: Duration) -> EtcdStore {
        EtcdStore::builder([addr.to_string()]).request_timeout(limit).build().unwrap()
    }
}

/// A server that has a leader soon, also after a restart.
fn own() -> Server {
    own_with(&[])
}

fn own_with(options: &[&str]) -> Server {
    own_at(None, options)
}

fn own_at(port: Option<u16>, options: &[&str]) -> Server {
    let soon = ["--heartbeat-interval=20", "--election-timeout=200"];
    Service::Etcd.own_with(port, &[&soon, options].concat()).unwrap()
}

/// A store with a limit that is never reached, even on a loaded machine.
fn store(server: &Server) -> EtcdStore {
    EtcdStore::builder([server.url()]).request_timeout(Duration::from_secs(60)).build().unwrap()
}

/// A plain client, to set things up and to inspect the server.
async fn raw(server: &Server) -> etcd_client::Client {
    etcd_client::Client::connect([server.url()], None).await.unwrap()
}
