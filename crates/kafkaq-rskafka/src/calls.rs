//! The calls of the log, on a runtime that makes progress by itself.

use crate::{append, failure::Failure, fetch, link::Link, topics};
use kafkaq_core::{Batch, FetchLimit, NewRecord, Offsets, Partition, Position, Result, TopicInfo, TopicSpec};
use std::{sync::Arc, time::Duration};

pub(crate) async fn ensure_topics(link: &Link, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>, Failure> {
    let _under_way = link.enter()?;
    topics::ensure(link, topics).await
}

pub(crate) async fn describe_topics(
    link: &Link,
    names: &[Arc<str>],
) -> Result<Vec<Option<TopicInfo>>, Failure> {
    let _under_way = link.enter()?;
    topics::describe(link, names).await
}

pub(crate) async fn append(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
) -> Result<Vec<Result<i64>>, Failure> {
    let _under_way = link.enter()?;
    Ok(append::append(link, to, records, link.limits(Duration::ZERO)).await)
}

pub(crate) async fn fetch(link: &Link, from: &Position, limit: FetchLimit) -> Result<Batch, Failure> {
    let _under_way = link.enter()?;
    // A handle that only reads keeps no connections to append on.
    link.producers.close_idle();
    tokio::select! {
        // First, since a fetch fails when the request that it shares is closed.
        biased;
        () = link.closing() => Err(Failure::closed()),
        // It may be closed while this is polled.
        batch = fetch::fetch(link, from, limit) => {
            batch.map_err(|failure| if link.is_closed() { Failure::closed() } else { failure })
        }
    }
}

pub(crate) async fn offsets(link: &Link, of: &[Partition]) -> Result<Vec<Result<Offsets, Failure>>, Failure> {
    let _under_way = link.enter()?;
    Ok(fetch::offsets(link, of, link.limits(Duration::ZERO)).await)
}

pub(crate) async fn close(link: &Link) -> Result<(), Failure> {
    link.close().await;
    Ok(())
}
