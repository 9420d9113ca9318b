//! A dead letter, read from its record.

use super::{Fingerprint, Handled};
use crate::{
    clock::system_time,
    task_headers::{EXPIRED_HEADER, EXPIRES_HEADER, KIND_HEADER},
};
use bytes::Bytes;
use kafkaq_core::{
    DecodeError, Envelope, FailureRecord, Fnv, HEADER, Headers, ID_HEADER, Partition, Position, Record,
    TaskId, Wall,
};
use std::{fmt, str::FromStr, time::SystemTime};

/// The header that counts how many times a task was redriven. It is a user header, so that it always stays with the
/// task.
pub(super) const REDRIVES: &str = "task-redrives";

const DEAD: &str = "kafkaq-dead";
const ID: &str = "kafkaq-task-id";
const ATTEMPTS: &str = "kafkaq-attempts";
const FAILURES: &str = "kafkaq-failures";
const PUBLISHED: &str = "kafkaq-published-ms";
const REASON: &str = "kafkaq-reason";
const ORIGIN: &str = "kafkaq-origin";
/// What kafkaq adds to a dead letter.
const ADDED: [&str; 8] = [DEAD, ID, ATTEMPTS, FAILURES, PUBLISHED, "kafkaq-history", REASON, ORIGIN];

/// The place of a dead letter in its topic. As text it is `<partition>/<offset>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The partition of the dead-letter topic.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

impl FromStr for Place {
    type Err = kafkaq_core::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(partition, offset)| {
            Some(Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            kafkaq_core::Error::not_applied(
                kafkaq_core::ErrorKind::Invalid,
                "read the place of a dead letter",
            )
            .on(format!("`{text}`"))
            .with_advice("A place is <partition>/<offset>, such as 0/17")
        })
    }
}

/// A record of the dead-letter topic.
///
/// Fields that are missing or unreadable are `None`: a record that could not be read as a task has no id, and a record
/// of another producer may have nothing but a payload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its place.
    pub place: Place,
    /// The task's id.
    pub id: Option<TaskId>,
    /// The task's header `task-kind`.
    pub kind: Option<String>,
    /// Why the task was dead-lettered.
    pub reason: Option<String>,
    /// The last failures, oldest first.
    pub history: Vec<FailureRecord>,
    /// How many times the task was handed out.
    pub attempts: Option<u32>,
    /// How many of these counted as failures.
    pub failures: Option<u32>,
    /// When the task was published.
    pub published: Option<SystemTime>,
    /// When the record was appended to the dead-letter topic.
    pub died: Option<SystemTime>,
    /// The position of the task's first record.
    pub origin: Option<Position>,
    /// The task's key.
    pub key: Option<Bytes>,
    /// The task's payload.
    pub payload: Option<Bytes>,
    /// The task's headers, without kafkaq's own.
    pub headers: Headers,
    /// How many times the task was redriven before: its header `task-redrives`.
    pub redrives: u32,
    /// What was done with it.
    pub handled: Option<Handled>,
    /// Distinguishes the record from one at the same place of a recreated topic.
    pub(super) hash: u64,
    published_ms: Option<u64>,
}

impl DeadLetter {
    pub(super) fn new(partition: i32, record: Record) -> Self {
        let hash = hash(&record);
        let headers = &record.headers;
        // The last one of a name is what kafkaq has added.
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let published_ms = text(PUBLISHED).and_then(|t| t.parse().ok());
        let envelope = headers.get(DEAD).and_then(|value| Envelope::decode(value).ok());
        let died = u64::try_from(record.timestamp_ms).ok();
        DeadLetter {
            place: Place { partition, offset: record.offset },
            id: text(ID).and_then(|t| TaskId::new(t).ok()),
            kind: text(KIND_HEADER),
            reason: text(REASON),
            history: envelope.map_or_else(Vec::new, |e| e.history.entries()),
            attempts: text(ATTEMPTS).and_then(|t| t.parse().ok()),
            failures: text(FAILURES).and_then(|t| t.parse().ok()),
            published: published_ms.map(|ms| system_time(Wall(ms))),
            died: died.map(|ms| system_time(Wall(ms))),
            origin: text(ORIGIN).and_then(|t| position(&t)),
            redrives: text(REDRIVES).and_then(|t| t.parse().ok()).unwrap_or(0),
            headers: users(headers),
            key: record.key,
            payload: record.value,
            handled: None,
            hash,
            published_ms,
        }
    }

    /// Returns the fingerprint of its reason.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::new(self.reason.as_deref().unwrap_or_default())
    }

    /// Returns the id that a redrive gives the task. It depends only on the task, so a task that is redriven twice, or
    /// that has two dead letters because an append was repeated, becomes one new task.
    #[must_use]
    pub fn redrive_id(&self) -> TaskId {
        // An id may be used again when it is forgotten; the time of publication tells these tasks apart.
        let (base, hash) = match (&self.id, self.published_ms) {
            (Some(id), Some(published)) => {
                let base = if self.redrives > 0 { without_suffix(id.as_str()) } else { id.as_str() };
                let (published, redrives) = (published.to_be_bytes(), self.redrives.to_be_bytes());
                (base.to_owned(), hash_of([id.as_str().as_bytes(), &published, &redrives]))
            }
            _ => (format!("dead-letter/{}", self.place), self.hash),
        };
        let mut end = base.len().min(TaskId::MAX_LEN - SUFFIX_LEN);
        while !base.is_char_boundary(end) {
            end -= 1;
        }
        TaskId::from_parts(format!("{}~{hash:016x}", &base[..end]))
    }

    /// Whether it could not be read as a task.
    pub(super) fn is_unreadable(&self) -> bool {
        self.id.is_none()
    }

    /// Its approximate size in bytes.
    pub(super) fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.payload) + self.headers.size()
    }

    /// The task's headers, counting one more redrive. It no longer expires: whoever redrives it wants it executed.
    pub(super) fn redriven_headers(&self) -> Headers {
        let left_out = [REDRIVES, EXPIRES_HEADER, EXPIRED_HEADER];
        let others =
            self.headers.iter().filter(|(name, _)| left_out.iter().all(|out| *name != out.as_bytes()));
        let mut headers: Headers = others.map(|(name, value)| (name.clone(), value.cloned())).collect();
        headers.push(REDRIVES, Some(self.redrives.saturating_add(1).to_string().into()));
        headers
    }
}

