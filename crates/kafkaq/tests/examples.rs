//! Runs the examples that end by themselves.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../examples/dead_letters.rs"]
mod dead_letters;
#[path = "../examples/deploy.rs"]
mod deploy;
#[path = "../examples/email_axum.rs"]
mod email_axum;
#[path = "../examples/own_store.rs"]
mod own_store;
#[path = "../examples/thumbnails.rs"]
mod thumbnails;
#[path = "../examples/webhooks.rs"]
mod webhooks;
#[path = "../examples/worker.rs"]
mod worker;

#[tokio::test(start_paused = true)]
async fn worker() {
    worker::send_three().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn email_axum() {
    email_axum::post_twice().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn thumbnails() {
    thumbnails::make_twenty().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn webhooks() {
    webhooks::deliver_two().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_letters() {
    dead_letters::redrive().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy() {
    deploy::replace_both().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn own_store() {
    own_store::use_it().await.unwrap();
}

#[cfg(feature = "cron")]
#[path = "../examples/cron_report.rs"]
mod cron_report;

#[cfg(feature = "cron")]
#[tokio::test(flavor = "multi_thread")]
async fn cron_report() {
    cron_report::run_three().await.unwrap();
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
