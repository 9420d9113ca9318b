//! Errors when the server fails, and recovery at the next call.

use crate::{Zk, builder, client, nodes, shared};
use kafkaq_adapter_tests::{Log, Stopwatch, cases, create, key, one, read, replace, until, value};
use kafkaq_conformance::{Outage, Proxy};
use kafkaq_core::{Effect, Error, ErrorKind, Retry, Swapped};
use kafkaq_zookeeper::ZooKeeperStore;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use xtask::services::{Server, Service, free_port};

// Not all: a swap may need several requests, and the client library retries for as long as it may.
cases! { reconnecting for Zk:
    without_a_server_a_swap_is_not_applied_and_returns_soon,
    an_address_that_never_answers_is_not_applied_within_the_limit,
    a_read_that_fails_had_no_effect,
    a_read_over_a_connection_that_the_server_closed_succeeds,
    a_swap_over_an_idle_connection_that_the_server_closed_succeeds,
    a_killed_server_breaks_one_call_at_most_and_then_nothing_is_applied,
    a_late_failure_of_an_old_connection_spares_the_new_one,
    many_callers_share_one_new_connection,
    close_leaves_no_connection_behind,
}

cases! { outages for Zk: a_server_that_stands_still_is_logged_once_and_so_is_its_return }
cases! { descriptors for Zk: used_up_descriptors_are_named }

const LIMIT: Duration = Duration::from_secs(2);

fn facts(e: &Error) -> (ErrorKind, Effect, Retry) {
    (e.kind(), e.effect(), e.retry())
}

async fn until_it_works(store: &ZooKeeperStore) {
    until("it works", async || read(store, &key("any")).await.is_ok()).await;
}

/// Creates the key's shard, so that a create is one request, and then deletes the key with a plain client.
async fn prepare(store: &ZooKeeperStore, server: &Server) {
    until("it is created", async || one(store, create(&key("a"), "a")).await.is_ok()).await;
    let zk = client(server).await;
    zk.delete(&nodes(&zk, "failures").await[0], None).await.unwrap();
}

#[tokio::test]
async fn one_server_that_is_down_and_one_that_is_silent_leave_the_third() {
    let server = shared();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let down = format!("127.0.0.1:{}", free_port().unwrap());
    let addresses = format!("{down},{},{}", silent.local_addr().unwrap(), server.url());
    for sessions in [1, 3] {
        let store =
            ZooKeeperStore::builder(&addresses).request_timeout(LIMIT).sessions(sessions).build().unwrap();
        until_it_works(&store).await;
    }
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_session_later() {
    let server = Service::ZooKeeper.own().unwrap();
    let store = builder(&server, "failures").request_timeout(LIMIT).sessions(1).build().unwrap();
    prepare(&store, &server).await;
    server.pause().unwrap();
    let (begin, watch) = (Instant::now(), Stopwatch::start());
    let e = one(&store, create(&key("a"), "b")).await.unwrap_err();
    assert_eq!(facts(&e), (ErrorKind::Timeout, Effect::Unknown, Retry::Yes), "{e}");
    assert!(begin.elapsed() >= LIMIT && watch.elapsed() < LIMIT * 4, "{:?}", begin.elapsed());
    // A read has no effect, and while no session can be had, nothing is sent.
    let e = read(&store, &key("a")).await.unwrap_err();
    assert_eq!(e.effect(), Effect::NotApplied, "{e}");
    server.resume().unwrap();
    until_it_works(&store).await;
    // It was frozen, but it processes the old connection when it resumes.
    until("it takes effect", async || read(&store, &key("a")).await.is_ok_and(|is| is == value("b"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_under_way_when_the_server_is_killed_fail_soon() {
    let mut server = Service::ZooKeeper.own().unwrap();
    let proxy = Proxy::to(server.addr()).unwrap();
    let builder = ZooKeeperStore::builder(proxy.addr().to_string()).prefix("failures");
    let store = Arc::new(builder.request_timeout(Duration::from_secs(60)).sessions(1).build().unwrap());
    prepare(&store, &server).await;
    proxy.cut().await.unwrap();
    let call = tokio::spawn({
        let store = store.clone();
        async move { one(&*store, create(&key("a"), "b")).await.unwrap_err() }
    });
    let zk = client(&server).await;
    until("the server has the swap, and its answer is lost", async || {
        !nodes(&zk, "failures").await.is_empty()
    })
    .await;
    let watch = Stopwatch::start();
    server.kill().unwrap();
    let e = call.await.unwrap();
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::Unknown, Retry::Yes), "{e}");
    assert!(watch.elapsed() < Duration::from_secs(3), "{:?}", watch.elapsed());
}

#[tokio::test]
async fn after_a_restart_the_same_store_works_with_its_user_and_its_data() {
    let mut server = Service::ZooKeeper.own().unwrap();
    let store = builder(&server, "failures")
        .digest("queue", "secret")
        .session_timeout(Duration::from_secs(1))
        .request_timeout(LIMIT)
        .sessions(1)
        .build()
        .unwrap();
    until("it is created", async || one(&store, create(&key("a"), "a")).await.is_ok()).await;
    server.kill().unwrap();
    // The call that notices it may have been in flight.
    read(&store, &key("a")).await.unwrap_err();
    let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    // Until the session has expired.
    sleep(Duration::from_millis(1500)).await;
    server.start_again().unwrap();
    until_it_works(&store).await;
    assert_eq!(one(&store, replace(&key("a"), "a", "b")).await.unwrap(), Swapped::Done);
    let zk = client(&server).await;
    zk.add_auth("digest", b"queue:secret".to_vec()).await.unwrap();
    let (acl, _) = zk.get_acl("/failures").await.unwrap();
    assert_eq!(acl[0].scheme, "digest");
}

/// Each attempt of each session would log an error, dozens per second.
#[tokio::test(flavor = "multi_thread")]
async fn client_library_messages_of_the_stores_sessions_are_suppressed() {
    let log = Log::capture_all_threads();
    let mut server = Service::ZooKeeper.own().unwrap();
    let plain = client(&server).await;
    let store = builder(&server, "quiet").request_timeout(LIMIT).build().unwrap();
    until_it_works(&store).await;
    server.kill().unwrap();
    let is_of_the_library = |line: &&String| line.contains("zookeeper_async");
    let by_store = |line: &&String| line.starts_with("kafkaq-zk");
    until("the plain client complains", async || {
        read(&store, &key("a")).await.unwrap_err();
        log.lines().iter().any(|line| line.contains("Failed to connect"))
    })
    .await;
    let lines = log.lines();
    assert!(lines.iter().filter(is_of_the_library).all(|line| !by_store(&line)), "{lines:#?}");
    drop(plain);
}

#[tokio::test]
async fn threads_do_not_accumulate_during_an_outage() {
    let is_ours = |name: &String| name.starts_with("kafkaq-zk");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let threads =
        || std::fs::read_dir("/proc/self/task").map(|all| all.filter_map(name).filter(is_ours).count());
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let store = ZooKeeperStore::builder(address).request_timeout(Duration::from_millis(50)).build().unwrap();
    // Not on Linux: threads can't be counted.
    let Ok(before) = threads() else { return };
    for _ in 0..30 {
        one(&store, create(&key("a"), "a")).await.unwrap_err();
    }
    // Other tests have sessions of their own.
    until("the threads end", async || threads().unwrap() < before + 20).await;
}
