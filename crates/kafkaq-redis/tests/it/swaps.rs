//! What swaps and reads promise, on a single server as on a cluster.

use crate::{
    create, key, keys, proxy::Mode, proxy::Proxy, replace, server::Server, sleep, target::Target, value,
};
use bytes::Bytes;
use kafkaq_core::{Error, ErrorKind, Key, LeaseStore, Swap, Swapped};
use kafkaq_redis::RedisStore;
use redis::Value;
use std::{sync::Arc, time::Duration};

/// Each case twice: on a server and on a cluster of its own.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod single {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Target::single()).await;
            })*
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Target::cluster()).await;
            })*
        }
    };
}

on_both! {
    of_64_concurrent_creates_one_wins,
    no_increment_of_a_contended_counter_is_lost,
    a_conflict_brings_the_current_value_and_changes_nothing,
    a_matching_swap_replaces_deletes_or_confirms_nothing,
    a_value_lives_as_long_as_its_ttl_and_not_for_ever,
    a_swap_replaces_the_ttl_and_none_means_for_ever,
    a_batch_of_1000_has_its_outcomes_in_order,
    a_batch_of_one_and_of_none,
    keys_and_values_at_their_limits,
    two_prefixes_are_two_stores,
    a_foreign_value_fails_its_own_key_only,
    a_flushed_script_cache_goes_unnoticed,
}

async fn one(store: &RedisStore, swap: Swap) -> Result<Swapped, Error> {
    store.swap(&[swap]).await.pop().unwrap()
}

async fn read(store: &RedisStore, key: &Key) -> Option<Bytes> {
    store.get(std::slice::from_ref(key)).await.pop().unwrap().unwrap()
}

fn full_name(key: &Key) -> String {
    format!("kafkaq/{key}")
}

async fn of_64_concurrent_creates_one_wins(target: Target) {
    let store = Arc::new(target.store());
    let k = key("contended");
    let tries: Vec<_> = (0..64)
        .map(|n: u32| {
            let (store, k) = (store.clone(), k.clone());
            tokio::spawn(
                async move { one(&store, Swap::new(k, None, Some(n.to_string().into()), None)).await },
            )
        })
        .collect();
    let mut winners = Vec::new();
    let mut seen = Vec::new();
    for (n, task) in tries.into_iter().enumerate() {
        match task.await.unwrap().unwrap() {
            Swapped::Done => winners.push(Bytes::from(n.to_string())),
            Swapped::Conflict(current) => seen.push(current.unwrap()),
        }
    }
    assert_eq!(winners.len(), 1);
    assert!(seen.iter().all(|v| *v == winners[0]));
}

