//! The store against real servers, which the tests start for themselves; what every store has to do is in
//! `tests/conformance.rs`.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cluster;
mod failures;
mod hashes;
mod scripts;
mod target;
#[cfg(feature = "tls")]
mod tls;

use kafkaq_adapter_tests::{Adapter, key};
use kafkaq_core::Key;
use kafkaq_redis::RedisStore;
use redis::{RedisResult, Value};
use std::{net::SocketAddr, time::Duration};
use target::on_both;
use xtask::services::{Server, Service};

struct Redis;

impl Adapter for Redis {
    type Store = RedisStore;
    const SERVICE: Service = Service::Redis;
    const MAX_CONNECT_ATTEMPTS: usize = 1;

    fn at(addr: SocketAddr, limit: Duration) -> RedisStore {
        // With a login the client waits for a response while it connects; a server without a password accepts any.
        let url = format!("redis://default:any@{addr}");
        RedisStore::builder(url).request_timeout(limit).connections(1).build().unwrap()
    }
}

/// A limit for tests that aren't about limits: never reached, even on a loaded machine.
const AMPLE: Duration = Duration::from_secs(60);

fn store(server: &Server) -> RedisStore {
    RedisStore::builder(server.url()).request_timeout(AMPLE).build().unwrap()
}

/// The key of the task that has this number, among those that a publisher numbers. 64 lie in one hash.
fn numbered(n: usize) -> Key {
    key(&format!("018bcfe5-6800-706b-8000-{n:012x}"))
}

/// One command over a connection of its own, for setting things up.
fn ask(server: &Server, words: &[&str]) -> Value {
    try_ask(server, words).unwrap()
}

fn try_ask(server: &Server, words: &[&str]) -> RedisResult<Value> {
    let mut connection = redis::Client::open(server.url())?.get_connection()?;
    redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
}

/// Returns the text that a command returns.
fn tell(server: &Server, words: &[&str]) -> String {
    match ask(server, words) {
        Value::BulkString(text) => String::from_utf8(text).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn number(answer: Value) -> i64 {
    match answer {
        Value::Int(number) => number,
        other => panic!("{other:?}"),
    }
}

/// Returns how many clients are connected, except for this one.
fn clients(server: &Server) -> usize {
    tell(server, &["CLIENT", "LIST", "TYPE", "normal"]).lines().count() - 1
}
