//! kafkaq's own fields of a record: one binary header, versioned.

use crate::{
    History, Partition, Position, TaskId, Wall,
    uuids::uuid_bytes,
    wire::{Reader, put, put_bytes},
};
use bytes::{BufMut, Bytes, BytesMut};
use std::{fmt, time::Duration};

/// The name of the header of a record that was forwarded unread: only a later version can read it.
pub(crate) const FORWARD_HEADER: &str = "kafkaq-forward";

/// What kafkaq knows about a record besides the user's payload, key and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The task's id.
    pub id: TaskId,
    /// When the task was first published.
    pub published: Wall,
    /// The task is not considered before this.
    pub due: Wall,
    /// How far ahead `due` was set: if it is further away than this, it was set by a wrong clock.
    pub ahead: Duration,
    /// How many times the task had been handed out when this copy was made.
    pub attempt: u32,
    /// How many of these count against the limit.
    pub failures: u32,
    /// 0 for the published record; higher for a copy than for the record it covers.
    pub cover: u32,
    /// The copy was made while a worker had the task: without a lease, that attempt counts as failed.
    pub running: bool,
    /// When this copy leaves its lane of the wait topic, to run or to move on.
    pub lane_due: Wall,
    /// The position of the task's first record; only in copies.
    pub origin: Option<Position>,
    /// The last failures, and fields of later versions.
    pub history: History,
    /// The highest version that has written it, and the oldest that may read it.
    pub versions: [u8; 2],
}

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Only a later kafkaq may read it: the version that wrote it.
    Newer(u8),
    /// It lacks kafkaq's marker.
    Foreign,
    /// Damaged since it was written; says what is wrong.
    Damaged(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Newer(v) => {
                write!(f, "written in format {v} by a later kafkaq: upgrade this process")
            }
            DecodeError::Foreign => f.write_str("not written by kafkaq"),
            DecodeError::Damaged(what) => write!(f, "damaged: {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The prefix of each of kafkaq's headers, which distinguishes them from other headers with the same name. Not UTF-8.
pub(crate) const MARKER: [u8; 3] = [0xab, b'k', b'q'];
pub(crate) const VERSION: u8 = 2;

const UUID: u8 = 0x01;
const DUE: u8 = 0x02;
const COPY: u8 = 0x04;
const RUNNING: u8 = 0x08;

impl Envelope {
    /// The envelope of a task that is published now and may run at once.
    #[must_use]
    pub fn new(id: TaskId, published: Wall) -> Self {
        Envelope {
            id,
            published,
            due: Wall(0),
            ahead: Duration::ZERO,
            attempt: 0,
            failures: 0,
            cover: 0,
            running: false,
            lane_due: Wall(0),
            origin: None,
            history: History::new(),
            versions: [VERSION; 2],
        }
    }

    /// Encodes the header's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.room());
        self.write(&mut out);
        out.into()
    }

    /// The same, as part of a shared buffer.
    #[doc(hidden)]
    #[must_use]
    pub fn encode_in(&self, buffer: &mut BytesMut) -> Bytes {
        buffer.reserve(self.room());
        self.write(buffer);
        buffer.split().freeze()
    }

    /// The approximate size of its encoding.
    fn room(&self) -> usize {
        64 + self.history.len()
    }

    fn write(&self, out: &mut impl BufMut) {
        out.put_slice(&MARKER);
        // An envelope of an earlier version is written as one of this version, since it may contain what this version
        // adds.
        out.put_slice(&[self.versions[0].max(VERSION), self.versions[1]]);
        let uuid = uuid_bytes(self.id.as_str());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.put_u8(
            flag(uuid.is_some(), UUID)
                | flag(self.due.0 > 0, DUE)
                | flag(self.origin.is_some(), COPY)
                | flag(self.running, RUNNING),
        );
        match uuid {
            Some(uuid) => out.put_slice(&uuid),
            None => put_bytes(out, self.id.as_str().as_bytes()),
        }
        put(out, self.published.0);
        if self.due.0 > 0 {
            put(out, self.due.0);
            put(out, self.ahead.as_millis() as u64);
        }
        if let Some(at) = &self.origin {
            put(out, self.attempt.into());
            put(out, self.failures.into());
            put(out, self.cover.into());
            put(out, self.lane_due.0);
            put_position(out, at);
        }
        self.history.encode_into(out);
    }

    /// # Errors
    /// `Foreign` for a value that isn't kafkaq's, `Newer` for one that only a later kafkaq may read, `Damaged` for
    /// anything else that `encode` didn't write.
    pub fn decode(value: &[u8]) -> Result<Envelope, DecodeError> {
        let (versions, mut rest) = versioned(value)?;
        let flags = rest.byte()?;
        if flags & !(UUID | DUE | COPY | RUNNING) != 0 {
            return Err(DecodeError::Damaged("flags that this version doesn't know"));
        }
        let id = match flags & UUID {
            0 => TaskId::new(rest.text()?).map_err(|_| DecodeError::Damaged("an id of the wrong size"))?,
            _ => TaskId::of_uuid(rest.array()?),
        };
        let mut envelope = Envelope::new(id, Wall(rest.number()?));
        envelope.versions = versions;
        envelope.running = flags & RUNNING != 0;
        if flags & DUE != 0 {
            envelope.due = Wall(rest.number()?);
            envelope.ahead = Duration::from_millis(rest.number()?);
        }
        if flags & COPY != 0 {
            envelope.attempt = rest.small()?;
            envelope.failures = rest.small()?;
            envelope.cover = rest.small()?;
            envelope.lane_due = Wall(rest.number()?);
            envelope.origin = Some(position(&mut rest)?);
        }
        envelope.history = History::decode(rest.0)?;
        Ok(envelope)
    }
}

/// Checks the marker of a header and whether this version may read it. Returns its two versions and the rest.
pub(crate) fn versioned(value: &[u8]) -> Result<([u8; 2], Reader<'_>), DecodeError> {
    let mut rest = Reader(value.strip_prefix(&MARKER).ok_or(DecodeError::Foreign)?);
    let versions @ [writer, oldest_reader] = rest.array()?;
    if oldest_reader > VERSION {
        return Err(DecodeError::Newer(writer));
    }
    Ok((versions, rest))
}

pub(crate) fn put_position(out: &mut impl BufMut, at: &Position) {
    put_bytes(out, at.partition.topic.as_bytes());
    put(out, at.partition.index.unsigned_abs().into());
    put(out, at.offset.wrapping_add(1) as u64);
}

pub(crate) fn position(rest: &mut Reader<'_>) -> Result<Position, DecodeError> {
    let topic = rest.text()?;
    let index =
        i32::try_from(rest.number()?).map_err(|_| DecodeError::Damaged("a partition is out of range"))?;
    let offset = (rest.number()? as i64).wrapping_sub(1);
    Ok(Position { partition: Partition::new(topic, index), offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn envelope() -> impl Strategy<Value = Envelope> {
        let origin = proptest::option::of(("[a-z.]{1,20}", 0..i32::MAX, -1..i64::MAX));
        let id = prop_oneof![
            "\\PC{1,30}",
            any::<u128>().prop_map(|n| Uuid::from_u128(n).to_string()),
            any::<u128>().prop_map(|n| Uuid::from_u128(n).to_string().to_uppercase()),
            any::<u128>().prop_map(|n| Uuid::from_u128(n).simple().to_string()),
        ];
        (id, any::<(u32, u32, u32, u64, u64, u64, u64, bool)>(), origin, proptest::option::of("\\PC{0,9}"))
            .prop_map(|(id, (attempt, failures, cover, due, ahead, lane, published, running), at, reason)| {
                let mut e = Envelope::new(TaskId::new(id).unwrap(), Wall(published));
                (e.due, e.running) = (Wall(due), running);
                e.ahead = Duration::from_millis(if due > 0 { ahead } else { 0 });
                if let Some((topic, index, offset)) = at {
                    (e.attempt, e.failures, e.cover, e.lane_due) = (attempt, failures, cover, Wall(lane));
                    e.origin = Some(Position { partition: Partition::new(topic, index), offset });
                }
                if let Some(reason) = reason {
                    e.history = e.history.with(Wall(1), attempt, &reason);
                }
                e
            })
    }

    proptest! {
        #[test]
        fn encoding_round_trips(e in envelope()) {
            prop_assert_eq!(Envelope::decode(&e.encode()), Ok(e));
        }

        #[test]
        fn decoding_arbitrary_bytes_never_panics(mut v in proptest::collection::vec(any::<u8>(), 0..80), ours: bool) {
            if ours && v.len() > 5 {
                v[..5].copy_from_slice(&[MARKER[0], MARKER[1], MARKER[2], VERSION, VERSION]);
                v[5] &= 0x0f;
            }
            let _ = Envelope::decode(&v);
        }

        #[test]
        fn truncation_is_detected(e in envelope(), cut in 0_usize..200) {
            let v = e.encode();
            let cut = cut % v.len();
            if let Ok(shorter) = Envelope::decode(&v[..cut]) {
                prop_assert!(shorter.history != e.history, "only a whole field can be missing");
            }
        }

        #[test]
        fn a_later_version_is_read_if_it_allows_that_and_its_fields_stay(e in envelope(), writer in 3_u8.., added in "[a-z]{0,20}") {
            let mut v = e.encode().to_vec();
            v[3] = writer;
            put(&mut v, 77);
            put_bytes(&mut v, added.as_bytes());
            let read = Envelope::decode(&v).unwrap();
            prop_assert_eq!(&read.encode()[..], &v[..]);
            v[4] = 3;
            prop_assert_eq!(Envelope::decode(&v), Err(DecodeError::Newer(writer)));
        }

        #[test]
        fn headers_of_other_producers_are_foreign(v in "\\PC{0,30}") {
            prop_assert_eq!(Envelope::decode(v.as_bytes()), Err(DecodeError::Foreign));
        }
    }

    #[test]
    fn envelope_of_a_published_task_is_small() {
        let id = TaskId::new("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let e = Envelope::new(id, Wall(1_700_000_000_000));
        assert!(e.encode().len() <= 28, "{}", e.encode().len());
    }
}
