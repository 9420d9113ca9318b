//! The worker, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod batch;
mod blocked;
mod children;
#[path = "../common/mod.rs"]
mod common;
mod endurance;
mod expiry;
#[path = "../leased/mod.rs"]
mod leased;
mod leases;
mod limits;
mod outcomes;
mod pause;
mod queues;
mod runtime;
mod stops;
mod watchdog;

use common::PATIENCE;
pub(crate) use common::{stop, until};
use kafkaq::{
    JobStatus, Queue, TaskId,
    worker::{BoxError, Ctx, TaskType, Worker, WorkerBuilder},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Greet {
    pub(crate) name: String,
}

impl TaskType for Greet {
    const KIND: &'static str = "greet";
    const VERSION: u16 = 3;

    fn upgrade(from: u16, payload: &[u8]) -> Result<Self, BoxError> {
        match from {
            2 => Ok(Greet { name: String::from_utf8(payload.to_vec())? }),
            _ => Err("too old".into()),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Count(pub(crate) u32);

impl TaskType for Count {
    const KIND: &'static str = "count";
}

pub(crate) fn greet(name: &str) -> Greet {
    Greet { name: name.to_owned() }
}

/// What handlers have seen.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) async fn until(&self, n: usize) -> Vec<String> {
        until("handlers to be called", || self.0.lock().unwrap().len() >= n).await;
        self.all()
    }
}

pub(crate) async fn queue() -> Queue {
    Queue::builder("greetings").lease_duration(LEASE).build().await.unwrap()
}

pub(crate) async fn status(queue: &Queue, id: &TaskId) -> JobStatus {
    queue.jobs().get(id).await.unwrap().status
}

pub(crate) async fn until_status(queue: &Queue, id: &TaskId, wanted: JobStatus) {
    let begun = std::time::Instant::now();
    while status(queue, id).await != wanted {
        assert!(begun.elapsed() < PATIENCE, "{id} is {:?}", status(queue, id).await);
        sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn worker(queue: &Queue) -> WorkerBuilder {
    Worker::builder(queue.clone())
}

pub(crate) fn handler<S>(seen: &Seen) -> impl Fn(Ctx<S>, Greet) -> std::future::Ready<()> + use<S> {
    let seen = seen.clone();
    move |_, task| {
        seen.note(task.name);
        std::future::ready(())
    }
}
