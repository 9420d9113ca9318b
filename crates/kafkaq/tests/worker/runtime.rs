//! A queue and its worker on a runtime of their own, next to code that blocks the threads of another.

use crate::common::{LEASE, PATIENCE, quick};
use kafkaq::{
    JobStatus,
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Instant,
};
use tokio::{runtime::Builder, time::sleep};

#[derive(Serialize, Deserialize)]
struct Long;

impl TaskType for Long {
    const KIND: &'static str = "long";
}

/// Another process would take the task, if its lease were not renewed.
#[test]
fn a_handler_of_three_leases_runs_once_while_every_thread_of_the_program_is_blocked() {
    let program = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let own = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let runs = Arc::new(AtomicUsize::new(0));
    let (begun, begins) = mpsc::channel();
    let start = async |log: &MemoryLog, store: &MemoryStore| {
        let queue = quick(log, store).build().await.unwrap();
        let (count, begun) = (runs.clone(), begun.clone());
        let handler = move |_: Ctx, _: Long| {
            count.fetch_add(1, SeqCst);
            let _ = begun.send(());
            sleep(3 * LEASE)
        };
        let running = Worker::builder(queue.clone()).on(handler).start().unwrap();
        (queue, running)
    };
    let workers = own.block_on(async { [start(&log, &store).await, start(&log, &store).await] });
    let publisher = program.block_on(quick(&log, &store).build_publisher()).unwrap();
    let id = program.block_on(publisher.enqueue(Long).into_future()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    // Nothing of the program's own runs meanwhile.
    let blocked: Vec<_> = (0..2).map(|_| program.spawn(async { thread::sleep(3 * LEASE) })).collect();
    own.block_on(async {
        let since = Instant::now();
        while workers[0].0.jobs().get(&id).await.unwrap().status != JobStatus::Done {
            assert!(since.elapsed() < PATIENCE, "not done");
            sleep(LEASE / 10).await;
        }
        for (_, mut running) in workers {
            running.stop();
            running.stopped().await.unwrap();
        }
    });
    assert_eq!(runs.load(SeqCst), 1);
    program.block_on(async {
        for blocked in blocked {
            blocked.await.unwrap();
        }
    });
}
