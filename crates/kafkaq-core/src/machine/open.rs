//! Decodes records of the log into tasks, and encodes copies and dead letters.

use super::{
    Content, Layout,
    item::{Copy, Item},
    rule::Meta,
};
use crate::{
    DecodeError, Envelope, HEADER, Headers, History, ID_HEADER, NewRecord, Position, Record, TaskId, Wall,
    envelope::FORWARD_HEADER,
    envelope::{MARKER, VERSION, position, put_position, versioned},
    hash::Fnv,
    history,
    wire::put,
};
use bytes::Bytes;

/// Headers of a dead letter for people and tools. A dead letter that is copied back to the task topic is a new task
/// without them.
const DEAD_HEADERS: [&str; 8] = [
    "kafkaq-dead",
    "kafkaq-task-id",
    "kafkaq-attempts",
    "kafkaq-failures",
    "kafkaq-published-ms",
    "kafkaq-history",
    "kafkaq-reason",
    "kafkaq-origin",
];

/// A decoded record.
pub(super) enum Opened {
    Task(Content, Meta, History),
    /// Not a readable task of this queue, for this reason.
    Unreadable(Record, String),
    /// Readable only by this later version; with the position of its first record.
    Newer(Record, u8, Position),
}

/// When a record of the wait topic leaves its lane. Zero if it doesn't say so.
pub(super) fn lane_due(record: &Record) -> Wall {
    if let Some((lane_due, _)) = forwarded(&record.headers) {
        return lane_due;
    }
    ours(&record.headers).and_then(|h| Envelope::decode(h).ok()).map_or(Wall(0), |envelope| envelope.lane_due)
}

pub(super) fn open(layout: &Layout, here: &Position, mut record: Record) -> Opened {
    // The process that forwarded it could not read it; perhaps this one can.
    let first = forwarded(&record.headers).map(|(_, at)| at);
    record.headers.retain(|name, value| name != FORWARD_HEADER.as_bytes() || !is_ours(value));
    match read(layout, here, first.clone(), &record) {
        Ok(Read { id, meta, published, origin, history }) => {
            record.headers.retain(|name, value| {
                let own = (name == HEADER.as_bytes() && is_ours(value)) || name == ID_HEADER.as_bytes();
                !own && !DEAD_HEADERS.iter().any(|dead| name == dead.as_bytes())
            });
            let (key, payload, headers) = (record.key, record.value, record.headers);
            Opened::Task(Content { id, key, payload, headers, published, origin }, meta, history)
        }
        Err(Unreadable::Newer(version)) => {
            Opened::Newer(record, version, first.unwrap_or_else(|| here.clone()))
        }
        Err(Unreadable::Because(why)) => Opened::Unreadable(record, why),
    }
}

fn is_ours(value: Option<&Bytes>) -> bool {
    value.is_some_and(|v| v.starts_with(&MARKER))
}

/// Returns the last kafkaq header. A header of that name without the marker belongs to the user.
fn ours(headers: &Headers) -> Option<&Bytes> {
    let named = headers.iter().rev().filter(|(name, _)| *name == HEADER.as_bytes());
    named.filter_map(|(_, value)| value).find(|v| v.starts_with(&MARKER))
}

enum Unreadable {
    Newer(u8),
    Because(String),
}

impl From<DecodeError> for Unreadable {
    fn from(e: DecodeError) -> Self {
        match e {
            DecodeError::Newer(version) => Unreadable::Newer(version),
            DecodeError::Foreign => {
                Unreadable::Because("its kafkaq header was not written by kafkaq".to_owned())
            }
            DecodeError::Damaged(what) => {
                Unreadable::Because(format!("its kafkaq header is damaged: {what}"))
            }
        }
    }
}

/// What a record says about its task.
struct Read {
    id: TaskId,
    meta: Meta,
    published: Wall,
    origin: Position,
    history: History,
}

/// `first`: the original position of a forwarded record.
fn read(
    layout: &Layout,
    here: &Position,
    first: Option<Position>,
    record: &Record,
) -> Result<Read, Unreadable> {
    let in_wait = here.partition.topic == layout.wait;
    let because = |why: String| Err(Unreadable::Because(why));
    let Some(value) = ours(&record.headers) else {
        if in_wait {
            return because("it is in the wait topic without a kafkaq header".to_owned());
        }
        let published = Wall(u64::try_from(record.timestamp_ms).unwrap_or(0));
        let (id, meta) = (foreign_id(here, record)?, Meta::NONE);
        return Ok(Read { id, meta, published, origin: here.clone(), history: History::new() });
    };
    let envelope = Envelope::decode(value)?;
    let origin = match envelope.origin.or(first) {
        Some(origin) if origin.partition.topic != layout.task => {
            return because(format!("it is a copy of a task of {}", origin.partition.topic));
        }
        Some(origin) => origin,
        None if in_wait => return because("it is in the wait topic but isn't a copy".to_owned()),
        None => here.clone(),
    };
    let Envelope { attempt, failures, cover, running, due, ahead, .. } = envelope;
    Ok(Read {
        id: envelope.id,
        meta: Meta { attempt, failures, cover, running, due, ahead },
        published: envelope.published,
        origin,
        history: envelope.history,
    })
}

