//! A log on Unix files: one directory per topic, with one file per partition.
//!
//! Any number of processes may share it. Acknowledged records survive processes that are killed at any point, and a
//! power failure. Nothing is ever deleted, and a client keeps eight bytes in memory for each record of the partitions
//! it uses.
//!
//! ```text
//! topics/emails/0    head, then frame after frame
//! head               identity of the topic (8 bytes), largest record (8), end of what was answered (8)
//! frame              length (8), checksum (8), payload
//! payload            time (8), key, value, and name and value of each header
//! ```

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use kafkaq_core::{
    Batch, Error, ErrorKind, FetchLimit, Headers, Log, NewRecord, Offsets, Partition, PartitionLog, Position,
    Record, Result, TopicInfo, TopicSpec,
};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// How long a call waits for a lock while one and the same call has it. It waits for its turn at most as long as four
/// such calls take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a waiting fetch checks for records: processes can't wake one another.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How many calls run at a time, each on a thread of its own.
const MAX_CALLS: u32 = 16;
/// Bytes before the first frame, and before a frame's payload.
const HEAD: u64 = 24;
const FRAME: u64 = 16;

/// A client of a directory.
#[derive(Debug)]
pub struct FileLog {
    directory: Arc<Directory>,
    /// One for each call in flight. `close` takes all of them.
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Directory {
    root: PathBuf,
    indexes: Mutex<HashMap<Partition, Arc<Mutex<Index>>>>,
}

/// What this client knows about a partition's file.
#[derive(Debug, Default)]
struct Index {
    topic: u64,
    max_record_bytes: u64,
    /// Where each record ends.
    ends: Vec<u64>,
}

/// A call's name in errors, and how long it may wait for a lock that isn't passed on.
#[derive(Clone, Copy)]
struct Call {
    op: &'static str,
    give_up: Instant,
}

impl FileLog {
    /// A client of this directory. Nothing is read or created before the first call.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        let directory = Directory { root: dir.as_ref().to_path_buf(), indexes: Mutex::default() };
        FileLog { directory: Arc::new(directory), permits: Arc::new(Semaphore::new(MAX_CALLS as usize)) }
    }

    /// Runs `work` on a thread that may block. It continues if the caller is dropped.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Directory, Call) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = tokio::time::timeout(4 * REQUEST_TIMEOUT, self.permits.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Error::not_applied(ErrorKind::Timeout, op))?;
        let permit = permit.map_err(|_| Error::not_applied(ErrorKind::Closed, op))?;
        let call = Call { op, give_up: Instant::now() + REQUEST_TIMEOUT };
        let directory = self.directory.clone();
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&directory, call)
        });
        // It panicked, and it is unknown how far it got.
        working.await.unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, op).with_source(e)))
    }
}

