//! What swaps and reads promise.

use crate::{
    builder, client, create, key, keys, nodes, one, read, remove, replace, server::Server, sleep, value,
};
use bytes::Bytes;
use kafkaq_core::{Effect, ErrorKind, Key, Keyspace, LeaseStore, Partition, Swap, Swapped, TaskId};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread")]
async fn of_64_concurrent_creates_one_wins() {
    let server = Server::shared();
    let stores: Vec<_> = (0..2).map(|_| Arc::new(builder(&server, "creates").build().unwrap())).collect();
    let k = key("contended");
    let tries: Vec<_> = (0..64)
        .map(|n: usize| {
            let (store, k) = (stores[n % 2].clone(), k.clone());
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
    const TIMES: usize = 25;
    let server = Server::shared();
    let stores: Vec<_> =
        (0..2).map(|_| Arc::new(builder(&server, "counter").sessions(2).build().unwrap())).collect();
    let k = key("counter");
    one(&stores[0], create(&k, "0")).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let (store, k) = (stores[n % 2].clone(), k.clone());
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
    assert_eq!(read(&stores[0], &k).await, Some((TASKS * TIMES).to_string().into()));
}

#[tokio::test]
async fn a_conflict_brings_the_current_value_and_changes_nothing() {
    let server = Server::shared();
    let store = builder(&server, "conflict").build().unwrap();
    let (there, missing, removed) = (key("there"), key("missing"), key("removed"));
    assert_eq!(one(&store, create(&there, "a")).await.unwrap(), Swapped::Done);
    one(&store, create(&removed, "a")).await.unwrap();
    one(&store, remove(&removed, "a")).await.unwrap();
    for (swap, current) in [
        (create(&there, "b"), value("a")),
        (replace(&there, "b", "c"), value("a")),
        (remove(&there, "b"), value("a")),
        (Swap::new(there.clone(), None, None, None), value("a")),
        (replace(&missing, "a", "b"), None),
        (remove(&missing, "a"), None),
        (replace(&removed, "a", "b"), None),
        (remove(&removed, "a"), None),
    ] {
        assert_eq!(one(&store, swap.clone()).await.unwrap(), Swapped::Conflict(current), "{swap:?}");
    }
    assert_eq!(read(&store, &there).await, value("a"));
    assert_eq!(read(&store, &missing).await, None);
    assert_eq!(read(&store, &removed).await, None);
}

#[tokio::test]
async fn a_matching_swap_replaces_deletes_or_confirms_nothing() {
    let server = Server::shared();
    let store = builder(&server, "matching").build().unwrap();
    let k = key("a");
    for (expect, new) in [
        (None, None),
        (None, value("1")),
        (value("1"), value("2")),
        (value("2"), None),
        (None, None),
        (None, value("3")),
    ] {
        let swap = Swap::new(k.clone(), expect, new.clone(), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
        assert_eq!(read(&store, &k).await, new);
    }
}

#[tokio::test]
async fn a_node_that_was_deleted_and_made_anew_does_not_pass_for_the_old_one() {
    let server = Server::shared();
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
async fn removing_keeps_the_node_so_that_versions_go_on() {
    let server = Server::shared();
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
async fn a_value_lives_as_long_as_its_ttl_and_not_for_ever() {
    let server = Server::shared();
    let store = builder(&server, "ttl").build().unwrap();
    let (created, swapped) = (key("created"), key("swapped"));
    one(&store, create(&swapped, "a")).await.unwrap();
    let ttl = Duration::from_millis(1000);
    let begin = Instant::now();
    one(&store, Swap::new(created.clone(), None, value("a"), Some(ttl))).await.unwrap();
    one(&store, Swap::new(swapped.clone(), value("a"), value("b"), Some(ttl))).await.unwrap();
    let both = [created.clone(), swapped.clone()];
    let values = store.get(&both).await;
    if begin.elapsed() < ttl {
        assert!(values.iter().all(|v| v.as_ref().unwrap().is_some()), "{values:?}");
    }
    sleep(1100).await;
    assert_eq!((read(&store, &created).await, read(&store, &swapped).await), (None, None));
    // Expired is missing for swaps, too.
    assert_eq!(one(&store, replace(&swapped, "b", "c")).await.unwrap(), Swapped::Conflict(None));
    assert_eq!(one(&store, create(&swapped, "c")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&store, &swapped).await, value("c"));
}

#[tokio::test]
async fn a_swap_replaces_the_ttl_and_none_means_for_ever() {
    let server = Server::shared();
    let store = builder(&server, "replaced").build().unwrap();
    let short = Some(Duration::from_millis(500));
    let long = Some(Duration::from_secs(600));
    let (longer, ever, shorter) = (key("longer"), key("ever"), key("shorter"));
    for (k, first, then) in [(&longer, short, long), (&ever, short, None), (&shorter, long, short)] {
        one(&store, Swap::new(k.clone(), None, value("a"), first)).await.unwrap();
        // If the first has expired on a slow machine, it is created again.
        if one(&store, Swap::new(k.clone(), value("a"), value("b"), then)).await.unwrap() != Swapped::Done {
            one(&store, Swap::new(k.clone(), None, value("b"), then)).await.unwrap();
        }
    }
    sleep(700).await;
    assert_eq!(read(&store, &longer).await, value("b"));
    assert_eq!(read(&store, &ever).await, value("b"));
    assert_eq!(read(&store, &shorter).await, None);
}

#[tokio::test]
async fn clock_skew_lets_values_live_longer() {
    let server = Server::shared();
    let store = builder(&server, "skew").clock_skew(Duration::from_secs(60)).build().unwrap();
    let k = key("a");
    one(&store, Swap::new(k.clone(), None, value("a"), Some(Duration::from_millis(1)))).await.unwrap();
    sleep(50).await;
    assert_eq!(read(&store, &k).await, value("a"));
}

#[tokio::test]
async fn a_batch_of_1000_answers_each_swap_in_order() {
    let server = Server::shared();
    let store = builder(&server, "batch").build().unwrap();
    let keys = keys(1000);
    let outcomes = store.swap(&keys.iter().map(|k| create(k, "a")).collect::<Vec<_>>()).await;
    assert!(outcomes.iter().all(|o| matches!(o, Ok(Swapped::Done))), "{:?}", outcomes[0]);
    let mixed: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(n, k)| match n % 4 {
            0 => replace(k, "a", "b"),
            1 => replace(k, "x", "b"),
            2 => remove(k, "a"),
            _ => create(k, "b"),
        })
        .collect();
    let outcomes = store.swap(&mixed).await;
    assert_eq!(outcomes.len(), 1000);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let expected = if n % 2 == 0 { Swapped::Done } else { Swapped::Conflict(value("a")) };
        assert_eq!(outcome.unwrap(), expected, "{n}");
    }
    for (n, found) in store.get(&keys).await.into_iter().enumerate() {
        let expected = [value("b"), value("a"), None, value("a")];
        assert_eq!(found.unwrap(), expected[n % 4], "{n}");
    }
    assert!(store.swap(&[]).await.is_empty() && store.get(&[]).await.is_empty());
}

#[tokio::test]
async fn keys_and_values_at_the_limits_come_back_as_they_were() {
    let server = Server::shared();
    let store = builder(&server, "limits").build().unwrap();
    let space = Keyspace::new(&"q".repeat(Keyspace::MAX_QUEUE), &"g".repeat(Keyspace::MAX_GROUP)).unwrap();
    let longest = Key::task(&space, &TaskId::new("/".repeat(128)).unwrap());
    // Only the names of partitions are longer than those of tasks.
    let topic = Partition::new("%".repeat(185), 1_000_000);
    let long = Key::partition(&"g".repeat(Keyspace::MAX_GROUP), &topic);
    assert!(longest.as_str().len() > 560 && long.as_str().len() > 620, "{}", long.as_str().len());
    let binary: Vec<u8> = (0..=255).collect();
    let large = vec![7; 900_000];
    let cases = [(long, Bytes::new()), (longest, binary.into()), (key("large"), large.into())];
    for (k, v) in cases {
        let swap = Swap::new(k.clone(), None, Some(v.clone()), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
        assert_eq!(read(&store, &k).await, Some(v.clone()));
        let swap = Swap::new(k.clone(), Some(v), Some(Bytes::new()), None);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
    }
    // An empty value is a value.
    assert_eq!(one(&store, create(&key("large"), "a")).await.unwrap(), Swapped::Conflict(Some(Bytes::new())));
}

#[tokio::test]
async fn a_value_that_is_too_large_fails_alone() {
    let server = Server::shared();
    let store = builder(&server, "too-large").build().unwrap();
    let batch = [
        create(&key("a"), "a"),
        Swap::new(key("b"), None, Some(vec![0; 1 << 20].into()), None),
        create(&key("c"), "c"),
    ];
    let outcomes = store.swap(&batch).await;
    assert!(matches!(outcomes[..], [Ok(Swapped::Done), Err(_), Ok(Swapped::Done)]), "{outcomes:?}");
    let e = outcomes[1].as_ref().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
}

#[tokio::test]
async fn what_others_write_is_corrupt_and_stays() {
    let server = Server::shared();
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
