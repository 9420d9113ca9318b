//! Errors of calls when the server or the network fails, and recovery at the next call.

use crate::{Adapter, Stopwatch, create, key, keys, one, read, until, value};
use futures_util::future::join_all;
use kafkaq_conformance::{Outage, Proxy};
use kafkaq_core::{Effect, Error, ErrorKind, Key, LeaseStore, Retry, Swap, connection::IDLE};
use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use xtask::services::Server;

/// The time limit of a call in cases about time limits.
const LIMIT: Duration = Duration::from_secs(1);
/// The limit in other cases: never reached, even on a loaded machine.
const AMPLE: Duration = Duration::from_secs(60);
const CALLERS: usize = 64;

/// A key that no other case uses: some share a server.
fn fresh() -> Key {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    key(&format!("fresh-{}", COUNT.fetch_add(1, Relaxed)))
}

async fn failed_create(store: &dyn LeaseStore, key: &Key) -> Error {
    one(store, create(key, "a")).await.unwrap_err()
}

async fn failed_swap(store: &dyn LeaseStore) -> Error {
    failed_create(store, &fresh()).await
}

/// Asserts the error of a call that didn't reach a server.
fn assert_not_sent(e: &Error) {
    let facts = (e.kind(), e.effect(), e.retry());
    assert_eq!(facts, (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
}

fn assert_ends_at_limit(begin: Instant, watch: &Stopwatch) {
    assert!(begin.elapsed() >= LIMIT, "{:?}", begin.elapsed());
    assert!(watch.elapsed() < LIMIT * 4, "{:?}", watch.elapsed());
}

async fn created(store: &dyn LeaseStore, key: &Key) -> bool {
    read(store, key).await.is_ok_and(|is| is == value("a"))
}

async fn works(store: &dyn LeaseStore) -> bool {
    read(store, &key("any")).await.is_ok()
}

async fn until_it_works(store: &dyn LeaseStore) {
    until("the store works", async || works(store).await).await;
}

/// A proxy in front of a server, and a store that is connected and has detected the server's features.
struct Site<A: Adapter> {
    server: Arc<Server>,
    proxy: Proxy,
    store: Arc<A::Store>,
}

impl<A: Adapter> Site<A> {
    /// Creates one in front of the server that all cases share.
    async fn with(limit: Duration) -> Self {
        Self::before(A::SERVICE.shared().unwrap(), limit).await
    }

    async fn before(server: Arc<Server>, limit: Duration) -> Self {
        let proxy = Proxy::to(server.addr()).unwrap();
        let store = Arc::new(A::at(proxy.addr(), limit));
        let warm = fresh();
        until("the store swaps", async || {
            // First over a missing value, then over an existing one.
            let is = read(&*store, &warm).await.ok().flatten();
            let swap = Swap::new(warm.clone(), is.clone(), value("a"), None);
            one(&*store, swap).await.is_ok() && is.is_some()
        })
        .await;
        Site { server, proxy, store }
    }
}

/// An address where nobody listens: connections are refused.
fn nobody() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, xtask::services::free_port().unwrap()).into()
}

pub async fn without_a_server_a_swap_is_not_applied_and_returns_soon<A: Adapter>() {
    let addr = nobody();
    let store = A::at(addr, LIMIT);
    for _ in 0..3 {
        let watch = Stopwatch::start();
        let e = failed_swap(&store).await;
        assert_not_sent(&e);
        assert!(e.to_string().contains(&addr.to_string()), "{e}");
        assert!(watch.elapsed() < LIMIT * 4, "{:?}", watch.elapsed());
    }
    let e = store.check().await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
}

/// A listener that never accepts: the connection is established, but nothing is sent.
pub async fn an_address_that_never_answers_is_not_applied_within_the_limit<A: Adapter>() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = A::at(silent.local_addr().unwrap(), LIMIT);
    let (begin, watch) = (Instant::now(), Stopwatch::start());
    assert_not_sent(&failed_swap(&store).await);
    assert_ends_at_limit(begin, &watch);
}

pub async fn a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_connection_later<A: Adapter>() {
    let server = Arc::new(A::SERVICE.own().unwrap());
    let Site::<A> { server, proxy, store } = Site::before(server, LIMIT).await;
    let before = proxy.accepted();
    server.pause().unwrap();
    let (begin, watch) = (Instant::now(), Stopwatch::start());
    let e = failed_swap(&*store).await;
    let facts = (e.kind(), e.effect(), e.retry());
    assert_eq!(facts, (ErrorKind::Timeout, Effect::Unknown, Retry::Yes), "{e}");
    assert_ends_at_limit(begin, &watch);
    server.resume().unwrap();
    until_it_works(&*store).await;
    assert!(proxy.accepted() > before, "the connection that had timed out was used again");
}

pub async fn a_connection_that_breaks_before_the_answer_is_unknown_and_the_swap_is_there<A: Adapter>() {
    let Site::<A> { server, proxy, store } = Site::with(AMPLE).await;
    let (direct, key) = (A::at(server.addr(), AMPLE), fresh());
    proxy.cut().await.unwrap();
    let call = tokio::spawn({
        let (store, key) = (store.clone(), key.clone());
        async move { failed_create(&*store, &key).await }
    });
    until("the swap is there", async || created(&direct, &key).await).await;
    // Breaks the connections that have missed a response.
    proxy.restore().await.unwrap();
    let e = call.await.unwrap();
    let facts = (e.kind(), e.effect(), e.retry());
    assert_eq!(facts, (ErrorKind::Unavailable, Effect::Unknown, Retry::Yes), "{e}");
}

