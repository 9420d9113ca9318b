//! The store: the calls of the contract over a few links.

use crate::{
    RedisStoreBuilder,
    failure::{self, Op},
    health,
    link::{Call, Link},
    request::{self, How, Leftover, Swaps},
};
use async_trait::async_trait;
use bytes::Bytes;
use kafkaq_core::{Key, LeaseStore, Result, Swap, Swapped};
use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// kafkaq's leases in Redis or Valkey.
///
/// It connects when it is first used and again whenever a connection breaks, hangs, or turns out to lead to a
/// replica.
pub struct RedisStore {
    prefix: String,
    request_timeout: Duration,
    links: Box<[Link]>,
    next_link: AtomicUsize,
    /// Since this server does not know `SET NX GET`. Stays on: the script works everywhere.
    by_script: AtomicBool,
}

impl RedisStore {
    /// Settings for the Redis at this URL: `redis://`, `rediss://` with the feature `tls`, or `unix://`.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
    }

    pub(crate) fn new(prefix: String, request_timeout: Duration, links: Box<[Link]>) -> Self {
        RedisStore {
            prefix,
            request_timeout,
            links,
            next_link: AtomicUsize::new(0),
            by_script: AtomicBool::new(false),
        }
    }

    fn link(&self) -> &Link {
        &self.links[self.next_link.fetch_add(1, Relaxed) % self.links.len()]
    }
}

#[async_trait]
impl LeaseStore for RedisStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let call = Call::new(Op::READ, self.request_timeout);
        match self.link().send(call, &request::reads(&self.prefix, keys)).await {
            Ok(answers) => request::read(keys, answers),
            Err(e) => vec![Err(e); keys.len()],
        }
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let call = Call::new(Op::SWAP, self.request_timeout);
        let link = self.link();
        let mut outcomes = vec![None; swaps.len()];
        let mut open: Vec<usize> = (0..swaps.len()).collect();
        let mut how = if self.by_script.load(Relaxed) { How::ByScript } else { How::Fast };
        while !open.is_empty() {
            let request = Swaps::new(&self.prefix, swaps, &open, how);
            match link.send(call, &request.commands).await {
                Ok(answers) => {
                    let Leftover { again, old_server } = request.settle(answers, &mut outcomes);
                    if old_server {
                        self.by_script.store(true, Relaxed);
                    }
                    // By text, a script can't be unknown: there is no third round.
                    open = if how == How::ByText { Vec::new() } else { again };
                    how = How::ByText;
                }
                Err(e) => {
                    open.drain(..).for_each(|place| outcomes[place] = Some(Err(e.clone())));
                }
            }
        }
        outcomes.into_iter().map(|o| o.unwrap_or_else(|| Err(failure::strange(Op::SWAP)))).collect()
    }

    async fn check(&self) -> Result<Vec<String>> {
        let call = Call::new(Op::CHECK, self.request_timeout);
        let answers = self.link().send(call, &health::questions()).await?;
        health::warnings(&answers)
    }

    async fn close(&self) -> Result<()> {
        self.links.iter().for_each(Link::close);
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.links.first().map(Link::address))
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .field("connections", &self.links.len())
            .finish_non_exhaustive()
    }
}