/// When a forwarded record leaves its lane, and its original position.
fn forwarded(headers: &Headers) -> Option<(Wall, Position)> {
    let (_, mut rest) = versioned(headers.get(FORWARD_HEADER)?).ok()?;
    Some((Wall(rest.number().ok()?), position(&mut rest).ok()?))
}

/// A record of any other producer is a task too. Its position alone isn't unique: a topic that is deleted and recreated
/// starts at offset 0 again.
fn foreign_id(here: &Position, record: &Record) -> Result<TaskId, Unreadable> {
    let Some(value) = record.headers.find(ID_HEADER) else { return Ok(place_id(here, record)) };
    let text = value.and_then(|v| std::str::from_utf8(v).ok());
    text.and_then(|t| TaskId::new(t).ok())
        .ok_or_else(|| Unreadable::Because(format!("its {ID_HEADER} is not 1 to 128 bytes of UTF-8")))
}

/// The content of a record that can't be read.
pub(super) fn unreadable(here: &Position, record: &Record) -> Content {
    Content {
        id: place_id(here, record),
        key: None,
        payload: None,
        headers: Headers::new(),
        published: Wall(0),
        origin: here.clone(),
    }
}

fn place_id(here: &Position, record: &Record) -> TaskId {
    let mut hash = Fnv::new();
    hash.add(record.key.as_deref().unwrap_or_default());
    hash.add(record.value.as_deref().unwrap_or_default());
    let rest = format!("/{}/{}@{}-{:016x}", here.partition.index, here.offset, record.timestamp_ms, hash.0);
    let topic = &here.partition.topic;
    TaskId::new(format!("{topic}{rest}")).unwrap_or_else(|_| {
        // A topic's name can have 249 characters, an id 128 bytes.
        let mut name = Fnv::new();
        name.add(topic.as_bytes());
        TaskId::from_parts(format!("{:016x}{rest}", name.0))
    })
}

fn envelope(item: &Item) -> Envelope {
    Envelope {
        attempt: item.attempt(),
        failures: item.failures(),
        origin: Some(item.content.origin.clone()),
        history: item.history.clone(),
        ..Envelope::new(item.content.id.clone(), item.content.published)
    }
}

/// A copy for the wait topic. Its timestamp is now: retention must not count from the first publication.
pub(super) fn copy(item: &Item, copy: &Copy) -> NewRecord {
    let mut headers = item.content.headers.clone();
    let Copy { cover, due, ahead, leaves: lane_due, running, .. } = *copy;
    let envelope = Envelope { cover, due, ahead, lane_due, running, ..envelope(item) };
    headers.push(HEADER, Some(envelope.encode()));
    NewRecord::new(item.content.key.clone(), item.content.payload.clone(), headers)
}

/// An unchanged record that only a later version can read, for the wait topic.
pub(super) fn forward(record: &Record, lane_due: Wall, at: &Position) -> NewRecord {
    let mut value = Vec::with_capacity(48);
    value.extend_from_slice(&MARKER);
    value.extend_from_slice(&[VERSION, VERSION]);
    put(&mut value, lane_due.0);
    put_position(&mut value, at);
    let mut headers = record.headers.clone();
    headers.push(FORWARD_HEADER, Some(value.into()));
    NewRecord::new(record.key.clone(), record.value.clone(), headers)
}

/// A dead letter: the task's key, payload and headers, and its history in readable headers.
pub(super) fn dead_letter(item: &Item, reason: &str, attempts: u32) -> NewRecord {
    let mut headers = item.content.headers.clone();
    let text = |s: String| Some(Bytes::from(s));
    headers.push("kafkaq-dead", Some(Envelope { cover: item.meta.cover, ..envelope(item) }.encode()));
    headers.push("kafkaq-task-id", text(item.content.id.as_str().to_owned()));
    headers.push("kafkaq-attempts", text(attempts.to_string()));
    headers.push("kafkaq-failures", text(item.failures().to_string()));
    headers.push("kafkaq-published-ms", text(item.content.published.0.to_string()));
    let lines = item.history.lines();
    if !lines.is_empty() {
        headers.push("kafkaq-history", text(lines));
    }
    why(&mut headers, reason, &item.content.origin);
    NewRecord::new(item.content.key.clone(), item.content.payload.clone(), headers)
}

/// The dead letter of a record that can't be read: the whole record.
pub(super) fn whole(record: &Record, reason: &str, at: &Position) -> NewRecord {
    let mut headers = record.headers.clone();
    why(&mut headers, reason, at);
    NewRecord::new(record.key.clone(), record.value.clone(), headers)
}

