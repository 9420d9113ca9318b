//! Detects whether a partition is still the log that was read before: a topic that was truncated, or deleted and
//! recreated, has other records at the same offsets, and a position in the earlier one would skip them.
//!
//! A position is kept with two marks. `mark` is the last record below it: it shows that the log was truncated and grew
//! again. `anchor` is an earlier record that was seen in its place *after* later records had been read: as long as it
//! is still there, everything that was read after it is of the same topic, however long a recreated one may be.
//!
//! A reader compares its position with the log ([`standing`]) at least every ten seconds, after each failure and after
//! each gap, and commits both marks. So a commit that was made before a change of the topic was noticed has an anchor
//! that the new topic doesn't have, and is ignored.

use crate::{
    Error, ErrorKind, FetchLimit, Offsets, Partition, PartitionLog, Position, Record, Result, Retry,
    hash::Fnv,
};
use std::time::Duration;

/// Identifies a record well enough to notice that its topic was truncated or recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The record's offset.
    pub offset: i64,
    /// The log's time for it.
    pub timestamp_ms: i64,
    /// A hash of its key and the beginning of its payload, with their sizes.
    pub hash: u64,
}

impl Mark {
    /// Returns the mark of a record. The cost doesn't depend on the record's size.
    #[must_use]
    pub fn of(record: &Record) -> Mark {
        const ENOUGH: usize = 256;
        let mut hash = Fnv::new();
        // No headers: not every client can read all of them.
        for part in [&record.key, &record.value] {
            let bytes = part.as_deref().unwrap_or_default();
            hash.add(&(bytes.len() as u64).to_be_bytes());
            hash.add(&bytes[..bytes.len().min(ENOUGH)]);
        }
        Mark { offset: record.offset, timestamp_ms: record.timestamp_ms, hash: hash.0 }
    }

    fn bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.offset.to_be_bytes());
        out[8..16].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        out[16..].copy_from_slice(&self.hash.to_be_bytes());
        out
    }
}

/// A group's position in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The offset of the next record to read.
    pub offset: i64,
    /// The last record below it, if one was seen.
    pub mark: Option<Mark>,
    /// A record at or below `mark` from which on the topic is known to have been the same.
    pub anchor: Option<Mark>,
}

impl Cursor {
    /// A position without marks.
    #[must_use]
    pub fn new(offset: i64) -> Self {
        Cursor { offset, mark: None, anchor: None }
    }

    /// Encodes the cursor after the caller's version byte.
    pub(crate) fn encode_into(self, out: &mut Vec<u8>) {
        out.extend(self.offset.to_be_bytes());
        for mark in [self.mark, self.anchor] {
            out.push(u8::from(mark.is_some()));
            out.extend(mark.map(Mark::bytes).iter().flatten());
        }
    }

    /// Reads what [`Cursor::encode_into`] wrote, and returns what follows it. `None` if the bytes aren't a cursor.
    pub(crate) fn decode_from(bytes: &[u8]) -> Option<(Cursor, &[u8])> {
        let (offset, rest) = number(bytes)?;
        let (mark, rest) = optional_mark(rest)?;
        let (anchor, rest) = optional_mark(rest)?;
        Some((Cursor { offset, mark, anchor }, rest))
    }

    /// The marks as text, for the metadata of a commit: `kafkaq1` and hexadecimal digits.
    #[must_use]
    pub fn metadata(&self) -> String {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        let digits = bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        format!("{METADATA}{digits}")
    }

    /// Restores the marks of a committed offset. Metadata that isn't ours, or belongs to another offset (an operator
    /// has moved the group), is ignored: then the offset is used as it is.
    #[must_use]
    pub fn committed(offset: i64, metadata: &str) -> Cursor {
        let read = || {
            let digits = metadata.strip_prefix(METADATA)?.as_bytes();
            let digit = |d: &u8| char::from(*d).to_digit(16);
            let byte = |pair: &[u8]| match pair {
                [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
                _ => None,
            };
            let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<_>>>()?;
            let (cursor, rest) = Cursor::decode_from(&bytes)?;
            (rest.is_empty() && cursor.offset == offset).then_some(cursor)
        };
        read().unwrap_or(Cursor::new(offset))
    }
}

const METADATA: &str = "kafkaq1:";

fn number(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*head), rest))
}

fn optional_mark(bytes: &[u8]) -> Option<(Option<Mark>, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => Some((None, rest)),
        (1, rest) => {
            let (offset, rest) = number(rest)?;
            let (timestamp_ms, rest) = number(rest)?;
            let (hash, rest) = number(rest)?;
            Some((Some(Mark { offset, timestamp_ms, hash: hash as u64 }), rest))
        }
        _ => None,
    }
}

/// How a cursor relates to the current log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Reading continues at the cursor.
    Intact,
    /// Records from the cursor on were deleted before they were read; `first` is the first one that is there.
    DeletedUnread {
        /// Where reading continues.
        first: i64,
    },
    /// The log was truncated, or its topic was deleted and recreated: the cursor is invalid.
    Replaced {
        /// The first record of the current log.
        first: i64,
    },
}

