//! The last failures of a task, which are stored in its copies and its lease.

use crate::{
    DecodeError, Wall,
    wire::{Reader, put, put_bytes},
};
use bytes::{BufMut, Bytes};
use std::time::{Duration, SystemTime};

/// A failed execution of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureRecord {
    /// When it failed, by the clock of the process that recorded it.
    pub at: SystemTime,
    /// The number of the hand-out.
    pub attempt: u32,
    /// The holder's reason, or that its lease expired. At most 512 bytes.
    pub reason: String,
}

/// The extension fields of a lease or an envelope, each with tag, length and bytes. Failures are one kind of field.
/// Fields of a later version are kept and passed on unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Bytes);

const FAILURE: u64 = 1;

impl History {
    /// How many failures are kept.
    pub const KEPT: usize = 5;
    /// The maximum length of a reason in bytes; a longer one is truncated.
    pub const REASON_BYTES: usize = 512;

    /// The reason of a failure that nobody reported.
    pub const LEASE_RAN_OUT: &str = "its lease ran out";

    /// Creates a history without failures.
    #[must_use]
    pub const fn new() -> Self {
        History(Bytes::new())
    }

    /// Decodes the rest of an encoding.
    pub(crate) fn decode(rest: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(rest);
        while !reader.0.is_empty() {
            let (tag, field) = (reader.number()?, reader.bytes()?);
            if tag == FAILURE {
                failure(field)?;
            }
        }
        Ok(History(Bytes::copy_from_slice(rest)))
    }

    pub(crate) fn encode_into(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn fields(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut reader = Reader(&self.0);
        std::iter::from_fn(move || Some((reader.number().ok()?, reader.bytes().ok()?)))
    }

    fn failures(&self) -> impl Iterator<Item = (Wall, u32, &str)> {
        self.fields().filter(|(tag, _)| *tag == FAILURE).filter_map(|(_, field)| failure(field).ok())
    }

    /// The failures, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<FailureRecord> {
        let record = |(at, attempt, reason): (Wall, u32, &str)| FailureRecord {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(at.0.min(u64::from(u32::MAX) * 1000)),
            attempt,
            reason: reason.to_owned(),
        };
        self.failures().map(record).collect()
    }

    /// The last reason.
    pub(crate) fn last(&self) -> Option<&str> {
        self.failures().last().map(|(_, _, reason)| reason)
    }

    /// A line per failure, for the header of a dead letter: milliseconds since the epoch, attempt, reason.
    pub(crate) fn lines(&self) -> String {
        let line = |(at, attempt, reason): (Wall, u32, &str)| {
            format!("{} {attempt} {}", at.0, reason.replace(['\n', '\r'], " "))
        };
        self.failures().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Adds a failure; the oldest beyond [`History::KEPT`] are dropped. An attempt fails once: an existing entry stays.
    #[must_use]
    pub fn with(&self, at: Wall, attempt: u32, reason: &str) -> Self {
        let known: Vec<_> = self.failures().collect();
        if known.iter().any(|(_, a, _)| *a == attempt) {
            return self.clone();
        }
        let mut out = Vec::with_capacity(self.0.len() + reason.len().min(Self::REASON_BYTES) + 16);
        for (tag, field) in self.fields().filter(|(tag, _)| *tag != FAILURE) {
            put(&mut out, tag);
            put_bytes(&mut out, field);
        }
        let oldest = (known.len() + 1).saturating_sub(Self::KEPT);
        let newest = (at, attempt, cut(reason));
        for (at, attempt, reason) in known.into_iter().skip(oldest).chain([newest]) {
            let mut field = Vec::with_capacity(reason.len() + 12);
            put(&mut field, at.0);
            put(&mut field, attempt.into());
            field.extend_from_slice(reason.as_bytes());
            put(&mut out, FAILURE);
            put_bytes(&mut out, &field);
        }
        History(out.into())
    }

    /// Of two histories of one task, returns the one with the later attempt.
    #[must_use]
    pub fn later<'a>(&'a self, other: &'a History) -> &'a History {
        let last = |h: &History| h.failures().map(|(_, attempt, _)| attempt).max();
        if self.0.is_empty() || last(other) > last(self) { other } else { self }
    }
}

fn failure(field: &[u8]) -> Result<(Wall, u32, &str), DecodeError> {
    let mut reader = Reader(field);
    let (at, attempt) = (Wall(reader.number()?), reader.small()?);
    let reason = std::str::from_utf8(reader.0).map_err(|_| DecodeError::Damaged("a reason is not UTF-8"))?;
    Ok((at, attempt, reason))
}

/// Truncates a reason that is too long, at a character boundary.
#[must_use]
pub(crate) fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(History::REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(history: &History) -> Vec<(u32, String)> {
        history.entries().into_iter().map(|f| (f.attempt, f.reason)).collect()
    }

    #[test]
    fn the_last_five_stay_and_each_attempt_fails_once() {
        let mut history = History::new();
        for attempt in 1..=8 {
            history = history.with(Wall(attempt.into()), attempt, &format!("no {attempt}"));
            history = history.with(Wall(99), attempt, "said twice");
        }
        let expected: Vec<_> = (4..=8).map(|n| (n, format!("no {n}"))).collect();
        assert_eq!(read(&history), expected);
    }

    #[test]
    fn long_reason_is_truncated_at_a_character_boundary() {
        let history = History::new().with(Wall(1), 1, &"é".repeat(1000));
        assert_eq!(history.entries()[0].reason, "é".repeat(256));
        let odd = History::new().with(Wall(1), 1, &format!("x{}", "é".repeat(1000)));
        assert_eq!(odd.entries()[0].reason.len(), 511);
    }

    #[test]
    fn fields_of_a_later_version_stay() {
        let later = [9, 3, b'a', b'b', b'c'];
        let history = History::decode(&later).unwrap().with(Wall(1), 1, "no");
        let mut out = Vec::new();
        history.encode_into(&mut out);
        assert!(out.starts_with(&later));
        assert_eq!(read(&History::decode(&out).unwrap()), [(1, "no".to_owned())]);
    }

    #[test]
    fn the_later_of_two_counts() {
        let one = History::new().with(Wall(5), 1, "a");
        let two = one.with(Wall(6), 2, "b");
        assert_eq!(one.later(&two), &two);
        assert_eq!(two.later(&one), &two);
        assert_eq!(History::new().later(&one), &one);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(v in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(history) = History::decode(&v) {
                prop_assert_eq!(&history.0[..], &v[..]);
                let _ = history.with(Wall(1), u32::MAX, "x");
            }
        }
    }
}
