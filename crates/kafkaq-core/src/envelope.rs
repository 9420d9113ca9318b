//! kafkaq's own fields of a record: one binary header, versioned.

use crate::{Partition, Position, TaskId, Wall};
use bytes::Bytes;
use std::{fmt, time::Duration};

/// The name of kafkaq's header.
pub const HEADER: &str = "kafkaq";
/// A header that any other producer may set to name its task.
pub const ID_HEADER: &str = "kafkaq-id";

/// What kafkaq knows of a record beside the user's payload, key and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Whose record this is.
    pub id: TaskId,
    /// How many times the task had been handed out when this copy was made.
    pub attempt: u32,
    /// 0 for what was published; a copy's is higher than that of the record it covers.
    pub cover: u32,
    /// The task is not considered before this.
    pub due: Wall,
    /// How far ahead `due` was set: one further away than this was written by a clock that is wrong.
    pub ahead: Duration,
    /// This copy leaves its lane of the wait topic at this time, to run or to hop on.
    pub lane_due: Wall,
    /// When the task was published first.
    pub published: Wall,
    /// Where the task's first record lies; only copies say so. The offset is -1 if the first was a delayed one,
    /// which starts in the wait topic.
    pub origin: Option<Position>,
}

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Written by a later kafkaq, in this version of the format.
    Newer(u8),
    /// Not written by kafkaq, or damaged since; says what is wrong.
    Damaged(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Newer(v) => {
                write!(f, "written in format {v} by a later kafkaq: upgrade this process")
            }
            DecodeError::Damaged(what) => write!(f, "damaged: {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

const VERSION: u8 = 1;

impl Envelope {
    /// Of a task that is published now and may run at once.
    #[must_use]
    pub fn new(id: TaskId, published: Wall) -> Self {
        Envelope {
            id,
            attempt: 0,
            cover: 0,
            due: Wall(0),
            ahead: Duration::ZERO,
            lane_due: Wall(0),
            published,
            origin: None,
        }
    }

    /// The header's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut v = Vec::with_capacity(64);
        v.push(VERSION);
        put_bytes(&mut v, self.id.as_str().as_bytes());
        put(&mut v, self.attempt.into());
        put(&mut v, self.cover.into());
        put(&mut v, self.due.0);
        put(&mut v, self.ahead.as_millis() as u64);
        put(&mut v, self.lane_due.0);
        put(&mut v, self.published.0);
        if let Some(at) = &self.origin {
            put_bytes(&mut v, at.partition.topic.as_bytes());
            put(&mut v, at.partition.index.unsigned_abs().into());
            put(&mut v, at.offset.wrapping_add(1) as u64);
        }
        v.into()
    }

    /// # Errors
    /// `Newer` for a version of a later kafkaq, `Damaged` for anything else that `encode` didn't write.
    pub fn decode(value: &[u8]) -> Result<Envelope, DecodeError> {
        match value.first() {
            Some(&VERSION) => {}
            Some(&newer) if newer > VERSION => return Err(DecodeError::Newer(newer)),
            _ => return Err(DecodeError::Damaged("a header without a version")),
        }
        let mut rest = Reader(&value[1..]);
        let id = TaskId::new(rest.text()?).map_err(|_| DecodeError::Damaged("an id of the wrong size"))?;
        let envelope = Envelope {
            id,
            attempt: rest.small()?,
            cover: rest.small()?,
            due: Wall(rest.number()?),
            ahead: Duration::from_millis(rest.number()?),
            lane_due: Wall(rest.number()?),
            published: Wall(rest.number()?),
            origin: if rest.0.is_empty() {
                None
            } else {
                let topic = rest.text()?;
                let index = i32::try_from(rest.number()?)
                    .map_err(|_| DecodeError::Damaged("a partition out of range"))?;
                let offset = (rest.number()? as i64).wrapping_sub(1);
                Some(Position { partition: Partition::new(topic, index), offset })
            },
        };
        if rest.0.is_empty() { Ok(envelope) } else { Err(DecodeError::Damaged("a header that is too long")) }
    }
}

/// Seven bits a byte, low ones first, as in LEB128.
fn put(v: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        v.push(n as u8 | 0x80);
        n >>= 7;
    }
    v.push(n as u8);
}

fn put_bytes(v: &mut Vec<u8>, bytes: &[u8]) {
    put(v, bytes.len() as u64);
    v.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&b, rest) = self.0.split_first().ok_or(DecodeError::Damaged("a header cut short"))?;
            self.0 = rest;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(DecodeError::Damaged("a number that is too long"))
    }

    fn small(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Damaged("a number out of range"))
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let len = self.number()?;
        let len = usize::try_from(len).ok().filter(|n| *n <= self.0.len());
        let (text, rest) = self.0.split_at(len.ok_or(DecodeError::Damaged("a header cut short"))?);
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| DecodeError::Damaged("text that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope() -> impl Strategy<Value = Envelope> {
        let origin = proptest::option::of(("[a-z.]{1,20}", 0..i32::MAX, -1..i64::MAX));
        ("\\PC{1,30}", any::<(u32, u32, u64, u64, u64, u64)>(), origin).prop_map(
            |(id, (attempt, cover, due, ahead, lane_due, published), origin)| Envelope {
                id: TaskId::new(id).unwrap(),
                attempt,
                cover,
                due: Wall(due),
                ahead: Duration::from_millis(ahead),
                lane_due: Wall(lane_due),
                published: Wall(published),
                origin: origin
                    .map(|(t, index, offset)| Position { partition: Partition::new(t, index), offset }),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(e in envelope()) {
            prop_assert_eq!(Envelope::decode(&e.encode()), Ok(e));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(mut v in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(first) = v.first_mut() {
                *first = VERSION;
            }
            let _ = Envelope::decode(&v);
        }

        #[test]
        fn a_cut_is_noticed(e in envelope(), cut in 0_usize..200) {
            let v = e.encode();
            let cut = cut % v.len();
            if let Ok(shorter) = Envelope::decode(&v[..cut]) {
                prop_assert!(e.origin.is_some() && shorter.origin.is_none());
            }
        }
    }

    #[test]
    fn a_published_record_carries_little() {
        let id = TaskId::new("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let e = Envelope::new(id, Wall(1_700_000_000_000));
        assert!(e.encode().len() < 50, "{}", e.encode().len());
    }
}
