//! Encodes records to a batch.

use super::{BEFORE_ATTRIBUTES, BEFORE_SIZE, FORMAT, HEADER, codec};
use crate::failure::Failure;
use bytes::{BufMut, Bytes};
use kafkaq_core::{ErrorKind, NewRecord};
use std::time::{SystemTime, UNIX_EPOCH};

/// One batch of at least one record, uncompressed. The server assigns the offsets.
pub(crate) fn encode(records: &[NewRecord]) -> Result<Vec<u8>, Failure> {
    let now = SystemTime::now();
    let times: Vec<i64> = records.iter().map(|record| millis(record.timestamp.unwrap_or(now))).collect();
    let first = times.first().copied().unwrap_or_default();
    let latest = times.iter().copied().max().unwrap_or_default();
    let last = i32::try_from(records.len().saturating_sub(1)).map_err(|_| too_large())?;

    let mut out = Vec::with_capacity(HEADER + records.iter().map(|record| record.size() + 32).sum::<usize>());
    out.put_i64(0);
    // The size is filled in later.
    out.put_i32(0);
    // No leader epoch.
    out.put_i32(-1);
    out.put_i8(FORMAT);
    // So is the checksum.
    out.put_u32(0);
    out.put_i16(0);
    out.put_i32(last);
    out.put_i64(first);
    out.put_i64(latest);
    // No producer id, epoch and sequence.
    out.put_i64(-1);
    out.put_i16(-1);
    out.put_i32(-1);
    out.put_i32(last + 1);
    let mut record_bytes = Vec::new();
    for (n, (record, time)) in (0..).zip(records.iter().zip(times)) {
        record_bytes.clear();
        encode_record(&mut record_bytes, record, time - first, n);
        put_varint(&mut out, record_bytes.len() as i64);
        out.extend_from_slice(&record_bytes);
    }
    seal(&mut out)?;
    Ok(out)
}

/// The same batch with its records compressed; `None` where no codec is built in.
pub(crate) fn compress(batch: &[u8]) -> Option<Result<Vec<u8>, Failure>> {
    let (header, records) = batch.split_at(HEADER);
    let (number, compressed) = codec::compress(records)?;
    let mut out = Vec::with_capacity(HEADER + compressed.len());
    out.extend_from_slice(header);
    out[BEFORE_ATTRIBUTES..BEFORE_ATTRIBUTES + 2].copy_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&compressed);
    Some(seal(&mut out).map(|()| out))
}

/// Fills in what depends on the whole batch.
fn seal(batch: &mut [u8]) -> Result<(), Failure> {
    let size = i32::try_from(batch.len() - BEFORE_SIZE).map_err(|_| too_large())?;
    batch[8..BEFORE_SIZE].copy_from_slice(&size.to_be_bytes());
    let checksum = crc32c::crc32c(&batch[BEFORE_ATTRIBUTES..]);
    batch[BEFORE_ATTRIBUTES - 4..BEFORE_ATTRIBUTES].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

fn encode_record(out: &mut Vec<u8>, record: &NewRecord, time: i64, offset: i64) {
    // No record attributes are defined yet.
    out.put_i8(0);
    put_varint(out, time);
    put_varint(out, offset);
    put_bytes(out, record.key.as_ref());
    put_bytes(out, record.value.as_ref());
    put_varint(out, record.headers.len() as i64);
    for (name, value) in record.headers.iter() {
        put_bytes(out, Some(name));
        put_bytes(out, value);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&Bytes>) {
    match bytes {
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}

/// Small numbers of either sign are short.
fn put_varint(out: &mut Vec<u8>, n: i64) {
    let mut n = (n << 1 ^ n >> 63).cast_unsigned();
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn too_large() -> Failure {
    Failure::refused(ErrorKind::TooLarge, "A batch has at most 2 GiB")
}
