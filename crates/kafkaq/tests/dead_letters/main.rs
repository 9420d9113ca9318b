//! Handling of dead letters, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod browse;
#[path = "../common/mod.rs"]
mod common;
mod faulty;
mod redrive;

use common::{LEASE, next, quick, soon};
use kafkaq::{
    DeadLetters, Queue, Task, TaskId,
    backend::{Log, NewRecord, Partition},
    dead_letters::{Filter, Place},
    memory::{MemoryLog, MemoryStore},
};

pub(crate) const DEAD: &str = "emails.kafkaq.dead";

pub(crate) struct Rig {
    pub(crate) log: MemoryLog,
    pub(crate) store: MemoryStore,
    pub(crate) queue: Queue,
    pub(crate) dead: DeadLetters,
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        let (log, store) = (MemoryLog::new(), MemoryStore::new());
        let queue = quick(&log, &store).build().await.unwrap();
        let dead = open(&log, &store).await;
        Rig { log, store, queue, dead }
    }

    /// Publishes a task and rejects it.
    pub(crate) async fn kill(&self, task: Task, reason: &str) -> TaskId {
        let id = self.queue.publish(task).await.unwrap();
        let job = next(&self.queue).await;
        assert_eq!(job.id(), &id);
        soon(job.reject(reason)).await.unwrap();
        id
    }

    pub(crate) async fn kill_many(&self, n: usize) {
        for i in 0..n {
            self.kill(task(i), &format!("user {i} not found")).await;
        }
    }

    /// Ends all jobs that there are, and returns their payloads.
    pub(crate) async fn run_all(&self) -> Vec<String> {
        let mut payloads = Vec::new();
        while let Ok(job) = tokio::time::timeout(2 * LEASE, self.queue.get_job()).await {
            let job = job.unwrap();
            payloads.push(String::from_utf8(job.payload().to_vec()).unwrap());
            soon(job.done()).await.unwrap();
        }
        payloads.sort();
        payloads
    }

    pub(crate) async fn places(&self, filter: Filter) -> Vec<Place> {
        let mut letters = self.dead.letters(filter).await.unwrap();
        letters.next_page(1000).await.unwrap().into_iter().map(|letter| letter.place).collect()
    }
}

pub(crate) async fn open(log: &MemoryLog, store: &MemoryStore) -> DeadLetters {
    quick(log, store).build_dead_letters(log.clone()).await.unwrap()
}

pub(crate) fn task(i: usize) -> Task {
    Task::new(format!("{i:03}")).with_header("task-kind", if i.is_multiple_of(2) { "even" } else { "odd" })
}

pub(crate) fn payloads(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{i:03}")).collect()
}

pub(crate) async fn append(log: &MemoryLog, topic: &str, record: NewRecord) {
    log.append(&Partition::new(topic, 0), &[record]).await.remove(0).unwrap();
}
