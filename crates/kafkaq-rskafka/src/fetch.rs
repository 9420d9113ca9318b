//! Fetches, and the ends of partitions.

use crate::{
    batch::{Decoded, Unreadable, decode},
    failure::Failure,
    link::{Attempts, Limits, Link},
    protocol::{
        fetch::{Fetched, From},
        offsets::{End, ListOffsets},
    },
};
use futures_util::future::{join_all, try_join};
use kafkaq_core::{Batch, ErrorKind, FetchLimit, Offsets, Partition, Position};
use rskafka::client::error::ProtocolError;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// Longer than any server waits; also keeps instants from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Returns records from an offset on. Reading continues after the last batch that was seen: without one it stays where
/// it is, and an empty response proves nothing.
pub(crate) async fn fetch(link: &Link, from: &Position, limit: FetchLimit) -> Result<Batch, Failure> {
    let Position { partition, offset } = from;
    let max_wait = limit.max_wait.min(LONGEST_WAIT);
    let (limits, until) = (link.limits(max_wait), Instant::now() + max_wait);
    let room = link.connections.settings.max_fetch_bytes();
    let mut want = limit.max_bytes.clamp(1, room);
    let mut alone = false;
    loop {
        let fetched = link.repeat(limits, || once(link, from, want, until, alone, limits)).await?;
        let end = fetched.end;
        let limit = link.connections.settings.max_message_bytes;
        let decoded = decode(fetched.records, *offset, &fetched.aborted, limit);
        match decoded {
            Decoded { needs: Some(size), .. } if size <= room && size > want => (want, alone) = (size, true),
            Decoded { needs: Some(_), .. } => return Err(Failure::oversized()),
            Decoded { next, unreadable: Some(why), .. } if next == *offset => {
                return Err(unreadable(link, partition, next, &why));
            }
            Decoded { records, next, epoch, .. } => {
                link.cluster.has_read(partition, next, epoch);
                // A server may return a record before its reported end includes it.
                return Ok(Batch::new(records, next, Some(end.max(next))));
            }
        }
    }
}

async fn once(
    link: &Link,
    from: &Position,
    max_bytes: usize,
    until: Instant,
    alone: bool,
    limits: Limits,
) -> Result<Fetched, Failure> {
    let Position { partition, offset } = from;
    let leader = link.cluster.leader(&link.connections, partition, limits.deadline).await?;
    link.cluster.reads(partition, leader.topic)?;
    let ask = From {
        topic: partition.topic.clone(),
        id: leader.topic,
        index: partition.index,
        offset: *offset,
        epoch_below: link.cluster.epoch_below(partition, *offset),
        max_bytes: i32::try_from(max_bytes).unwrap_or(i32::MAX),
    };
    let polled = timeout_at(limits.deadline, link.polls.fetch(&leader.address, ask, until, alone)).await;
    let outcome = polled.unwrap_or_else(|_| Err(Failure::silence().at(&leader.address)));
    let outcome = outcome.and_then(|fetched| {
        Failure::of_code(fetched.code, String::new).map_err(Failure::unsent).map(|()| fetched)
    });
    let failure = match outcome {
        Ok(Fetched { is_cut: true, .. }) => {
            link.cluster.forget_epochs(partition);
            return Err(Failure::cut(*offset));
        }
        Ok(fetched) => return Ok(fetched),
        Err(failure) => failure,
    };
    // Cached information about the leader, or the topic, may be stale.
    link.cluster.invalidate(&partition.topic);
    match failure.code {
        Some(ProtocolError::OffsetOutOfRange) => {
            link.cluster.forget_epochs(partition);
            Err(out_of_range(link, from, limits).await)
        }
        Some(ProtocolError::UnknownTopicId | ProtocolError::InconsistentTopicId) => {
            let now = link.cluster.look_up(&link.connections, partition, limits.deadline).await?;
            link.cluster.reads(partition, now.topic)?;
            // The broker doesn't know it yet.
            Err(failure)
        }
        _ => Err(failure),
    }
}

async fn out_of_range(link: &Link, from: &Position, limits: Limits) -> Failure {
    let of = std::slice::from_ref(&from.partition);
    let ends = offsets(link, of, limits).await.pop();
    match ends {
        Some(Ok(Offsets { first, next })) => {
            let offset = from.offset;
            let advice = format!("Offset {offset} is not within the log, which has {first} up to {next}");
            Failure::refused(ErrorKind::Invalid, advice)
        }
        Some(Err(failure)) => failure,
        None => Failure::not_found(),
    }
}

