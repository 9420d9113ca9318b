//! The store against a real server. Every test starts one of its own: `etcd` from the PATH, or what the variable
//! `KAFKAQ_ETCD_SERVER` names.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cluster;
mod failures;
mod leases;
mod proxy;
mod server;
mod swaps;
#[cfg(feature = "tls")]
mod tls;

use bytes::Bytes;
use kafkaq_core::{Error, Key, Keyspace, LeaseStore, Swap, Swapped, TaskId};
use kafkaq_etcd::EtcdStore;
use server::Server;
use std::time::Duration;

fn store(server: &Server) -> EtcdStore {
    EtcdStore::builder([server.address()]).build().unwrap()
}

fn key(id: &str) -> Key {
    Key::task(&Keyspace::new("emails", "kafkaq").unwrap(), &TaskId::new(id).unwrap())
}

fn keys(n: usize) -> Vec<Key> {
    (0..n).map(|i| key(&format!("task-{i}"))).collect()
}

fn create(key: &Key, value: &'static str) -> Swap {
    Swap::new(key.clone(), None, Some(value.into()), None)
}

fn replace(key: &Key, expect: &'static str, value: &'static str) -> Swap {
    Swap::new(key.clone(), Some(expect.into()), Some(value.into()), None)
}

fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

async fn one(store: &EtcdStore, swap: Swap) -> Result<Swapped, Error> {
    store.swap(&[swap]).await.pop().unwrap()
}

async fn read(store: &EtcdStore, key: &Key) -> Option<Bytes> {
    store.get(std::slice::from_ref(key)).await.pop().unwrap().unwrap()
}

async fn sleep(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}
