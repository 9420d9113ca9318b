//! The rules of the store in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use kafkaq::memory::MemoryStore;
use kafkaq_core::{ErrorKind, Key, Keyspace, LeaseStore, Swap, Swapped, TaskId};
use std::time::Duration;
use tokio::time::advance;

fn key(id: impl ToString) -> Key {
    let space = Keyspace::new("queue", "group", "queue").unwrap();
    Key::task(&space, &TaskId::new(id.to_string()).unwrap())
}

fn value(text: impl ToString) -> Option<Bytes> {
    Some(text.to_string().into())
}

async fn swap(
    store: &MemoryStore,
    id: impl ToString,
    expect: Option<Bytes>,
    new: Option<Bytes>,
    ttl: Option<u64>,
) -> Swapped {
    let swap = Swap::new(key(id), expect, new, ttl.map(Duration::from_millis));
    store.swap(&[swap]).await.remove(0).unwrap()
}

async fn get(store: &MemoryStore, id: impl ToString) -> Option<Bytes> {
    store.get(&[key(id)]).await.remove(0).unwrap()
}

#[tokio::test]
async fn a_swap_is_done_only_over_what_was_expected() {
    let store = MemoryStore::new();
    assert_eq!(swap(&store, "a", value("x"), value("y"), None).await, Swapped::Conflict(None));
    assert_eq!(swap(&store, "a", None, value("1"), None).await, Swapped::Done);
    assert_eq!(swap(&store, "a", None, value("2"), None).await, Swapped::Conflict(value("1")));
    assert_eq!(swap(&store, "a", value("0"), None, None).await, Swapped::Conflict(value("1")));
    assert_eq!(swap(&store, "a", value("1"), value("2"), None).await, Swapped::Done);
    assert_eq!(get(&store, "a").await, value("2"));
    assert_eq!(swap(&store, "a", value("2"), None, None).await, Swapped::Done);
    assert_eq!(get(&store, "a").await, None);
    assert_eq!(swap(&store, "a", None, None, None).await, Swapped::Done);
    assert!(store.is_empty(), "nothing over nothing leaves nothing");
}

