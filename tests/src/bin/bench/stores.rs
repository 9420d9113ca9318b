//! How many leases a second each store swaps, beside its client library alone.
//!
//! Both sides get the same batches, made beforehand: keys and values as long as the driver's, two batches under way,
//! as the driver has them. They take turns on one server, in rounds so short that whatever else the machine does
//! slows down both; each figure, the share too, is the median of the rounds. What the client alone does says [`crate::raw`].

use crate::{
    Outcome, attempt,
    raw::{self, Swaps},
    table::{Table, median, side_by_side, thousands},
};
use bytes::Bytes;
use kafkaq::{
    backend::{Key, LeaseStore, Swap, Swapped},
    etcd::EtcdStore,
    memory::MemoryStore,
    redis::RedisStore,
    zookeeper::ZooKeeperStore,
};
use kafkaq_tests::{StoreKind, not_asked_for, told};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Of one, as of a queue with little to do; and as large as the driver makes them.
const BATCHES: [usize; 3] = [1, 100, 500];
/// Batches on their way at the same time: the driver's number of calls.
pub(crate) const UNDER_WAY: usize = 2;
/// As long as a task's lease in the store.
const VALUE: Bytes = Bytes::from_static(&[1; 50]);
const NEXT: Bytes = Bytes::from_static(&[2; 50]);
/// As a lease has it by default, roughly.
pub(crate) const TTL: Duration = Duration::from_secs(8 * 24 * 3600);

const ROUNDS: usize = 9;
/// How long a side's turn at one kind of swap is to take.
const TURN: Duration = Duration::from_millis(250);
const MOST_SWAPS_A_TURN: usize = 50_000;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure() {
    let columns = ["store", "batch", "swap", "client alone, K/s", "store, K/s", "store : client"];
    let mut table = Table::begin("Stores", &columns);
    let asked_for = |store| kafkaq_tests::BrokerKind::ALL.iter().any(|&b| not_asked_for(b, store).is_none());
    for &store in StoreKind::ALL.iter().filter(|&&store| asked_for(store)) {
        if let Err(error) = one(&mut table, store).await {
            let failed = table.failed(store.name(), &error.to_string());
            table.row(vec![store.name().into(), String::new(), String::new(), failed]);
        }
    }
    table.end();
}

async fn one(table: &mut Table, kind: StoreKind) -> Outcome<()> {
    let name = kind.name();
    match kind {
        StoreKind::Memory => beside(table, name, MemoryStore::new(), None::<raw::Nothing>).await,
        StoreKind::Redis => {
            let url = kafkaq_tests::redis();
            let store = RedisStore::builder(&url).build()?;
            beside(table, name, store, Some(raw::Redis::connect(&url).await?)).await;
        }
        StoreKind::RedisCluster => {
            let urls = told("KAFKAQ_TEST_REDIS_CLUSTER");
            let store = RedisStore::cluster(urls.split(',')).build()?;
            beside(table, name, store, Some(raw::Cluster::connect(urls.split(',')).await?)).await;
        }
        StoreKind::Etcd => {
            let endpoint = told("KAFKAQ_TEST_ETCD");
            let store = EtcdStore::builder([&endpoint]).build()?;
            beside(table, name, store, Some(raw::Etcd::connect(&endpoint).await?)).await;
        }
        StoreKind::ZooKeeper => {
            let address = told("KAFKAQ_TEST_ZOOKEEPER");
            let store = ZooKeeperStore::builder(&address).build()?;
            beside(table, name, store, Some(raw::ZooKeeper::connect(&address).await?)).await;
        }
    }
    Ok(())
}

/// The store's side.
struct Store<S>(S);

impl<S: LeaseStore> Swaps for Store<S> {
    type Batch = Vec<Swap>;

    async fn prepare(&self, swaps: Vec<Swap>) -> Outcome<Vec<Swap>> {
        Ok(swaps)
    }

    async fn swap(&self, _caller: usize, batch: &Vec<Swap>) -> Outcome<()> {
        for outcome in self.0.swap(batch).await {
            if let Swapped::Conflict(_) = outcome? {
                return Err("a swap met a conflict".into());
            }
        }
        Ok(())
    }
}

/// Swaps a second of each kind.
struct Rates {
    create: f64,
    finish: f64,
}

