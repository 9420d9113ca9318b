//! The value of a partition in the store, and its checkpoint in the log. Both start with a version.

use super::MemberId;
use crate::{Cursor, DecodeError, wire::Reader};
use bytes::Bytes;

/// The owner of a partition, and its cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The owner; `None`: it is free.
    pub owner: Option<MemberId>,
    /// Counts the owner's renewals. An observer that sees no change for long enough knows that the owner is gone.
    pub counter: u64,
    /// Grows with every change of owner.
    pub epoch: u64,
    /// The member that asks the owner to hand it over.
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
    /// If the bytes are damaged, or of a later version.
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
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// The payload of a checkpoint.
    #[must_use]
    pub fn encode(self) -> Bytes {
        [&[VERSION][..], &self.bytes()].concat().into()
    }

    /// # Errors
    /// If the bytes are damaged, or of a later version.
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

impl Reader<'_> {
    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(DAMAGED),
        }
    }

    fn cursor(&mut self) -> Result<Cursor, DecodeError> {
        let (cursor, rest) = Cursor::decode_from(self.0).ok_or(DAMAGED)?;
        self.0 = rest;
        Ok(cursor)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DAMAGED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;
    use proptest::prelude::*;

    fn mark() -> impl Strategy<Value = Option<Mark>> {
        let mark = |(offset, timestamp_ms, hash)| Mark { offset, timestamp_ms, hash };
        proptest::option::of(any::<(i64, i64, u64)>().prop_map(mark))
    }

    fn cursor() -> impl Strategy<Value = Cursor> {
        (any::<i64>(), mark(), mark()).prop_map(|(offset, mark, anchor)| Cursor { offset, mark, anchor })
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
    fn later_version_is_distinguished_from_damage() {
        assert_eq!(Value::decode(&[2, 0]), Err(DecodeError::Newer(2)));
        assert_eq!(Value::decode(&[]), Err(DAMAGED));
    }
}