pub async fn a_read_that_fails_had_no_effect<A: Adapter>() {
    let Site::<A> { server: _server, proxy, store } = Site::with(LIMIT).await;
    proxy.cut().await.unwrap();
    let outcomes = store.get(&keys(3)).await;
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        let e = outcome.unwrap_err();
        let facts = (e.kind(), e.effect(), e.retry());
        assert_eq!(facts, (ErrorKind::Timeout, Effect::NotApplied, Retry::Yes), "{e}");
    }
}

/// Breaks all open connections; new ones work.
async fn break_connections(proxy: &Proxy) {
    proxy.refuse();
    proxy.restore().await.unwrap();
    until("no connection is left", async || proxy.open() == 0).await;
}

pub async fn a_read_over_a_connection_that_the_server_closed_succeeds<A: Adapter>() {
    let Site::<A> { server: _server, proxy, store } = Site::with(AMPLE).await;
    for _ in 0..3 {
        break_connections(&proxy).await;
        for outcome in store.get(&keys(300)).await {
            outcome.unwrap();
        }
        // So that the next connection is old when it breaks.
        until_it_works(&*store).await;
    }
}

pub async fn a_swap_over_an_idle_connection_that_the_server_closed_succeeds<A: Adapter>() {
    let Site::<A> { server: _server, proxy, store } = Site::with(AMPLE).await;
    break_connections(&proxy).await;
    sleep(IDLE).await;
    one(&*store, create(&fresh(), "a")).await.unwrap();
}

/// As by a firewall: neither side is notified.
pub async fn an_idle_connection_that_was_forgotten_is_replaced<A: Adapter>() {
    // Part of it is spent on waiting for the missing ping response.
    let limit = Duration::from_secs(40);
    let Site::<A> { server: _server, proxy, store } = Site::with(limit).await;
    proxy.mute();
    sleep(IDLE).await;
    one(&*store, create(&fresh(), "a")).await.unwrap();
}

pub async fn a_killed_server_breaks_one_call_at_most_and_then_nothing_is_applied<A: Adapter>() {
    let mut server = A::SERVICE.own().unwrap();
    let store = A::at(server.addr(), LIMIT * 5);
    until_it_works(&store).await;
    server.kill().unwrap();
    let first = failed_swap(&store).await;
    assert_eq!(first.kind(), ErrorKind::Unavailable, "{first}");
    assert_not_sent(&failed_swap(&store).await);
}

pub async fn a_late_failure_of_an_old_connection_spares_the_new_one<A: Adapter>() {
    let limit = LIMIT * 4;
    let Site::<A> { server: _server, proxy, store } = Site::with(limit).await;
    proxy.mute();
    let swap = || {
        let store = store.clone();
        tokio::spawn(async move { failed_swap(&*store).await })
    };
    let early = swap();
    sleep(limit / 2).await;
    let late = swap();
    early.await.unwrap();
    until_it_works(&*store).await;
    let with_the_new_one = proxy.accepted();
    late.await.unwrap();
    until_it_works(&*store).await;
    assert_eq!(proxy.accepted(), with_the_new_one, "the new connection was dropped");
}

pub async fn many_callers_share_one_new_connection<A: Adapter>() {
    let Site::<A> { server: _server, proxy, store } = Site::with(AMPLE).await;
    // Breaks the open connections.
    proxy.cut().await.unwrap();
    proxy.restore().await.unwrap();
    let before = proxy.accepted();
    let call = |_| {
        let store = store.clone();
        async move {
            while !works(&*store).await {
                sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let calls = (0..CALLERS).map(call).collect::<JoinSet<_>>();
    timeout(AMPLE, calls.join_all()).await.expect("all work again");
    let new = proxy.accepted() - before;
    assert!((1..=A::MAX_CONNECT_ATTEMPTS).contains(&new), "{new}");
}

/// A listener that counts connections and closes each at once.
async fn slammed_door() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let knocks = Arc::new(AtomicUsize::new(0));
    let count = knocks.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Relaxed);
        }
    });
    (addr, knocks)
}

pub async fn many_callers_of_a_server_that_fails_share_its_failure<A: Adapter>() {
    let (addr, knocks) = slammed_door().await;
    let store = A::at(addr, AMPLE);
    // One task starts them all at once; a call that starts after the first failure makes one more attempt.
    for e in join_all((0..CALLERS).map(|_| failed_swap(&store))).await {
        assert_not_sent(&e);
    }
    assert!(knocks.load(Relaxed) <= CALLERS / 4 * A::MAX_CONNECT_ATTEMPTS, "{knocks:?}");
}

pub async fn attempts_to_connect_are_spaced_even_for_a_caller_in_a_hurry<A: Adapter>() {
    let (addr, knocks) = slammed_door().await;
    let store = A::at(addr, AMPLE);
    let begin = Instant::now();
    let mut calls = 0;
    while begin.elapsed() < Duration::from_millis(500) {
        failed_swap(&store).await;
        calls += 1;
    }
    // After 20, 40, 80, 160, 320 ms.
    assert!(knocks.load(Relaxed) <= 6 * A::MAX_CONNECT_ATTEMPTS && calls <= 6, "{knocks:?} {calls}");
}

pub async fn close_leaves_no_connection_behind<A: Adapter>() {
    let Site::<A> { server: _server, proxy, store } = Site::with(AMPLE).await;
    assert!(proxy.open() > 0);
    store.close().await.unwrap();
    until("no connection is left", async || proxy.open() == 0).await;
}