impl Call {
    /// The error of an operation that certainly changed nothing.
    fn failed(self, e: io::Error) -> Error {
        let (kind, advice) = match e.kind() {
            io::ErrorKind::NotFound => (ErrorKind::NotFound, "Create the topic, with enough partitions"),
            io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "Check who may read and write the files"),
            io::ErrorKind::InvalidInput => (ErrorKind::Invalid, "A name has only A-Z a-z 0-9 . _ -"),
            io::ErrorKind::InvalidData => (ErrorKind::Corrupt, "Check the disk"),
            _ => (ErrorKind::Unavailable, "Check the disk and its free space"),
        };
        Error::not_applied(kind, self.op).with_source(e).with_advice(advice)
    }

    /// Locks a file until it is closed, which the end of the process does too.
    fn lock(self, file: &File) -> Result<()> {
        let last_taken = || file.metadata().and_then(|file| file.modified()).map_err(|e| self.failed(e));
        let (mut taken, mut give_up) = (last_taken()?, self.give_up);
        loop {
            match file.try_lock() {
                Ok(()) => return file.set_modified(SystemTime::now()).map_err(|e| self.failed(e)),
                Err(TryLockError::Error(e)) => return Err(self.failed(e)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
            let now = last_taken()?;
            if now != taken {
                (taken, give_up) = (now, Instant::now() + REQUEST_TIMEOUT);
            }
            if Instant::now() > give_up {
                let advice = "Look for a process that has the file locked and hangs";
                return Err(Error::not_applied(ErrorKind::Timeout, self.op).with_advice(advice));
            }
        }
    }
}

impl Directory {
    fn topic(&self, name: &str) -> io::Result<PathBuf> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let valid = (1..=249).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('.');
        valid.then(|| self.root.join("topics").join(name)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The lock for reading, creating and deleting topics.
    fn lock_topics(&self, call: Call) -> Result<File> {
        fs::create_dir_all(self.root.join("topics")).map_err(|e| call.failed(e))?;
        let lock = File::options().append(true).create(true).open(self.root.join("lock"));
        let lock = lock.map_err(|e| call.failed(e))?;
        call.lock(&lock)?;
        Ok(lock)
    }

    fn describe(&self, name: &Arc<str>) -> io::Result<Option<TopicInfo>> {
        let topic = self.topic(name)?;
        if !fs::exists(&topic)? {
            return Ok(None);
        }
        let mut info = TopicInfo::new(name.clone(), fs::read_dir(&topic)?.count() as i32);
        info.max_record_bytes = Some(head(&File::open(topic.join("0"))?)?[1] as usize);
        (info.retention_bytes, info.append_time, info.compacted) = (Some(-1), Some(true), Some(false));
        Ok(Some(info))
    }

    fn ensure(&self, spec: &TopicSpec) -> io::Result<TopicInfo> {
        if let Some(info) = self.describe(&spec.name)? {
            return Ok(info);
        }
        // Created as a whole: a process that is killed in between has created no topic, but may leave this directory.
        let new = self.root.join("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir(&new)?;
        let identity = RandomState::new().hash_one(SystemTime::now());
        let limit = spec.max_record_bytes.unwrap_or(1 << 20) as u64;
        for index in 0..spec.partitions.unwrap_or(6).max(1) {
            let mut file = File::create(new.join(index.to_string()))?;
            file.write_all(&[identity, limit, HEAD].map(u64::to_le_bytes).concat())?;
            file.sync_all()?;
        }
        File::open(&new)?.sync_all()?;
        fs::rename(new, self.topic(&spec.name)?)?;
        File::open(self.root.join("topics"))?.sync_all()?;
        let mut info = self.describe(&spec.name)?.ok_or(io::ErrorKind::NotFound)?;
        info.created = true;
        Ok(info)
    }

    /// Locks a partition's file, and passes it on with an index that knows all records.
    fn with<T>(
        &self,
        call: Call,
        of: &Partition,
        work: impl FnOnce(&File, &mut Index) -> Result<T>,
    ) -> Result<T> {
        let path = self.topic(&of.topic).map(|topic| topic.join(of.index.to_string()));
        let file = path.and_then(|path| OpenOptions::new().read(true).write(true).open(path));
        let file = file.map_err(|e| call.failed(e).on(of))?;
        call.lock(&file).map_err(|e| e.on(of))?;
        let index = lock(&self.indexes).entry(of.clone()).or_default().clone();
        let mut index = lock(&index);
        index.catch_up(&file).map_err(|e| call.failed(e).on(of))?;
        work(&file, &mut index)
    }

    fn append(&self, call: Call, to: &Partition, records: &[NewRecord]) -> Result<Vec<Result<i64>>> {
        self.with(call, to, |file, index| {
            let (end, limit) = (index.begin(index.ends.len()), index.max_record_bytes);
            let (mut frames, mut ends, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
            for record in records {
                if record.size() as u64 > limit {
                    let error = Error::not_applied(ErrorKind::TooLarge, call.op).on(to);
                    outcomes.push(Err(error.with_advice(format!("The topic accepts {limit} bytes"))));
                    continue;
                }
                outcomes.push(Ok((index.ends.len() + ends.len()) as i64));
                encode(record, &mut frames);
                ends.push(end + frames.len() as u64);
            }
            // A process that was killed may have left a part of a frame.
            file.set_len(end).map_err(|e| call.failed(e))?;
            // After an error, some frames may have been written, and may be on the disk or not.
            let unknown = |e| Error::unknown(ErrorKind::Unavailable, call.op).on(to).with_source(e);
            file.write_all_at(&frames, end).and_then(|()| file.sync_data()).map_err(unknown)?;
            index.ends.extend(ends);
            // The last field of the head.
            file.write_all_at(&(end + frames.len() as u64).to_le_bytes(), HEAD - 8).map_err(unknown)?;
            Ok(outcomes)
        })
    }

    /// Returns at least one record from there on, if there is one.
    fn fetch(&self, call: Call, from: &Position, max_bytes: usize) -> Result<Batch> {
        let Position { partition, offset } = from;
        self.with(call, partition, |file, index| {
            let next = index.ends.len();
            let Some(first) = usize::try_from(*offset).ok().filter(|first| *first <= next) else {
                let error = Error::not_applied(ErrorKind::Invalid, call.op).on(partition);
                return Err(error.with_advice(format!("Offset {offset} is not within 0 and {next}")));
            };
            let records = index.read(file, first, max_bytes).map_err(|e| call.failed(e).on(partition))?;
            let reached = offset + records.len() as i64;
            Ok(Batch::new(records, reached, Some(next as i64)))
        })
    }
}

impl Index {
    /// Where record `n` begins, or will begin if it is the next one.
    fn begin(&self, n: usize) -> u64 {
        n.checked_sub(1).map_or(HEAD, |before| self.ends[before])
    }

    /// Reads records that others have appended. The log ends where no complete frame follows.
    fn catch_up(&mut self, mut file: &File) -> io::Result<()> {
        let ([topic, max_record_bytes, answered], size) = (head(file)?, file.metadata()?.len());
        if topic != self.topic {
            // It was deleted and created again.
            *self = Index { topic, max_record_bytes, ends: Vec::new() };
        }
        let (mut end, mut found) = (self.begin(self.ends.len()), Vec::new());
        file.seek(SeekFrom::Start(end))?;
        let mut reader = BufReader::new(file);
        while let Some(payload) = payload(&mut reader, size.saturating_sub(end))? {
            end += FRAME + payload.len() as u64;
            found.push(end);
        }
        if end < answered {
            // Not torn by a writer that was killed, but damaged: what follows must not be lost.
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !found.is_empty() {
            // Their writer may have been killed before they were on the disk.
            file.sync_data()?;
        }
        self.ends.extend(found);
        Ok(())
    }

    fn read(&self, mut file: &File, first: usize, max_bytes: usize) -> io::Result<Vec<Record>> {
        let begin = self.begin(first);
        file.seek(SeekFrom::Start(begin))?;
        let (mut reader, mut records) = (BufReader::new(file), Vec::new());
        for (n, end) in self.ends.iter().enumerate().skip(first) {
            if n > first && end - begin > max_bytes as u64 {
                break;
            }
            let payload = payload(&mut reader, end - self.begin(n))?;
            records.push(payload.and_then(|p| decode(n as i64, p)).ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(records)
    }
}

#[async_trait]
impl Log for FileLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        let topics = topics.to_vec();
        let ensured = self.run("ensure_topics", move |dir, call| {
            let _lock = dir.lock_topics(call)?;
            topics.iter().map(|spec| dir.ensure(spec).map_err(|e| call.failed(e).on(&spec.name))).collect()
        });
        ensured.await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        let names = names.to_vec();
        let described = self.run("describe_topics", move |dir, call| {
            let _lock = dir.lock_topics(call)?;
            names.iter().map(|name| dir.describe(name).map_err(|e| call.failed(e).on(name))).collect()
        });
        described.await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let (to, batch) = (to.clone(), records.to_vec());
        let appended = self.run("append", move |dir, call| dir.append(call, &to, &batch));
        appended.await.unwrap_or_else(|e| vec![Err(e); records.len()])
    }

    async fn close(&self) -> Result<()> {
        // An error means that it is already closed.
        if let Ok(_all) = self.permits.acquire_many(MAX_CALLS).await {
            self.permits.close();
        }
        Ok(())
    }
}

#[async_trait]
impl PartitionLog for FileLog {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let begun = Instant::now();
        loop {
            let from = from.clone();
            let batch = self.run("fetch", move |dir, call| dir.fetch(call, &from, limit.max_bytes)).await?;
            let left = limit.max_wait.saturating_sub(begun.elapsed());
            if !batch.records.is_empty() || left.is_zero() {
                return Ok(batch);
            }
            // Here it holds neither a permit nor a lock.
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let partitions = of.to_vec();
        let ends = self.run("offsets", move |dir, call| {
            let next = |of| dir.with(call, of, |_, index| Ok(index.ends.len() as i64));
            Ok(partitions.iter().map(|of| Ok(Offsets { first: 0, next: next(of)? })).collect())
        });
        ends.await.unwrap_or_else(|e| vec![Err(e); of.len()])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a file that was just opened begins with.
fn head(mut file: &File) -> io::Result<[u64; 3]> {
    Ok([number(&mut file)?, number(&mut file)?, number(&mut file)?])
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The next frame's payload; `None` if the rest of the file is not a complete frame.
fn payload(from: &mut impl Read, left: u64) -> io::Result<Option<Bytes>> {
    let Some(left) = left.checked_sub(FRAME) else { return Ok(None) };
    let (length, sum) = (number(from)?, number(from)?);
    if length > left {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload)?;
    Ok((checksum(&payload) == sum).then(|| payload.into()))
}

/// FNV-1a: enough to detect incomplete writes.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// Adds a frame with the record.
fn encode(record: &NewRecord, frames: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut payload = (now.as_millis() as i64).to_le_bytes().to_vec();
    let headers = record.headers.iter().flat_map(|(name, value)| [Some(name), value]);
    for part in [record.key.as_ref(), record.value.as_ref()].into_iter().chain(headers) {
        payload.extend(part.map_or(-1, |part| part.len() as i64).to_le_bytes());
        payload.extend(part.into_iter().flatten());
    }
    frames.extend([payload.len() as u64, checksum(&payload)].map(u64::to_le_bytes).concat());
    frames.extend(payload);
}

fn decode(offset: i64, mut payload: Bytes) -> Option<Record> {
    let time = payload.try_get_i64_le().ok()?;
    let (key, value, mut headers) = (part(&mut payload)?, part(&mut payload)?, Headers::new());
    while !payload.is_empty() {
        headers.push(part(&mut payload)??, part(&mut payload)?);
    }
    Some(Record::new(offset, time, key, value, headers))
}

/// Takes the first part off: its length, or -1 for none, and its bytes.
fn part(payload: &mut Bytes) -> Option<Option<Bytes>> {
    let Ok(length) = usize::try_from(payload.try_get_i64_le().ok()?) else { return Some(None) };
    (length <= payload.len()).then(|| Some(payload.split_to(length)))
}
