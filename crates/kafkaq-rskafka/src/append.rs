//! Appends: requests of a size that servers take, and one outcome a record.

use crate::{
    failure::{Failure, Op},
    link::{Limits, Link},
};
use bytes::Bytes;
use kafkaq_core::{ErrorKind, Headers, NewRecord, Partition, Result};
use rskafka::{
    chrono::{DateTime, Utc},
    client::{
        error::ProtocolError,
        partition::{Compression, PartitionClient},
    },
    record::Record,
};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// A topic's limit is for a whole batch on the wire: by default 1 MiB, and a bit.
const BATCH: usize = 1 << 20;
/// The limit for a server on this machine. The library writes a request of more than 8 KiB in two pieces to a socket
/// that delays small ones (Nagle), and the loopback's packets are so large that the second piece is a small one: it
/// would wait 40 ms for the acknowledgement of the first. Over a network, whose packets are smaller, it does not.
const LOCAL_BATCH: usize = 7 << 10;
/// What the log's framing adds to a record and to each of its headers, at most.
const FRAME: usize = 32;
const HEADER_FRAME: usize = 10;

/// Appends in order and answers in order. A batch that the server refuses as too large, or because of one of its
/// records, goes again in halves, so that only the culprit fails.
pub(crate) async fn append(
    link: &Link,
    to: &Partition,
    records: &[NewRecord],
    limits: Limits,
) -> Vec<Result<i64>> {
    let max_message_bytes = link.settings.max_message_bytes;
    let batch_limit = if link.settings.is_local() { LOCAL_BATCH } else { BATCH };
    let mut outcomes = Vec::with_capacity(records.len());
    while let Some(next) = records.get(outcomes.len()) {
        let start = outcomes.len();
        match refusal(next, max_message_bytes) {
            Some(refused) => outcomes.push(Err(link.error(Op::APPEND, Some(to), refused))),
            None => {
                let batch = start..start + batch_len(&records[start..], batch_limit, max_message_bytes);
                send(link, to, records, batch, limits, &mut outcomes).await;
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
    limits: Limits,
    outcomes: &mut Vec<Result<i64>>,
) {
    // The first is sent first, so that the order stays.
    let mut waiting = vec![batch];
    while let Some(batch) = waiting.pop() {
        let request = |client: Arc<PartitionClient>| {
            let records = records[batch.clone()].iter().map(to_wire).collect();
            async move { client.produce(records, Compression::NoCompression).await }
        };
        match link.ask(to, limits, request).await {
            Ok(offsets) => outcomes.extend(offsets.into_iter().map(Ok)),
            Err(failure) if batch.len() > 1 && is_for_one(&failure) => {
                let middle = batch.start + batch.len() / 2;
                waiting.extend([middle..batch.end, batch.start..middle]);
            }
            Err(failure) => {
                let error = link.error(Op::APPEND, Some(to), failure);
                outcomes.extend(batch.map(|_| Err(error.clone())));
            }
        }
    }
}

/// Whether it may be the fault of one record, and the others would pass.
fn is_for_one(failure: &Failure) -> bool {
    use ProtocolError::{InvalidRecord, InvalidTimestamp, MessageTooLarge, RecordListTooLarge};
    !failure.sent
        && matches!(
            failure.code,
            Some(MessageTooLarge | RecordListTooLarge | InvalidRecord | InvalidTimestamp)
        )
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

/// What can't be sent at all.
fn refusal(record: &NewRecord, max_message_bytes: usize) -> Option<Failure> {
    if size(record) > max_message_bytes {
        let advice = format!("A record has at most max_message_bytes, which is {max_message_bytes}");
        return Some(Failure::refused(ErrorKind::TooLarge, advice));
    }
    let name = record.headers.iter().map(|(name, _)| name).find(|name| std::str::from_utf8(name).is_err())?;
    let advice = format!(
        "rskafka carries only headers whose name is UTF-8, and this is not: \"{}\"",
        name.escape_ascii()
    );
    Some(Failure::refused(ErrorKind::Invalid, advice))
}

fn to_wire(record: &NewRecord) -> Record {
    let owned = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| b.to_vec());
    Record {
        key: owned(&record.key),
        value: owned(&record.value),
        headers: headers(&record.headers),
        timestamp: timestamp(record.timestamp.unwrap_or_else(SystemTime::now)),
    }
}

fn timestamp(time: SystemTime) -> DateTime<Utc> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    // What is beyond the calendar becomes its end.
    DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The library has a map of values that are never null: the last of a name stays, as it is the one that readers
/// look up, and null becomes empty.
fn headers(headers: &Headers) -> BTreeMap<String, Vec<u8>> {
    let entry = |(name, value): (&Bytes, Option<&Bytes>)| {
        (String::from_utf8_lossy(name).into_owned(), value.map_or_else(Vec::new, |v| v.to_vec()))
    };
    headers.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> NewRecord {
        NewRecord::new(None, Some(vec![0; bytes].into()), Headers::new())
    }

    #[test]
    fn a_request_holds_what_a_server_takes_by_default_and_at_least_one_record() {
        let many = vec![record(1000); 5000];
        let n = batch_len(&many, BATCH, usize::MAX);
        assert!((950..1020).contains(&n), "{n}");
        assert_eq!(batch_len(&[record(2 * BATCH), record(1)], BATCH, usize::MAX), 1);
        assert_eq!(batch_len(&[record(1), record(5000), record(1)], BATCH, 4000), 1, "up to what is refused");
    }

    #[test]
    fn of_a_repeated_header_the_last_stays_and_null_becomes_empty() {
        let mut sent = Headers::new();
        sent.push("twice", Some("1".into()));
        sent.push("null", None);
        sent.push("twice", Some("2".into()));
        let wire = headers(&sent);
        assert_eq!(wire, [("null".into(), vec![]), ("twice".into(), b"2".to_vec())].into());
    }

    #[test]
    fn a_header_whose_name_is_not_text_is_refused_by_name() {
        let mut bad = record(1);
        bad.headers.push(&b"\xffx"[..], None);
        let refused = refusal(&bad, usize::MAX).unwrap();
        assert_eq!(refused.kind, ErrorKind::Invalid);
        assert!(format!("{refused:?}").contains("xffx"), "{refused:?}");
    }
}
