//! The store: the contract's calls over one server or a cluster.

use crate::{
    RedisStoreBuilder,
    command::{How, Way},
    failure,
    health::{self, Place},
    layout::slot,
    request::{Leftover, Reads, Request, Swaps},
    servers::{Open, Servers, Share},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use kafkaq_core::{Error, ErrorKind, Key, LeaseStore, Operation, Result, Swap, Swapped, connection::Call};
use redis::Value;
use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

/// How often a batch, or the rest of it, is sent: normally once, again with the script's text, again after a redirect.
/// A key that is still redirected then fails.
const MAX_ROUNDS: usize = 6;

/// kafkaq's leases in Redis or Valkey: one server, or a Redis Cluster.
///
/// It connects when it is first used and again whenever a connection breaks, hangs, or turns out to lead to a replica.
/// In a cluster it follows slots as they move; while a node is down, calls for its slots fail and all others succeed.
pub struct RedisStore {
    prefix: String,
    request_timeout: Duration,
    servers: Servers,
    /// Set when a server does not know `SET NX GET`. Stays on: the script works everywhere.
    by_script: AtomicBool,
}

impl RedisStore {
    /// Settings for the Redis at this URL: `redis://`, `rediss://` with the feature `tls`, or `unix://`.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(vec![url.into()], false)
    }

    /// Settings for the Redis Cluster that these nodes belong to: `redis://`, or `rediss://` with the feature `tls`.
    /// One suffices; more help if it is down. User, password and certificates of the first one are used for all nodes
    /// that the cluster reports.
    pub fn cluster(urls: impl IntoIterator<Item = impl Into<String>>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(urls.into_iter().map(Into::into).collect(), true)
    }

    pub(crate) fn new(prefix: String, request_timeout: Duration, servers: Servers) -> Self {
        RedisStore { prefix, request_timeout, servers, by_script: AtomicBool::new(false) }
    }

    fn call(&self, operation: Operation) -> Call {
        Call::new(operation, self.request_timeout)
    }

    /// Sends the parts of a batch to their nodes concurrently, and retries what must be sent again.
    async fn run<R: Request>(&self, items: &[R::Item]) -> Vec<Result<R::Outcome>> {
        let call = self.call(R::OPERATION);
        let mut outcomes = vec![None; items.len()];
        let mut open = Open::all(items.len());
        let mut how = if self.by_script.load(Relaxed) { How::ByScript } else { How::Fast };
        for round in 0..MAX_ROUNDS {
            if open.is_empty() {
                break;
            }
            if let Err(e) = self.servers.ready(call).await {
                self.fail::<R>(open.into_places(), &e, &mut outcomes);
                open = Open::default();
                break;
            }
            let way = Way { how, keys_per_command: self.servers.keys_per_command() };
            let place_slot = |place: usize| slot(&self.prefix, R::key(&items[place]));
            let (shares, unassigned) = self.servers.share(open, place_slot);
            self.fail::<R>(unassigned, &failure::unassigned(R::OPERATION), &mut outcomes);
            let requests = shares.into_iter().map(|share| {
                let request = R::new(&self.prefix, items, &share.places, way);
                send(call, share, request)
            });
            open = Open::default();
            for (share, answers) in join_all(requests.collect::<Vec<_>>()).await {
                match answers {
                    Ok((request, answers)) => {
                        self.servers.observe(&share.node, &answers);
                        let left = request.settle(answers, &mut outcomes);
                        self.take::<R>(left, &share, round == 0, &mut open, &mut outcomes);
                    }
                    Err(e) => {
                        self.servers.mark_stale();
                        share.places.iter().for_each(|&place| outcomes[place] = Some(Err(e.clone())));
                    }
                }
                let told = share.places.iter().filter_map(|&place| outcomes[place].as_ref());
                share.node.outages.observe(R::OPERATION.name(), told);
            }
            // What is sent again needs the script's text, or isn't harmed by it.
            how = How::ByText;
        }
        self.fail::<R>(open.into_places(), &failure::unassigned(R::OPERATION), &mut outcomes);
        let missing = || Err(failure::unexpected_response(R::OPERATION));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
    }

    /// Fails items that were not sent to any node, which is not the failure of one node.
    fn fail<R: Request>(
        &self,
        places: impl IntoIterator<Item = usize>,
        error: &Error,
        outcomes: &mut [Option<Result<R::Outcome>>],
    ) {
        let mut failed = false;
        for place in places {
            outcomes[place] = Some(Err(error.clone()));
            failed = true;
        }
        if let Some(outages) = self.servers.outages() {
            match failed {
                true => outages.failed(R::OPERATION.name(), error),
                false => outages.succeeded(R::OPERATION.name()),
            }
        }
    }

    /// Handles what the responses of a share leave to do.
    fn take<R: Request>(
        &self,
        left: Leftover,
        share: &Share,
        first: bool,
        open: &mut Open,
        outcomes: &mut [Option<Result<R::Outcome>>],
    ) {
        if left.old_server {
            self.by_script.store(true, Relaxed);
        }
        open.places.extend(left.again);
        for (place, refusal) in left.elsewhere {
            // The connection to a replica was dropped, and a new one may lead to the primary.
            if failure::is_readonly(&refusal) && first {
                open.places.push(place);
            } else if !self.servers.redirect(&share.node, place, &refusal, open) {
                outcomes[place] = Some(Err(failure::refused(R::OPERATION, &refusal)));
            }
        }
    }
}

async fn send<R: Request>(call: Call, share: Share, request: R) -> (Share, Result<(R, Vec<Value>)>) {
    let answers = share.send(call, request.commands()).await;
    (share, answers.map(|answers| (request, answers)))
}

impl RedisStore {
    /// Runs all commands that leases need, on two values of its own: a user that may run only some of them would
    /// execute half of a swap.
    async fn probe(&self) -> Result<()> {
        let keys = health::probe_keys()?;
        let steps = [
            (None, Some("created"), None),
            (Some("created"), Some("replaced"), Some(Duration::from_secs(4))),
            (Some("replaced"), None, None),
        ];
        for (expect, new, ttl) in steps {
            let value = |text: Option<&'static str>| text.map(|text| Bytes::from_static(text.as_bytes()));
            let swaps = keys.clone().map(|key| Swap::new(key, value(expect), value(new), ttl));
            self.swap(&swaps).await.into_iter().try_for_each(|outcome| outcome.map(drop))?;
        }
        self.get(&keys).await.into_iter().try_for_each(|outcome| outcome.map(drop))
    }
}

#[async_trait]
impl LeaseStore for RedisStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        self.run::<Reads>(keys).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        self.run::<Swaps>(swaps).await
    }

    async fn check(&self) -> Result<Vec<String>> {
        let call = self.call(failure::CHECK);
        self.servers.ready(call).await?;
        let warnings = match &self.servers {
            Servers::One(node) => {
                let answers = node.send(call, &health::questions()).await?;
                health::warnings(&answers, Place::Alone)
            }
            Servers::Cluster(cluster) => health::of_cluster(cluster, call).await,
        }?;
        match self.probe().await {
            // Any other failure is in the warnings, or temporary.
            Err(e) if matches!(e.kind(), ErrorKind::Denied | ErrorKind::Other) => Err(e),
            _ => Ok(warnings),
        }
    }

    async fn close(&self) -> Result<()> {
        self.servers.close().await;
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("addresses", &self.servers.addresses())
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
