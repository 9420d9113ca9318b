//! The rules of every store, on a server and on a cluster: over the keys of the cases, and over keys that are
//! neighbours.

use async_trait::async_trait;
use bytes::Bytes;
use kafkaq_conformance::{BoxError, Outage, Proxy, Suite, store};
use kafkaq_core::{Key, LeaseStore, Result, Swap, Swapped};
use kafkaq_redis::{RedisStore, RedisStoreBuilder};
use std::{
    collections::HashMap,
    future::ready,
    process::ExitCode,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};
use xtask::services::{Server, Service};

/// A server on a busy machine may take longer than the store's own two seconds for a thousand items.
const REQUEST: Duration = Duration::from_secs(10);

fn main() -> Result<ExitCode, BoxError> {
    let (one, other) = (Service::Redis.own()?, Service::Redis.own()?);
    let neighbours = of("_neighbours", &other, |store| Ok(Neighbours(store)))?;
    Ok(of("", &one, Ok)?.and(neighbours).run())
}

/// Returns the suite of this server and of its own cluster, with a store over each.
fn of<S: LeaseStore>(
    name: &str,
    one: &Server,
    over: impl Fn(RedisStore) -> Result<S, BoxError> + Copy + Send + Sync + 'static,
) -> Result<Suite, BoxError> {
    let three = Service::RedisCluster.own()?;
    let proxy = Proxy::to(one.addr())?;
    let url = format!("redis://{}", proxy.addr());
    let open = move |builder: RedisStoreBuilder| {
        ready(builder.request_timeout(REQUEST).build().map_err(BoxError::from).and_then(over))
    };
    let single = store(format!("redis{name}"), move || open(RedisStore::builder(&url)));
    let urls = three.url();
    let cluster = store(format!("redis_cluster{name}"), move || open(RedisStore::cluster(urls.split(','))));
    Ok(Suite::from(single.with_outage(proxy)).and(cluster.with_outage(StandsStill(three))))
}

/// Stops the server's process: the nodes of a cluster give clients their own addresses, so a proxy can't be put in
/// front of them.
struct StandsStill(Server);

#[async_trait]
impl Outage for StandsStill {
    async fn cut(&self) -> Result<(), BoxError> {
        Ok(self.0.pause()?)
    }

    async fn restore(&self) -> Result<(), BoxError> {
        Ok(self.0.resume()?)
    }
}

/// Maps each key of a case to the next one that a publisher numbers, so that 64 are in one hash.
#[derive(Debug)]
struct Neighbours(RedisStore);

impl Neighbours {
    fn key(named: &Key) -> Key {
        static NUMBERS: LazyLock<Mutex<HashMap<Key, usize>>> = LazyLock::new(Mutex::default);
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        let next = numbers.len();
        let number = *numbers.entry(named.clone()).or_insert(next);
        let id = format!("018bcfe5-6800-706b-8000-{number:012x}");
        Key::of(&["t", "neighbours", "kit", &id]).unwrap_or_else(|_| named.clone())
    }
}

#[async_trait]
impl LeaseStore for Neighbours {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        self.0.get(&keys.iter().map(Neighbours::key).collect::<Vec<_>>()).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let swap = |swap: &Swap| {
            Swap::new(Neighbours::key(&swap.key), swap.expect.clone(), swap.new.clone(), swap.ttl)
        };
        self.0.swap(&swaps.iter().map(swap).collect::<Vec<_>>()).await
    }

    async fn check(&self) -> Result<Vec<String>> {
        self.0.check().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}
