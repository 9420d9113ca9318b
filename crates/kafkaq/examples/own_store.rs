//! A custom lease store, over a map: four methods, of which `swap` is the one that matters. See the guide of
//! `kafkaq-conformance` for what a production store needs; its kit tests it. With nothing installed:
//! ```text
//! cargo run --example own_store
//! ```
#![allow(clippy::print_stdout)]

use async_trait::async_trait;
use bytes::Bytes;
use kafkaq::{
    Error as QueueError, ErrorKind, JobStatus, Queue, Result, Task, TaskId,
    backend::{Key, LeaseStore, Swap, Swapped},
    memory::MemoryLog,
};
use std::{
    collections::HashMap,
    error::Error,
    sync::{Mutex, PoisonError},
};
use tokio::time::Instant;

/// `None`: it is closed.
#[derive(Debug)]
struct MapStore(Mutex<Option<Leases>>);

/// Values, and when they expire.
type Leases = HashMap<Key, (Bytes, Option<Instant>)>;

impl MapStore {
    fn new() -> Self {
        MapStore(Mutex::new(Some(Leases::new())))
    }

    /// One outcome per item, in their order.
    fn each<T, R>(
        &self,
        op: &'static str,
        items: &[T],
        call: impl Fn(&mut Leases, &T) -> R,
    ) -> Vec<Result<R>> {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |item| match leases.as_mut() {
            Some(leases) => Ok(call(leases, item)),
            None => Err(QueueError::not_applied(ErrorKind::Closed, op)),
        };
        items.iter().map(one).collect()
    }
}

fn alive(leases: &Leases, key: &Key) -> Option<Bytes> {
    let (value, ends) = leases.get(key)?;
    ends.is_none_or(|ends| Instant::now() < ends).then(|| value.clone())
}

#[async_trait]
impl LeaseStore for MapStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        self.each("get", keys, |leases, key| alive(leases, key))
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        self.each("swap", swaps, |leases, swap| {
            let found = alive(leases, &swap.key);
            // Values are compared byte for byte. This and what follows must be atomic.
            if found != swap.expect {
                return Swapped::Conflict(found);
            }
            match &swap.new {
                // A time that overflows means forever: a value may live longer, never shorter.
                Some(new) => {
                    let ends = swap.ttl.and_then(|ttl| Instant::now().checked_add(ttl));
                    leases.insert(swap.key.clone(), (new.clone(), ends));
                }
                None => drop(leases.remove(&swap.key)),
            }
            Swapped::Done
        })
    }

    async fn check(&self) -> Result<Vec<String>> {
        Ok(vec!["A map loses everything when the process ends, which causes repeated executions".to_owned()])
    }

    async fn close(&self) -> Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// Executes a task with the store, and shows that the queue remembers it.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn use_it() -> std::result::Result<(), Box<dyn Error>> {
    let queue = Queue::builder("emails").broker(MemoryLog::new()).store(MapStore::new()).build().await?;
    let welcome = Task::new("hello").with_id(TaskId::new("welcome-17")?).with_key("one partition");
    let id = queue.publish(welcome.clone()).await?;
    let job = queue.get_job().await?;
    assert_eq!(queue.jobs().get(&id).await?.status, JobStatus::Processing);
    job.done().await?;
    assert_eq!(queue.jobs().get(&id).await?.status, JobStatus::Done);

    // The store remembers that it is done, so only the second of these two is handed out.
    queue.publish(welcome).await?;
    let next = Task::new("again").with_id(TaskId::new("welcome-18")?).with_key("one partition");
    let next = queue.publish(next).await?;
    let job = queue.get_job().await?;
    assert_eq!(job.id(), &next);
    job.done().await?;
    println!("{id} and {next} were executed once each");
    Ok(())
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    use_it().await
}
