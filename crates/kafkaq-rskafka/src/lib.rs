#![doc = include_str!("../README.md")]

mod append;
mod batch;
mod builder;
mod calls;
mod cluster;
mod failure;
mod fetch;
mod home;
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
use failure::Failure;
use kafkaq_core::{
    Batch, FetchLimit, Log, NewRecord, Offsets, Partition, PartitionLog, Position, Result, TopicInfo,
    TopicSpec,
};
use link::{Link, Settings};
use std::{fmt, sync::Arc};

pub use builder::Builder;

/// Kafka, or a compatible server, through rskafka. Share it in an `Arc`: one handle serves the process.
///
/// It connects when it is first used. Connections are shared: all fetches that wait at a broker share one request, and
/// no broker gets more than four such requests at a time.
///
/// It can be called from any runtime, and from none. Calls stay on a multi-thread runtime of tokio; all others run on a
/// thread that belongs to the process, since a runtime that nobody drives would block the other callers.
pub struct RsKafka {
    link: Arc<Link>,
}

impl RsKafka {
    /// Starts a builder. `bootstrap` is one or more addresses: `"host:port,host:port"`.
    pub fn builder(bootstrap: impl Into<String>) -> Builder {
        Builder::new(bootstrap.into())
    }

    fn new(settings: Settings) -> Self {
        RsKafka { link: Arc::new(Link::new(settings)) }
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
        let (link, topics) = (self.link.clone(), topics.to_vec());
        let ensured = home::run(async move { calls::ensure_topics(&link, &topics).await }).await;
        ensured.map_err(|failure| self.link.error(failure::ENSURE, None, failure))
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        let (link, names) = (self.link.clone(), names.to_vec());
        let described = home::run(async move { calls::describe_topics(&link, &names).await }).await;
        described.map_err(|failure| self.link.error(failure::DESCRIBE, None, failure))
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let appended = match home::runs_by_itself() {
            // This saves a copy of the records.
            true => calls::append(&self.link, to, records).await,
            false => {
                let (link, to, records) = (self.link.clone(), to.clone(), records.to_vec());
                home::run(async move { calls::append(&link, &to, &records).await }).await
            }
        };
        let error = |failure| Err(self.link.error(failure::APPEND, Some(to), failure));
        appended.unwrap_or_else(|failure| vec![error(failure); records.len()])
    }

    async fn close(&self) -> Result<()> {
        let link = self.link.clone();
        if home::run(async move { calls::close(&link).await }).await.is_err() {
            // Without a thread, here.
            self.link.close().await;
        }
        Ok(())
    }
}

#[async_trait]
impl PartitionLog for RsKafka {
    /// An offset that is not within the log, before the first record or beyond the end, is `Invalid`.
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let (link, position) = (self.link.clone(), from.clone());
        let fetched = home::run(async move { calls::fetch(&link, &position, limit).await }).await;
        fetched.map_err(|failure| self.link.error(failure::FETCH, Some(&from.partition), failure))
    }

    /// While a transaction is open, `next` is where it starts.
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let (link, partitions) = (self.link.clone(), of.to_vec());
        let found = home::run(async move { calls::offsets(&link, &partitions).await }).await;
        let outcomes = found.unwrap_or_else(|failure| vec![Err(failure); of.len()]);
        let error = |(partition, outcome): (&Partition, std::result::Result<Offsets, Failure>)| {
            outcome.map_err(|failure| self.link.error(failure::OFFSETS, Some(partition), failure))
        };
        of.iter().zip(outcomes).map(error).collect()
    }
}
