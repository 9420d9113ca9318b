//! From a record of the log to a task, and back to a copy or a dead letter.

use super::{Content, Layout, item::Item, rule::Meta};
use crate::{
    DecodeError, Envelope, HEADER, Headers, ID_HEADER, NewRecord, Partition, Position, Record, TaskId, Wall,
    hash::Fnv,
};
use bytes::Bytes;
use std::time::Duration;

/// What a record is.
pub(super) enum Opened {
    Task(Content, Meta),
    /// Can't be a task of this queue, and says why.
    Unreadable(Record, String),
    Newer(u8),
}

/// When a record of the wait topic leaves its lane; at once, if it doesn't say so.
pub(super) fn lane_due(record: &Record) -> Wall {
    record
        .headers
        .get(HEADER)
        .and_then(|h| Envelope::decode(h).ok())
        .map_or(Wall(0), |envelope| envelope.lane_due)
}

pub(super) fn open(layout: &Layout, from: &Partition, mut record: Record) -> Opened {
    match read(layout, from, &record) {
        Ok((id, meta, published, origin)) => {
            record.headers.remove(HEADER);
            record.headers.remove(ID_HEADER);
            let (key, payload, headers) = (record.key, record.value, record.headers);
            Opened::Task(Content { id, key, payload, headers, published, origin }, meta)
        }
        Err(Unreadable::Newer(version)) => Opened::Newer(version),
        Err(Unreadable::Because(why)) => Opened::Unreadable(record, why),
    }
}

enum Unreadable {
    Newer(u8),
    Because(String),
}

impl From<DecodeError> for Unreadable {
    fn from(e: DecodeError) -> Self {
        match e {
            DecodeError::Newer(version) => Unreadable::Newer(version),
            DecodeError::Damaged(what) => {
                Unreadable::Because(format!("its kafkaq header is damaged: {what}"))
            }
        }
    }
}

/// Whose record it is, what it says of its task, when that was published, and where its first record lies.
fn read(
    layout: &Layout,
    from: &Partition,
    record: &Record,
) -> Result<(TaskId, Meta, Wall, Position), Unreadable> {
    let here = Position { partition: from.clone(), offset: record.offset };
    let in_wait = here.partition.topic == layout.wait;
    let because = |why: String| Err(Unreadable::Because(why));
    let Some(value) = record.headers.find(HEADER) else {
        if in_wait {
            return because("it lies in the wait topic without a kafkaq header".to_owned());
        }
        let published = Wall(u64::try_from(record.timestamp_ms).unwrap_or(0));
        return Ok((foreign_id(&here, record)?, Meta::NONE, published, here));
    };
    let Some(value) = value else { return because("its kafkaq header is null".to_owned()) };
    let envelope = Envelope::decode(value)?;
    let origin = match envelope.origin {
        Some(origin) if origin.partition.topic != layout.task => {
            return because(format!("it is a copy of a task of {}", origin.partition.topic));
        }
        Some(origin) => origin,
        // A delayed task starts in the wait topic.
        None if in_wait => Position { partition: Partition::new(layout.task.clone(), 0), offset: -1 },
        None => here,
    };
    let Envelope { attempt, cover, due, ahead, published, .. } = envelope;
    Ok((envelope.id, Meta { attempt, cover, due, ahead }, published, origin))
}

/// A record of any other producer is a task too. Its place alone doesn't name it: a topic that is deleted and made
/// anew starts at offset 0 again.
fn foreign_id(here: &Position, record: &Record) -> Result<TaskId, Unreadable> {
    let Some(value) = record.headers.find(ID_HEADER) else { return Ok(place_id(here, record)) };
    let text = value.and_then(|v| std::str::from_utf8(v).ok());
    text.and_then(|t| TaskId::new(t).ok())
        .ok_or_else(|| Unreadable::Because(format!("its {ID_HEADER} is not 1 to 128 bytes of UTF-8")))
}

/// Stands for a record that can't be read, on its way to the dead letters.
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
        origin: Some(item.content.origin.clone()),
        ..Envelope::new(item.content.id.clone(), item.content.published)
    }
}

