//! The examples that end by themselves.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../examples/worker.rs"]
mod worker;

#[tokio::test(start_paused = true)]
async fn worker() {
    worker::send_three().await.unwrap();
}

#[path = "../examples/one_at_a_time.rs"]
mod one_at_a_time;

#[tokio::test(start_paused = true)]
async fn one_at_a_time() {
    one_at_a_time::order_and_recalculate().await.unwrap();
}

#[cfg(feature = "testing")]
#[path = "../examples/idempotency.rs"]
mod idempotency;

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn idempotency() {
    idempotency::torture_both().await.unwrap();
}
