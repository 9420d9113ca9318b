//! How many leases per second each store swaps, compared with its bare client library.
//!
//! Both sides get the same batches, prepared beforehand: keys and values as long as the driver's, and two batches in
//! flight, like the driver. They take turns on one server, in rounds so short that other load on the machine slows down
//! both; each figure, including the ratio, is the median of the rounds. [`crate::raw`] describes what the bare client
//! does.
//!
//! For Redis, the cost to the server is measured as well: CPU time per swap, and memory per finished lease. Its store
//! lays out the leases of generated ids differently from those of chosen ids, so it has rows for both.

use crate::{
    Outcome, attempt,
    raw::{self, Swaps, Used},
    table::{Table, median, side_by_side, significant, thousands},
};
use bytes::Bytes;
use kafkaq::{
    backend::{Key, LeaseStore, Swap, Swapped},
    etcd::EtcdStore,
    memory::MemoryStore,
    redis::RedisStore,
    zookeeper::ZooKeeperStore,
};
use kafkaq_core::{TaskId, Wall};
use kafkaq_tests::{StoreKind, not_asked_for, told};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// One swap, as in a queue with little load; and up to as many as the driver sends.
const BATCHES: [usize; 3] = [1, 100, 500];
/// Concurrent batches: the driver's number of calls.
pub(crate) const UNDER_WAY: usize = 2;
/// As long as a task's lease in the store.
const VALUE: Bytes = Bytes::from_static(&[1; 40]);
const NEXT: Bytes = Bytes::from_static(&[2; 40]);
/// Roughly a lease's default.
pub(crate) const TTL: Duration = Duration::from_secs(2 * 3600);

