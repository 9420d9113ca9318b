//! Times to live, and the leases of etcd behind them.

use crate::{own, raw};
use kafkaq_adapter_tests::{create, key, keys, one, read, replace, until, value};
use kafkaq_core::{Key, LeaseStore, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::time::Duration;
use xtask::services::Server;

/// Leases are longer than a time to live by the duration of a request.
const LIMIT: Duration = Duration::from_secs(5);

fn store(server: &Server) -> EtcdStore {
    EtcdStore::builder([server.url()]).request_timeout(LIMIT).build().unwrap()
}

fn mortal(key: &Key, ttl: Duration) -> Swap {
    Swap::new(key.clone(), None, value("a"), Some(ttl))
}

async fn leases(server: &Server) -> Vec<i64> {
    raw(server).await.leases().await.unwrap().leases().iter().map(etcd_client::LeaseStatus::id).collect()
}

/// Returns how long the key will live, in seconds; `None`: forever.
async fn left(server: &Server, key: &Key) -> Option<i64> {
    let mut raw = raw(server).await;
    let lease = raw.get(format!("kafkaq/{key}"), None).await.unwrap().kvs()[0].lease();
    if lease == 0 {
        return None;
    }
    Some(raw.lease_time_to_live(lease, None).await.unwrap().ttl())
}

#[tokio::test]
async fn swap_replaces_the_ttl_and_none_means_forever() {
    let server = own();
    let store = store(&server);
    let k = key("a");
    let ttl = |secs| Some(Duration::from_secs(secs));
    one(&store, Swap::new(k.clone(), None, value("a"), ttl(100))).await.unwrap();
    assert!((100..=113).contains(&left(&server, &k).await.unwrap()));
    one(&store, Swap::new(k.clone(), value("a"), value("a"), ttl(10_000))).await.unwrap();
    assert!((10_000..=10_600).contains(&left(&server, &k).await.unwrap()));
    one(&store, Swap::new(k.clone(), value("a"), value("a"), ttl(100))).await.unwrap();
    assert!((100..=113).contains(&left(&server, &k).await.unwrap()));
    one(&store, replace(&k, "a", "b")).await.unwrap();
    assert_eq!(left(&server, &k).await, None);
    one(&store, Swap::new(k.clone(), value("b"), value("c"), Some(Duration::MAX))).await.unwrap();
    assert_eq!(left(&server, &k).await, None);
    assert_eq!(read(&store, &k).await.unwrap(), value("c"));
    // A removal needs no lease.
    let before = leases(&server).await.len();
    one(&store, Swap::new(k, value("c"), None, ttl(1_000_000))).await.unwrap();
    assert_eq!(leases(&server).await.len(), before);
}

#[tokio::test]
async fn short_lease_ends_and_a_value_moved_to_another_lease_stays() {
    let server = own();
    let store = store(&server);
    let [kept, gone] = ["kept", "gone"].map(key);
    // Its lease is longer, by as much as a request may take and some seconds more.
    let ttl = Duration::from_millis(100);
    one(&store, mortal(&kept, ttl)).await.unwrap();
    one(&store, mortal(&gone, ttl)).await.unwrap();
    one(&store, replace(&kept, "a", "b")).await.unwrap();
    until("a lease ends", async || read(&store, &gone).await.unwrap().is_none()).await;
    assert_eq!(read(&store, &kept).await.unwrap(), value("b"));
    // The lease that has ended isn't used for the next one.
    one(&store, mortal(&gone, ttl)).await.unwrap();
    assert_eq!(read(&store, &gone).await.unwrap(), value("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_share_few_leases() {
    let server = own();
    let store = std::sync::Arc::new(store(&server));
    let all = keys(5000);
    let calls: Vec<_> = all
        .chunks(500)
        .map(|some| {
            let swaps: Vec<_> = some.iter().map(|k| mortal(k, Duration::from_secs(3600))).collect();
            let store = store.clone();
            tokio::spawn(async move { store.swap(&swaps).await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().into_iter().all(|o| o.unwrap() == Swapped::Done));
    }
    // One may be requested in advance.
    assert!((5..=6).contains(&leases(&server).await.len()));
}

#[tokio::test]
async fn a_revoked_lease_is_replaced_and_the_batch_applied_once() {
    let server = own();
    let store = store(&server);
    let hour = Duration::from_secs(3600);
    one(&store, mortal(&key("first"), hour)).await.unwrap();
    for lease in leases(&server).await {
        raw(&server).await.lease_revoke(lease).await.unwrap();
    }
    // Swaps without a lease are in the same request.
    let all = keys(100);
    let swap = |(n, k)| if n % 2 == 0 { create(k, "a") } else { mortal(k, hour) };
    let batch: Vec<_> = all.iter().enumerate().map(swap).collect();
    assert!(store.swap(&batch).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    assert!(store.get(&all).await.into_iter().all(|v| v.unwrap() == value("a")));
    assert_eq!(leases(&server).await.len(), 1);
}

#[tokio::test]
async fn a_wiped_server_goes_unnoticed() {
    let mut server = own();
    let store = store(&server);
    let k = key("a");
    let ttl = Duration::from_secs(3600);
    one(&store, mortal(&k, ttl)).await.unwrap();
    server.start_again_empty().unwrap();
    until("it reads", async || read(&store, &k).await.is_ok()).await;
    assert_eq!(one(&store, mortal(&k, ttl)).await.unwrap(), Swapped::Done);
}
