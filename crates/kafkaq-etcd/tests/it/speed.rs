//! How many swaps a second, beside the client alone sending the same batches.

use crate::{own, raw, store};
use etcd_client::{Compare, CompareOp, KvClient, PutOptions, Txn, TxnOp};
use kafkaq_core::{Key, Keyspace, LeaseStore, Swap, Swapped, TaskId};
use kafkaq_etcd::EtcdStore;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const BATCH: usize = 256;
const TURN: usize = 8 * BATCH;
const TURNS: usize = 60;
const UNDER_WAY: usize = 2;
const VALUE: [u8; 64] = [1; 64];
const NEXT: [u8; 64] = [2; 64];

/// How long it takes with two batches under way.
async fn measure<F>(keys: &[Key], batch: impl Fn(Vec<Key>) -> F) -> Duration
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
    begin.elapsed()
}

async fn by_store(store: &Arc<EtcdStore>, keys: &[Key], replaces: bool, ttl: Option<Duration>) -> Duration {
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

async fn by_client(kv: &KvClient, keys: &[Key], replaces: bool, lease: i64) -> Duration {
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
                let txn = Txn::new().when([is]).and_then([TxnOp::put(
                    k.as_str(),
                    new,
                    Some(PutOptions::new().with_lease(lease)),
                )]);
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
#[allow(clippy::print_stdout)]
async fn swaps_a_second_beside_the_client_alone() {
    let server = own();
    let kv = raw(&server).await.kv_client();
    let store = Arc::new(store(&server));
    let hour = Some(Duration::from_secs(3600));
    let lease = raw(&server).await.lease_grant(3600, None).await.unwrap().id();
    for (ttl, lease) in [(None, 0), (hour, lease)] {
        for (what, replaces) in [("create", false), ("replace", true)] {
            let (mut by_client_took, mut by_store_took) = (Duration::ZERO, Duration::ZERO);
            // In short turns, so that whatever else the machine does slows down both.
            for turn in 0..TURNS {
                let space = Keyspace::new(&format!("q-{turn}-{}", ttl.is_some()), "kafkaq").unwrap();
                let task = |n| Key::task(&space, &TaskId::new(format!("{n:032}")).unwrap());
                let keys: Vec<_> = (0..TURN).map(task).collect();
                by_client_took += by_client(&kv, &keys, replaces, lease).await;
                by_store_took += by_store(&store, &keys, replaces, ttl).await;
            }
            let a_second = |took: Duration| (TURNS * TURN) as f64 / took.as_secs_f64();
            let (client, store) = (a_second(by_client_took), a_second(by_store_took));
            let percent = store / client * 100.0;
            println!("{what:>8}, ttl {ttl:>8?}: client {client:>7.0}, store {store:>7.0} ({percent:.0} %)");
        }
    }
}
