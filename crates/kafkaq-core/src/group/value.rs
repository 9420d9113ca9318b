//! What stands in the store under a partition's key, and in the log as its checkpoint. Both begin with a version.

use super::MemberId;
use crate::{DecodeError, Record, hash::Fnv};
use bytes::Bytes;

/// What identifies a record well enough to notice that its topic was deleted and made anew (hole 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The record's offset.
    pub offset: i64,
    /// The log's time for it.
    pub timestamp_ms: i64,
    /// Of its key and the beginning of its payload.
    pub hash: u64,
}

impl Mark {
    /// The mark of a record. Costs the same for a large record as for a small one.
    #[must_use]
    pub fn of(record: &Record) -> Mark {
        const ENOUGH: usize = 256;
        let start =
            |bytes: &Option<Bytes>| bytes.as_ref().map_or(Bytes::new(), |b| b.slice(..b.len().min(ENOUGH)));
        let mut hash = Fnv::new();
        hash.0 ^= record.size() as u64;
        hash.add(&start(&record.key));
        hash.add(&start(&record.value));
        Mark { offset: record.offset, timestamp_ms: record.timestamp_ms, hash: hash.0 }
    }
}

/// How far a group has read a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The offset of the next record to read.
    pub offset: i64,
    /// The last record below it, where one was seen.
    pub mark: Option<Mark>,
}

/// Who reads a partition, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Who holds it; `None`: it is free.
    pub owner: Option<MemberId>,
    /// Counts the owner's renewals. An observer who sees it stand still for long enough knows that the owner is gone.
    pub counter: u64,
    /// Grows with every change of hands.
    pub epoch: u64,
    /// Who asks the owner to hand it over.
    pub wanted_by: Option<MemberId>,
    /// `None`: nothing was ever committed here.
    pub cursor: Option<Cursor>,
}

const VERSION: u8 = 1;
const DAMAGED: DecodeError = DecodeError::Damaged("not the state of a partition");

impl Value {
    /// The bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        put(&mut out, self.owner.as_ref().map(|m| &m[..]));
        out.extend(self.counter.to_be_bytes());
        out.extend(self.epoch.to_be_bytes());
        put(&mut out, self.wanted_by.as_ref().map(|m| &m[..]));
        put(&mut out, self.cursor.map(|c| c.bytes()).as_deref());
        out.into()
    }

    /// # Errors
    /// When the bytes are damaged, or of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
        let mut rest = Reader(versioned(bytes)?);
        let value = Value {
            owner: rest.option(Reader::array)?,
            counter: u64::from_be_bytes(rest.array()?),
            epoch: u64::from_be_bytes(rest.array()?),
            wanted_by: rest.option(Reader::array)?,
            cursor: rest.option(Reader::cursor)?,
        };
        rest.end().map(|()| value)
    }
}

impl Cursor {
    /// The log's time for the last record below it.
    pub(super) fn time(self) -> Option<i64> {
        self.mark.map(|m| m.timestamp_ms)
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = self.offset.to_be_bytes().to_vec();
        let mark = self
            .mark
            .map(|m| [m.offset.to_be_bytes(), m.timestamp_ms.to_be_bytes(), m.hash.to_be_bytes()].concat());
        put(&mut out, mark.as_deref());
        out
    }

    /// The payload of a checkpoint.
    #[must_use]
    pub fn encode(self) -> Bytes {
        [&[VERSION][..], &self.bytes()].concat().into()
    }

    /// # Errors
    /// When the bytes are damaged, or of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Cursor, DecodeError> {
        let mut rest = Reader(versioned(bytes)?);
        let cursor = rest.cursor()?;
        rest.end().map(|()| cursor)
    }
}

fn put(out: &mut Vec<u8>, part: Option<&[u8]>) {
    out.push(u8::from(part.is_some()));
    out.extend(part.unwrap_or_default());
}

fn versioned(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((&newer, _)) if newer > VERSION => Err(DecodeError::Newer(newer)),
        _ => Err(DAMAGED),
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DAMAGED)?;
        self.0 = rest;
        Ok(*head)
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.array()? {
            [0] => Ok(None),
            [1] => read(self).map(Some),
            _ => Err(DAMAGED),
        }
    }

    fn cursor(&mut self) -> Result<Cursor, DecodeError> {
        let offset = i64::from_be_bytes(self.array()?);
        let mark = self.option(|r| {
            Ok(Mark {
                offset: i64::from_be_bytes(r.array()?),
                timestamp_ms: i64::from_be_bytes(r.array()?),
                hash: u64::from_be_bytes(r.array()?),
            })
        })?;
        Ok(Cursor { offset, mark })
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DAMAGED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursor() -> impl Strategy<Value = Cursor> {
        let mark = any::<(i64, i64, u64)>().prop_map(|(offset, timestamp_ms, hash)| Mark {
            offset,
            timestamp_ms,
            hash,
        });
        (any::<i64>(), proptest::option::of(mark)).prop_map(|(offset, mark)| Cursor { offset, mark })
    }

    fn value() -> impl Strategy<Value = Value> {
        let member = || proptest::option::of(any::<[u8; 16]>());
        (member(), any::<u64>(), any::<u64>(), member(), proptest::option::of(cursor())).prop_map(
            |(owner, counter, epoch, wanted_by, cursor)| Value { owner, counter, epoch, wanted_by, cursor },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v in value(), c in cursor()) {
            prop_assert_eq!(Value::decode(&v.encode()), Ok(v));
            prop_assert_eq!(Cursor::decode(&c.encode()), Ok(c));
        }

        #[test]
        fn damage_is_noticed_and_never_panics(v in value(), cut in 0_usize..100, junk in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = v.encode();
            if cut < bytes.len() {
                prop_assert!(Value::decode(&bytes[..cut]).is_err());
            }
            let _ = (Value::decode(&junk), Cursor::decode(&junk));
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        assert_eq!(Value::decode(&[2, 0]), Err(DecodeError::Newer(2)));
        assert_eq!(Value::decode(&[]), Err(DAMAGED));
    }
}
