//! What swaps and reads promise.

use crate::{create, key, keys, one, read, replace, server::Server, store, value};
use bytes::Bytes;
use kafkaq_core::{Effect, ErrorKind, Key, LeaseStore, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn of_64_concurrent_creates_one_wins() {
    let server = Server::start();
    let store = Arc::new(store(&server));
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

#[tokio::test(flavor = "multi_thread")]
async fn no_increment_of_a_contended_counter_is_lost() {
    const TASKS: usize = 8;
    const TIMES: usize = 50;
    let server = Server::start();
    let store = Arc::new(store(&server));
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

#[tokio::test]
async fn a_conflict_brings_the_current_value_and_changes_nothing() {
    let server = Server::start();
    let store = store(&server);
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

#[tokio::test]
async fn a_matching_swap_replaces_deletes_or_confirms_nothing() {
    let server = Server::start();
    let store = store(&server);
    let k = key("a");
    for (expect, new) in [(None, None), (None, value("1")), (value("1"), value("2")), (value("2"), None)] {
        let swap = Swap::new(k.clone(), expect, new.clone(), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
        assert_eq!(read(&store, &k).await, new);
    }
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

async fn check_mixed(store: &EtcdStore, n: usize) {
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

#[tokio::test]
async fn a_batch_of_1000_has_its_outcomes_in_order() {
    let server = Server::start();
    check_mixed(&store(&server), 1000).await;
}

#[tokio::test]
async fn a_batch_of_one_and_of_none() {
    let server = Server::start();
    let store = store(&server);
    check_mixed(&store, 1).await;
    assert!(store.swap(&[]).await.is_empty());
    assert!(store.get(&[]).await.is_empty());
}

#[tokio::test]
async fn keys_and_values_at_their_limits() {
    let server = Server::start();
    let store = store(&server);
    // Every byte of the id is escaped as three: the longest key that the core makes.
    let space = kafkaq_core::Keyspace::new(&"q".repeat(120), &"g".repeat(60)).unwrap();
    let long = Key::task(&space, &kafkaq_core::TaskId::new("%".repeat(128)).unwrap());
    assert!(long.as_str().len() > 500 && long.as_str().len() <= Key::MAX_LEN);
    let every_byte: Bytes = (0..=255).collect();
    let framing = Bytes::from_static(b"\x0a\x02=\0");
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

#[tokio::test]
async fn two_prefixes_are_two_stores() {
    let server = Server::start();
    let [a, b] = ["a/", "b/"].map(|p| EtcdStore::builder([server.address()]).prefix(p).build().unwrap());
    let k = key("same");
    assert_eq!(one(&a, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&b, &k).await, None);
    assert_eq!(one(&b, create(&k, "b")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&a, &k).await, value("a"));
}

#[tokio::test]
async fn a_swap_larger_than_the_server_takes_fails_alone_and_says_so() {
    let server = Server::start();
    let store = store(&server);
    let [a, huge, b] = ["a", "huge", "b"].map(key);
    let too_much = Bytes::from(vec![1; 2 << 20]);
    let batch = [create(&a, "1"), Swap::new(huge.clone(), None, Some(too_much), None), create(&b, "1")];
    let outcomes = store.swap(&batch).await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    let e = outcomes[1].as_ref().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("1.5 MiB"), "{e}");
    assert_eq!(read(&store, &huge).await, None);
}

#[tokio::test]
async fn a_batch_of_large_values_is_spread_over_requests_and_read_back() {
    let server = Server::start();
    let store = store(&server);
    let all = keys(40);
    let large = Bytes::from(vec![7; 200 * 1024]);
    let fill: Vec<_> = all.iter().map(|k| Swap::new(k.clone(), None, Some(large.clone()), None)).collect();
    assert!(store.swap(&fill).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    // Eight megabytes in one answer, twice what the client takes unless told otherwise.
    let values = store.get(&all).await;
    assert!(values.into_iter().all(|v| v.unwrap().as_ref() == Some(&large)));
    let again: Vec<_> = all.iter().map(|k| create(k, "no")).collect();
    for outcome in store.swap(&again).await {
        assert_eq!(outcome.unwrap(), Swapped::Conflict(Some(large.clone())));
    }
}

#[tokio::test]
async fn a_lower_limit_of_operations_is_refused_with_advice() {
    let server = Server::with(&["--max-txn-ops=100"]);
    let store = store(&server);
    let batch: Vec<_> = keys(120).iter().map(|k| create(k, "a")).collect();
    let e = store.swap(&batch).await.pop().unwrap().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Misconfigured, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("--max-txn-ops"), "{e}");
}
