#![doc = include_str!("../README.md")]

mod append;
mod batch;
mod builder;
mod cluster;
mod failure;
mod fetch;
mod link;
mod outage;
mod poll;
mod producers;
mod protocol;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod topics;
mod wire;

use async_trait::async_trait;
use failure::{Failure, Op};
use kafkaq_core::{
    Batch, FetchLimit, Log, NewRecord, Offsets, Partition, PartitionLog, Position, Result, TopicInfo,
    TopicSpec,
};
use link::{Link, Settings};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use builder::Builder;

/// Kafka, or a compatible server, through rskafka. Share it in an `Arc`: one handle serves the process.
///
/// It connects when it is first used. Connections are shared: all fetches that wait at a broker share one request, and
/// no broker gets more than four such requests at a time.
pub struct RsKafka {
    link: Link,
}

impl RsKafka {
    /// Starts a builder. `bootstrap` is one or more addresses: `"host:port,host:port"`.
    pub fn builder(bootstrap: impl Into<String>) -> Builder {
        Builder::new(bootstrap.into())
    }

    fn new(settings: Settings) -> Self {
        RsKafka { link: Link::new(settings) }
    }
}

impl fmt::Debug for RsKafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RsKafka")
            .field("bootstrap", &self.link.connections.settings.bootstrap)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Log for RsKafka {
    /// If the user may not read the settings of a topic, a warning is logged, and the info has none of them.
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        let ensure = async {
            let _under_way = self.link.enter()?;
            topics::ensure(&self.link, topics).await
        };
        ensure.await.map_err(|failure| self.link.error(Op::ENSURE, None, failure))
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        let describe = async {
            let _under_way = self.link.enter()?;
            topics::describe(&self.link, names).await
        };
        describe.await.map_err(|failure| self.link.error(Op::DESCRIBE, None, failure))
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        match self.link.enter() {
            Ok(_under_way) => append::append(&self.link, to, records, self.link.limits(Duration::ZERO)).await,
            Err(failure) => vec![Err(self.link.error(Op::APPEND, Some(to), failure)); records.len()],
        }
    }

    async fn close(&self) -> Result<()> {
        self.link.close().await;
        Ok(())
    }
}

#[async_trait]
impl PartitionLog for RsKafka {
    /// An offset that is not within the log, before the first record or beyond the end, is `Invalid`.
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let fetch = async {
            let _under_way = self.link.enter()?;
            // A handle that only reads keeps no connections to append on.
            self.link.producers.close_idle();
            tokio::select! {
                // First, since a fetch fails when the request that it shares is closed.
                biased;
                () = self.link.closing() => Err(Failure::closed()),
                batch = fetch::fetch(&self.link, from, limit) => batch,
            }
        };
        fetch.await.map_err(|failure| self.link.error(Op::FETCH, Some(&from.partition), failure))
    }

    /// While a transaction is open, `next` is where it starts.
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let outcomes = match self.link.enter() {
            Ok(_under_way) => fetch::offsets(&self.link, of, self.link.limits(Duration::ZERO)).await,
            Err(failure) => of.iter().map(|_| Err(failure.clone())).collect(),
        };
        let error = |(partition, outcome): (&Partition, std::result::Result<Offsets, Failure>)| {
            outcome.map_err(|failure| self.link.error(Op::OFFSETS, Some(partition), failure))
        };
        of.iter().zip(outcomes).map(error).collect()
    }
}

/// A panic elsewhere must not affect the log: what these locks guard is consistent between statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
