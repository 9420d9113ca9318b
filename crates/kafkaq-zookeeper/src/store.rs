//! The store: the contract's calls over a few sessions.

use crate::{
    ZooKeeperStoreBuilder,
    builder::Settings,
    client::Client,
    failure, frame,
    link::Link,
    session::{Item, Requests},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use kafkaq_core::{Key, LeaseStore, OutageLog, Result, Swap, Swapped};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use zookeeper_async::CreateMode;

/// kafkaq's leases in ZooKeeper.
///
/// It connects when it is first used, and again whenever a session is lost or doesn't respond. It is tested on a single
/// server, not on an ensemble.
pub struct ZooKeeperStore {
    settings: Arc<Settings>,
    links: Box<[Link]>,
    next_link: AtomicUsize,
    outages: OutageLog,
}

impl ZooKeeperStore {
    /// Settings for the ZooKeeper at these addresses: `host:port,host:port/chroot`, where the chroot is optional.
    pub fn builder(addresses: impl Into<String>) -> ZooKeeperStoreBuilder {
        ZooKeeperStoreBuilder::new(addresses.into())
    }

    pub(crate) fn new(settings: Settings, sessions: usize) -> Self {
        let settings = Arc::new(settings);
        let links = (0..sessions).map(|n| Link::new(settings.clone(), n)).collect();
        let outages = OutageLog::new(failure::server(&settings.address()));
        ZooKeeperStore { settings, links, next_link: AtomicUsize::new(0), outages }
    }

    /// The session with the least to do. The client library delays small packets, so a request that is sent while a
    /// response is outstanding waits for that response, too. If several are idle, they are used in turn.
    fn link(&self) -> &Link {
        let first = self.next_link.fetch_add(1, Relaxed) % self.links.len();
        let (before, rest) = self.links.split_at(first);
        rest.iter().chain(before).min_by_key(|link| link.calls()).unwrap_or(&self.links[first])
    }
}

#[async_trait]
impl LeaseStore for ZooKeeperStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let read = |requests: Arc<Requests>, item: Arc<Item<Key>>| async move {
            requests.nodes().get(&requests, &item.ask).await
        };
        let outcomes = self.link().each(failure::READ, keys.to_vec(), read).await;
        self.outages.observe(failure::READ.name(), &outcomes);
        outcomes
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        if swaps.is_empty() {
            return Vec::new();
        }
        let swap = |requests: Arc<Requests>, item: Arc<Item<Swap>>| async move {
            requests.nodes().swap(&requests, &item.ask, &item.sent).await
        };
        let outcomes = self.link().each(failure::SWAP, swaps.to_vec(), swap).await;
        self.outages.observe(failure::SWAP.name(), &outcomes);
        outcomes
    }

    async fn check(&self) -> Result<Vec<String>> {
        let probe = |requests: Arc<Requests>, _| async move { probe(&requests.zk).await };
        let mut outcomes = self.link().each(failure::CHECK, vec![()], probe).await;
        let clock_difference = outcomes.pop().unwrap_or_else(|| Err(failure::CHECK.closed()))?;
        let allowed = self.settings.nodes.clock_skew;
        Ok(Vec::from_iter((clock_difference > allowed).then(|| {
            format!(
                "This machine's clock and ZooKeeper's differ by {clock_difference:?}, more than the \
                 {allowed:?} that are allowed: values may expire early, which causes repeated executions; \
                 synchronize the clocks"
            )
        })))
    }

    async fn close(&self) -> Result<()> {
        join_all(self.links.iter().map(Link::close)).await;
        Ok(())
    }
}

/// Does what swaps do, on a node of its own, and returns how much the clocks differ.
async fn probe(zk: &Client) -> Result<Duration> {
    let refused = |e| failure::of(failure::CHECK, e, false);
    let nodes = &zk.settings.nodes;
    nodes.make_parents(zk, &format!("{}/probe", nodes.root)).await.map_err(refused)?;
    let before = frame::now();
    // Others may check at the same time: the server chooses the name.
    let path = format!("{}/probe-", nodes.root);
    let probed =
        zk.request().create(&path, Vec::new(), nodes.acl.clone(), CreateMode::EphemeralSequential).await;
    let path = probed.map_err(refused)?;
    let stat = zk.request().set_data(&path, frame::gone(), None).await.map_err(refused)?;
    let after = frame::now();
    zk.request().delete(&path, None).await.map_err(refused)?;
    let server = u64::try_from(stat.mtime).unwrap_or(0);
    // A time within the duration of the request counts as no difference.
    Ok(Duration::from_millis(before.saturating_sub(server).max(server.saturating_sub(after))))
}

impl fmt::Debug for ZooKeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperStore")
            .field("settings", &self.settings)
            .field("sessions", &self.links.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::future::ready;

    /// A call that waits for its session.
    fn begun(link: &Link) -> impl Future {
        let mut call = Box::pin(link.each(failure::CHECK, vec![()], |_, _| ready(Ok(()))));
        assert!((&mut call).now_or_never().is_none());
        call
    }

    #[tokio::test]
    async fn a_call_takes_the_session_with_the_least_to_do() {
        let store = ZooKeeperStore::builder("127.0.0.1:1").build().unwrap();
        let number = |link: &Link| store.links.iter().position(|l| std::ptr::eq(l, link));
        let [first, second] = &store.links[..] else { panic!("two sessions by default") };
        assert_ne!(number(store.link()), number(store.link()), "idle ones take turns");
        let one = begun(first);
        assert!((0..4).all(|_| number(store.link()) == Some(1)));
        let more = (begun(second), begun(second));
        assert!((0..4).all(|_| number(store.link()) == Some(0)));
        drop((one, more));
        assert_ne!(number(store.link()), number(store.link()), "a call that has ended is no longer counted");
    }
}
