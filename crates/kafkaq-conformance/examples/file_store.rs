//! Leases in one file, for a few thousand tasks at a time: each batch of swaps writes it anew.
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
use tokio::sync::RwLock;

/// No call waits longer for the lock.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of a directory.
#[derive(Debug)]
pub struct FileStore {
    dir: Arc<Directory>,
    /// Whether it is open. Calls that are under way keep it from being closed.
    open: Arc<RwLock<bool>>,
}

#[derive(Debug)]
struct Directory(PathBuf);

/// Key, value, and the time in milliseconds until which it lives.
type Leases = HashMap<String, (Bytes, u64)>;

impl FileStore {
    /// A client of this directory, which is made if it is missing.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let dir = Arc::new(Directory(dir.as_ref().to_path_buf()));
        Ok(FileStore { dir, open: Arc::new(RwLock::new(true)) })
    }

    /// Runs `work` while no other call does, on a thread that may block. A dropped caller doesn't stop it.
    async fn with<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Directory, Leases) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (dir, open) = (self.dir.clone(), self.open.clone().read_owned().await);
        let call = tokio::task::spawn_blocking(move || {
            if !*open {
                return Err(Error::not_applied(ErrorKind::Closed, op));
            }
            let failed = |e: io::Error| Error::not_applied(ErrorKind::Other, op).with_source(e);
            // Unlocked when it is dropped, also by the end of the process.
            let lock = File::create(dir.0.join("lock")).map_err(failed)?;
            let give_up = Instant::now() + REQUEST_TIMEOUT;
            while let Err(e) = lock.try_lock() {
                if Instant::now() > give_up {
                    return Err(Error::not_applied(ErrorKind::Timeout, op).on("the lock").with_source(e));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            work(&dir, dir.read().map_err(failed)?)
        });
        call.await.unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, op).with_source(e)))
    }
}

impl Directory {
    /// All leases that are alive.
    fn read(&self) -> io::Result<Leases> {
        let file = self.0.join("leases");
        let mut bytes = if fs::exists(&file)? { fs::read(file)?.into() } else { Bytes::new() };
        let (mut leases, now) = (Leases::new(), now_ms());
        while !bytes.is_empty() {
            let (key, value, until) = decode(&mut bytes).ok_or(io::ErrorKind::InvalidData)?;
            leases.extend((until > now).then_some((key, (value, until))));
        }
        Ok(leases)
    }

    /// Replaces the file as a whole: whoever dies in the middle has changed nothing.
    fn write(&self, leases: &Leases) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, (value, until)) in leases {
            bytes.extend([key.len() as u64, value.len() as u64, *until].map(u64::to_le_bytes).concat());
            bytes.extend([key.as_bytes(), value].concat());
        }
        fs::write(self.0.join("new"), bytes)?;
        fs::rename(self.0.join("new"), self.0.join("leases"))
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

#[async_trait]
impl LeaseStore for FileStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        let leases = self.with("get", |_, leases| Ok(leases)).await;
        let value = |leases: &Leases, key: &Key| leases.get(key.as_str()).map(|(value, _)| value.clone());
        keys.iter().map(|key| leases.as_ref().map(|all| value(all, key)).map_err(Error::clone)).collect()
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let asked = swaps.to_vec();
        let swapped = self.with("swap", move |dir, mut leases| {
            let outcomes = asked.into_iter().map(|swap| apply(&mut leases, swap)).collect::<Vec<_>>();
            // A rename that reports an error may have happened.
            dir.write(&leases).map_err(|e| Error::unknown(ErrorKind::Other, "swap").with_source(e))?;
            Ok(outcomes)
        });
        swapped.await.map_or_else(|e| vec![Err(e); swaps.len()], |all| all.into_iter().map(Ok).collect())
    }

    async fn check(&self) -> Result<Vec<String>> {
        self.with("check", |_, _| Ok(Vec::new())).await
    }

    async fn close(&self) -> Result<()> {
        *self.open.write().await = false;
        Ok(())
    }
}

fn apply(leases: &mut Leases, swap: Swap) -> Swapped {
    let there = leases.get(swap.key.as_str()).map(|(value, _)| value.clone());
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
