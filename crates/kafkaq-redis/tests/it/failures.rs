//! What a call says when the server or the network fails, and that the next call finds its way back.

use crate::{create, key, keys, proxy::Mode, proxy::Proxy, replace, server::Server, sleep, store, value};
use kafkaq_core::{Effect, Error, ErrorKind, LeaseStore, Retry, Swapped};
use kafkaq_redis::RedisStore;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_millis(300);

fn impatient(url: String) -> RedisStore {
    RedisStore::builder(url).request_timeout(LIMIT).connections(1).build().unwrap()
}

async fn failed_swap(store: &RedisStore) -> Error {
    store.swap(&[create(&key("a"), "a")]).await.pop().unwrap().unwrap_err()
}

fn facts(e: &Error) -> (ErrorKind, Effect, Retry) {
    (e.kind(), e.effect(), e.retry())
}

/// The next call, or one soon after: reconnecting backs off by up to half a second.
async fn await_working(store: &RedisStore) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match store.get(&[key("any")]).await.pop().unwrap() {
            Ok(_) => return,
            Err(e) if Instant::now() > deadline => panic!("still failing: {e}"),
            Err(_) => sleep(10).await,
        }
    }
}

/// So that no second round is needed, as for the script's text or for a server before 7.0.
async fn warm_up(store: &RedisStore) {
    let k = key("warm");
    store.swap(&[create(&k, "a")]).await.pop().unwrap().unwrap();
    store.swap(&[replace(&k, "a", "b")]).await.pop().unwrap().unwrap();
}

#[tokio::test]
async fn without_a_server_a_swap_is_not_applied_and_returns_soon() {
    let mut server = Server::start();
    let store = impatient(server.url());
    server.kill();
    for _ in 0..3 {
        let begin = Instant::now();
        let e = failed_swap(&store).await;
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
        assert!(e.to_string().contains(&format!("127.0.0.1:{}", server.port())), "{e}");
        assert!(begin.elapsed() < LIMIT * 2);
    }
}

#[tokio::test]
async fn an_address_that_never_answers_is_not_applied_within_the_limit() {
    // A listener that accepts nothing: the connection stands, and nobody speaks. A password makes the client wait
    // for an answer while it connects.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = impatient(format!("redis://:pw@{}", silent.local_addr().unwrap()));
    let begin = Instant::now();
    let e = failed_swap(&store).await;
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()));
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_connection_later() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.url());
    warm_up(&store).await;
    server.freeze();
    let begin = Instant::now();
    let e = failed_swap(&store).await;
    assert_eq!(facts(&e), (ErrorKind::Timeout, Effect::Unknown, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()));
    server.thaw();
    await_working(&store).await;
    assert_eq!(proxy.accepted(), 2, "the connection that had timed out was used again");
    // It was frozen, not deaf.
    assert_eq!(store.get(&[key("a")]).await.pop().unwrap().unwrap(), value("a"));
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_swap_is_there() {
    for (mode, kind) in
        [(Mode::SwallowAnswers, ErrorKind::Timeout), (Mode::CutAtAnswer, ErrorKind::Unavailable)]
    {
        let server = Server::start();
        let proxy = Proxy::to(server.port()).await;
        let store = impatient(proxy.url());
        warm_up(&store).await;
        proxy.set(mode);
        let e = failed_swap(&store).await;
        assert_eq!(facts(&e), (kind, Effect::Unknown, Retry::Yes), "{e}");
        proxy.set(Mode::Pass);
        assert_eq!(store.get(&[key("a")]).await.pop().unwrap().unwrap(), value("a"), "{mode:?}");
    }
}

#[tokio::test]
async fn a_late_failure_of_an_old_connection_spares_the_new_one() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = Arc::new(impatient(proxy.url()));
    warm_up(&store).await;
    proxy.set(Mode::SwallowAnswers);
    let early = tokio::spawn({
        let store = store.clone();
        async move { failed_swap(&store).await }
    });
    tokio::time::sleep(LIMIT / 2).await;
    let late = tokio::spawn({
        let store = store.clone();
        async move { failed_swap(&store).await }
    });
    early.await.unwrap();
    proxy.set(Mode::Pass);
    await_working(&store).await;
    assert_eq!(late.await.unwrap().effect(), Effect::Unknown);
    await_working(&store).await;
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn a_read_that_fails_had_no_effect() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.url());
    await_working(&store).await;
    proxy.set(Mode::SwallowAnswers);
    let outcomes = store.get(&keys(3)).await;
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        let e = outcome.unwrap_err();
        assert_eq!(facts(&e), (ErrorKind::Timeout, Effect::NotApplied, Retry::Yes), "{e}");
    }
}

