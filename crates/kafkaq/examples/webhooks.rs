//! Webhook deliveries. A 429 snoozes the task, which doesn't count as a failure; a 503 is retried later than other
//! errors; a 410 is permanent. tokio's clock is paused, so the minutes pass instantly. In memory, with nothing
//! installed:
//! ```text
//! cargo run --example webhooks
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    JobStatus, Queue,
    worker::{Backoff, Ctx, Failure, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Serialize, Deserialize)]
struct Webhook {
    url: String,
    event: String,
}

impl TaskType for Webhook {
    const KIND: &'static str = "webhook";
}

/// A fake of the receivers. Records when it was called, and after how many failures.
type Calls = Arc<Mutex<Vec<(Duration, u32)>>>;

/// Responds with a status and, for 429, the seconds of `Retry-After`.
fn post(url: &str, attempt: u32) -> (u16, u64) {
    match (url, attempt) {
        ("https://gone.example.org", _) => (410, 0),
        (_, 1) => (429, 90),
        (_, 2) => (503, 0),
        (_, 3) => (500, 0),
        _ => (204, 0),
    }
}

async fn deliver(ctx: Ctx<(Instant, Calls)>, hook: Webhook) -> Result<(), Failure> {
    let (began, calls) = ctx.state();
    calls.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), ctx.failures()));
    // A real one would include the task's id, so that the receiver can recognize a repeated delivery.
    let (status, retry_after) = post(&hook.url, ctx.attempt());
    println!("{:>4} s, {} to {}: {status}", began.elapsed().as_secs(), hook.event, hook.url);
    match status {
        200..=299 => Ok(()),
        429 => Err(Failure::snooze(Duration::from_secs(retry_after))),
        410 => Err(Failure::reject("410: nobody wants it any more")),
        _ => Err(Failure::retry(format!("{status}"))),
    }
}

/// Ten minutes for a server that is down; for any other error one second, doubling up to an hour.
fn policy(failure: u32, reason: &str) -> Duration {
    match reason {
        "503" => Duration::from_secs(600),
        _ => Duration::from_secs(1 << failure.saturating_sub(1).min(11)).min(Duration::from_secs(3600)),
    }
}

/// Delivers to a difficult receiver, and to one that is gone.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn deliver_two() -> Result<(), Box<dyn Error>> {
    let queue = Queue::builder("webhooks").build().await?;
    let (began, calls) = (Instant::now(), Calls::default());
    let mut worker = Worker::builder(queue.clone())
        .state((began, calls.clone()))
        .retry(Backoff::custom(policy).jitter(false).max_failures(12))
        .on(deliver)
        .start()?;
    for (url, status) in
        [("https://busy.example.org", JobStatus::Done), ("https://gone.example.org", JobStatus::Dead)]
    {
        let id = queue.enqueue(Webhook { url: url.into(), event: "order.paid".into() }).await?;
        while queue.jobs().get(&id).await?.status != status {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    worker.stop();
    println!("{}", worker.stopped().await?);

    let calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(calls.iter().map(|(_, failures)| *failures).collect::<Vec<_>>(), [0, 0, 1, 2, 0]);
    let waited = calls.windows(2).map(|two| (two[1].0 - two[0].0).as_secs()).collect::<Vec<_>>();
    assert_eq!(waited[..3], [90, 600, 2], "between the deliveries");
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    deliver_two().await
}
