//! A partition's log in the data folder of a Kafka that is down.
//!
//! A segment is a file `<offset of its first record>.log` of record batches, next to index files of the same name.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// The fields of a batch's head: the first offset, the size of what follows these two, and how far the last offset is
/// from the first one.
const SIZE: usize = 8;
const BODY: usize = 12;
const LAST_DELTA: usize = 23;
const HEAD: usize = 27;

/// Returns where the last segment of a log begins.
pub(crate) fn last_segment(log: &Path) -> io::Result<i64> {
    Ok(named(log, "log")?.last().map_or(0, |(offset, _)| *offset))
}

/// Cuts off every batch that reaches beyond `end`. Returns where the log ends now: a batch is never divided.
///
/// A crash without a sync to the disk loses only the end of the log. So the leader epochs stay as they are, and the
/// server drops those beyond the end. But the indexes of lost parts are deleted, too: the server rebuilds missing
/// indexes, and learns of producers from the records.
pub(crate) fn cut(log: &Path, end: i64) -> io::Result<i64> {
    let mut new_end = 0;
    for (offset, segment) in named(log, "log")? {
        let is_gone = offset > 0 && offset >= end;
        if is_gone {
            fs::remove_file(&segment)?;
        } else {
            let (size, next) = length(&fs::read(&segment)?, offset, end);
            File::options().write(true).open(&segment)?.set_len(size)?;
            new_end = next;
        }
        for index in ["index", "timeindex"] {
            fs::remove_file(segment.with_extension(index))?;
        }
    }
    for (offset, snapshot) in named(log, "snapshot")? {
        if offset > new_end {
            fs::remove_file(snapshot)?;
        }
    }
    Ok(new_end)
}

/// Returns the files of a log whose names are offsets, in order.
fn named(log: &Path, extension: &str) -> io::Result<Vec<(i64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(log)? {
        let path = entry?.path();
        let is_one = path.extension().is_some_and(|found| found == extension);
        let offset = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        files.extend(offset.filter(|_| is_one).map(|offset| (offset, path)));
    }
    files.sort_unstable();
    Ok(files)
}

/// Returns the size of the batches of a segment that end at or before `end`, and the offset after them.
fn length(segment: &[u8], first: i64, end: i64) -> (u64, i64) {
    let (mut size, mut next) = (0, first);
    while let Some(head) = segment[size..].first_chunk::<HEAD>() {
        let number = |at: usize| i32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let behind = i64::from_be_bytes(head[..SIZE].try_into().unwrap()) + i64::from(number(LAST_DELTA)) + 1;
        if behind > end {
            break;
        }
        (size, next) = (size + BODY + number(SIZE) as usize, behind);
    }
    (size as u64, next)
}
