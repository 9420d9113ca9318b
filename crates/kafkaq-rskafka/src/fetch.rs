//! Fetches: what is there, a wait for what is not, and a way past what holds no records.

use crate::{
    failure::Failure,
    link::{Limits, Link},
};
use bytes::Bytes;
use kafkaq_core::{Batch, ErrorKind, FetchLimit, Offsets, Partition, Position, Record};
use rskafka::{
    client::{
        error::ProtocolError,
        partition::{OffsetAt, PartitionClient},
    },
    record::RecordAndOffset,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// More than any server waits; also keeps instants from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The smallest limit of a fetch.
const ONE_BATCH: i32 = 1;

/// Records from an offset on.
///
/// A fetch from below the last stable offset brings at least one whole batch, however small its limit, and with the
/// smallest limit it brings that one alone. So if the first batch has no record, then `offset` holds none: compaction
/// has left it, or it is a transaction's marker. The library doesn't tell how far a batch goes, so the way past it
/// leads offset by offset. A marker can't be read at all, nor can what comes with it.
pub(crate) async fn fetch(link: &Link, from: &Position, limit: FetchLimit) -> Result<Batch, Failure> {
    let partition = &from.partition;
    let max_wait = limit.max_wait.min(LONGEST_WAIT);
    let (limits, until) = (link.limits(max_wait), Instant::now() + max_wait);
    // An answer has more than records in it.
    let room = link.settings.max_message_bytes - link.settings.max_message_bytes / 8;
    let all = i32::try_from(limit.max_bytes.clamp(ONE_BATCH as usize, room)).unwrap_or(i32::MAX - 1);
    let mut max_bytes = all;
    let mut offset = from.offset;
    // Known before the fetch that it is compared with, or a record could come in between and be passed over.
    let mut stable_end = None;
    loop {
        let fetched = once(link, partition, offset, max_bytes, until, limits).await;
        let is_over = Instant::now() >= until;
        let passed = match fetched {
            Ok((records, end)) => {
                if let Some(last) = records.last() {
                    let next = last.offset + 1;
                    return Ok(Batch::new(records.into_iter().map(record).collect(), next, Some(end)));
                }
                let passed = stable_end.is_some_and(|stable| stable > offset);
                // There is no more, or it belongs to a transaction that is still open.
                if end <= offset || (!passed && stable_end.is_some() && is_over) {
                    return Ok(Batch::new(Vec::new(), offset, Some(end)));
                }
                if !passed {
                    stable_end = Some(offsets(link, partition, limits).await?.next);
                }
                passed
            }
            Err(failure) if failure.code == Some(ProtocolError::OffsetOutOfRange) => {
                let Offsets { first, next } = offsets(link, partition, limits).await?;
                if offset >= first {
                    let advice = format!("Offset {offset} is not within {first} and {next}");
                    return Err(Failure::refused(ErrorKind::Invalid, advice));
                }
                offset = first;
                false
            }
            // What can't be read must not hide what comes before it.
            Err(failure) if failure.kind == ErrorKind::Corrupt && max_bytes > ONE_BATCH => {
                max_bytes = ONE_BATCH;
                continue;
            }
            Err(failure) if failure.is_marker() => true,
            Err(failure) if failure.kind == ErrorKind::Corrupt => {
                return Err(match failure.missing_codec() {
                    Some(codec) => failure.of_kind(ErrorKind::Unsupported).advise(format!(
                        "The batch at offset {offset} of {partition} is compressed by {codec}: build this program \
                         with the feature `{codec}` of the crate kafkaq-rskafka, and reading goes on from there"
                    )),
                    None => failure.advise(format!(
                        "The batch at offset {offset} of {partition} can't be read by rskafka: a header without a \
                         value or whose name is not UTF-8. Read the topic with kafkaq-rdkafka, or delete the \
                         records up to there"
                    )),
                });
            }
            Err(failure) => return Err(failure),
        };
        if passed {
            (offset, max_bytes) = (offset + 1, all);
            if is_over {
                return Ok(Batch::new(Vec::new(), offset, None));
            }
        }
    }
}

async fn once(
    link: &Link,
    from: &Partition,
    offset: i64,
    max_bytes: i32,
    until: Instant,
    limits: Limits,
) -> Result<(Vec<RecordAndOffset>, i64), Failure> {
    // The end of the range is not part of it.
    let bytes = 1..max_bytes + 1;
    let request = |client: Arc<PartitionClient>| {
        let bytes = bytes.clone();
        // What is left of it, if this is not the first attempt.
        let wait = until.saturating_duration_since(Instant::now());
        // Rounded up, or the answer is there before the wait is over.
        let wait_ms = i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        async move { client.fetch_records(offset, bytes, wait_ms).await }
    };
    link.ask(from, limits, request).await
}

/// The first offset, and the next one that may be read.
pub(crate) async fn offsets(link: &Link, of: &Partition, limits: Limits) -> Result<Offsets, Failure> {
    let request = |client: Arc<PartitionClient>| async move {
        let first = client.get_offset(OffsetAt::Earliest).await?;
        Ok(Offsets { first, next: client.get_offset(OffsetAt::Latest).await? })
    };
    link.ask(of, limits, request).await
}

fn record(read: RecordAndOffset) -> Record {
    let RecordAndOffset { record, offset } = read;
    let headers = record.headers.into_iter().map(|(name, value)| (name.into(), Some(value.into()))).collect();
    Record::new(
        offset,
        record.timestamp.timestamp_millis(),
        record.key.map(Bytes::from),
        record.value.map(Bytes::from),
        headers,
    )
}
