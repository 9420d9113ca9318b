//! Appends: requests of a size that servers take, and one outcome per record.

use crate::{
    batch,
    failure::{self, Failure},
    link::{Limits, Link},
    protocol::produce::Produce,
};
use bytes::Bytes;
use kafkaq_core::{ErrorKind, Headers, NewRecord, Partition, Result};
use rskafka::{
    chrono::{DateTime, Utc},
    client::error::ProtocolError,
    record::Record,
};
use std::{ops::Range, time::SystemTime};

/// A topic's limit applies to a whole batch on the wire: by default slightly more than 1 MiB.
const BATCH: usize = 1 << 20;
/// The library's limit for a server on this machine. It writes a request of more than 8 KiB in two pieces to a socket
/// with Nagle's algorithm, and the loopback's packets are so large that the second piece counts as small: it would wait
/// 40 ms for the acknowledgement of the first. On a network with smaller packets it usually doesn't.
const LOCAL_BATCH: usize = 7 << 10;
/// The maximum that the log's framing adds to a record and to each of its headers.
const FRAME: usize = 32;
const HEADER_FRAME: usize = 10;

/// How records are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProducePath {
    /// By rskafka, which keeps headers in a map, if it has a connection to spare.
    RsKafka,
    /// Over our own connections: headers that a map can't hold.
    Wire,
    /// Likewise, compressed: for records that are otherwise too large for the topic.
    Compressed,
}

impl ProducePath {
    /// One path for all, so that a mixture is not split up.
    fn of(records: &[NewRecord]) -> Self {
        match records.iter().all(|record| survive_a_map(&record.headers)) {
            true => ProducePath::RsKafka,
            false => ProducePath::Wire,
        }
    }

    fn batch_limit(self, link: &Link) -> usize {
        match self {
            ProducePath::RsKafka if link.connections.settings.is_local() => LOCAL_BATCH,
            _ => BATCH,
        }
    }
}

/// Returns whether a map of strings preserves the headers: they are sorted by name.
fn survive_a_map(headers: &Headers) -> bool {
    let mut last: Option<&[u8]> = None;
    headers.iter().all(|(name, value)| {
        let is_next = last.is_none_or(|last| *last < name[..]);
        last = Some(name);
        is_next && value.is_some() && std::str::from_utf8(name).is_ok()
    })
}

/// Appends in order and returns outcomes in order. A batch that the server refuses as too large, or because of one of
/// its records, is sent again in halves, so that only the offending record fails. If that is too large, it is sent
/// again compressed: a copy must fit where the record did, which another client may have compressed.
pub(crate) async fn append(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
    limits: Limits,
) -> Vec<Result<i64>> {
    let max_message_bytes = link.connections.settings.max_message_bytes;
    let path = ProducePath::of(records);
    let limit = path.batch_limit(link);
    let mut outcomes = Vec::with_capacity(records.len());
    while let Some(next) = records.get(outcomes.len()) {
        let start = outcomes.len();
        match refusal(next, max_message_bytes) {
            Some(refused) => outcomes.push(Err(link.error(failure::APPEND, Some(to), refused))),
            None => {
                let batch = start..start + batch_len(&records[start..], limit, max_message_bytes);
                send(link, to, records, batch, path, limits, &mut outcomes).await;
            }
        }
    }
    outcomes
}

async fn send(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
    batch: Range<usize>,
    path: ProducePath,
    limits: Limits,
    outcomes: &mut Vec<Result<i64>>,
) {
    // The first is sent first, so that the order stays.
    let mut waiting = vec![(batch, path)];
    while let Some((batch, path)) = waiting.pop() {
        let records = &records[batch.clone()];
        match link.repeat(limits, || send_once(link, to, records, path, limits)).await {
            Ok(offsets) => outcomes.extend(offsets.into_iter().map(Ok)),
            Err(failure) if batch.len() > 1 && is_for_one(&failure) => {
                let middle = batch.start + batch.len() / 2;
                waiting.extend([(middle..batch.end, path), (batch.start..middle, path)]);
            }
            Err(failure) if path != ProducePath::Compressed && is_too_large(&failure) => {
                waiting.push((batch, ProducePath::Compressed));
            }
            Err(failure) => {
                let error = link.error(failure::APPEND, Some(to), failure);
                outcomes.extend(batch.map(|_| Err(error.clone())));
            }
        }
    }
}

async fn send_once(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
    path: ProducePath,
    limits: Limits,
) -> std::result::Result<Vec<i64>, Failure> {
    let by_library = async {
        let library = || records.iter().map(to_library).collect();
        match path {
            ProducePath::RsKafka => link.producers.append(link, to, library, limits).await,
            ProducePath::Wire | ProducePath::Compressed => Ok(None),
        }
    };
    let appended = match by_library.await {
        Ok(None) => send_over_wire(link, to, records, path, limits).await,
        Ok(Some(offsets)) => Ok(offsets),
        Err(failure) => Err(failure),
    };
    appended.inspect_err(|failure| {
        if failure.again {
            // It may have another leader by now.
            link.cluster.invalidate(&to.topic);
        }
    })
}

