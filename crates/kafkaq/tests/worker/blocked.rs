//! Handlers that block all threads of a worker. In real time, since the threads are real.

use crate::common::{PATIENCE, quick, soon};
use kafkaq::{
    JobStatus, Queue, TaskId,
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, TaskType, Worker, WorkerHandle},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

#[derive(Serialize, Deserialize)]
struct Block;

impl TaskType for Block {
    const KIND: &'static str = "block";
}

#[derive(Serialize, Deserialize)]
struct Pass;

impl TaskType for Pass {
    const KIND: &'static str = "pass";
}

/// A worker with one thread, which `Block` blocks until it is released.
struct Site {
    queue: Queue,
    running: WorkerHandle,
    blocked: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
    release: mpsc::Sender<()>,
}

async fn site() -> Site {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await.unwrap();
    let (blocked, passed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (release, released) = mpsc::channel();
    let (block, pass, released) = (blocked.clone(), passed.clone(), Arc::new(Mutex::new(released)));
    let running = Worker::builder(queue.clone())
        .threads(1)
        .concurrency(2)
        .grace(Duration::ZERO)
        .shutdown_limit(Duration::ZERO)
        .on(move |_: Ctx, _: Block| {
            let (block, released) = (block.clone(), released.clone());
            async move {
                block.fetch_add(1, SeqCst);
                let _ = released.lock().unwrap().recv();
            }
        })
        .on(move |_: Ctx, _: Pass| {
            pass.fetch_add(1, SeqCst);
            async {}
        })
        .start()
        .unwrap();
    Site { queue, running, blocked, passed, release }
}

impl Site {
    async fn until(&self, what: &str, mut is_so: impl FnMut(&Site) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "waited for {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_done(&self, id: &TaskId) {
        let begun = Instant::now();
        while self.queue.jobs().get(id).await.unwrap().status != JobStatus::Done {
            assert!(begun.elapsed() < PATIENCE, "not done");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_confirmed_and_a_stop_completes_while_all_threads_are_blocked() {
    for _ in 0..20 {
        let mut site = site().await;
        // Whichever runs first: the end of one has to be confirmed while the other blocks the only thread.
        let pass = site.queue.enqueue(Pass).await.unwrap();
        site.queue.enqueue(Block).await.unwrap();
        site.until("the thread to be blocked", |site| site.blocked.load(SeqCst) == 1).await;
        if site.passed.load(SeqCst) == 1 {
            site.until_done(&pass).await;
        }
        site.running.stop();
        let report = soon(site.running.stopped()).await.unwrap();
        assert_eq!(report.done as usize, site.passed.load(SeqCst), "{report}");
        site.release.send(()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_cannot_start_is_given_back_and_not_started_later() {
    let mut site = site().await;
    site.queue.enqueue(Block).await.unwrap();
    site.until("the thread to be blocked", |site| site.blocked.load(SeqCst) == 1).await;
    let pass = site.queue.enqueue(Pass).await.unwrap();
    site.until("the other to be given back", |site| site.running.report().released == 1).await;
    site.release.send(()).unwrap();
    site.until_done(&pass).await;
    let info = site.queue.jobs().get(&pass).await.unwrap();
    assert_eq!((site.passed.load(SeqCst), info.attempts, info.failures), (1, 2, 0));
    site.running.stop();
    assert_eq!(soon(site.running.stopped()).await.unwrap().released, 1);
}
