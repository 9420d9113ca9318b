//! Leases in a single file, for a few thousand tasks at a time: each batch of swaps rewrites it.
//!
//! Clients of any number of processes may share the file. It survives processes that are killed at any point.

use async_trait::async_trait;
use bytes::Bytes;
use kafkaq_core::{Error, ErrorKind, Key, LeaseStore, Result, Swap, Swapped};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;

/// How long a call waits for the lock while one and the same process has it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A blocking client behind calls that don't block. One call uses it at a time; `None`: it is closed.
#[derive(Debug)]
struct Blocking<C>(Arc<Mutex<Option<C>>>);

impl<C: Send + 'static> Blocking<C> {
    fn new(client: C) -> Self {
        Blocking(Arc::new(Mutex::new(Some(client))))
    }

    /// Runs `work`, with the time of the call, on a thread that may block. It continues if the caller is dropped, and
    /// the next call waits for it.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&mut C, Instant) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let called = Instant::now();
        let mut client = self.0.clone().lock_owned().await;
        let working = tokio::task::spawn_blocking(move || match client.as_mut() {
            Some(client) => work(client, called),
            None => Err(Error::not_applied(ErrorKind::Closed, op)),
        });
        // It panicked, and it is unknown how far it got.
        working.await.unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, op).with_source(e)))
    }

    /// Waits for the call in flight.
    async fn close(&self) {
        *self.0.lock().await = None;
    }
}

/// A client of a directory.
#[derive(Debug)]
pub struct FileStore(Blocking<Directory>);

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// When a call last gave up waiting for the lock.
    gave_up: Option<Instant>,
}

/// Key, value, and the time in milliseconds until which it lives.
type Leases = HashMap<String, (Bytes, u64)>;

impl FileStore {
    /// A client of this directory. Nothing is read or created before the first call.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        FileStore(Blocking::new(Directory { path: dir.as_ref().to_path_buf(), gave_up: None }))
    }
}

impl Directory {
    /// The lock that all processes share. It is unlocked when it is dropped, and when the process ends.
    ///
    /// A crowd that passes the lock on is waited for, a process that keeps it isn't. Calls that were made before one
    /// gave up fail with it, so none waits longer than twice `LOCK_TIMEOUT` for a process that hangs.
    fn lock(&mut self, op: &'static str, called: Instant) -> Result<File> {
        let path = self.path.join("lock");
        let failed = |e: io::Error| not_applied(op, e).on(path.display());
        fs::create_dir_all(&self.path).map_err(failed)?;
        let lock = File::options().append(true).create(true).open(&path).map_err(failed)?;
        let (mut taken, mut since) = (None, Instant::now());
        while lock.try_lock().is_err() {
            let last_taken = Some(lock.metadata().and_then(|lock| lock.modified()).map_err(failed)?);
            if last_taken != taken {
                (taken, since) = (last_taken, Instant::now());
            }
            if since.elapsed() > LOCK_TIMEOUT {
                self.gave_up = Some(Instant::now());
            }
            if self.gave_up.is_some_and(|gave_up| gave_up > called) {
                let error = Error::not_applied(ErrorKind::Timeout, op).on(path.display());
                return Err(error.with_advice("Look for a process that has it locked and hangs"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        lock.set_modified(SystemTime::now()).map_err(failed)?;
        Ok(lock)
    }

    /// All leases that are alive.
    fn read(&self) -> io::Result<Leases> {
        let file = self.path.join("leases");
        let mut bytes = if fs::exists(&file)? { fs::read(file)?.into() } else { Bytes::new() };
        let (mut leases, now) = (Leases::new(), now_ms());
        while !bytes.is_empty() {
            let (key, value, until) = decode(&mut bytes).ok_or(io::ErrorKind::InvalidData)?;
            leases.extend((until > now).then_some((key, (value, until))));
        }
        Ok(leases)
    }

    /// Replaces the file as a whole: a process that dies in the middle has changed nothing.
    fn write(&self, leases: &Leases) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, (value, until)) in leases {
            bytes.extend([key.len() as u64, value.len() as u64, *until].map(u64::to_le_bytes).concat());
            bytes.extend([key.as_bytes(), value].concat());
        }
        fs::write(self.path.join("new"), bytes)?;
        fs::rename(self.path.join("new"), self.path.join("leases"))
    }
}

/// Takes the first lease off: the lengths of key and value, until when it lives, key, value.
fn decode(bytes: &mut Bytes) -> Option<(String, Bytes, u64)> {
    let number = |n: usize| Some(u64::from_le_bytes(*bytes.get(8 * n..)?.first_chunk()?));
    let (key, value, until) = (number(0)? as usize, number(1)? as usize, number(2)?);
    bytes.get(..24 + key + value)?;
    let lease = bytes.split_to(24 + key + value);
    Some((String::from_utf8(lease[24..24 + key].to_vec()).ok()?, lease.slice(24 + key..), until))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The error of an operation that certainly changed nothing.
fn not_applied(op: &'static str, e: io::Error) -> Error {
    let kind = match e.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::not_applied(kind, op).with_source(e)
}

#[async_trait]
impl LeaseStore for FileStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        let leases = self.0.run("get", |dir, called| {
            let _lock = dir.lock("get", called)?;
            dir.read().map_err(|e| not_applied("get", e))
        });
        match leases.await {
            Ok(leases) => keys.iter().map(|key| Ok(current(&leases, key))).collect(),
            Err(e) => vec![Err(e); keys.len()],
        }
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let batch = swaps.to_vec();
        let swapped = self.0.run("swap", move |dir, called| {
            let _lock = dir.lock("swap", called)?;
            let mut leases = dir.read().map_err(|e| not_applied("swap", e))?;
            let outcomes: Vec<_> = batch.into_iter().map(|swap| Ok(apply(&mut leases, swap))).collect();
            // A rename that reports an error may have happened.
            dir.write(&leases).map_err(|e| Error::unknown(ErrorKind::Unavailable, "swap").with_source(e))?;
            Ok(outcomes)
        });
        swapped.await.unwrap_or_else(|e| vec![Err(e); swaps.len()])
    }

    async fn check(&self) -> Result<Vec<String>> {
        self.0.run("check", |dir, called| dir.lock("check", called).map(drop)).await?;
        Ok(Vec::new())
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await;
        Ok(())
    }
}

fn current(leases: &Leases, key: &Key) -> Option<Bytes> {
    leases.get(key.as_str()).map(|(value, _)| value.clone())
}

fn apply(leases: &mut Leases, swap: Swap) -> Swapped {
    let there = current(leases, &swap.key);
    if there != swap.expect {
        return Swapped::Conflict(there);
    }
    // Rounded up, because a value may live longer but never shorter.
    let lives = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    let until = swap.ttl.map_or(u64::MAX, |ttl| now_ms().saturating_add(lives(ttl)));
    match swap.new {
        Some(value) => leases.insert(swap.key.as_str().into(), (value, until)),
        None => leases.remove(swap.key.as_str()),
    };
    Swapped::Done
}
