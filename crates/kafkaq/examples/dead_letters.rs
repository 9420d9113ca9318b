//! Dealing with dead letters: count them by reason, try a redrive with a dry run, redrive one as a canary and then the
//! rest, and discard what nobody needs. In memory, with nothing installed:
//! ```text
//! cargo run --example dead_letters
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    JobStatus, Queue, TaskId,
    dead_letters::{Filter, Fingerprint, RedriveState},
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, Failure, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

#[derive(Serialize, Deserialize)]
struct Invoice {
    customer: u32,
}

impl TaskType for Invoice {
    const KIND: &'static str = "invoice";
}

/// Every tenth customer has left. The addresses of the others are unknown until somebody fixes that.
async fn send_invoice(ctx: Ctx<Arc<AtomicBool>>, Invoice { customer }: Invoice) -> Result<(), Failure> {
    if customer.is_multiple_of(10) {
        return Err(Failure::reject(format!("customer {customer} has left")));
    }
    if !ctx.state().load(SeqCst) {
        return Err(Failure::reject(format!("no address of customer {customer}")));
    }
    Ok(())
}

/// Dead-letters thirty tasks, and deals with them.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn redrive() -> Result<(), Box<dyn Error>> {
    let (log, is_mended) = (Arc::new(MemoryLog::new()), Arc::new(AtomicBool::new(false)));
    let builder = Queue::builder("invoices");
    let queue = builder.clone().broker(log.clone()).store(MemoryStore::new()).build().await?;
    let mut worker = Worker::builder(queue.clone()).state(is_mended.clone()).on(send_invoice).start()?;
    for id in queue.enqueue_many((1..=30).map(|customer| Invoice { customer })).await {
        until(&queue, &id?, JobStatus::Dead).await?;
    }

    // An operator's process only needs the log.
    let dead = builder.build_dead_letters(log).await?;
    for group in dead.groups(Filter::new()).await?.groups {
        println!("{:>2} {}", group.count, group.fingerprint);
    }
    let no_address = || Filter::new().fingerprint(Fingerprint::new("no address of customer 1"));
    let would = dead.redrive(no_address()).dry_run().run().await?;
    assert_eq!((would.redriven, dead.count(Filter::new()).await?), (27, 30), "nothing was done yet");

    is_mended.store(true, SeqCst);
    let mut redrive = dead.redrive(no_address()).canary(1).rate(1000);
    assert_eq!(redrive.run().await?.state, RedriveState::Canary);
    let canary = redrive.canary_ids().first().ok_or("no canary")?.clone();
    until(&queue, &canary, JobStatus::Done).await?;
    let report = redrive.run().await?;
    assert_eq!((report.state, report.redriven), (RedriveState::Complete, 27));

    assert_eq!(dead.discard(Filter::new()).await?, 3, "of the customers that have left");
    assert_eq!(dead.count(Filter::new()).await?, 0);
    while worker.report().done < 27 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    redrive().await
}