async fn send_over_wire(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
    path: ProducePath,
    limits: Limits,
) -> std::result::Result<Vec<i64>, Failure> {
    let mut batch = batch::encode(records)?;
    if path == ProducePath::Compressed
        && let Some(compressed) = batch::compress(&batch)
    {
        batch = compressed?;
    }
    let leader = link.cluster.leader(&link.connections, to, limits.deadline).await?;
    let wait = limits.deadline.saturating_duration_since(tokio::time::Instant::now());
    let request = Produce { to, batch: &batch, wait };
    let first = link.connections.send(&leader.address, &request, limits.deadline).await?;
    Ok((first..).take(records.len()).collect())
}

/// Whether one record may be the cause, and the others would succeed.
fn is_for_one(failure: &Failure) -> bool {
    use ProtocolError::{InvalidRecord, InvalidTimestamp, MessageTooLarge, RecordListTooLarge};
    !failure.sent
        && matches!(
            failure.code,
            Some(MessageTooLarge | RecordListTooLarge | InvalidRecord | InvalidTimestamp)
        )
}

/// Whether it may succeed when compressed.
fn is_too_large(failure: &Failure) -> bool {
    use ProtocolError::{MessageTooLarge, RecordListTooLarge};
    cfg!(feature = "gzip")
        && !failure.sent
        && matches!(failure.code, Some(MessageTooLarge | RecordListTooLarge))
}

/// How many of the records go into one request: at least one.
fn batch_len(records: &[NewRecord], limit: usize, max_message_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |record: &&NewRecord| {
        bytes += size(record);
        bytes <= limit && refusal(record, max_message_bytes).is_none()
    };
    records.iter().take_while(fits).count().max(1)
}

fn size(record: &NewRecord) -> usize {
    record.size() + FRAME + record.headers.len() * HEADER_FRAME
}

/// Returns why a record can't be sent at all, if it can't.
fn refusal(record: &NewRecord, max_message_bytes: usize) -> Option<Failure> {
    (size(record) > max_message_bytes).then(|| {
        let advice = format!("A record has at most max_message_bytes, which is {max_message_bytes}");
        Failure::refused(ErrorKind::TooLarge, advice)
    })
}

fn to_library(record: &NewRecord) -> Record {
    let owned = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| b.to_vec());
    let header = |(name, value): (&Bytes, Option<&Bytes>)| {
        (String::from_utf8_lossy(name).into_owned(), value.map_or_else(Vec::new, |v| v.to_vec()))
    };
    Record {
        key: owned(&record.key),
        value: owned(&record.value),
        headers: record.headers.iter().map(header).collect(),
        timestamp: timestamp(record.timestamp.unwrap_or_else(SystemTime::now)),
    }
}

fn timestamp(time: SystemTime) -> DateTime<Utc> {
    // Times beyond the calendar are clamped.
    DateTime::from_timestamp_millis(batch::millis(time)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> NewRecord {
        NewRecord::new(None, Some(vec![0; bytes].into()), Headers::new())
    }

    fn with_headers(headers: &[(&[u8], Option<&str>)]) -> NewRecord {
        let owned = |(name, value): &(&[u8], Option<&str>)| {
            (Bytes::copy_from_slice(name), value.map(|v| Bytes::copy_from_slice(v.as_bytes())))
        };
        NewRecord::new(None, None, headers.iter().map(owned).collect())
    }

    #[test]
    fn request_has_at_least_one_record_and_at_most_the_servers_default() {
        let len = |records: &[NewRecord], max| batch_len(records, BATCH, max);
        let n = len(&vec![record(1000); 5000], usize::MAX);
        assert!((950..1020).contains(&n), "{n}");
        assert_eq!(len(&[record(2 * BATCH), record(1)], usize::MAX), 1);
        assert_eq!(len(&[record(1), record(5000), record(1)], 4000), 1, "up to what is refused");
    }

    #[test]
    fn headers_that_a_map_of_texts_would_change_go_over_our_own_connections() {
        let ordinary: [&[(&[u8], Option<&str>)]; 3] =
            [&[], &[(b"a", Some("1"))], &[(b"a", Some("")), (b"b", Some("2")), ("ü".as_bytes(), Some("3"))]];
        for headers in ordinary {
            assert_eq!(
                ProducePath::of(&[record(1), with_headers(headers)]),
                ProducePath::RsKafka,
                "{headers:?}"
            );
        }
        let others: [&[(&[u8], Option<&str>)]; 4] = [
            &[(b"a", None)],
            &[(b"a", Some("1")), (b"a", Some("2"))],
            &[(b"b", Some("1")), (b"a", Some("2"))],
            &[(b"\xff", Some("1"))],
        ];
        for headers in others {
            assert_eq!(
                ProducePath::of(&[record(1), with_headers(headers)]),
                ProducePath::Wire,
                "{headers:?}"
            );
        }
    }
}
