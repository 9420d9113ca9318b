//! How batches become requests, and what their limits mean.

use crate::{own, own_with, store};
use bytes::Bytes;
use kafkaq_adapter_tests::{create, key, keys, one, read, value};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Swap, Swapped};
use kafkaq_etcd::EtcdStore;

#[tokio::test]
async fn two_prefixes_are_two_stores() {
    let server = own();
    let [a, b] = ["a/", "b/"].map(|p| EtcdStore::builder([server.url()]).prefix(p).build().unwrap());
    let k = key("same");
    assert_eq!(one(&a, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&b, &k).await.unwrap(), None);
    assert_eq!(one(&b, create(&k, "b")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&a, &k).await.unwrap(), value("a"));
}

#[tokio::test]
async fn swap_above_the_servers_limit_fails_alone_with_advice() {
    let server = own();
    let store = store(&server);
    let [a, huge, b] = ["a", "huge", "b"].map(key);
    let too_much = Bytes::from(vec![1; 2 << 20]);
    let batch = [create(&a, "1"), Swap::new(huge.clone(), None, Some(too_much), None), create(&b, "1")];
    let outcomes = store.swap(&batch).await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    let e = outcomes[1].as_ref().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("1.5 MiB"), "{e}");
    assert_eq!(read(&store, &huge).await.unwrap(), None);
}

#[tokio::test]
async fn a_batch_of_large_values_is_spread_over_requests_and_read_back() {
    let server = own();
    let store = store(&server);
    let all = keys(40);
    let large = Bytes::from(vec![7; 200 * 1024]);
    let fill: Vec<_> = all.iter().map(|k| Swap::new(k.clone(), None, Some(large.clone()), None)).collect();
    assert!(store.swap(&fill).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
    // Eight megabytes in one response, twice the client's default limit.
    let values = store.get(&all).await;
    assert!(values.into_iter().all(|v| v.unwrap().as_ref() == Some(&large)));
    let again: Vec<_> = all.iter().map(|k| create(k, "no")).collect();
    for outcome in store.swap(&again).await {
        assert_eq!(outcome.unwrap(), Swapped::Conflict(Some(large.clone())));
    }
}

#[tokio::test]
async fn a_lower_limit_of_operations_is_refused_with_advice() {
    let server = own_with(&["--max-txn-ops=100"]);
    let store = store(&server);
    let batch: Vec<_> = keys(120).iter().map(|k| create(k, "a")).collect();
    let e = store.swap(&batch).await.pop().unwrap().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Misconfigured, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("--max-txn-ops"), "{e}");
}
