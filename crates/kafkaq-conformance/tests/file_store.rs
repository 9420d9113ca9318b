//! The guide's store keeps every rule, even while another process holds its lock.

#[path = "../examples/file_store.rs"]
#[allow(unreachable_pub)]
mod file_store;

use async_trait::async_trait;
use file_store::FileStore;
use kafkaq_conformance::{BoxError, Outage, store};
use std::{fs::File, future::ready, path::PathBuf, process::ExitCode};

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
    std::fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join("lock"))?;
    let path = dir.clone();
    let kit = store("file_store", move || ready(Ok(FileStore::new(&path)))).with_outage(Locked(lock));
    let outcome = kit.run();
    std::fs::remove_dir_all(dir)?;
    Ok(outcome)
}
