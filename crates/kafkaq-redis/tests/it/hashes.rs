//! Values that share a hash with their neighbours, on a single server and on a cluster.

use crate::{ask, number, numbered, on_both, store, target::Target, tell};
use kafkaq_adapter_tests::{create, key, one, read, remove, replace, value};
use kafkaq_core::{Effect, ErrorKind, Key, LeaseStore, Swap, Swapped};
use kafkaq_redis::RedisStore;
use redis::Value;
use std::time::Duration;
use xtask::services::Service;

on_both! {
    neighbours_lie_in_one_hash,
    swaps_of_every_kind_may_share_a_batch,
    a_hash_lives_as_long_as_the_longest_of_its_values,
    a_foreign_value_fails_its_own_hash_only,
    without_the_script_in_its_cache_it_gets_the_text,
}

/// The hash of the first 64 keys of [`numbered`].
pub(crate) const HASH: &str = "t/emails/kafkaq/018bcfe5-*-706b-8000-0000000000[0-3]*";

fn at(target: &Target, prefix: &str) -> RedisStore {
    target.builder().prefix(prefix).build().unwrap()
}

async fn swap_all(store: &RedisStore, swaps: impl IntoIterator<Item = Swap>) -> Vec<Swapped> {
    let swaps: Vec<_> = swaps.into_iter().collect();
    store.swap(&swaps).await.into_iter().map(Result::unwrap).collect()
}

async fn neighbours_lie_in_one_hash(target: &Target) {
    let store = at(target, "one/");
    let keys: Vec<Key> = (0..300).map(numbered).collect();
    let done = swap_all(&store, keys.iter().map(|k| create(k, "a"))).await;
    assert!(done.iter().all(|outcome| *outcome == Swapped::Done));
    assert_eq!(number(target.ask(&["HLEN", &format!("one/{HASH}")])), 64);
    let bulk = |text: &str| Value::BulkString(text.into());
    assert_eq!(target.ask(&["HGET", &format!("one/{HASH}"), "68003f"]), bulk("a"));
    assert_eq!(read(&at(target, "two/"), &keys[0]).await.unwrap(), None);
    for outcome in store.get(&keys).await {
        assert_eq!(outcome.unwrap(), value("a"));
    }
}

async fn swaps_of_every_kind_may_share_a_batch(target: &Target) {
    let store = at(target, "kinds/");
    let k = |n| numbered(n);
    swap_all(&store, (0..3).map(|n| create(&k(n), "a"))).await;
    let absent = |n| Swap::new(k(n), None, None, None);
    let outcomes = swap_all(
        &store,
        [
            create(&k(0), "x"),
            create(&k(10), "new"),
            replace(&k(0x80), "a", "b"),
            replace(&k(1), "a", "b"),
            create(&key("alone"), "new"),
            remove(&k(2), "a"),
            remove(&k(11), "a"),
            absent(12),
        ],
    )
    .await;
    let expected = [
        Swapped::Conflict(value("a")),
        Swapped::Done,
        Swapped::Conflict(None),
        Swapped::Done,
        Swapped::Done,
        Swapped::Done,
        Swapped::Conflict(None),
        Swapped::Done,
    ];
    assert_eq!(outcomes, expected);
    let keys = [k(0), k(10), k(0x80), k(1), key("alone"), k(2), k(11), k(12)];
    let found: Vec<_> = store.get(&keys).await.into_iter().map(Result::unwrap).collect();
    let expected = [value("a"), value("new"), None, value("b"), value("new"), None, None, None];
    assert_eq!(found, expected);
    swap_all(&store, [remove(&k(0), "a"), remove(&k(1), "b"), remove(&k(10), "new")]).await;
    assert_eq!(target.ask(&["EXISTS", &format!("kinds/{HASH}")]), Value::Int(0));
}

