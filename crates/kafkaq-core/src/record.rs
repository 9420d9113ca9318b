//! Records of a log, and their positions.

use crate::Headers;
use bytes::Bytes;
use std::{fmt, sync::Arc, time::SystemTime};

/// A partition of a topic. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub index: i32,
}

impl Partition {
    /// Partition `index` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, index: i32) -> Self {
        Partition { topic: topic.into(), index }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

/// A position in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The partition.
    pub partition: Partition,
    /// The offset of the next record to read.
    pub offset: i64,
}

/// A record to be appended. The core builds it, an adapter reads it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NewRecord {
    /// The user's key; the core has already chosen the partition.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Option<Bytes>,
    /// The user's headers and kafkaq's own.
    pub headers: Headers,
    /// `None` lets the log or the client set the current time.
    pub timestamp: Option<SystemTime>,
}

impl NewRecord {
    /// A record with the current time.
    #[must_use]
    pub fn new(key: Option<Bytes>, value: Option<Bytes>, headers: Headers) -> Self {
        NewRecord { key, value, headers, timestamp: None }
    }

    /// Bytes of key, value and headers, without the log's own framing.
    #[must_use]
    pub fn size(&self) -> usize {
        let len = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + self.headers.size()
    }
}

/// A record that was read. An adapter builds it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Its offset in the partition. Offsets ascend, with gaps.
    pub offset: i64,
    /// Milliseconds since the epoch; -1 if the log has none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// All headers, untouched.
    pub headers: Headers,
}

impl Record {
    /// A record with everything that a log knows about it.
    #[must_use]
    pub fn new(
        offset: i64,
        timestamp_ms: i64,
        key: Option<Bytes>,
        value: Option<Bytes>,
        headers: Headers,
    ) -> Self {
        Record { offset, timestamp_ms, key, value, headers }
    }

    /// Bytes of key, value and headers.
    #[must_use]
    pub fn size(&self) -> usize {
        let len = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + self.headers.size()
    }
}

/// Records of one partition, ascending by offset.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Batch {
    /// May be empty while `next` has moved on.
    pub records: Vec<Record>,
    /// Where reading continues: after the last record, and further if control batches or compacted gaps follow.
    pub next: i64,
    /// The log's end as the server reported it with this batch, if it did. `end - next` is the lag.
    pub end: Option<i64>,
}

impl Batch {
    /// A batch.
    #[must_use]
    pub fn new(records: Vec<Record>, next: i64, end: Option<i64>) -> Self {
        Batch { records, next, end }
    }
}