fn unreadable(link: &Link, partition: &Partition, offset: i64, why: &Unreadable) -> Failure {
    let what = format!("The batch at offset {offset} of {partition} can't be read: {why}");
    let (kind, help) = match why {
        Unreadable::MissingCodec(codec) => (
            ErrorKind::Unsupported,
            format!("Build this program with the feature `{codec}` of the crate kafkaq-rskafka"),
        ),
        Unreadable::UnknownCodec(_) => {
            (ErrorKind::Unsupported, "Look for a newer version of kafkaq-rskafka".into())
        }
        Unreadable::OldFormat => (
            ErrorKind::Unsupported,
            "Copy the records to a topic with the format of Kafka 0.11 or later, or delete those up to there"
                .into(),
        ),
        Unreadable::TooLarge => (ErrorKind::TooLarge, "Raise max_message_bytes".into()),
        Unreadable::Damaged(_) => (
            ErrorKind::Corrupt,
            "Check the broker's disk and replicas; to give up these records, delete those up to there with \
             kafka-delete-records"
                .into(),
        ),
    };
    if link.unreadable.is_due(partition) {
        tracing::error!(
            target: "kafkaq",
            %partition,
            "reading has stopped. {what}. {help}, and reading continues from there"
        );
    }
    Failure::refused(kind, format!("{what}. {help}, and reading continues from there"))
}

/// The first offset of each partition, and the next one that may be read.
pub(crate) async fn offsets(link: &Link, of: &[Partition], limits: Limits) -> Vec<Result<Offsets, Failure>> {
    let mut outcomes: Vec<Result<Offsets, Failure>> = of.iter().map(|_| Err(Failure::not_found())).collect();
    let mut left: Vec<usize> = (0..of.len()).collect();
    let mut attempts = Attempts::default();
    loop {
        for (at, outcome) in offsets_once(link, of, &left, limits).await {
            outcomes[at] = outcome;
        }
        left.retain(|at| outcomes[*at].as_ref().is_err_and(|failure| failure.again));
        // The failure that takes longest to resolve decides for all.
        let failures = left.iter().filter_map(|at| outcomes[*at].as_ref().err());
        let Some(failure) = failures.min_by_key(|failure| failure.kind == ErrorKind::NotFound) else { break };
        let failure = failure.clone();
        left.iter().for_each(|at| link.cluster.invalidate(&of[*at].topic));
        if attempts.another(link, limits, failure).await.is_err() {
            break;
        }
    }
    outcomes
}

async fn offsets_once(
    link: &Link,
    of: &[Partition],
    places: &[usize],
    limits: Limits,
) -> Vec<(usize, Result<Offsets, Failure>)> {
    let mut answers = Vec::with_capacity(places.len());
    // A partition may be requested twice; a server refuses that.
    let mut by_broker: HashMap<Arc<str>, BTreeMap<&Partition, Vec<usize>>> = HashMap::new();
    for &at in places {
        match link.cluster.leader(&link.connections, &of[at], limits.deadline).await {
            Ok(leader) => {
                by_broker.entry(leader.address).or_default().entry(&of[at]).or_default().push(at);
            }
            Err(failure) => answers.push((at, Err(failure))),
        }
    }
    let asked = by_broker.into_iter().map(|(address, partitions)| async move {
        let ends = offsets_of_broker(link, &address, partitions.keys().copied().collect(), limits).await;
        partitions.into_values().zip(ends).collect::<Vec<_>>()
    });
    for (places, end) in join_all(asked).await.into_iter().flatten() {
        answers.extend(places.into_iter().map(|at| (at, end.clone())));
    }
    answers
}

async fn offsets_of_broker(
    link: &Link,
    address: &Arc<str>,
    of: Vec<&Partition>,
    limits: Limits,
) -> Vec<Result<Offsets, Failure>> {
    let ask = |end: End| {
        let request = ListOffsets { of: of.clone(), end };
        async move { link.connections.send(address, &request, limits.deadline).await }
    };
    let (first, next) = match try_join(ask(End::First), ask(End::Next)).await {
        Ok(ends) => ends,
        Err(failure) => return of.iter().map(|_| Err(failure.clone())).collect(),
    };
    let offset = |answer: Option<(i16, i64)>| {
        let (code, offset) = answer.ok_or_else(|| Failure::unreadable("the response lacks the partition"))?;
        Failure::of_code(code, String::new).map(|()| offset)
    };
    let both = first.into_iter().zip(next).map(|(first, next)| {
        let ends = || Ok(Offsets { first: offset(first)?, next: offset(next)? });
        ends().map_err(|failure: Failure| failure.unsent())
    });
    both.collect()
}
