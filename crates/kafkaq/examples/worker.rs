//! Handlers with retries, a dead letter, and its redrive once the cause is fixed. In memory, with nothing installed:
//! ```text
//! cargo run --example worker
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    JobStatus, Queue, TaskId,
    dead_letters::Filter,
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Failure, ResultExt, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl TaskType for SendEmail {
    const KIND: &'static str = "send_email";
}

/// State shared by all handlers: here, a mail server that knows nobody at first.
#[derive(Clone, Default)]
struct MailServer {
    knows_grace: Arc<AtomicBool>,
}

impl MailServer {
    fn deliver(&self, to: &str, attempt: u32) -> Result<(), String> {
        match to {
            "busy@example.org" if attempt < 3 => Err("the mailbox is busy".to_owned()),
            "grace@example.org" if !self.knows_grace.load(Ordering::SeqCst) => {
                Err(format!("{to} is unknown"))
            }
            _ => Ok(()),
        }
    }
}

async fn send_email(ctx: Ctx<MailServer>, email: SendEmail) -> Result<(), Failure> {
    let delivered = ctx.state().deliver(&email.to, ctx.attempt());
    println!("{}, attempt {}: {delivered:?}", email.to, ctx.attempt());
    if delivered.as_ref().is_err_and(|e| e.contains("unknown")) {
        return delivered.reject();
    }
    Ok(delivered?)
}

/// Sends three mails: one arrives, one arrives eventually, and one is a dead letter until its address is known.
///
/// # Errors
/// If a result differs from what is described here.
pub(crate) async fn send_three() -> Result<(), Box<dyn Error>> {
    let (log, store) = (Arc::new(MemoryLog::new()), MemoryStore::new());
    let queue = Queue::builder("emails").broker(log.clone()).store(store).build().await?;
    let server = MailServer::default();
    let mut worker = Worker::builder(queue.clone())
        .state(server.clone())
        .retry(Backoff::exponential(Duration::from_millis(100)..=Duration::from_secs(60)).max_failures(5))
        .on(send_email)
        .start()?;

    let mut ids = Vec::new();
    for name in ["ada", "busy", "grace"] {
        ids.push(queue.enqueue(SendEmail { to: format!("{name}@example.org") }).await?);
    }
    for (id, status) in ids.iter().zip([JobStatus::Done, JobStatus::Done, JobStatus::Dead]) {
        until(&queue, id, status).await?;
    }

    let dead = Queue::builder("emails").build_dead_letters(log).await?;
    for group in dead.groups(Filter::new()).await?.groups {
        println!("{} dead: {}", group.count, group.fingerprint);
    }
    server.knows_grace.store(true, Ordering::SeqCst);
    let mut letters = dead.letters(Filter::new()).await?;
    let letter = letters.next().await?.ok_or("no dead letter")?;
    dead.redrive(Filter::new()).run().await?;
    until(&queue, &letter.redrive_id(), JobStatus::Done).await?;

    worker.stop();
    println!("{}", worker.stopped().await?);
    Ok(())
}

async fn until(queue: &Queue, id: &TaskId, status: JobStatus) -> Result<(), Box<dyn Error>> {
    while queue.jobs().get(id).await?.status != status {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    send_three().await
}