fn why(headers: &mut Headers, reason: &str, origin: &Position) {
    headers.push("kafkaq-reason", Some(Bytes::copy_from_slice(history::cut(reason).as_bytes())));
    headers.push("kafkaq-origin", Some(format!("{}/{}", origin.partition, origin.offset).into()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keyspace, Partition};

    fn open(layout: &Layout, at: &Partition, record: Record) -> Opened {
        super::open(layout, &Position { partition: at.clone(), offset: record.offset }, record)
    }

    fn layout() -> Layout {
        Layout {
            keyspace: Keyspace::new("q", "g", "q").unwrap(),
            task: "q".into(),
            wait: "q.g.wait".into(),
            wait_partitions: 11,
            dead: "q.g.dead".into(),
            dead_partitions: 1,
        }
    }

    fn record(headers: Headers) -> Record {
        Record::new(5, 1_000, Some("k".into()), Some("v".into()), headers)
    }

    fn id_of(opened: Opened) -> String {
        match opened {
            Opened::Task(content, ..) => content.id.as_str().to_owned(),
            _ => panic!("not a task"),
        }
    }

    #[test]
    fn foreign_record_is_a_task_with_an_id_from_position_time_and_content() {
        let at = Partition::new("q", 3);
        let one = id_of(open(&layout(), &at, record(Headers::new())));
        assert!(one.starts_with("q/3/5@1000-"), "{one}");
        let recreated = Record::new(5, 1_001, Some("k".into()), Some("v".into()), Headers::new());
        assert_ne!(one, id_of(open(&layout(), &at, recreated)), "a recreated topic must not collide");
        let other = Record::new(5, 1_000, Some("k".into()), Some("w".into()), Headers::new());
        assert_ne!(one, id_of(open(&layout(), &at, other)));
        let long = Partition::new("t".repeat(249), 3);
        assert!(id_of(open(&layout(), &long, record(Headers::new()))).len() <= TaskId::MAX_LEN);
    }

    #[test]
    fn readable_id_header_is_used() {
        let headers = Headers::from_iter([(Bytes::from(ID_HEADER), Some(Bytes::from("mine")))]);
        assert_eq!(id_of(open(&layout(), &Partition::new("q", 0), record(headers))), "mine");
    }

    fn with_header(name: &str, value: Option<Bytes>) -> Record {
        record(Headers::from_iter([(Bytes::copy_from_slice(name.as_bytes()), value)]))
    }

    #[test]
    fn damaged_and_misplaced_records_are_unreadable() {
        let at = Partition::new("q", 0);
        let id = TaskId::new("x").unwrap();
        let of_another_queue = Envelope {
            origin: Some(Position { partition: Partition::new("other", 0), offset: 0 }),
            ..Envelope::new(id.clone(), Wall(0))
        };
        for value in [Bytes::from_static(&[0xab, b'k', b'q', 2, 2, 9]), of_another_queue.encode()] {
            assert!(matches!(open(&layout(), &at, with_header(HEADER, Some(value))), Opened::Unreadable(..)));
        }
        let wait = Partition::new("q.g.wait", 0);
        assert!(matches!(open(&layout(), &wait, record(Headers::new())), Opened::Unreadable(..)));
        let no_copy = Envelope::new(id, Wall(0)).encode();
        assert!(matches!(open(&layout(), &wait, with_header(HEADER, Some(no_copy))), Opened::Unreadable(..)));
    }

    #[test]
    fn foreign_value_under_our_header_name_is_a_user_header() {
        let at = Partition::new("q", 0);
        for value in
            [None, Some(Bytes::from("garbage")), Some(Bytes::from_static(&[2, 9])), Some(Bytes::new())]
        {
            let Opened::Task(content, meta, _) = open(&layout(), &at, with_header(HEADER, value.clone()))
            else {
                panic!("{value:?}")
            };
            assert!(content.id.as_str().starts_with("q/0/5@"));
            assert_eq!(meta, Meta::NONE);
            assert_eq!(content.headers.iter().next(), Some((&Bytes::from(HEADER), value.as_ref())));
        }
    }

    #[test]
    fn record_of_a_later_version_is_forwarded_whole_and_read_by_a_later_process() {
        let at = Partition::new("q", 3);
        let envelope = Envelope::new(TaskId::new("x").unwrap(), Wall(7));
        let mut later = envelope.encode().to_vec();
        (later[3], later[4]) = (3, 3);
        let Opened::Newer(record, 3, first) = open(&layout(), &at, with_header(HEADER, Some(later.into())))
        else {
            panic!()
        };
        let copy = forward(&record, Wall(99), &first);
        assert_eq!(copy.value, record.value);
        let mut there = Record::new(1, 0, copy.key, copy.value, copy.headers);
        assert_eq!(lane_due(&there), Wall(99));
        let wait = Partition::new("q.g.wait", 0);
        let Opened::Newer(_, 3, again) = open(&layout(), &wait, there.clone()) else { panic!() };
        assert_eq!(again, Position { partition: at, offset: 5 }, "forwarded again, it keeps its place");
        // A process of that version reads it.
        there.headers.retain(|name, _| name != HEADER.as_bytes());
        there.headers.push(HEADER, Some(envelope.encode()));
        let Opened::Task(content, meta, _) = open(&layout(), &wait, there) else { panic!() };
        assert_eq!((content.id.as_str(), &content.origin, meta), ("x", &first, Meta::NONE));
        assert!(content.headers.is_empty());
    }
}
