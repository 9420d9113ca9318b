//! The examples that end by themselves.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../examples/worker.rs"]
mod worker;

#[tokio::test(start_paused = true)]
async fn worker() {
    worker::send_three().await.unwrap();
}

#[cfg(feature = "testing")]
#[path = "../examples/idempotency.rs"]
mod idempotency;

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn idempotency() {
    idempotency::torture_both().await.unwrap();
}
