//! The guide's log keeps every rule, even while another process holds its locks, and so does a group over it.

#[path = "../examples/file_log.rs"]
#[allow(unreachable_pub)]
mod file_log;

use async_trait::async_trait;
use file_log::FileLog;
use kafkaq::{LeasedGroup, memory::MemoryStore};
use kafkaq_conformance::{BoxError, Outage, Suite, broker, log};
use std::{
    fs::{self, File},
    future::ready,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Five seconds for a lock, plus some for the disk.
const CALL: Duration = Duration::from_secs(12);
/// A group settles in steps of a tenth of it.
const MEMBER: Duration = Duration::from_secs(5);

/// Another process that has all files locked, and hangs.
struct Locked {
    dir: PathBuf,
    locks: Mutex<Vec<File>>,
}

impl Locked {
    fn hold(&self, files: Vec<File>) {
        *self.locks.lock().unwrap_or_else(PoisonError::into_inner) = files;
    }
}

#[async_trait]
impl Outage for Locked {
    async fn cut(&self) -> Result<(), BoxError> {
        // From here on no topic is created.
        let mut files = vec![lock(&self.dir.join("lock"))?];
        for topic in fs::read_dir(self.dir.join("topics"))? {
            for partition in fs::read_dir(topic?.path())? {
                files.push(lock(&partition?.path())?);
            }
        }
        self.hold(files);
        Ok(())
    }

    async fn restore(&self) -> Result<(), BoxError> {
        self.hold(Vec::new());
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File, BoxError> {
    let file = File::open(path)?;
    file.lock()?;
    Ok(file)
}

/// Deletes a topic under the lock that everybody takes to access topics.
fn delete(dir: &Path, topic: &str) -> Result<(), BoxError> {
    let _lock = lock(&dir.join("lock"))?;
    Ok(fs::remove_dir_all(dir.join("topics").join(topic))?)
}

fn directory(name: &str) -> Result<(PathBuf, Locked), BoxError> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    Ok((dir.clone(), Locked { dir, locks: Mutex::default() }))
}

fn main() -> Result<ExitCode, BoxError> {
    let (of_log, outage) = directory("file-log")?;
    let dir = of_log.clone();
    let log = log("file_log", move || ready(Ok(FileLog::new(&dir)))).with_outage(outage);
    let (of_group, outage) = directory("file-group")?;
    let (dir, topics, store) = (of_group.clone(), of_group.clone(), MemoryStore::new());
    let join =
        move || ready(Ok(LeasedGroup::new(FileLog::new(&dir), store.clone()).with_member_timeout(MEMBER)));
    let group = broker("file_group", join)
        .with_outage(outage)
        .with_topic_deletion(move |topic| ready(delete(&topics, &topic)));
    let outcome = Suite::from(log.answers_within(CALL)).and(group.answers_within(CALL)).run();
    fs::remove_dir_all(of_log)?;
    fs::remove_dir_all(of_group)?;
    Ok(outcome)
}