#[tokio::test]
async fn empty_value_is_not_a_missing_value() {
    let store = MemoryStore::new();
    assert_eq!(swap(&store, "a", value(""), value("x"), None).await, Swapped::Conflict(None));
    assert_eq!(swap(&store, "a", None, value(""), None).await, Swapped::Done);
    assert_eq!(swap(&store, "a", None, value("x"), None).await, Swapped::Conflict(value("")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_concurrent_creates_wins() {
    let store = MemoryStore::new();
    for round in 0..200 {
        let mut tasks = tokio::task::JoinSet::new();
        for who in 0..8 {
            let store = store.clone();
            tasks.spawn(async move { (who, swap(&store, round, None, value(who), None).await) });
        }
        let answers = tasks.join_all().await;
        let winners: Vec<_> = answers.iter().filter(|(_, s)| *s == Swapped::Done).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(get(&store, round).await, value(winners[0].0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_counter_under_contention_loses_no_increment() {
    let store = MemoryStore::new();
    swap(&store, "n", None, value(0), None).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..1000 {
                let mut seen = get(&store, "n").await;
                loop {
                    let n: u32 = std::str::from_utf8(seen.as_ref().unwrap()).unwrap().parse().unwrap();
                    match swap(&store, "n", seen, value(n + 1), None).await {
                        Swapped::Done => break,
                        Swapped::Conflict(now) => seen = now,
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(get(&store, "n").await, value(8000));
}

#[tokio::test(start_paused = true)]
async fn value_expires_after_its_time_to_live() {
    let store = MemoryStore::new();
    swap(&store, "a", None, value("x"), Some(1000)).await;
    advance(Duration::from_millis(999)).await;
    assert_eq!(get(&store, "a").await, value("x"));
    assert_eq!(swap(&store, "a", None, value("y"), None).await, Swapped::Conflict(value("x")));
    advance(Duration::from_millis(2)).await;
    assert_eq!((get(&store, "a").await, store.len()), (None, 0));
    assert_eq!(swap(&store, "a", value("x"), value("y"), None).await, Swapped::Conflict(None));
    assert_eq!(swap(&store, "a", None, value("y"), None).await, Swapped::Done);
}

#[tokio::test(start_paused = true)]
async fn a_swap_replaces_the_time_to_live() {
    let store = MemoryStore::new();
    for id in ["longer", "shorter", "forever"] {
        swap(&store, id, None, value(1), Some(1000)).await;
    }
    swap(&store, "longer", value(1), value(2), Some(5000)).await;
    swap(&store, "shorter", value(1), value(2), Some(100)).await;
    swap(&store, "forever", value(1), value(2), None).await;
    advance(Duration::from_millis(500)).await;
    assert_eq!(get(&store, "shorter").await, None);
    advance(Duration::from_millis(1000)).await;
    assert_eq!(get(&store, "longer").await, value(2));
    advance(Duration::from_secs(1_000_000)).await;
    assert_eq!(get(&store, "longer").await, None);
    assert_eq!(get(&store, "forever").await, value(2));
}

#[tokio::test(start_paused = true)]
async fn refused_swap_does_not_change_the_time_to_live() {
    let store = MemoryStore::new();
    swap(&store, "a", None, value(1), Some(1000)).await;
    swap(&store, "a", value(7), value(1), Some(9000)).await;
    advance(Duration::from_millis(1001)).await;
    assert_eq!(get(&store, "a").await, None);
}

#[tokio::test]
async fn longest_time_to_live_is_forever() {
    let store = MemoryStore::new();
    let forever = Swap::new(key("a"), None, value("x"), Some(Duration::MAX));
    assert_eq!(store.swap(&[forever]).await.remove(0).unwrap(), Swapped::Done);
    assert_eq!(get(&store, "a").await, value("x"));
}

#[tokio::test(start_paused = true)]
async fn expired_values_do_not_pile_up() {
    let store = MemoryStore::new();
    let mut values = Vec::new();
    for n in 0..100_000 {
        let bytes = Bytes::from(vec![7; 8]);
        values.push(bytes.clone());
        let new = Swap::new(key(n), None, Some(bytes), Some(Duration::from_millis(10)));
        store.swap(&[new]).await.remove(0).unwrap();
        if n % 100 == 0 {
            advance(Duration::from_millis(1)).await;
        }
    }
    let kept = values.iter().filter(|bytes| !bytes.is_unique()).count();
    assert!(kept < 10_000, "{kept} kept, of which about 1000 are alive");
    assert!(kept >= store.len() && store.len() >= 900, "{}", store.len());
}

#[tokio::test]
async fn outcomes_come_in_order_of_the_batch() {
    let store = MemoryStore::new();
    for (start, count) in [(0, 0), (0, 1), (0, 999), (0, 1000)] {
        store.clear();
        let of = start..start + count;
        // Every third is there already.
        for n in of.clone().step_by(3) {
            swap(&store, n, None, value("old"), None).await;
        }
        let swaps: Vec<_> = of.clone().map(|n| Swap::new(key(n), None, value(n), None)).collect();
        let outcomes = store.swap(&swaps).await;
        assert_eq!(outcomes.len(), count);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let expected = if n % 3 == 0 { Swapped::Conflict(value("old")) } else { Swapped::Done };
            assert_eq!(outcome.unwrap(), expected);
        }
        let keys: Vec<_> = of.map(key).collect();
        for (n, got) in store.get(&keys).await.into_iter().enumerate() {
            assert_eq!(got.unwrap(), if n % 3 == 0 { value("old") } else { value(n) });
        }
    }
}

#[tokio::test]
async fn a_test_can_wipe_it_or_evict_a_key() {
    let store = MemoryStore::new();
    for n in 0..100 {
        swap(&store, n, None, value(n), None).await;
    }
    assert_eq!(store.len(), 100);
    assert_eq!(store.remove(&key(7)), value(7));
    assert_eq!((store.remove(&key(7)), get(&store, 7).await, store.len()), (None, None, 99));
    store.clear();
    assert!(store.is_empty());
    assert_eq!(swap(&store, 1, None, value(2), None).await, Swapped::Done);
}

#[tokio::test]
async fn closed_client_fails_with_closed_and_others_continue() {
    let store = MemoryStore::new();
    swap(&store, "a", None, value("x"), None).await;
    let other = store.clone();
    store.close().await.unwrap();
    store.close().await.unwrap();
    let closed = |kind| assert_eq!(kind, ErrorKind::Closed);
    closed(store.get(&[key("a"), key("b")]).await.remove(1).unwrap_err().kind());
    closed(store.swap(&[Swap::new(key("a"), None, None, None)]).await.remove(0).unwrap_err().kind());
    closed(store.check().await.unwrap_err().kind());
    assert_eq!(get(&other, "a").await, value("x"));
    assert_eq!(get(&store.clone(), "a").await, value("x"));
    assert_eq!(other.check().await.unwrap(), Vec::<String>::new());
}
