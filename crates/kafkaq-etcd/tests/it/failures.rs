//! What a call says when the server or the network fails, and that the next call finds its way back.

use crate::{create, key, keys, proxy::Mode, proxy::Proxy, replace, server::Server, sleep, store, value};
use kafkaq_core::{Effect, Error, ErrorKind, LeaseStore, Retry, Swapped};
use kafkaq_etcd::EtcdStore;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_millis(300);

fn impatient(address: String) -> EtcdStore {
    EtcdStore::builder([address]).request_timeout(LIMIT).build().unwrap()
}

async fn failed_swap(store: &EtcdStore) -> Error {
    store.swap(&[create(&key("a"), "a")]).await.pop().unwrap().unwrap_err()
}

fn facts(e: &Error) -> (ErrorKind, Effect, Retry) {
    (e.kind(), e.effect(), e.retry())
}

/// The next call, or one soon after: reconnecting backs off by up to half a second.
async fn await_working(store: &EtcdStore) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match store.get(&[key("any")]).await.pop().unwrap() {
            Ok(_) => return,
            Err(e) if Instant::now() > deadline => panic!("still failing: {e}"),
            Err(_) => sleep(10).await,
        }
    }
}

/// What was sent last arrives, perhaps only after the next connection stands.
async fn await_value(store: &EtcdStore, text: &'static str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !matches!(store.get(&[key("a")]).await.pop().unwrap(), Ok(is) if is == value(text)) {
        assert!(Instant::now() < deadline, "it never took effect");
        sleep(10).await;
    }
}

#[tokio::test]
async fn without_a_server_a_swap_is_not_applied_and_returns_soon() {
    let mut server = Server::start();
    let store = impatient(server.address());
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
    // A listener that accepts nothing: the connection stands, and nobody speaks.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = impatient(silent.local_addr().unwrap().to_string());
    let begin = Instant::now();
    let e = failed_swap(&store).await;
    assert_eq!(facts(&e), (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()));
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_connection_later() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.address());
    await_working(&store).await;
    server.freeze();
    let begin = Instant::now();
    let e = failed_swap(&store).await;
    assert_eq!(facts(&e), (ErrorKind::Timeout, Effect::Unknown, Retry::Yes), "{e}");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()));
    server.thaw();
    await_working(&store).await;
    assert_eq!(proxy.accepted(), 2, "the connection that had timed out was used again");
    // It was frozen, not deaf.
    await_value(&store, "a").await;
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_swap_is_there() {
    for (mode, kind) in
        [(Mode::SwallowAnswers, ErrorKind::Timeout), (Mode::CutAtAnswer, ErrorKind::Unavailable)]
    {
        let server = Server::start();
        let proxy = Proxy::to(server.port()).await;
        let store = impatient(proxy.address());
        await_working(&store).await;
        proxy.set(mode);
        let e = failed_swap(&store).await;
        assert_eq!(facts(&e), (kind, Effect::Unknown, Retry::Yes), "{e}");
        proxy.set(Mode::Pass);
        await_value(&store, "a").await;
    }
}

#[tokio::test]
async fn a_late_failure_of_an_old_connection_spares_the_new_one() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = Arc::new(impatient(proxy.address()));
    await_working(&store).await;
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
    let store = impatient(proxy.address());
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
    let store = impatient(server.address());
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
    let k = key("restarted");
    assert_eq!(store.swap(&[create(&k, "a")]).await.pop().unwrap().unwrap(), Swapped::Done);
    for _ in 0..2 {
        await_working(&store).await;
        server.kill();
        failed_swap(&store).await;
        server.start_again();
        await_working(&store).await;
        assert_eq!(store.swap(&[replace(&k, "a", "a")]).await.pop().unwrap().unwrap(), Swapped::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_new_connection() {
    let mut server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = Arc::new(impatient(proxy.address()));
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
    let address = listener.local_addr().unwrap().to_string();
    let knocks = Arc::new(AtomicUsize::new(0));
    let count = knocks.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Relaxed);
        }
    });
    (address, knocks)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_a_server_that_fails_share_its_failure() {
    let (address, knocks) = slammed_door().await;
    let store = Arc::new(impatient(address));
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
    // The client knocks twice, and a call that was scheduled late may have made one more attempt.
    assert!(knocks.load(Relaxed) <= 4, "{knocks:?}");
}

#[tokio::test]
async fn attempts_to_connect_are_spaced_even_for_a_caller_in_a_hurry() {
    let (address, knocks) = slammed_door().await;
    let store = EtcdStore::builder([address]).build().unwrap();
    let begin = Instant::now();
    let mut calls = 0;
    while begin.elapsed() < Duration::from_millis(500) {
        failed_swap(&store).await;
        calls += 1;
    }
    // After 20, 40, 80, 160, 320 ms; the client knocks twice each time.
    assert!(knocks.load(Relaxed) <= 12 && calls <= 6, "{knocks:?} {calls}");
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_in_step() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = EtcdStore::builder([proxy.address()]).build().unwrap();
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
}

#[tokio::test]
async fn close_leaves_no_connection_behind() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.address());
    await_working(&store).await;
    assert_eq!(proxy.open(), 1);
    store.close().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while proxy.open() > 0 {
        assert!(Instant::now() < deadline, "still connected");
        sleep(10).await;
    }
}

#[tokio::test]
async fn an_endpoint_without_a_server_is_passed_over() {
    let (slammed, _) = slammed_door().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start();
    let endpoints = [slammed, silent.local_addr().unwrap().to_string(), server.address()];
    let store = EtcdStore::builder(endpoints).request_timeout(LIMIT * 3).build().unwrap();
    assert_eq!(store.swap(&[create(&key("a"), "a")]).await.pop().unwrap().unwrap(), Swapped::Done);
    for _ in 0..20 {
        store.get(&[key("a")]).await.pop().unwrap().unwrap();
    }
}

#[tokio::test]
async fn after_a_failure_the_next_endpoint_comes_first() {
    let (first, second) = (Server::start(), Server::start());
    let limit = LIMIT * 3;
    let builder = EtcdStore::builder([first.address(), second.address()]);
    let store = builder.request_timeout(limit).build().unwrap();
    await_working(&store).await;
    first.freeze();
    assert!(store.get(&[key("a")]).await[0].is_err());
    let begin = Instant::now();
    assert!(store.get(&[key("a")]).await[0].is_ok());
    // Half of the limit would have gone to the first.
    assert!(begin.elapsed() < limit / 3, "{:?}", begin.elapsed());
}
