//! The guide's store keeps every rule, also while somebody sits on its lock.

#[path = "../examples/file_store.rs"]
#[allow(unreachable_pub)]
mod file_store;

use async_trait::async_trait;
use file_store::FileStore;
use kafkaq_conformance::{BoxError, Outage};
use std::{fs::File, path::PathBuf, process::ExitCode, time::Duration};

/// Another process that has the lock and hangs.
struct Locked(File);

#[async_trait]
impl Outage for Locked {
    async fn cut(&self) -> Result<(), BoxError> {
        Ok(self.0.lock()?)
    }

    async fn restore(&self) -> Result<(), BoxError> {
        Ok(self.0.unlock()?)
    }
}

fn main() -> Result<ExitCode, BoxError> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("file-store-{}", std::process::id()));
    drop(FileStore::open(&dir)?);
    let lock = File::create(dir.join("lock"))?;
    let (path, limit) = (dir.clone(), Duration::from_secs(10));
    let kit = kafkaq_conformance::store("file_store", move || {
        let path = path.clone();
        async move { Ok(FileStore::open(path)?) }
    });
    let outcome = kit.with_outage(Locked(lock)).answers_within(limit).run();
    std::fs::remove_dir_all(dir)?;
    Ok(outcome)
}