const ROUNDS: usize = 9;
/// How long a side's turn with one kind of swap should take.
const TURN: Duration = Duration::from_millis(250);
const MOST_SWAPS_A_TURN: usize = 50_000;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure() {
    let columns = [
        "store",
        "batch",
        "swap",
        "client alone, K/s",
        "store, K/s",
        "store : client",
        "server, µs per swap: client alone",
        "store",
        "server, bytes per lease: client alone",
        "store",
    ];
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
        StoreKind::Memory => {
            beside(table, name, Ids::Numbered, MemoryStore::new(), None::<raw::Nothing>).await;
        }
        StoreKind::Redis => {
            let url = kafkaq_tests::redis();
            for (name, ids) in [(name, Ids::Numbered), ("redis, chosen ids", Ids::Chosen)] {
                let store = RedisStore::builder(&url).build()?;
                beside(table, name, ids, store, Some(raw::Redis::connect(&url).await?)).await;
            }
        }
        StoreKind::RedisCluster => {
            let urls = told("KAFKAQ_TEST_REDIS_CLUSTER");
            let store = RedisStore::cluster(urls.split(',')).build()?;
            beside(table, name, Ids::Numbered, store, Some(raw::Cluster::connect(urls.split(',')).await?))
                .await;
        }
        StoreKind::Etcd => {
            let endpoint = told("KAFKAQ_TEST_ETCD");
            let store = EtcdStore::builder([&endpoint]).build()?;
            beside(table, name, Ids::Numbered, store, Some(raw::Etcd::connect(&endpoint).await?)).await;
        }
        StoreKind::ZooKeeper => {
            let address = told("KAFKAQ_TEST_ZOOKEEPER");
            let store = ZooKeeperStore::builder(&address).build()?;
            beside(table, name, Ids::Numbered, store, Some(raw::ZooKeeper::connect(&address).await?)).await;
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

/// Where the ids of tasks come from.
#[derive(Clone, Copy)]
enum Ids {
    /// A publisher.
    Numbered,
    Chosen,
}

impl Ids {
    fn make(self, seed: u128, n: usize) -> String {
        match self {
            Ids::Numbered => TaskId::numbered(Wall(NOW), seed.wrapping_add(n as u128)).as_str().to_owned(),
            Ids::Chosen => uuid::Uuid::new_v4().to_string(),
        }
    }
}

/// Milliseconds since 1970, roughly.
const NOW: u64 = 1_795_000_000_000;

/// A side's figures of one turn.
struct Turn {
    create: Cost,
    finish: Cost,
    /// The server's memory per finished lease.
    bytes: Option<f64>,
}

/// The figures of one kind of swap.
struct Cost {
    /// Swaps per second.
    rate: f64,
    /// The server's CPU time, in microseconds per swap.
    server: Option<f64>,
}

async fn beside<S: LeaseStore, R: Swaps>(table: &mut Table, name: &str, ids: Ids, store: S, raw: Option<R>) {
    let (store, raw) = (Arc::new(Store(store)), raw.map(Arc::new));
    for size in BATCHES {
        let measured = attempt(LIMIT, rounds(store.clone(), raw.clone(), ids, size)).await;
        let row = |swap: &str, figures: Vec<String>| {
            [vec![name.to_owned(), size.to_string(), swap.to_owned()], figures].concat()
        };
        match measured {
            Ok((ours, raw)) => {
                table.row(row("create", figures(&ours, &raw, |turn| &turn.create)));
                let bytes = [&raw, &ours].map(|side| known(side, |turn| turn.bytes));
                table.row(row("finish", [figures(&ours, &raw, |turn| &turn.finish), bytes.into()].concat()));
            }
            Err(why) => {
                let failed = table.failed(&format!("{name} in batches of {size}"), &why);
                table.row(row("", vec![failed]));
            }
        }
    }
}

fn figures(ours: &[Turn], raw: &[Turn], of: impl Fn(&Turn) -> &Cost) -> Vec<String> {
    let rates = |side: &[Turn]| side.iter().map(|turn| of(turn).rate).collect::<Vec<_>>();
    let mut figures = match raw {
        [] => vec!["none".into(), thousands(median(rates(ours))), String::new()],
        raw => side_by_side(rates(raw), rates(ours)),
    };
    figures.extend([raw, ours].map(|side| known(side, |turn| of(turn).server)));
    figures
}

/// Returns the median of a figure that not every server reports.
fn known(side: &[Turn], of: impl Fn(&Turn) -> Option<f64>) -> String {
    match side.iter().map(of).collect::<Option<Vec<_>>>() {
        Some(figures) if !figures.is_empty() => significant(median(figures)),
        _ => String::new(),
    }
}

/// Returns the figures of both sides for each round.
async fn rounds<S: LeaseStore, R: Swaps>(
    store: Arc<Store<S>>,
    raw: Option<Arc<R>>,
    ids: Ids,
    size: usize,
) -> Outcome<(Vec<Turn>, Vec<Turn>)> {
    let server = raw.as_deref();
    let batches = fitting(&store, server, ids, size).await?;
    if let Some(raw) = &raw {
        turn(raw, server, ids, size, batches).await?;
    }
    let (mut by_store, mut by_client) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if let Some(raw) = &raw {
            by_client.push(turn(raw, server, ids, size, batches).await?);
        }
        by_store.push(turn(&store, server, ids, size, batches).await?);
    }
    Ok((by_store, by_client))
}

/// Returns how many batches make a turn take about as long as it should. Warms up, too.
async fn fitting<S: Swaps, R: Swaps>(
    side: &Arc<S>,
    server: Option<&R>,
    ids: Ids,
    size: usize,
) -> Outcome<usize> {
    let most = MOST_SWAPS_A_TURN / size;
    let mut batches = UNDER_WAY;
    loop {
        let swaps_a_turn = turn(side, server, ids, size, batches).await?.create.rate * TURN.as_secs_f64();
        let fitting = (swaps_a_turn as usize / size).clamp(UNDER_WAY, most);
        if fitting < 4 * batches {
            return Ok(fitting);
        }
        batches = fitting;
    }
}

/// Takes leases for new keys, and then finishes them. `server`: whether to measure the server's cost.
async fn turn<S: Swaps, R: Swaps>(
    side: &Arc<S>,
    server: Option<&R>,
    ids: Ids,
    size: usize,
    batches: usize,
) -> Outcome<Turn> {
    let (queue, seed) = (kafkaq_tests::unique("bench"), uuid::Uuid::new_v4().as_u128());
    let (mut creates, mut finishes) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        let new_key = |n| Key::of(&["t", &queue, "kafkaq", &ids.make(seed, size * batch + n)]);
        let keys: Vec<Key> = (0..size).map(new_key).collect::<kafkaq::Result<_>>()?;
        let batch = |expect: Option<Bytes>, new: Bytes| {
            let swap = |key: &Key| Swap::new(key.clone(), expect.clone(), Some(new.clone()), Some(TTL));
            keys.iter().map(swap).collect()
        };
        creates.push(side.prepare(batch(None, VALUE)).await?);
        finishes.push(side.prepare(batch(Some(VALUE), NEXT)).await?);
    }
    let swaps = (size * batches) as f64;
    let begin = used(server).await?;
    let taken = time(side, creates).await?;
    let between = used(server).await?;
    let finished = time(side, finishes).await?;
    let end = used(server).await?;
    let per_swap = |before: Option<Used>, after: Option<Used>, of: fn(Used) -> f64| {
        before.zip(after).map(|(before, after)| (of(after) - of(before)) / swaps)
    };
    let cost = |took: Duration, before, after| Cost {
        rate: swaps / took.as_secs_f64(),
        server: per_swap(before, after, |used| used.cpu.as_secs_f64() * 1e6),
    };
    Ok(Turn {
        create: cost(taken, begin, between),
        finish: cost(finished, between, end),
        bytes: per_swap(begin, end, |used| used.bytes),
    })
}

async fn used<R: Swaps>(server: Option<&R>) -> Outcome<Option<Used>> {
    match server {
        Some(server) => server.used().await,
        None => Ok(None),
    }
}

/// Returns how long it takes to swap all batches.
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