impl Standing {
    /// An alarm for the operator, as an event after which reading continues; `None` if the log is intact.
    #[must_use]
    pub fn alarm(self, of: &Partition, cursor: &Cursor) -> Option<Error> {
        let offset = cursor.offset;
        let (what, advice) = match self {
            Standing::Intact => return None,
            Standing::DeletedUnread { first } => (
                format!(
                    "up to {} records were deleted unread, offsets {offset} to {}: their tasks can't be executed",
                    first.saturating_sub(offset),
                    first.saturating_sub(1)
                ),
                "Raise the topic's `retention.ms` and `retention.bytes`, or run enough workers to keep up",
            ),
            Standing::Replaced { .. } => (
                format!(
                    "the log is not the one that was read up to offset {offset}: its topic was recreated or \
                     truncated. What was read of it doesn't count, and what is there now is read again"
                ),
                "Tasks of the earlier log that were not done yet have to be published again. Find out who deletes \
                 topics, and keep `unclean.leader.election.enable` off",
            ),
        };
        let error =
            Error::not_applied(ErrorKind::DataLoss, "read").on(of).with_source(what).with_retry(Retry::Yes);
        Some(error.with_advice(advice))
    }
}

/// Compares a cursor with the log. If retention has deleted a mark, it proves nothing, and the cursor is accepted.
/// `floor`: where the log began when it was first read, for a reader without a record to recognize it by. A log never
/// regains records that retention has deleted, so one with earlier records is another.
///
/// *Cancel-safety:* safe, it only reads.
///
/// # Errors
/// The log's own, and `Unavailable` if it doesn't return a record that must be there: an empty response is no proof.
pub async fn standing(
    log: &dyn PartitionLog,
    of: &Partition,
    cursor: &Cursor,
    floor: Option<i64>,
) -> Result<Standing> {
    let ends = offsets(log, of).await?;
    standing_within(log, of, ends, cursor, floor).await
}

/// Like [`standing`], for a caller that has just read the log's ends.
///
/// *Cancel-safety:* safe, it only reads.
///
/// # Errors
/// The same as for [`standing`].
pub async fn standing_within(
    log: &dyn PartitionLog,
    of: &Partition,
    mut ends: Offsets,
    cursor: &Cursor,
    floor: Option<i64>,
) -> Result<Standing> {
    if cursor.offset > ends.next || floor.is_some_and(|floor| ends.first < floor) {
        return Ok(Standing::Replaced { first: ends.first });
    }
    let anchor = cursor.anchor.filter(|anchor| Some(*anchor) != cursor.mark);
    for mark in [cursor.mark, anchor].into_iter().flatten() {
        if mark.offset < ends.first || is_there(log, of, ends, mark).await? {
            continue;
        }
        // Retention may have passed the mark in between. If not, the current log may begin elsewhere than the one a
        // moment ago.
        ends = offsets(log, of).await?;
        if mark.offset >= ends.first {
            return Ok(Standing::Replaced { first: ends.first });
        }
    }
    if cursor.offset < ends.first {
        return Ok(Standing::DeletedUnread { first: ends.first });
    }
    Ok(Standing::Intact)
}

async fn offsets(log: &dyn PartitionLog, of: &Partition) -> Result<Offsets> {
    let answer = log.offsets(std::slice::from_ref(of)).await.into_iter().next();
    answer.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(of)))
}

/// Returns whether the record of a mark is still in its place.
async fn is_there(log: &dyn PartitionLog, of: &Partition, ends: Offsets, mark: Mark) -> Result<bool> {
    const TRIES: usize = 10;
    if mark.offset >= ends.next {
        return Ok(false);
    }
    let from = Position { partition: of.clone(), offset: mark.offset };
    for _ in 0..TRIES {
        let batch = log.fetch(&from, FetchLimit::new(Duration::from_millis(500), 1)).await?;
        if let Some(record) = batch.records.first() {
            return Ok(Mark::of(record) == mark);
        }
        if batch.next > mark.offset {
            return Ok(false);
        }
    }
    Err(Error::not_applied(ErrorKind::Unavailable, "fetch")
        .on(of)
        .with_advice("The broker returns no record although there is one at that offset"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark() -> impl Strategy<Value = Option<Mark>> {
        proptest::option::of(any::<(i64, i64, u64)>().prop_map(|(offset, timestamp_ms, hash)| Mark {
            offset,
            timestamp_ms,
            hash,
        }))
    }

    proptest! {
        #[test]
        fn metadata_is_read_back(offset: i64, mark in mark(), anchor in mark()) {
            let cursor = Cursor { offset, mark, anchor };
            let metadata = cursor.metadata();
            prop_assert!(metadata.len() <= 200, "brokers take 4096 bytes by default: {}", metadata.len());
            prop_assert_eq!(Cursor::committed(offset, &metadata), cursor);
            prop_assert_eq!(Cursor::committed(offset.wrapping_add(1), &metadata), Cursor::new(offset.wrapping_add(1)));
        }

        #[test]
        fn foreign_metadata_is_ignored(text in ".*") {
            prop_assert_eq!(Cursor::committed(7, &text), Cursor::new(7));
            prop_assert_eq!(Cursor::committed(7, &format!("kafkaq1:{text}")), Cursor::new(7));
        }
    }
}