async fn beside<S: LeaseStore, R: Swaps>(table: &mut Table, name: &str, store: S, raw: Option<R>) {
    let (store, raw) = (Arc::new(Store(store)), raw.map(Arc::new));
    for size in BATCHES {
        let measured = attempt(LIMIT, rounds(store.clone(), raw.clone(), size)).await;
        let row = |swap: &str, figures: Vec<String>| {
            [vec![name.to_owned(), size.to_string(), swap.to_owned()], figures].concat()
        };
        match measured {
            Ok((ours, raw)) => {
                table.row(row("create", figures(&ours, &raw, |r| r.create)));
                table.row(row("finish", figures(&ours, &raw, |r| r.finish)));
            }
            Err(why) => {
                let failed = table.failed(&format!("{name} in batches of {size}"), &why);
                table.row(row("", vec![failed]));
            }
        }
    }
}

fn figures(ours: &[Rates], raw: &[Rates], of: impl Fn(&Rates) -> f64) -> Vec<String> {
    let rates = |side: &[Rates]| side.iter().map(&of).collect::<Vec<_>>();
    if raw.is_empty() {
        return vec!["none".into(), thousands(median(rates(ours)))];
    }
    side_by_side(rates(raw), rates(ours))
}

/// What both sides did in each round.
async fn rounds<S: LeaseStore, R: Swaps>(
    store: Arc<Store<S>>,
    raw: Option<Arc<R>>,
    size: usize,
) -> Outcome<(Vec<Rates>, Vec<Rates>)> {
    let batches = fitting(&store, size).await?;
    if let Some(raw) = &raw {
        turn(raw, size, batches).await?;
    }
    let (mut by_store, mut by_client) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if let Some(raw) = &raw {
            by_client.push(turn(raw, size, batches).await?);
        }
        by_store.push(turn(&store, size, batches).await?);
    }
    Ok((by_store, by_client))
}

/// With how many batches a turn takes about as long as it should. Warms up, too.
async fn fitting<S: Swaps>(side: &Arc<S>, size: usize) -> Outcome<usize> {
    let most = MOST_SWAPS_A_TURN / size;
    let mut batches = UNDER_WAY;
    loop {
        let swaps_a_turn = turn(side, size, batches).await?.create * TURN.as_secs_f64();
        let fitting = (swaps_a_turn as usize / size).clamp(UNDER_WAY, most);
        if fitting < 4 * batches {
            return Ok(fitting);
        }
        batches = fitting;
    }
}

/// Takes leases for new keys, and then finishes them.
async fn turn<S: Swaps>(side: &Arc<S>, size: usize, batches: usize) -> Outcome<Rates> {
    let queue = kafkaq_tests::unique("bench");
    let (mut creates, mut finishes) = (Vec::new(), Vec::new());
    for _ in 0..batches {
        let new_key = |_| Key::of(&["t", &queue, "kafkaq", &uuid::Uuid::now_v7().to_string()]);
        let keys: Vec<Key> = (0..size).map(new_key).collect::<kafkaq::Result<_>>()?;
        let batch = |expect: Option<Bytes>, new: Bytes| {
            let swap = |key: &Key| Swap::new(key.clone(), expect.clone(), Some(new.clone()), Some(TTL));
            keys.iter().map(swap).collect()
        };
        creates.push(side.prepare(batch(None, VALUE)).await?);
        finishes.push(side.prepare(batch(Some(VALUE), NEXT)).await?);
    }
    let swaps = (size * batches) as f64;
    let create = swaps / time(side, creates).await?.as_secs_f64();
    let finish = swaps / time(side, finishes).await?.as_secs_f64();
    Ok(Rates { create, finish })
}

/// How long it takes to swap all of it.
async fn time<S: Swaps>(side: &Arc<S>, batches: Vec<S::Batch>) -> Outcome<Duration> {
    let (batches, next) = (Arc::new(batches), Arc::new(AtomicUsize::new(0)));
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..UNDER_WAY {
        let (side, batches, next) = (side.clone(), batches.clone(), next.clone());
        callers.spawn(async move {
            while let Some(batch) = batches.get(next.fetch_add(1, Relaxed)) {
                side.swap(caller, batch).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(start.elapsed())
}
