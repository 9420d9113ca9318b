//! Decodes batches to records.

use super::{
    APPEND_TIME, BEFORE_ATTRIBUTES, BEFORE_SIZE, CODEC, CONTROL, FORMAT, HEADER, TRANSACTIONAL, codec,
};
use bytes::{Buf, Bytes};
use kafkaq_core::{Headers, Record};
use std::{collections::HashSet, fmt};

/// Records are copied out of the response in chunks of this size, so that holding one does not keep a whole response of
/// many megabytes in memory.
const PIECE: usize = 64 << 10;

/// The records of a fetch.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) records: Vec<Record>,
    /// Where reading continues: after the last batch that was seen. There is nothing between two batches.
    pub(crate) next: i64,
    /// The leader's epoch of that batch.
    pub(crate) epoch: Option<i32>,
    /// Why nothing after `next` was read.
    pub(crate) unreadable: Option<Unreadable>,
    /// The size of the first batch, if it is incomplete.
    pub(crate) needs: Option<usize>,
}

/// Why a batch can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is compressed with a codec that is left out of this build.
    MissingCodec(&'static str),
    /// It is compressed with an unknown codec.
    UnknownCodec(i16),
    /// It is in the format of Kafka before 0.11.
    OldFormat,
    /// It is decompressed to more than this process accepts.
    TooLarge,
    Damaged(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::MissingCodec(name) => write!(f, "it is compressed with {name}"),
            Unreadable::UnknownCodec(number) => write!(f, "it is compressed with the unknown codec {number}"),
            Unreadable::OldFormat => f.write_str("it is in the format of Kafka before 0.11"),
            Unreadable::TooLarge => f.write_str("it is too large after decompression"),
            Unreadable::Damaged(why) => write!(f, "it is damaged ({why})"),
        }
    }
}

/// Returns records from an offset on, without those that the producers in `aborted` rolled back, each from an offset
/// on. A batch that decompresses to more than `limit` bytes can't be read.
pub(crate) fn decode(mut bytes: Bytes, from: i64, aborted: &[(i64, i64)], limit: usize) -> Decoded {
    let mut decoded = Decoded { records: Vec::new(), next: from, epoch: None, unreadable: None, needs: None };
    let mut rollbacks = Rollbacks::new(aborted);
    while !bytes.is_empty() {
        let size = batch_size(&bytes);
        if size > bytes.len() {
            // The last one is cut off where the server's limit was reached.
            decoded.needs = (decoded.next == from).then_some(size);
            break;
        }
        let batch = bytes.split_to(size);
        if let Err(unreadable) = decode_batch(&batch, from, &mut rollbacks, limit, &mut decoded) {
            decoded.unreadable = Some(unreadable);
            break;
        }
    }
    decoded
}

/// The size of the first batch, as far as it is known.
fn batch_size(bytes: &[u8]) -> usize {
    match bytes.get(8..).and_then(|rest| rest.first_chunk()) {
        // Garbage is treated as a header alone, which can't be read either.
        Some(size) => usize::try_from(i32::from_be_bytes(*size)).unwrap_or(0).saturating_add(BEFORE_SIZE),
        None => HEADER,
    }
}

fn decode_batch(
    batch: &Bytes,
    from: i64,
    rollbacks: &mut Rollbacks,
    limit: usize,
    into: &mut Decoded,
) -> Result<(), Unreadable> {
    match batch.get(16).map(|format| format.cast_signed()) {
        Some(0 | 1) => return Err(Unreadable::OldFormat),
        Some(FORMAT) if batch.len() >= HEADER => {}
        other => return Err(damaged(format!("format {other:?}, {} bytes", batch.len()))),
    }
    let mut header = batch.slice(BEFORE_ATTRIBUTES - 4..HEADER);
    if header.get_u32() != crc32c::crc32c(&batch[BEFORE_ATTRIBUTES..]) {
        return Err(damaged("its checksum is wrong"));
    }
    let base_offset = i64::from_be_bytes(chunk(batch, 0)?);
    let attributes = header.get_i16();
    let last_offset = base_offset.saturating_add(header.get_i32().into());
    let (first_time, latest_time) = (header.get_i64(), header.get_i64());
    let producer = header.get_i64();
    let (_epoch, _sequence, count) = (header.get_i16(), header.get_i32(), header.get_i32());
    if last_offset < base_offset {
        return Err(damaged("it ends before it begins"));
    }
    rollbacks.reach(last_offset);

    let body = &batch[HEADER..];
    let codec = attributes & CODEC;
    let decompressed;
    let body = match codec {
        0 => body,
        _ => {
            decompressed = codec::decompress(codec, body, limit)?;
            &decompressed
        }
    };
    let context = Context { base_offset, first_time, append_time: None };
    if attributes & CONTROL != 0 {
        // A marker, not a record: a transaction of its producer ends here.
        rollbacks.end(producer);
    } else if attributes & TRANSACTIONAL == 0 || !rollbacks.has(producer) {
        let append_time = (attributes & APPEND_TIME != 0).then_some(latest_time);
        decode_records(body, count, from, &Context { append_time, ..context }, &mut into.records)?;
    }
    into.next = into.next.max(last_offset.saturating_add(1));
    into.epoch = Some(i32::from_be_bytes(chunk(batch, BEFORE_SIZE)?)).filter(|epoch| *epoch >= 0);
    Ok(())
}

