//! What a call says when the server fails, and that the next call finds its way back.

use crate::{
    builder, client, create, key, nodes, one, read, replace,
    server::{Server, free_port},
    sleep, value,
};
use kafkaq_core::{Effect, Error, ErrorKind, LeaseStore, Retry, Swapped};
use kafkaq_zookeeper::ZooKeeperStore;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_millis(800);

fn impatient(server: &Server) -> ZooKeeperStore {
    builder(server, "failures").request_timeout(LIMIT).sessions(1).build().unwrap()
}

fn facts(e: &Error) -> (ErrorKind, Effect, Retry) {
    (e.kind(), e.effect(), e.retry())
}

/// The next call, or one soon after: reconnecting backs off by up to half a second.
async fn await_working(store: &ZooKeeperStore) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match store.get(&[key("any")]).await.pop().unwrap() {
            Ok(_) => return,
            Err(e) if Instant::now() > deadline => panic!("still failing: {e}"),
            Err(_) => sleep(10).await,
        }
    }
}

async fn await_created(store: &ZooKeeperStore, id: &str) {
    await_working(store).await;
    while one(store, create(&key(id), "a")).await.is_err() {}
}

#[tokio::test]
async fn without_a_server_a_swap_is_not_applied_and_returns_within_the_limit() {
    let address = format!("127.0.0.1:{}", free_port());
    let store = ZooKeeperStore::builder(&address).request_timeout(LIMIT).build().unwrap();
    for _ in 0..4 {
        let begin = Instant::now();
        let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
        assert!(e.to_string().contains(&address), "{e}");
        assert!(begin.elapsed() < LIMIT * 2);
    }
    assert!(store.check().await.is_err());
}

#[tokio::test]
async fn an_address_that_never_answers_is_not_applied_within_the_limit() {
    // A listener that accepts nothing: the connection stands, and nobody speaks.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let store = ZooKeeperStore::builder(address).request_timeout(LIMIT).build().unwrap();
    let begin = Instant::now();
    let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 2).contains(&begin.elapsed()));
}

#[tokio::test]
async fn one_server_that_is_down_and_one_that_is_silent_leave_the_third() {
    let server = Server::shared();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let down = format!("127.0.0.1:{}", free_port());
    let addresses = format!("{down},{},{}", silent.local_addr().unwrap(), server.address());
    for sessions in [1, 3] {
        let store =
            ZooKeeperStore::builder(&addresses).request_timeout(LIMIT).sessions(sessions).build().unwrap();
        await_working(&store).await;
    }
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_session_later() {
    let server = Server::start();
    let store = impatient(&server);
    // Its shard stays, so that the next create is one request.
    await_created(&store, "warm").await;
    let zk = client(&server).await;
    zk.delete(&nodes(&zk, "failures").await[0], None).await.unwrap();
    server.freeze();
    let begin = Instant::now();
    let e = one(&store, create(&key("warm"), "b")).await.unwrap_err();
    assert_eq!(facts(&e), (ErrorKind::Timeout, Effect::Unknown, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    // A read has no effect, and while no session can be had, nothing is sent.
    let e = store.get(&[key("a")]).await.pop().unwrap().unwrap_err();
    assert_eq!(e.effect(), Effect::NotApplied, "{e}");
    server.thaw();
    await_working(&store).await;
    // It was frozen, not deaf: it gets to the old connection, too.
    let begin = Instant::now();
    while read(&store, &key("warm")).await != value("b") {
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_under_way_when_the_server_is_killed_fail_soon() {
    let mut server = Server::start();
    let store = Arc::new(builder(&server, "failures").sessions(1).build().unwrap());
    await_created(&store, "warm").await;
    server.freeze();
    let call = tokio::spawn({
        let store = store.clone();
        async move { one(&store, create(&key("warm"), "b")).await.unwrap_err() }
    });
    sleep(300).await;
    let begin = Instant::now();
    server.kill();
    let e = call.await.unwrap();
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::Unknown, Retry::Yes), "{e}");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn after_a_restart_the_same_store_works_with_its_user_and_its_data() {
    let mut server = Server::start();
    let store = builder(&server, "failures")
        .digest("queue", "secret")
        .session_timeout(Duration::from_secs(1))
        .request_timeout(LIMIT)
        .sessions(1)
        .build()
        .unwrap();
    await_created(&store, "warm").await;
    server.kill();
    sleep(100).await;
    let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    // Until the session has expired.
    sleep(1500).await;
    server.start_again();
    await_working(&store).await;
    assert_eq!(one(&store, replace(&key("warm"), "a", "b")).await.unwrap(), Swapped::Done);
    let zk = client(&server).await;
    zk.add_auth("digest", b"queue:secret".to_vec()).await.unwrap();
    let (acl, _) = zk.get_acl("/failures").await.unwrap();
    assert_eq!(acl[0].scheme, "digest");
}

#[tokio::test]
async fn while_the_server_is_away_threads_do_not_gather() {
    let threads = || std::fs::read_dir("/proc/self/task").map(|tasks| tasks.count());
    let address = format!("127.0.0.1:{}", free_port());
    let store = ZooKeeperStore::builder(address).request_timeout(Duration::from_millis(50)).build().unwrap();
    // Not on Linux: nothing to count.
    let Ok(before) = threads() else { return };
    for _ in 0..30 {
        one(&store, create(&key("a"), "a")).await.unwrap_err();
    }
    // Other tests have threads of their own.
    sleep(100).await;
    assert!(threads().unwrap() < before + 20);
}