/// A copy for the wait topic. It gets the time of now: retention must not count from the first publication.
pub(super) fn copy(item: &Item, cover: u32, (due, ahead): (Wall, Duration), lane_due: Wall) -> NewRecord {
    let mut headers = item.content.headers.clone();
    let envelope = Envelope { cover, due, ahead, lane_due, ..envelope(item) };
    headers.push(HEADER, Some(envelope.encode()));
    NewRecord::new(item.content.key.clone(), item.content.payload.clone(), headers)
}

/// A task for the dead-letter topic: key, payload and headers as they were, and its history in readable headers.
pub(super) fn dead_letter(item: &Item, reason: &str, attempts: u32) -> NewRecord {
    let mut headers = item.content.headers.clone();
    headers.push(HEADER, Some(Envelope { cover: item.meta.cover, ..envelope(item) }.encode()));
    headers.push(ID_HEADER, Some(Bytes::copy_from_slice(item.content.id.as_str().as_bytes())));
    headers.push("kafkaq-attempts", Some(attempts.to_string().into()));
    headers.push("kafkaq-published-ms", Some(item.content.published.0.to_string().into()));
    history(&mut headers, reason, &item.content.origin);
    NewRecord::new(item.content.key.clone(), item.content.payload.clone(), headers)
}

/// A record that can't be read, whole.
pub(super) fn whole(record: &Record, reason: &str, at: &Position) -> NewRecord {
    let mut headers = record.headers.clone();
    history(&mut headers, reason, at);
    NewRecord::new(record.key.clone(), record.value.clone(), headers)
}

fn history(headers: &mut Headers, reason: &str, origin: &Position) {
    headers.push("kafkaq-reason", Some(Bytes::copy_from_slice(reason.as_bytes())));
    headers.push("kafkaq-origin", Some(format!("{}/{}", origin.partition, origin.offset).into()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keyspace;

    fn layout() -> Layout {
        Layout {
            keyspace: Keyspace::new("q", "g").unwrap(),
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
            Opened::Task(content, _) => content.id.as_str().to_owned(),
            _ => panic!("not a task"),
        }
    }

    #[test]
    fn a_record_of_any_producer_is_a_task_named_by_place_time_and_content() {
        let at = Partition::new("q", 3);
        let one = id_of(open(&layout(), &at, record(Headers::new())));
        assert!(one.starts_with("q/3/5@1000-"), "{one}");
        let anew = Record::new(5, 1_001, Some("k".into()), Some("v".into()), Headers::new());
        assert_ne!(one, id_of(open(&layout(), &at, anew)), "a topic made anew must not collide");
        let other = Record::new(5, 1_000, Some("k".into()), Some("w".into()), Headers::new());
        assert_ne!(one, id_of(open(&layout(), &at, other)));
        let long = Partition::new("t".repeat(249), 3);
        assert!(id_of(open(&layout(), &long, record(Headers::new()))).len() <= TaskId::MAX_LEN);
    }

    #[test]
    fn a_readable_id_is_honoured() {
        let headers = Headers::from_iter([(Bytes::from(ID_HEADER), Some(Bytes::from("mine")))]);
        assert_eq!(id_of(open(&layout(), &Partition::new("q", 0), record(headers))), "mine");
    }

    #[test]
    fn damaged_null_and_strange_headers_are_unreadable() {
        let at = Partition::new("q", 0);
        let of_another_queue = Envelope {
            origin: Some(Position { partition: Partition::new("other", 0), offset: 0 }),
            ..Envelope::new(TaskId::new("x").unwrap(), Wall(0))
        };
        for value in [None, Some(Bytes::from_static(&[1, 9])), Some(of_another_queue.encode())] {
            let headers = Headers::from_iter([(Bytes::from(HEADER), value)]);
            assert!(matches!(open(&layout(), &at, record(headers)), Opened::Unreadable(..)));
        }
        let newer = Headers::from_iter([(Bytes::from(HEADER), Some(Bytes::from_static(&[2, 9])))]);
        assert!(matches!(open(&layout(), &at, record(newer)), Opened::Newer(2)));
        let wait = Partition::new("q.g.wait", 0);
        assert!(matches!(open(&layout(), &wait, record(Headers::new())), Opened::Unreadable(..)));
    }
}
