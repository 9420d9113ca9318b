//! How many swaps a second, beside the client alone sending the same batches.

use crate::{server::Server, store};
use etcd_client::{Compare, CompareOp, KvClient, Txn, TxnOp};
use kafkaq_core::{Key, LeaseStore, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const BATCH: usize = 256;
const COUNT: usize = 60 * BATCH;
const UNDER_WAY: usize = 2;
const VALUE: [u8; 64] = [1; 64];
const NEXT: [u8; 64] = [2; 64];

/// Swaps a second, with two batches under way.
async fn measure<F>(keys: &[Key], batch: impl Fn(Vec<Key>) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let begin = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for some in keys.chunks(BATCH) {
        if running.len() == UNDER_WAY {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(batch(some.to_vec()));
    }
    while running.join_next().await.transpose().unwrap().is_some() {}
    keys.len() as f64 / begin.elapsed().as_secs_f64()
}

async fn by_store(store: &Arc<EtcdStore>, keys: &[Key], replaces: bool, ttl: Option<Duration>) -> f64 {
    measure(keys, |some| {
        let store = store.clone();
        async move {
            let (expect, new) = if replaces { (Some(&VALUE[..]), NEXT) } else { (None, VALUE) };
            let new = Some(bytes::Bytes::copy_from_slice(&new));
            let swap = |k| Swap::new(k, expect.map(bytes::Bytes::from_static), new.clone(), ttl);
            let swaps: Vec<_> = some.into_iter().map(swap).collect();
            assert!(store.swap(&swaps).await.into_iter().all(|o| o.unwrap() == Swapped::Done));
        }
    })
    .await
}

async fn by_client(kv: &KvClient, keys: &[Key], replaces: bool) -> f64 {
    measure(keys, |some| {
        let kv = kv.clone();
        async move {
            let one = |k: &Key| {
                let k = format!("raw/{k}");
                let (is, new) = if replaces {
                    (Compare::value(k.as_str(), CompareOp::Equal, VALUE), NEXT)
                } else {
                    (Compare::version(k.as_str(), CompareOp::Equal, 0), VALUE)
                };
                let txn = Txn::new().when([is]).and_then([TxnOp::put(k.as_str(), new, None)]);
                TxnOp::txn(txn.or_else([TxnOp::get(k, None)]))
            };
            let requests = some.chunks(125).map(|some| {
                let txn = Txn::new().and_then(some.iter().map(one).collect::<Vec<_>>());
                let mut kv = kv.clone();
                async move { kv.txn(txn).await.unwrap().op_responses().len() }
            });
            futures_util::future::join_all(requests).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: run it with --release --ignored --nocapture"]
async fn swaps_a_second_beside_the_client_alone() {
    let server = Server::start();
    let kv = server.raw().await.kv_client();
    let store = Arc::new(store(&server));
    let hour = Some(Duration::from_secs(3600));
    // Once to warm up, then in turns.
    for round in 0..4 {
        let space = kafkaq_core::Keyspace::new(&format!("q{round}"), "kafkaq").unwrap();
        let task = |n| Key::task(&space, &kafkaq_core::TaskId::new(format!("{n:032}")).unwrap());
        let mine: Vec<_> = (0..COUNT).map(task).collect();
        let mortal: Vec<_> = (COUNT..2 * COUNT).map(task).collect();
        let [raw_create, raw_replace] =
            [by_client(&kv, &mine, false).await, by_client(&kv, &mine, true).await];
        let [create, replace] =
            [by_store(&store, &mine, false, None).await, by_store(&store, &mine, true, None).await];
        let [create_ttl, replace_ttl] =
            [by_store(&store, &mortal, false, hour).await, by_store(&store, &mortal, true, hour).await];
        println!(
            "create: client {raw_create:.0}, store {create:.0} ({:.0} %), with a time to live {create_ttl:.0} ({:.0} %); \
             replace: client {raw_replace:.0}, store {replace:.0} ({:.0} %), with {replace_ttl:.0} ({:.0} %)",
            create / raw_create * 100.0,
            create_ttl / raw_create * 100.0,
            replace / raw_replace * 100.0,
            replace_ttl / raw_replace * 100.0,
        );
    }
}