async fn a_hash_lives_as_long_as_the_longest_of_its_values(target: &Target) {
    let store = at(target, "ttl/");
    let left = || number(target.ask(&["PTTL", &format!("ttl/{HASH}")]));
    let secs = |secs| Some(Duration::from_secs(secs));
    let swap = async |n, is: &'static str, next: &'static str, ttl| {
        let is = if is.is_empty() { None } else { value(is) };
        let swap = Swap::new(numbered(n), is, value(next), ttl);
        assert_eq!(one(&store, swap).await.unwrap(), Swapped::Done);
    };
    let is_about = |secs: i64| (900 * secs..=1000 * secs).contains(&left());
    swap(1, "", "a", secs(1000)).await;
    assert!(is_about(1000));
    swap(2, "", "a", secs(100_000)).await;
    assert!(is_about(100_000), "a neighbour that lives longer");
    swap(1, "a", "b", secs(10_000)).await;
    assert!(is_about(100_000), "a neighbour that lives shorter");
    let refused = Swap::new(numbered(1), value("x"), value("y"), None);
    one(&store, refused).await.unwrap();
    assert!(is_about(100_000), "a refused swap");
    one(&store, remove(&numbered(2), "a")).await.unwrap();
    swap(1, "b", "c", secs(1000)).await;
    assert!(is_about(1000), "the only value");
    swap(2, "", "a", None).await;
    assert_eq!(left(), -1);
    swap(1, "c", "d", secs(1000)).await;
    assert_eq!(left(), -1, "a neighbour that lives forever");
    let both = [("d", 1), ("a", 2)]
        .map(|(is, n)| Swap::new(numbered(n), value(is), value("z"), secs(n as u64 * 1000)));
    swap_all(&store, both).await;
    assert!(is_about(2000), "all values at once");
    swap(1, "z", "z", Some(Duration::MAX)).await;
    assert_eq!(read(&store, &numbered(2)).await.unwrap(), value("z"));
}

async fn a_foreign_value_fails_its_own_hash_only(target: &Target) {
    let store = at(target, "foreign/");
    target.ask(&["SET", &format!("foreign/{HASH}"), "x"]);
    for (is, next) in [("", "a"), ("a", "b")] {
        let swap = |k: &Key| if is.is_empty() { create(k, next) } else { replace(k, is, next) };
        let keys = [numbered(0x40), numbered(0), numbered(0x80), numbered(1), key("a")];
        let outcomes = store.swap(&keys.each_ref().map(swap)).await;
        for (n, outcome) in outcomes.into_iter().enumerate() {
            if n == 1 || n == 3 {
                let e = outcome.unwrap_err();
                assert_eq!((e.kind(), e.effect()), (ErrorKind::Corrupt, Effect::NotApplied), "{e}");
            } else {
                assert_eq!(outcome.unwrap(), Swapped::Done);
            }
        }
    }
    let e = read(&store, &numbered(0)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
}

async fn without_the_script_in_its_cache_it_gets_the_text(target: &Target) {
    let store = at(target, "flushed/");
    let keys: Vec<Key> = (0..300).map(numbered).collect();
    swap_all(&store, keys.iter().map(|k| create(k, "0"))).await;
    target.ask_all(&["SCRIPT", "FLUSH"]);
    let done = swap_all(&store, keys.iter().map(|k| replace(k, "0", "1"))).await;
    assert!(done.into_iter().all(|outcome| outcome == Swapped::Done));
}

#[tokio::test]
async fn a_full_server_refuses_without_effect() {
    let server = Service::Redis.own().unwrap();
    let store = store(&server);
    one(&store, create(&numbered(1), "a")).await.unwrap();
    ask(&server, &["CONFIG", "SET", "maxmemory", "1"]);
    for outcome in store.swap(&[create(&numbered(2), "a"), replace(&numbered(1), "a", "b")]).await {
        let e = outcome.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    }
    // A conflict next to it is still a conflict.
    let [conflict, refused] = &store.swap(&[create(&numbered(1), "b"), create(&numbered(2), "a")]).await[..]
    else {
        panic!("two outcomes")
    };
    assert_eq!(conflict.as_ref().unwrap(), &Swapped::Conflict(value("a")));
    assert_eq!(refused.as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(read(&store, &numbered(1)).await.unwrap(), value("a"));
    assert_eq!(one(&store, remove(&numbered(1), "a")).await.unwrap(), Swapped::Done);
}

#[tokio::test]
async fn a_finished_task_takes_less_than_80_bytes() {
    const TASKS: usize = 20_000;
    /// As long as the lease of a task that is done.
    const LEASE: &str = "lease, of some 40 bytes, as one is long.";
    let server = Service::Redis.own().unwrap();
    let store = store(&server);
    let used = || {
        let info = tell(&server, &["INFO", "memory"]);
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        used.trim().parse::<usize>().unwrap()
    };
    let keys: Vec<Key> = (0..TASKS).map(numbered).collect();
    let create_all = async |keys: &[Key], new| {
        let ttl = Some(Duration::from_secs(7200));
        for batch in keys.chunks(500) {
            let swaps: Vec<_> = batch.iter().map(|k| Swap::new(k.clone(), None, value(new), ttl)).collect();
            assert!(store.swap(&swaps).await.into_iter().all(|outcome| outcome.unwrap() == Swapped::Done));
        }
    };
    // Connections and scripts take memory, too.
    create_all(&[key("first"), numbered(TASKS)], "a").await;
    let before = used();
    create_all(&keys, LEASE).await;
    let each = (used() - before) / TASKS;
    assert!(each < 80, "{each} bytes per task");
}