/// `~` and 16 digits.
const SUFFIX_LEN: usize = 17;

/// An id from a redrive, without its suffix.
fn without_suffix(id: &str) -> &str {
    let is_suffix =
        |suffix: &&str| suffix.len() == SUFFIX_LEN - 1 && suffix.chars().all(|c| c.is_ascii_hexdigit());
    match id.rsplit_once('~').filter(|(_, suffix)| is_suffix(suffix)) {
        Some((base, _)) if !base.is_empty() => base,
        _ => id,
    }
}

/// The headers of the task. An unreadable record still has the headers that made it a task, or should have.
fn users(headers: &Headers) -> Headers {
    let is_users = |name: &Bytes, value: Option<&Bytes>| {
        let envelope = name == HEADER.as_bytes()
            && value.is_some_and(|v| !matches!(Envelope::decode(v), Err(DecodeError::Foreign)));
        !envelope && name != ID_HEADER.as_bytes() && !ADDED.iter().any(|added| name == added.as_bytes())
    };
    let users = headers.iter().filter(|(name, value)| is_users(name, *value));
    users.map(|(name, value)| (name.clone(), value.cloned())).collect()
}

fn position(text: &str) -> Option<Position> {
    let mut parts = text.rsplitn(3, '/');
    let (offset, index, topic) = (parts.next()?, parts.next()?, parts.next()?);
    let partition = Partition::new(topic, index.parse().ok()?);
    Some(Position { partition, offset: offset.parse().ok()? })
}

fn hash(record: &Record) -> u64 {
    let time = record.timestamp_ms.to_be_bytes();
    let body =
        [&time[..], record.key.as_deref().unwrap_or_default(), record.value.as_deref().unwrap_or_default()];
    let headers = record.headers.iter().flat_map(|(name, value)| [&name[..], value.map_or(&[][..], |v| v)]);
    hash_of(body.into_iter().chain(headers))
}

/// A hash of fields with their lengths, so that none runs into the next. It is stored.
fn hash_of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Fnv::new();
    for field in fields {
        hash.add(&(field.len() as u64).to_be_bytes());
        hash.add(field);
    }
    hash.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str, published: u64, redrives: u32) -> DeadLetter {
        let header = |name: &str, value: String| (Bytes::from(name.to_owned()), Some(Bytes::from(value)));
        let headers = Headers::from_iter([
            header(REDRIVES, redrives.to_string()),
            header(ID, id.to_owned()),
            header(PUBLISHED, published.to_string()),
        ]);
        DeadLetter::new(0, Record::new(5, 1_000, None, Some("x".into()), headers))
    }

    #[test]
    fn the_id_of_a_redrive_depends_on_the_task_alone() {
        let one = letter("report", 1, 0);
        let mut elsewhere = letter("report", 1, 0);
        elsewhere.place = Place { partition: 3, offset: 99 };
        assert_eq!(one.redrive_id(), elsewhere.redrive_id());
        // Ids are stored: this one must never change.
        assert_eq!(one.redrive_id().as_str(), "report~0a064dd7f52818d6");
        for other in [letter("report", 2, 0), letter("report", 1, 1), letter("reports", 1, 0)] {
            assert_ne!(one.redrive_id(), other.redrive_id());
        }
    }

    #[test]
    fn the_ids_of_redrives_keep_their_length_and_their_beginning() {
        let mut id = "report".to_owned();
        for n in 0..3 {
            id = letter(&id, 1, n).redrive_id().as_str().to_owned();
            assert!(id.starts_with("report~") && id.len() == "report~".len() + 16, "{id}");
        }
        let (long, same_start) = ("é".repeat(64), format!("{}ab", "é".repeat(63)));
        let (one, other) = (letter(&long, 1, 0).redrive_id(), letter(&same_start, 1, 0).redrive_id());
        assert!(one != other && one.as_str().len() <= TaskId::MAX_LEN);
    }

    #[test]
    fn foreign_record_has_an_id_from_its_place_and_content() {
        let stray = |offset, value: &'static str| {
            let record = Record::new(offset, 1_000, None, Some(value.into()), Headers::new());
            DeadLetter::new(0, record).redrive_id()
        };
        assert!(stray(5, "x").as_str().starts_with("dead-letter/0/5~"));
        assert_eq!(stray(5, "x"), stray(5, "x"));
        assert_ne!(stray(5, "x"), stray(5, "y"));
        assert_ne!(stray(5, "x"), stray(6, "x"));
    }

    #[test]
    fn places_round_trip_as_text() {
        let place = Place { partition: 3, offset: 17 };
        assert_eq!(place.to_string().parse::<Place>().ok(), Some(place));
        for wrong in ["", "3", "3/", "/17", "a/b", "3/17/1"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
        let origin = Position { partition: Partition::new("emails", 3), offset: 17 };
        assert_eq!(position("emails/3/17"), Some(origin));
    }
}
