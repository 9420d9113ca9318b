//! Record batches as the log has them (format 2, since Kafka 0.11).
//!
//! Our own encoder and decoder, since those of the libraries keep headers in maps: repeated names and null values would
//! be lost, or the batch refused.

mod codec;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub(crate) use decode::{Decoded, Unreadable, decode};
pub(crate) use encode::{compress, encode, millis};

/// Offset, size, epoch of the leader, format, checksum, attributes, last offset, two times, producer (id, epoch,
/// sequence), number of records.
const HEADER: usize = 61;
/// The offset and the size are not part of what the size counts.
const BEFORE_SIZE: usize = 12;
/// The checksum covers everything after it.
const BEFORE_ATTRIBUTES: usize = 21;
const FORMAT: i8 = 2;

/// Bits of the attributes. The first three are the codec.
const CODEC: i16 = 0b111;
const APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
