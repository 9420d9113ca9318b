//! The content of nodes: versions, times to live, limits, and foreign content.

use crate::{builder, client, nodes, shared};
use kafkaq_adapter_tests::{create, key, one, read, remove, replace, value};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Swap, Swapped};
use std::time::{Duration, Instant};
use tokio::time::sleep;

#[tokio::test]
async fn recreated_node_is_not_mistaken_for_the_old_one() {
    let server = shared();
    let store = builder(&server, "anew").build().unwrap();
    let zk = client(&server).await;
    let k = key("a");
    one(&store, create(&k, "a")).await.unwrap();
    one(&store, replace(&k, "a", "old")).await.unwrap();
    let [path] = &nodes(&zk, "anew").await[..] else { panic!("one node") };
    let (_, old) = zk.get_data(path, false).await.unwrap();
    zk.delete(path, None).await.unwrap();
    let other = builder(&server, "anew").build().unwrap();
    one(&other, create(&k, "b")).await.unwrap();
    one(&other, replace(&k, "b", "new")).await.unwrap();
    let (_, new) = zk.get_data(path, false).await.unwrap();
    assert_eq!(old.version, new.version, "the case that this is about");
    assert_eq!(one(&store, replace(&k, "old", "c")).await.unwrap(), Swapped::Conflict(value("new")));
    assert_eq!(one(&store, replace(&k, "new", "c")).await.unwrap(), Swapped::Done);
}

#[tokio::test]
async fn removing_keeps_the_node_so_that_versions_continue() {
    let server = shared();
    let store = builder(&server, "keeps").build().unwrap();
    let zk = client(&server).await;
    let k = key("a");
    for _ in 0..2 {
        one(&store, create(&k, "a")).await.unwrap();
        one(&store, remove(&k, "a")).await.unwrap();
    }
    let (_, stat) = zk.get_data(&nodes(&zk, "keeps").await[0], false).await.unwrap();
    assert_eq!(stat.version, 3);
}

#[tokio::test]
async fn a_value_ends_with_its_ttl_for_reads_and_for_swaps() {
    let server = shared();
    let store = builder(&server, "ttl").build().unwrap();
    let (created, swapped) = (key("created"), key("swapped"));
    let (short, long) = (Some(Duration::from_millis(1000)), Some(Duration::from_secs(600)));
    one(&store, Swap::new(swapped.clone(), None, value("a"), long)).await.unwrap();
    let begin = Instant::now();
    one(&store, Swap::new(created.clone(), None, value("a"), short)).await.unwrap();
    one(&store, Swap::new(swapped.clone(), value("a"), value("b"), short)).await.unwrap();
    let written = Instant::now();
    let values = store.get(&[created.clone(), swapped.clone()]).await;
    if begin.elapsed() < Duration::from_millis(1000) {
        assert!(values.iter().all(|v| v.as_ref().unwrap().is_some()), "{values:?}");
    }
    sleep((written + Duration::from_millis(1001)).saturating_duration_since(Instant::now())).await;
    assert_eq!((read(&store, &created).await.unwrap(), read(&store, &swapped).await.unwrap()), (None, None));
    assert_eq!(one(&store, replace(&swapped, "b", "c")).await.unwrap(), Swapped::Conflict(None));
    assert_eq!(one(&store, create(&swapped, "c")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&store, &swapped).await.unwrap(), value("c"));
}

#[tokio::test]
async fn clock_skew_lets_values_live_longer() {
    let server = shared();
    let store = builder(&server, "skew").clock_skew(Duration::from_secs(60)).build().unwrap();
    let k = key("a");
    one(&store, Swap::new(k.clone(), None, value("a"), Some(Duration::from_millis(1)))).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    assert_eq!(read(&store, &k).await.unwrap(), value("a"));
}

#[tokio::test]
async fn value_above_the_limit_fails_alone() {
    let server = shared();
    let store = builder(&server, "too-large").build().unwrap();
    let large = |id, bytes| Swap::new(key(id), None, Some(vec![7; bytes].into()), None);
    let batch = [create(&key("a"), "a"), large("too large", 1 << 20), large("large", 900_000)];
    let outcomes = store.swap(&batch).await;
    assert!(matches!(outcomes[..], [Ok(Swapped::Done), Err(_), Ok(Swapped::Done)]), "{outcomes:?}");
    let e = outcomes[1].as_ref().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
    assert_eq!(read(&store, &key("large")).await.unwrap(), batch[2].new);
}

#[tokio::test]
async fn foreign_content_is_reported_as_corrupt_and_kept() {
    let server = shared();
    let store = builder(&server, "strange").build().unwrap();
    let zk = client(&server).await;
    let k = key("a");
    one(&store, create(&k, "a")).await.unwrap();
    let path = &nodes(&zk, "strange").await[0];
    zk.set_data(path, b"hello".to_vec(), None).await.unwrap();
    let e = one(&store, create(&k, "b")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Corrupt, Effect::NotApplied));
    assert_eq!(zk.get_data(path, false).await.unwrap().0, b"hello");
}