async fn no_increment_of_a_contended_counter_is_lost(target: Target) {
    const TASKS: usize = 8;
    const TIMES: usize = 50;
    let store = Arc::new(target.builder().connections(4).build().unwrap());
    let k = key("counter");
    one(&store, create(&k, "0")).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (store, k) = (store.clone(), k.clone());
            tokio::spawn(async move {
                for _ in 0..TIMES {
                    let mut is = read(&store, &k).await.unwrap();
                    loop {
                        let n: usize = std::str::from_utf8(&is).unwrap().parse().unwrap();
                        let next = Swap::new(k.clone(), Some(is), Some((n + 1).to_string().into()), None);
                        match one(&store, next).await.unwrap() {
                            Swapped::Done => break,
                            Swapped::Conflict(current) => is = current.unwrap(),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(read(&store, &k).await, Some((TASKS * TIMES).to_string().into()));
}

async fn a_conflict_brings_the_current_value_and_changes_nothing(target: Target) {
    let store = target.store();
    let (there, missing) = (key("there"), key("missing"));
    assert_eq!(one(&store, create(&there, "a")).await.unwrap(), Swapped::Done);
    let delete = |k: &Key, expect: &'static str| Swap::new(k.clone(), value(expect), None, None);
    for (swap, current) in [
        (create(&there, "b"), value("a")),
        (replace(&there, "b", "c"), value("a")),
        (delete(&there, "b"), value("a")),
        (Swap::new(there.clone(), None, None, None), value("a")),
        (replace(&missing, "a", "b"), None),
        (delete(&missing, "a"), None),
    ] {
        assert_eq!(one(&store, swap.clone()).await.unwrap(), Swapped::Conflict(current), "{swap:?}");
    }
    assert_eq!(read(&store, &there).await, value("a"));
    assert_eq!(read(&store, &missing).await, None);
}

async fn a_matching_swap_replaces_deletes_or_confirms_nothing(target: Target) {
    let store = target.store();
    let k = key("a");
    for (expect, new) in [(None, None), (None, value("1")), (value("1"), value("2")), (value("2"), None)] {
        let swap = Swap::new(k.clone(), expect, new.clone(), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
        assert_eq!(read(&store, &k).await, new);
    }
}

async fn a_value_lives_as_long_as_its_ttl_and_not_for_ever(target: Target) {
    let store = target.store();
    let (created, swapped) = (key("created"), key("swapped"));
    one(&store, create(&swapped, "a")).await.unwrap();
    let ttl = Some(Duration::from_millis(400));
    let begin = std::time::Instant::now();
    one(&store, Swap::new(created.clone(), None, value("a"), ttl)).await.unwrap();
    one(&store, Swap::new(swapped.clone(), value("a"), value("b"), ttl)).await.unwrap();
    sleep(250).await;
    let values = store.get(&[created.clone(), swapped.clone()]).await;
    if begin.elapsed() < Duration::from_millis(400) {
        assert!(values.iter().all(|v| v.as_ref().unwrap().is_some()), "{values:?}");
    }
    sleep(500).await;
    assert_eq!((read(&store, &created).await, read(&store, &swapped).await), (None, None));
}

async fn a_swap_replaces_the_ttl_and_none_means_for_ever(target: Target) {
    let store = target.store();
    let k = key("a");
    let left = |k: &Key| match target.ask(&["PTTL", &full_name(k)]) {
        Value::Int(left) => left,
        other => panic!("{other:?}"),
    };
    let ttl = |secs| Some(Duration::from_secs(secs));
    one(&store, Swap::new(k.clone(), None, value("a"), ttl(100))).await.unwrap();
    assert!((90_000..=100_000).contains(&left(&k)));
    one(&store, Swap::new(k.clone(), value("a"), value("a"), ttl(1000))).await.unwrap();
    assert!((990_000..=1_000_000).contains(&left(&k)));
    one(&store, replace(&k, "a", "b")).await.unwrap();
    assert_eq!(left(&k), -1);
    one(&store, create(&key("b"), "a")).await.unwrap();
    assert_eq!(left(&key("b")), -1);
    let for_ever = Some(Duration::MAX);
    one(&store, Swap::new(k.clone(), value("b"), value("c"), for_ever)).await.unwrap();
    assert_eq!(read(&store, &k).await, value("c"));
}

/// Done for three of four; every fourth is a conflict.
fn mixed(keys: &[Key]) -> Vec<Swap> {
    let swap = |(n, k): (usize, &Key)| match n % 4 {
        0 => create(k, "new"),
        1 => replace(k, "old", "new"),
        2 => Swap::new(k.clone(), value("old"), None, None),
        _ => replace(k, "other", "new"),
    };
    keys.iter().enumerate().map(swap).collect()
}

async fn check_mixed(store: &RedisStore, n: usize) {
    let keys = keys(n);
    let old: Vec<_> =
        keys.iter().enumerate().filter(|(n, _)| n % 4 != 0).map(|(_, k)| create(k, "old")).collect();
    assert!(store.swap(&old).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    for (n, outcome) in store.swap(&mixed(&keys)).await.into_iter().enumerate() {
        let expected = if n % 4 == 3 { Swapped::Conflict(value("old")) } else { Swapped::Done };
        assert_eq!(outcome.unwrap(), expected, "{n}");
    }
    let values = store.get(&keys).await;
    assert_eq!(values.len(), n);
    for (n, is) in values.into_iter().enumerate() {
        let expected = [value("new"), value("new"), None, value("old")][n % 4].clone();
        assert_eq!(is.unwrap(), expected, "{n}");
    }
}

async fn a_batch_of_1000_has_its_outcomes_in_order(target: Target) {
    check_mixed(&target.store(), 1000).await;
}

async fn a_batch_of_one_and_of_none(target: Target) {
    let store = target.store();
    check_mixed(&store, 1).await;
    assert!(store.swap(&[]).await.is_empty());
    assert!(store.get(&[]).await.is_empty());
}

#[tokio::test]
async fn a_server_without_set_nx_get_is_served_by_the_script() {
    let server = Server::start();
    let proxy = Proxy::to(server.port()).await;
    proxy.set(Mode::OldServer);
    let store = RedisStore::builder(proxy.url()).build().unwrap();
    check_mixed(&store, 300).await;
    let spoilt = proxy.spoilt();
    assert!(spoilt > 0);
    let again = store.swap(&[create(&keys(1)[0], "again")]).await.pop().unwrap();
    assert_eq!(again.unwrap(), Swapped::Conflict(value("new")));
    assert_eq!(proxy.spoilt(), spoilt, "it was tried again");
}

async fn keys_and_values_at_their_limits(target: Target) {
    let store = target.store();
    // Every byte of the id is escaped as three: the longest key that the core makes.
    let space = kafkaq_core::Keyspace::new(&"q".repeat(120), &"g".repeat(60)).unwrap();
    let long = Key::task(&space, &kafkaq_core::TaskId::new("%".repeat(128)).unwrap());
    assert!(long.as_str().len() > 500 && long.as_str().len() <= Key::MAX_LEN);
    let every_byte: Bytes = (0..=255).collect();
    let framing = Bytes::from_static(b"$5\r\n=\0-\r\n");
    let big = Bytes::from(vec![0xff; 1 << 20]);
    let mut is: Option<Bytes> = None;
    for next in [every_byte, Bytes::new(), framing, big, Bytes::from_static(b"="), Bytes::new()] {
        // Neither nothing nor a longer value passes for an empty one.
        if let Some(is) = is.as_ref().filter(|is| is.is_empty()) {
            let wrong = one(&store, Swap::new(long.clone(), None, value("x"), None)).await.unwrap();
            assert_eq!(wrong, Swapped::Conflict(Some(is.clone())));
        }
        let wrong = Swap::new(long.clone(), Some(Bytes::from_static(b"no such")), value("x"), None);
        assert_eq!(one(&store, wrong).await.unwrap(), Swapped::Conflict(is.clone()));
        let swap = Swap::new(long.clone(), is, Some(next.clone()), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
        assert_eq!(read(&store, &long).await, Some(next.clone()));
        is = Some(next);
    }
}

async fn two_prefixes_are_two_stores(target: Target) {
    let [a, b] = ["a/", "b/"].map(|p| target.builder().prefix(p).build().unwrap());
    let k = key("same");
    assert_eq!(one(&a, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&b, &k).await, None);
    assert_eq!(one(&b, create(&k, "b")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&a, &k).await, value("a"));
}

async fn a_foreign_value_fails_its_own_key_only(target: Target) {
    let store = target.store();
    let [a, foreign, b] = ["a", "foreign", "b"].map(key);
    target.ask(&["LPUSH", &full_name(&foreign), "x"]);
    let by_script = |k: &Key, v| replace(k, v, v);
    for make in [create, by_script] {
        let outcomes = store.swap(&[make(&a, "1"), make(&foreign, "1"), make(&b, "1")]).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
        let e = outcomes[1].as_ref().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Corrupt, kafkaq_core::Effect::NotApplied), "{e}");
    }
}

async fn a_flushed_script_cache_goes_unnoticed(target: Target) {
    let store = target.store();
    let keys = keys(300);
    let fill: Vec<_> = keys.iter().map(|k| create(k, "0")).collect();
    assert!(store.swap(&fill).await.iter().all(Result::is_ok));
    for [is, next] in [["0", "1"], ["1", "2"], ["2", "3"]] {
        target.ask_all(&["SCRIPT", "FLUSH"]);
        let swaps: Vec<_> = keys.iter().map(|k| replace(k, is, next)).collect();
        assert!(store.swap(&swaps).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    }
}
