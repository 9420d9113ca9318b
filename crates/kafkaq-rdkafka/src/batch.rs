//! Converts the client's messages to a [`Batch`]: one copy, into memory that the whole batch shares.

use crate::group::Callbacks;
use bytes::{Bytes, BytesMut};
use kafkaq_core::{HEADER, Headers, Record};
use rdkafka::{
    Message,
    consumer::base_consumer::PartitionQueue,
    error::KafkaError,
    message::{BorrowedHeaders, BorrowedMessage, Headers as _},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// A held job keeps its chunk alive, so chunks are never larger.
const CHUNK: usize = 64 * 1024;
/// A value of this size or more gets its own allocation.
const LARGE: usize = CHUNK / 4;
/// The maximum size of a batch, whatever the number of records.
const MAX_BYTES: usize = 1024 * 1024;
/// The approximate size of a header's name and value: a wrong estimate only costs an allocation.
const HEADER_GUESS: usize = 96;
/// Replaces a header whose name the client can't pass on.
const UNREADABLE: &[u8] = b"kafkaq-unreadable-header";

/// What was waiting in a partition's queue.
pub(crate) struct Taken {
    pub(crate) records: Vec<Record>,
    /// Whether there may be more.
    pub(crate) more: bool,
    pub(crate) error: Option<KafkaError>,
}

/// Takes available messages, up to `max` records. Never waits.
pub(crate) fn take(queue: &PartitionQueue<Callbacks>, max: usize) -> Taken {
    let mut messages: Vec<BorrowedMessage<'_>> = Vec::new();
    let (mut bytes, mut error) = (0, None);
    let more = loop {
        if messages.len() >= max || bytes >= MAX_BYTES {
            break true;
        }
        match queue.poll(Duration::ZERO) {
            None => break false,
            Some(Ok(message)) => {
                bytes += size(&message);
                messages.push(message);
            }
            Some(Err(e)) => {
                error = Some(e);
                break true;
            }
        }
    };
    Taken { records: records(&messages, bytes), more, error }
}

/// Returns the approximate space that a message takes in an [`Arena`].
pub(crate) fn size(message: &BorrowedMessage<'_>) -> usize {
    let headers = message.headers().map_or(0, |h| h.count());
    message.key_len() + message.payload_len() + headers * HEADER_GUESS
}

/// Copies messages with this total size.
pub(crate) fn records(messages: &[BorrowedMessage<'_>], size: usize) -> Vec<Record> {
    let mut arena = Arena::new(size);
    messages.iter().map(|m| record(m, &mut arena)).collect()
}

fn record(message: &BorrowedMessage<'_>, arena: &mut Arena) -> Record {
    let headers = message.headers().map_or_else(Headers::new, |h| headers(h, message, arena));
    Record::new(
        message.offset(),
        message.timestamp().to_millis().unwrap_or(-1),
        message.key().map(|k| arena.put(k)),
        message.payload().map(|p| arena.put(p)),
        headers,
    )
}

/// The client panics on a name that is not UTF-8, and offers no other access. The record must not be lost because of
/// that: the header gets another name, and its value is dropped.
fn headers(from: &BorrowedHeaders, message: &BorrowedMessage<'_>, arena: &mut Arena) -> Headers {
    (0..from.count())
        .map(|i| match catch_unwind(AssertUnwindSafe(|| from.try_get(i))) {
            Ok(Some(header)) => {
                let name = match header.key {
                    HEADER => Bytes::from_static(HEADER.as_bytes()),
                    other => arena.put(other.as_bytes()),
                };
                (name, header.value.map(|v| arena.put(v)))
            }
            _ => {
                tracing::warn!(
                    topic = message.topic(),
                    partition = message.partition(),
                    offset = message.offset(),
                    "a header's name is not UTF-8; its name and value are not passed on"
                );
                (Bytes::from_static(UNREADABLE), None)
            }
        })
        .collect()
}

/// Allocates [`Bytes`] from chunks of at most [`CHUNK`] bytes.
struct Arena {
    piece: BytesMut,
    /// The expected remaining size, so that a small batch takes only what it needs.
    expected: usize,
}

impl Arena {
    fn new(expected: usize) -> Self {
        Arena { piece: BytesMut::new(), expected }
    }

    fn put(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        let expected = self.expected;
        self.expected = expected.saturating_sub(bytes.len());
        if bytes.len() >= LARGE {
            return Bytes::copy_from_slice(bytes);
        }
        if self.piece.capacity() < bytes.len() {
            self.piece = BytesMut::with_capacity(expected.min(CHUNK).max(bytes.len()));
        }
        self.piece.extend_from_slice(bytes);
        self.piece.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_size_are_copied_unchanged() {
        let sizes =
            [0, 1, 100, LARGE - 1, LARGE, CHUNK, CHUNK + 1, 3, LARGE - 1, LARGE - 1, LARGE - 1, LARGE - 1];
        let values: Vec<Vec<u8>> = sizes.iter().zip(0u8..).map(|(n, b)| vec![b; *n]).collect();
        let mut arena = Arena::new(sizes.iter().sum());
        let out: Vec<Bytes> = values.iter().map(|v| arena.put(v)).collect();
        for (value, out) in values.iter().zip(out) {
            assert_eq!(value, &out);
        }
    }

    #[test]
    fn single_small_record_takes_only_what_it_needs_and_many_share_a_chunk() {
        let mut arena = Arena::new(100);
        let _one = arena.put(&[1; 100]);
        assert_eq!(arena.piece.capacity(), 0);

        let mut arena = Arena::new(200 * 1000);
        let (a, b) = (arena.put(&[1; 100]), arena.put(&[2; 100]));
        assert_eq!(a.as_ptr().wrapping_add(100), b.as_ptr(), "neighbours in one piece");
        assert!(arena.piece.capacity() <= CHUNK, "a piece is bounded");
    }
}