/// The aborted transactions, as reading advances.
struct Rollbacks {
    /// By offset, the last first.
    ahead: Vec<(i64, i64)>,
    producers: HashSet<i64>,
}

impl Rollbacks {
    fn new(aborted: &[(i64, i64)]) -> Self {
        let mut ahead = aborted.to_vec();
        ahead.sort_unstable_by_key(|(_, first_offset)| std::cmp::Reverse(*first_offset));
        Rollbacks { ahead, producers: HashSet::new() }
    }

    fn reach(&mut self, offset: i64) {
        while let Some((producer, _)) = self.ahead.pop_if(|(_, first_offset)| *first_offset <= offset) {
            self.producers.insert(producer);
        }
    }

    fn has(&self, producer: i64) -> bool {
        self.producers.contains(&producer)
    }

    fn end(&mut self, producer: i64) {
        self.producers.remove(&producer);
    }
}

/// What the fields of records are relative to.
struct Context {
    base_offset: i64,
    first_time: i64,
    /// The log's time for all of them.
    append_time: Option<i64>,
}

fn decode_records(
    mut body: &[u8],
    count: i32,
    from: i64,
    context: &Context,
    into: &mut Vec<Record>,
) -> Result<(), Unreadable> {
    let read_before = into.len();
    let decoded = (|| {
        let mut left = count;
        while left > 0 {
            let (size, records) = piece(body, left)?;
            let mut piece = Bytes::copy_from_slice(&body[..size]);
            body = &body[size..];
            for _ in 0..records {
                let size = len(&mut piece)?;
                let record = decode_record(piece.split_to(size), context)?;
                if record.offset >= from {
                    into.push(record);
                }
            }
            left -= records;
        }
        match body {
            [] => Ok(()),
            rest => Err(damaged(format!("{} bytes after its last record", rest.len()))),
        }
    })();
    // A batch is decoded completely or not at all.
    decoded.inspect_err(|_| into.truncate(read_before))
}

/// How many bytes, and records, the next piece has: at least one record, and up to `max` of them.
fn piece(body: &[u8], max: i32) -> Result<(usize, i32), Unreadable> {
    let (mut size, mut records) = (0, 0);
    while records < max && (records == 0 || size < PIECE) {
        let mut rest = &body[size..];
        let record = len(&mut rest)?;
        let end = body.len() - rest.len() + record;
        if records > 0 && end > PIECE {
            break;
        }
        (size, records) = (end, records + 1);
    }
    Ok((size, records))
}

fn decode_record(mut bytes: Bytes, context: &Context) -> Result<Record, Unreadable> {
    let _attributes = bytes.try_get_i8().map_err(|_| cut())?;
    let time = varint(&mut bytes)?;
    let offset = varint(&mut bytes)?;
    let key = nullable(&mut bytes)?;
    let value = nullable(&mut bytes)?;
    let mut headers = Headers::new();
    for _ in 0..varint(&mut bytes)? {
        let name = nullable(&mut bytes)?.ok_or_else(|| damaged("a header without a name"))?;
        headers.push(name, nullable(&mut bytes)?);
    }
    let time = context.append_time.unwrap_or(context.first_time.saturating_add(time));
    Ok(Record::new(context.base_offset.saturating_add(offset), time, key, value, headers))
}

fn nullable(bytes: &mut Bytes) -> Result<Option<Bytes>, Unreadable> {
    match varint(bytes)? {
        -1 => Ok(None),
        size => match usize::try_from(size) {
            Ok(size) if size <= bytes.len() => Ok(Some(bytes.split_to(size))),
            _ => Err(cut()),
        },
    }
}

/// Reads a size that must not be null.
fn len(bytes: &mut impl Buf) -> Result<usize, Unreadable> {
    let size = varint(bytes)?;
    usize::try_from(size).ok().filter(|size| *size <= bytes.remaining()).ok_or_else(cut)
}

fn varint(bytes: &mut impl Buf) -> Result<i64, Unreadable> {
    let mut n = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = bytes.try_get_u8().map_err(|_| cut())?;
        n |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if byte < 128 {
            return Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed());
        }
    }
    Err(damaged("a number of more than ten bytes"))
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Unreadable> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(cut)
}

fn cut() -> Unreadable {
    damaged("cut off")
}

fn damaged(why: impl Into<String>) -> Unreadable {
    Unreadable::Damaged(why.into())
}
