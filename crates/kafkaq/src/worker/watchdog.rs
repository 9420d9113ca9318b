//! Notices that handlers block all handler threads.

use super::run::Shared;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How often the threads are probed with an empty task, and how long that may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs until it is aborted. If handlers have no threads of their own, they would block this, too.
pub(super) async fn watch(shared: Arc<Shared>) {
    let Some(threads) = shared.threads.own() else { return };
    loop {
        sleep(PATIENCE).await;
        let (begun, mut patience) = (Instant::now(), PATIENCE);
        let mut probe = threads.spawn(async {});
        while timeout(patience, &mut probe).await.is_err() {
            let (blocked, handlers) = (begun.elapsed(), shared.keeper.on_threads());
            tracing::warn!(
                target: "kafkaq", ?blocked, handlers,
                "handlers block all threads of the worker, so no other handler makes progress"
            );
            patience = blocked;
        }
        if begun.elapsed() >= PATIENCE {
            tracing::info!(target: "kafkaq", blocked = ?begun.elapsed(), "the worker's threads are free again");
        }
    }
}
