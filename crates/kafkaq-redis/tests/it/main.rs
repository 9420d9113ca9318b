//! The store against a real server. Every test starts one of its own: `redis-server` from the PATH, or what the
//! variable `KAFKAQ_REDIS_SERVER` names.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cluster;
mod failures;
mod proxy;
mod server;
mod swaps;
mod target;
#[cfg(feature = "tls")]
mod tls;

use bytes::Bytes;
use kafkaq_core::{Key, Keyspace, Swap, TaskId};
use kafkaq_redis::RedisStore;
use server::Server;
use std::time::Duration;

fn store(server: &Server) -> RedisStore {
    RedisStore::builder(server.url()).build().unwrap()
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

fn sleep_now(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

async fn sleep(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}
