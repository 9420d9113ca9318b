//! The examples that end by themselves.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../examples/worker.rs"]
mod worker;

#[tokio::test(start_paused = true)]
async fn worker() {
    worker::send_three().await.unwrap();
}
