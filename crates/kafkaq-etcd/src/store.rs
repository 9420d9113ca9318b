//! The store: the contract's calls over one link.

use crate::{
    EtcdStoreBuilder, failure, health,
    lease::{Attached, Leases},
    link::{self, Link},
    request,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use kafkaq_core::{
    ErrorKind, Key, LeaseStore, OutageLog, Result, Swap, Swapped,
    connection::{Call, Connect},
};
use std::{fmt, time::Duration};

/// How many requests of one call are in flight. With one, etcd has little to sync at once; more only wait for the disk.
const AT_ONCE: usize = 4;

/// kafkaq's leases in etcd.
///
/// It connects when it is first used, and again, to the next endpoint, whenever a connection breaks, hangs, or leads to
/// a member that is partitioned from the others.
pub struct EtcdStore {
    prefix: String,
    request_timeout: Duration,
    link: Link,
    leases: Leases,
    outages: OutageLog,
}

impl EtcdStore {
    /// Settings for the etcd at these endpoints: `host:port`, `http://host:port`, or `https://host:port` with the
    /// feature `tls`. One is used at a time, the first as long as it works.
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdStoreBuilder {
        EtcdStoreBuilder::new(endpoints.into_iter().map(Into::into).collect())
    }

    pub(crate) fn new(prefix: String, request_timeout: Duration, link: Link) -> Self {
        let outages = OutageLog::new(link.connect().server(None));
        EtcdStore { prefix, request_timeout, link, leases: Leases::new(request_timeout), outages }
    }

    async fn swap_chunk(&self, call: Call, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let mut leases_were_lost = false;
        loop {
            let Attached { leases, runs_short } = match self.leases.attach(call, &self.link, swaps).await {
                Ok(attached) => attached,
                Err(e) => return vec![Err(e); swaps.len()],
            };
            let swapping = link::send(&self.link, call, |to| {
                let txn = request::swaps(&self.prefix, swaps, &leases);
                async move { to.kv.clone().txn(txn).await }
            });
            let preparing = self.leases.prepare(call, &self.link, runs_short);
            match future::join(swapping, preparing).await.0 {
                Ok(answer) => return request::swapped(swaps.len(), &answer),
                // Nothing was applied, and other leases may be gone too: retry with new ones.
                Err(e) if e.kind() == ErrorKind::NotFound && !leases_were_lost => {
                    leases_were_lost = true;
                    self.leases.forget(&leases);
                }
                Err(e) => return vec![Err(e); swaps.len()],
            }
        }
    }

    async fn read_chunk(&self, call: Call, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        let reading = link::send(&self.link, call, |to| {
            let txn = request::reads(&self.prefix, keys);
            async move { to.kv.clone().txn(txn).await }
        });
        match reading.await {
            Ok(answer) => request::read(keys.len(), &answer),
            Err(e) => vec![Err(e); keys.len()],
        }
    }
}

#[async_trait]
impl LeaseStore for EtcdStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        let call = Call::new(failure::READ, self.request_timeout);
        let chunks: Vec<_> = keys.chunks(request::MAX_OPS).map(|c| self.read_chunk(call, c)).collect();
        let outcomes = stream::iter(chunks).buffered(AT_ONCE).concat().await;
        self.outages.observe(failure::READ.name(), &outcomes);
        outcomes
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let call = Call::new(failure::SWAP, self.request_timeout);
        let chunks = request::chunks(&self.prefix, swaps);
        let chunks: Vec<_> = chunks.into_iter().map(|c| self.swap_chunk(call, c)).collect();
        let outcomes = stream::iter(chunks).buffered(AT_ONCE).concat().await;
        self.outages.observe(failure::SWAP.name(), &outcomes);
        outcomes
    }

    async fn check(&self) -> Result<Vec<String>> {
        health::warnings(Call::new(failure::CHECK, self.request_timeout), &self.link).await
    }

    async fn close(&self) -> Result<()> {
        self.link.close().await;
        Ok(())
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("endpoints", &self.link.connect().addresses())
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
