//! What a shutdown waits for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod leased;

use common::{next, quick, soon};
use kafkaq::{
    Result, Task,
    memory::{MemoryLog, MemoryStore},
};
use leased::Store;
use std::time::Duration;
use tokio::time::Instant;

const LEASE: Duration = Duration::from_secs(3);

/// Nobody has had them, and once their leases have ended nothing is left to give back.
#[tokio::test(start_paused = true)]
async fn jobs_that_nobody_has_taken_keep_a_shutdown_waiting_for_a_lease_at_most() -> Result<()> {
    let store = Store::default();
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).store(store.clone()).lease_duration(LEASE);
    let queue = queue.build().await?;
    for outcome in queue.publish_many((0..10).map(|n| Task::new(n.to_string()))).await {
        outcome?;
    }
    soon(next(&queue).await.done()).await.unwrap();
    while queue.stats().await.ready < 9 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.set_away(true);
    let began = Instant::now();
    let shut_down = soon(queue.shutdown(20 * LEASE)).await;
    let took = began.elapsed();
    assert!(shut_down.is_ok() && took < 2 * LEASE, "{shut_down:?} after {took:?}");
    Ok(())
}
