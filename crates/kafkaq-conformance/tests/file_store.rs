//! The guide's store keeps every rule, even while another process holds its lock.

#[path = "../examples/file_store.rs"]
#[allow(unreachable_pub)]
mod file_store;

use async_trait::async_trait;
use file_store::FileStore;
use kafkaq_conformance::{BoxError, Outage, store};
use std::{fs::File, future::ready, path::Path, process::ExitCode};

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
    // In memory where that is possible: on a busy disk a write may take longer than the store waits for its lock.
    let memory = Path::new("/dev/shm");
    let within = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let dir = within.join(format!("file-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join("lock"))?;
    let path = dir.clone();
    let kit = store("file_store", move || ready(Ok(FileStore::new(&path)))).with_outage(Locked(lock));
    let outcome = kit.run();
    std::fs::remove_dir_all(dir)?;
    Ok(outcome)
}