#[tokio::test]
async fn a_killed_server_breaks_one_call_at_most_and_then_nothing_is_applied() {
    let mut server = Server::start();
    let store = impatient(server.url());
    await_working(&store).await;
    server.kill();
    let first = failed_swap(&store).await;
    assert_eq!(first.kind(), ErrorKind::Unavailable, "{first}");
    let second = failed_swap(&store).await;
    assert_eq!(facts(&second), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{second}");
}

#[tokio::test]
async fn it_reconnects_after_a_restart() {
    let mut server = Server::start();
    let store = store(&server);
    for _ in 0..2 {
        await_working(&store).await;
        server.kill();
        failed_swap(&store).await;
        server.start_again();
        await_working(&store).await;
        // The new server has no script in its cache.
        let k = key("restarted");
        assert_eq!(store.swap(&[create(&k, "a")]).await.pop().unwrap().unwrap(), Swapped::Done);
        assert_eq!(store.swap(&[replace(&k, "a", "b")]).await.pop().unwrap().unwrap(), Swapped::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_new_connection() {
    let mut server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = Arc::new(impatient(proxy.url()));
    await_working(&store).await;
    proxy.set(Mode::SwallowAnswers);
    let before = proxy.accepted();
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { failed_swap(&store).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().effect(), Effect::Unknown);
    }
    proxy.set(Mode::Pass);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.get(&[key("a")]).await.pop().unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(proxy.accepted(), before + 1);
    server.kill();
}

/// Accepts and hangs up at once, and counts.
async fn slammed_door() -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let knocks = Arc::new(AtomicUsize::new(0));
    let count = knocks.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Relaxed);
        }
    });
    (url, knocks)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_a_server_that_fails_share_its_failure() {
    let (url, knocks) = slammed_door().await;
    let store = Arc::new(impatient(url));
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { failed_swap(&store).await })
        })
        .collect();
    for call in calls {
        let e = call.await.unwrap();
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    }
    // A call that was scheduled late may have made one more.
    assert!(knocks.load(Relaxed) <= 3, "{knocks:?}");
}

#[tokio::test]
async fn attempts_to_connect_are_spaced_even_for_a_caller_in_a_hurry() {
    let (url, knocks) = slammed_door().await;
    let store = RedisStore::builder(url).connections(1).build().unwrap();
    let begin = Instant::now();
    let mut calls = 0;
    while begin.elapsed() < Duration::from_millis(500) {
        failed_swap(&store).await;
        calls += 1;
    }
    // 20, 40, 80, 160, 320 ms.
    assert!(knocks.load(Relaxed) <= 6 && calls <= 6, "{knocks:?} {calls}");
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_in_step() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = RedisStore::builder(proxy.url()).connections(1).build().unwrap();
    let all = keys(200);
    let fill: Vec<_> = all.iter().map(|k| create(k, "v")).collect();
    store.swap(&fill).await;
    for n in 0..50 {
        let dropped = tokio::time::timeout(Duration::from_micros(n * 20), store.get(&all)).await;
        drop(dropped);
        let odd = key("odd");
        assert_eq!(store.get(&[odd.clone(), all[0].clone()]).await.pop().unwrap().unwrap(), value("v"));
        assert_eq!(store.get(&[odd]).await.pop().unwrap().unwrap(), None);
    }
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_left() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.url());
    let k = key("a");
    assert!(store.swap(&[create(&k, "a")]).await[0].is_ok());
    // An address of nobody: it stays a replica without a primary. Reads go on.
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    for (n, swap) in [create(&key("b"), "b"), replace(&k, "a", "b")].into_iter().enumerate() {
        let e = store.swap(&[swap]).await.pop().unwrap().unwrap_err();
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
        await_working(&store).await;
        assert_eq!(proxy.accepted(), n + 2, "the connection to the replica was kept");
    }
    server.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(store.swap(&[replace(&k, "a", "b")]).await.pop().unwrap().unwrap(), Swapped::Done);
}

#[tokio::test]
async fn a_full_server_refuses_without_effect() {
    let server = Server::start();
    let store = store(&server);
    let [there, new] = ["there", "new"].map(key);
    assert!(store.swap(&[create(&there, "a")]).await[0].is_ok());
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    for outcome in store.swap(&[create(&new, "a"), replace(&there, "a", "b")]).await {
        let e = outcome.unwrap_err();
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
        assert!(e.advice().unwrap().contains("maxmemory"));
    }
    assert_eq!(store.get(&[there]).await.pop().unwrap().unwrap(), value("a"));
}

#[tokio::test]
async fn a_server_busy_with_a_script_refuses_without_effect() {
    let server = Server::with(&["--lua-time-limit", "20"]);
    let store = RedisStore::builder(server.url()).build().unwrap();
    await_working(&store).await;
    let url = server.url();
    let busy = std::thread::spawn(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut connection).unwrap_err()
    });
    sleep(200).await;
    for swap in [create(&key("a"), "a"), replace(&key("b"), "a", "b")] {
        let e = store.swap(&[swap]).await.pop().unwrap().unwrap_err();
        assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    }
    server.ask(&["SCRIPT", "KILL"]);
    busy.join().unwrap();
}

#[tokio::test]
async fn after_close_every_call_fails_with_closed() {
    let server = Server::start();
    let store = store(&server);
    assert!(store.swap(&[create(&key("a"), "a")]).await[0].is_ok());
    store.close().await.unwrap();
    store.close().await.unwrap();
    let e = failed_swap(&store).await;
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Closed, Effect::NotApplied));
    assert_eq!(store.get(&[key("a")]).await.pop().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.check().await.unwrap_err().kind(), ErrorKind::Closed);
    // Its connections are gone too.
    sleep(100).await;
    let clients = match server.ask(&["CLIENT", "LIST"]) {
        redis::Value::BulkString(text) => String::from_utf8(text).unwrap().lines().count(),
        other => panic!("{other:?}"),
    };
    assert_eq!(clients, 1, "only the one that asks");
}
