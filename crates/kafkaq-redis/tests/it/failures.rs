//! Calls to a server that refuses them, or that has restarted.

use crate::{Redis, ask, store, try_ask};
use kafkaq_adapter_tests::{Log, all_cases, create, key, one, read, replace, until, value};
use kafkaq_conformance::Proxy;
use kafkaq_core::{Effect, Error, ErrorKind, LeaseStore, Retry, Swapped};
use kafkaq_redis::RedisStore;
use xtask::services::Service;

all_cases!(Redis);

fn assert_refused(e: &Error) {
    let facts = (e.kind(), e.effect(), e.retry());
    assert_eq!(facts, (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{e}");
}

#[tokio::test]
async fn restart_without_the_cached_script_goes_unnoticed() {
    let mut server = Service::Redis.own().unwrap();
    let (store, k) = (store(&server), key("a"));
    for _ in 0..2 {
        until("it is created", async || one(&store, create(&k, "a")).await.is_ok()).await;
        one(&store, replace(&k, "a", "b")).await.unwrap();
        server.kill().unwrap();
        one(&store, replace(&k, "b", "a")).await.unwrap_err();
        server.start_again().unwrap();
    }
}

#[tokio::test]
async fn connection_to_a_primary_that_becomes_a_replica_is_dropped() {
    let server = Service::Redis.own().unwrap();
    let proxy = Proxy::to(server.addr()).unwrap();
    let store = RedisStore::builder(format!("redis://{}", proxy.addr())).connections(1).build().unwrap();
    let k = key("a");
    one(&store, create(&k, "a")).await.unwrap();
    // Nobody has this address: it stays a replica without a primary. Reads still work.
    ask(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    for swap in [create(&key("b"), "b"), replace(&k, "a", "b")] {
        let before = proxy.accepted();
        assert_refused(&one(&store, swap).await.unwrap_err());
        until("it reads", async || read(&store, &k).await.is_ok()).await;
        assert!(proxy.accepted() > before, "the connection to the replica was kept");
    }
    ask(&server, &["REPLICAOF", "NO", "ONE"]);
    assert_eq!(one(&store, replace(&k, "a", "b")).await.unwrap(), Swapped::Done);
}

#[tokio::test]
async fn a_swap_that_a_replica_refused_goes_to_the_new_primary() {
    let [old, new] = [(); 2].map(|()| Service::Redis.own().unwrap());
    let proxy = Proxy::to(old.addr()).unwrap();
    let store = RedisStore::builder(format!("redis://{}", proxy.addr())).connections(1).build().unwrap();
    for n in ["a", "b"] {
        one(&store, create(&key(n), "a")).await.unwrap();
        ask(&new, &["SET", &format!("kafkaq/{}", key(n)), "a"]);
    }
    proxy.lead_to(new.addr()).unwrap();
    ask(&old, &["REPLICAOF", "127.0.0.1", "1"]);
    let outcomes = store.swap(&[replace(&key("a"), "a", "b"), create(&key("c"), "c")]).await;
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap() == Swapped::Done));
    assert_eq!(ask(&new, &["GET", &format!("kafkaq/{}", key("a"))]), redis::Value::BulkString(b"b".to_vec()));
}

#[tokio::test]
async fn a_full_server_refuses_without_effect_and_the_log_says_so() {
    let server = Service::Redis.own().unwrap();
    let (log, store) = (Log::capture(), store(&server));
    let [there, new] = ["there", "new"].map(key);
    one(&store, create(&there, "a")).await.unwrap();
    ask(&server, &["CONFIG", "SET", "maxmemory", "1"]);
    for outcome in store.swap(&[create(&new, "a"), replace(&there, "a", "b")]).await {
        let e = outcome.unwrap_err();
        assert_refused(&e);
        assert!(e.advice().unwrap().contains("maxmemory"));
    }
    let told = log.lines();
    assert!(told.len() == 1 && told[0].contains("is failing") && told[0].contains("maxmemory"), "{told:#?}");
    assert_eq!(read(&store, &there).await.unwrap(), value("a"));
}

#[tokio::test]
async fn a_server_busy_with_a_script_refuses_without_effect() {
    let server = Service::Redis.own_with(None, &["--lua-time-limit", "20"]).unwrap();
    let store = store(&server);
    one(&store, create(&key("there"), "a")).await.unwrap();
    let url = server.url();
    let busy = std::thread::spawn(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut connection).unwrap_err()
    });
    let is_busy = async || try_ask(&server, &["PING"]).is_err_and(|e| e.code() == Some("BUSY"));
    until("it is busy", is_busy).await;
    for swap in [create(&key("a"), "a"), replace(&key("b"), "a", "b")] {
        assert_refused(&one(&store, swap).await.unwrap_err());
    }
    ask(&server, &["SCRIPT", "KILL"]);
    busy.join().unwrap();
}
