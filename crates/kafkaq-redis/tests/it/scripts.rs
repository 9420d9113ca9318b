//! How swaps are executed: by a command or by the script, on a single server and on a cluster.

use crate::{number, on_both, target::Target};
use kafkaq_adapter_tests::{create, key, keys, one, read, replace, value};
use kafkaq_conformance::Proxy;
use kafkaq_core::{Effect, ErrorKind, Key, LeaseStore, Swap, Swapped};
use kafkaq_redis::RedisStore;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use xtask::services::Service;

on_both! {
    redis_itself_ends_a_value_when_it_should,
    two_prefixes_are_two_stores,
    a_foreign_value_fails_its_own_key_only,
    a_flushed_script_cache_goes_unnoticed,
}

fn store(target: &Target, prefix: &str) -> RedisStore {
    target.builder().prefix(prefix).build().unwrap()
}

async fn redis_itself_ends_a_value_when_it_should(target: &Target) {
    let store = store(target, "ttl/");
    let k = key("a");
    let left = |k: &Key| number(target.ask(&["PTTL", &format!("ttl/{k}")]));
    let ttl = |secs| Some(Duration::from_secs(secs));
    one(&store, Swap::new(k.clone(), None, value("a"), ttl(1000))).await.unwrap();
    assert!((900_000..=1_000_000).contains(&left(&k)));
    one(&store, Swap::new(k.clone(), value("a"), value("a"), ttl(10_000))).await.unwrap();
    assert!((9_900_000..=10_000_000).contains(&left(&k)));
    one(&store, replace(&k, "a", "b")).await.unwrap();
    assert_eq!(left(&k), -1);
    one(&store, create(&key("b"), "a")).await.unwrap();
    assert_eq!(left(&key("b")), -1);
    let for_ever = Some(Duration::MAX);
    one(&store, Swap::new(k.clone(), value("b"), value("c"), for_ever)).await.unwrap();
    assert_eq!(read(&store, &k).await.unwrap(), value("c"));
}

async fn two_prefixes_are_two_stores(target: &Target) {
    let [a, b] = ["a/", "b/"].map(|prefix| store(target, prefix));
    let k = key("same");
    assert_eq!(one(&a, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&b, &k).await.unwrap(), None);
    assert_eq!(one(&b, create(&k, "b")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&a, &k).await.unwrap(), value("a"));
}

async fn a_foreign_value_fails_its_own_key_only(target: &Target) {
    let store = store(target, "foreign/");
    let [a, foreign, b] = ["a", "foreign", "b"].map(key);
    target.ask(&["LPUSH", &format!("foreign/{foreign}"), "x"]);
    let by_script = |k: &Key, v| replace(k, v, v);
    for make in [create, by_script] {
        let outcomes = store.swap(&[make(&a, "1"), make(&foreign, "1"), make(&b, "1")]).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
        let e = outcomes[1].as_ref().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Corrupt, Effect::NotApplied), "{e}");
    }
}

async fn a_flushed_script_cache_goes_unnoticed(target: &Target) {
    let store = store(target, "flushed/");
    let keys = keys(300);
    let fill: Vec<_> = keys.iter().map(|k| create(k, "0")).collect();
    assert!(store.swap(&fill).await.iter().all(Result::is_ok));
    for [is, next] in [["0", "1"], ["1", "2"], ["2", "3"]] {
        target.ask_all(&["SCRIPT", "FLUSH"]);
        let swaps: Vec<_> = keys.iter().map(|k| replace(k, is, next)).collect();
        assert!(store.swap(&swaps).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    }
}

/// A server before 7.0 answers `SET NX GET` with a syntax error, and this one does so for `SET NX WAT`.
#[tokio::test]
async fn server_without_set_nx_get_uses_the_script() {
    let server = Service::Redis.own().unwrap();
    let spoilt = Arc::new(AtomicUsize::new(0));
    let count = spoilt.clone();
    let proxy = Proxy::rewriting(server.addr(), move |bytes| {
        let (new, old) = (b"NX\r\n$3\r\nGET\r\n", b"NX\r\n$3\r\nWAT\r\n");
        for at in 0..bytes.len().saturating_sub(new.len() - 1) {
            if bytes[at..].starts_with(new) {
                bytes[at..at + old.len()].copy_from_slice(old);
                count.fetch_add(1, Relaxed);
            }
        }
    });
    let store = RedisStore::builder(format!("redis://{}", proxy.unwrap().addr())).build().unwrap();
    let (keys, [a, new]) = (keys(300), ["a", "new"].map(key));
    one(&store, replace(&a, "0", "1")).await.unwrap();
    assert_eq!(spoilt.load(Relaxed), 0);
    let fill: Vec<_> = keys.iter().map(|k| create(k, "0")).collect();
    assert!(store.swap(&fill).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    let before = spoilt.load(Relaxed);
    assert!(before > 0);
    let mixed = [create(&keys[0], "1"), create(&new, "1"), replace(&keys[1], "0", "1")];
    let outcomes: Vec<_> = store.swap(&mixed).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes, [Swapped::Conflict(value("0")), Swapped::Done, Swapped::Done]);
    assert_eq!(spoilt.load(Relaxed), before, "it was retried");
}
