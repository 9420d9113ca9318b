//! Publishing from any kind of caller: runtimes that come and go or are idle, and no runtime at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{PATIENCE, forward, ms};
use kafkaq::{
    Effect, Error, ErrorKind, Publisher, Queue, QueueBuilder, Result, Task, TaskId,
    backend::{NewRecord, Partition},
    memory::MemoryLog,
};
use std::{
    future::Future,
    mem::ManuallyDrop,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

/// A log whose requests wait for a permit each, and then fail if it is down.
#[derive(Clone, Debug)]
struct Gated {
    log: MemoryLog,
    open: Arc<Semaphore>,
    down: bool,
}

forward!(impl Log for Gated by log {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        // A real client needs the runtime that it was called on: for its timeouts, if nothing else.
        if tokio::time::timeout(PATIENCE, self.open.acquire())
            .await
            .is_ok_and(|p| p.map(|p| p.forget()).is_ok())
        {
            tokio::time::sleep(ms(1)).await;
        }
        if self.down {
            return vec![Err(Error::not_applied(ErrorKind::Unavailable, "append")); records.len()];
        }
        self.log.append(to, records).await
    }
});
forward!(impl Broker for Gated by log);

fn gated(permits: usize, down: bool) -> Gated {
    Gated { log: MemoryLog::new(), open: Arc::new(Semaphore::new(permits)), down }
}

/// One partition, so that all callers share a queue.
fn builder(log: &Gated) -> QueueBuilder {
    Queue::builder("emails").broker(log.clone()).partitions(1)
}

fn publisher(log: &Gated) -> Publisher {
    runtime().block_on(builder(log).build_publisher()).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A publisher that was built on a runtime with threads, where its requests run, and that runtime.
fn publisher_at_home(log: &Gated, timeout: Duration) -> (Publisher, Runtime) {
    let home = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    (home.block_on(builder(log).publish_timeout(timeout).build_publisher()).unwrap(), home)
}

/// Runs a test on a thread of its own, which may hang.
fn within_patience<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || done.send(test()));
    outcome.recv_timeout(PATIENCE).expect("it hangs or has panicked")
}

/// Polls until the request is under way, then forgets about it.
async fn begin(future: impl Future) {
    let mut future = pin!(future);
    for _ in 0..3 {
        assert!(std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await);
        tokio::task::yield_now().await;
    }
}

#[test]
fn dropped_runtime_does_not_fail_publishes_of_others() {
    let log = gated(0, false);
    let publisher = publisher(&log);
    let (first, second) = (runtime(), runtime());
    first.block_on(begin(publisher.publish(Task::new("one"))));
    let waiting = publisher.clone();
    let waiting = thread::spawn(move || second.block_on(waiting.publish(Task::new("two"))));
    drop(first);
    log.open.add_permits(9);
    within_patience(move || waiting.join().unwrap()).unwrap();
    within_patience(move || runtime().block_on(publisher.publish(Task::new("three")))).unwrap();
}

#[test]
fn idle_runtime_blocks_nobody() {
    let log = gated(0, false);
    let publisher = publisher(&log);
    let still = runtime();
    still.block_on(begin(publisher.publish(Task::new("one"))));
    log.open.add_permits(9);
    within_patience(move || runtime().block_on(publisher.publish(Task::new("two")))).unwrap();
    drop(still);
}

#[test]
fn a_publisher_outlives_the_runtime_that_it_was_built_on() {
    for under_way in [true, false] {
        let log = gated(0, false);
        let (publisher, home) = publisher_at_home(&log, PATIENCE);
        let publish = |text: &'static str| {
            let publisher = publisher.clone();
            thread::spawn(move || runtime().block_on(publisher.publish(Task::new(text))))
        };
        let mut waiting = Vec::new();
        if under_way {
            runtime().block_on(begin(publisher.publish(Task::new("one"))));
            waiting = vec![publish("two"), publish("three")];
        }
        home.shutdown_background();
        waiting.push(publish("four"));
        log.open.add_permits(9);
        for waiting in waiting {
            within_patience(move || waiting.join().unwrap()).unwrap();
        }
    }
}

#[test]
fn gathered_records_outlive_the_runtime_of_the_requests_before_them() {
    let log = gated(0, false);
    let home = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let publisher = home.block_on(builder(&log).partitions(6).build_publisher()).unwrap();
    let mut waiting: Vec<_> = (0..20)
        .map(|n| {
            let publisher = publisher.clone();
            Box::pin(async move { publisher.publish(Task::new(format!("{n}"))).await })
        })
        .collect();
    runtime().block_on(async {
        for one in &mut waiting {
            begin(one).await;
        }
    });
    home.shutdown_background();
    log.open.add_permits(99);
    let outcomes = within_patience(move || runtime().block_on(futures_util::future::join_all(waiting)));
    outcomes.into_iter().for_each(|outcome| drop(outcome.unwrap()));
}

#[test]
fn runtime_with_all_threads_blocked_delays_no_outcome() {
    let log = gated(9, false);
    let (publisher, home) = publisher_at_home(&log, ms(2000));
    // Never dropped: that would wait for its threads, which may be blocked forever if this test fails.
    let home = ManuallyDrop::new(home);
    let (free, taken) = (Arc::new(Barrier::new(3)), Arc::new(Barrier::new(3)));
    for _ in 0..2 {
        let (free, taken) = (free.clone(), taken.clone());
        home.spawn(async move {
            taken.wait();
            free.wait();
        });
    }
    taken.wait();
    let waiting = publisher.clone();
    let e = within_patience(move || runtime().block_on(waiting.publish(Task::new("one")))).unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Timeout, Effect::Unknown), "{e}");
    free.wait();
    within_patience(move || {
        runtime().block_on(async {
            // The queue is free again once the first request has ended.
            while publisher.publish(Task::new("two")).await.is_err() {}
        });
    });
}

#[test]
fn a_runtime_for_each_publish_works() {
    let log = gated(1 << 20, false);
    let publisher = publisher(&log);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let publisher = publisher.clone();
            thread::spawn(move || {
                (0..25).try_for_each(|_| runtime().block_on(publisher.publish(Task::new("x"))).map(drop))
            })
        })
        .collect();
    for thread in threads {
        within_patience(move || thread.join().unwrap()).unwrap();
    }
}

/// Wakes a thread that waits outside of any runtime.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn without_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(out) => return out,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn publishing_needs_no_runtime() {
    let log = gated(9, false);
    within_patience(move || {
        let publisher = without_a_runtime(builder(&log).build_publisher()).unwrap();
        without_a_runtime(publisher.publish(Task::new("x"))).unwrap();
        for outcome in without_a_runtime(publisher.publish_many([Task::new("y"), Task::new("z")])) {
            outcome.unwrap();
        }
    });
}

/// As the waker of an executor might whose threads are gone.
struct Panics(AtomicBool);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.load(Ordering::Relaxed), "nobody is there to be woken");
    }
}

#[test]
fn panicking_waker_blocks_nobody() {
    let log = gated(0, false);
    let publisher = publisher(&log);
    let panics = Arc::new(Panics(AtomicBool::new(false)));
    let waker = Waker::from(panics.clone());
    let mut one = Box::pin(publisher.publish(Task::new("one")));
    for _ in 0..2 {
        assert!(one.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    panics.0.store(true, Ordering::Relaxed);
    let two = publisher.clone();
    let two = thread::spawn(move || runtime().block_on(two.publish(Task::new("two"))));
    log.open.add_permits(9);
    within_patience(move || two.join().unwrap()).unwrap();
}

#[test]
fn every_publish_is_answered_within_its_timeout_while_the_log_is_down() {
    // Each request of this log takes as long as the patience of these tests.
    let log = gated(0, true);
    let publisher = runtime().block_on(builder(&log).publish_timeout(ms(2000)).build_publisher()).unwrap();
    let started = Instant::now();
    let outcomes = within_patience(move || {
        runtime().block_on(publisher.publish_many((0..5000).map(|n| Task::new(format!("{n}")))))
    });
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    let effects: Vec<_> = outcomes.into_iter().map(|o| o.unwrap_err().effect()).collect();
    let sent = effects.iter().filter(|e| **e == Effect::Unknown).count();
    assert!((1..=1000).contains(&sent), "one request was sent, of {sent} records");
    assert!(effects[sent..].iter().all(|e| *e == Effect::NotApplied), "the others certainly were not");
}

#[test]
fn waiting_for_buffer_space_counts_towards_the_timeout() {
    let log = gated(0, true);
    let small = builder(&log).max_task_bytes(1000).publish_buffer(80_000).publish_timeout(ms(2000));
    let publisher = runtime().block_on(small.build_publisher()).unwrap();
    let started = Instant::now();
    let outcomes = within_patience(move || {
        runtime().block_on(publisher.publish_many((0..200).map(|_| Task::new(vec![0; 1000]))))
    });
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    let last = outcomes.last().unwrap().as_ref().unwrap_err();
    assert_eq!((last.kind(), last.effect()), (ErrorKind::Timeout, Effect::NotApplied), "{last}");
    assert!(last.to_string().contains("publish_buffer"), "{last}");
}

/// The last twelve digits of an id.
fn number(id: &TaskId) -> u64 {
    u64::from_str_radix(&id.as_str()[24..], 16).unwrap()
}

/// A store keeps neighbors together, and a worker takes the tasks of a partition one after another.
#[tokio::test]
async fn tasks_of_a_partition_are_neighbors_and_so_are_single_tasks_without_a_key() {
    let publisher =
        Queue::builder("emails").broker(MemoryLog::new()).partitions(4).build_publisher().await.unwrap();
    let mut ids = [const { Vec::new() }; 3];
    for _ in 0..10 {
        // These keys belong to different partitions.
        let keyed = (0..20).map(|n| Task::new("").with_key(["a", "c"][n % 2]));
        for (n, id) in publisher.publish_many(keyed).await.into_iter().enumerate() {
            ids[n % 2].push(number(&id.unwrap()));
        }
        ids[0].push(number(&publisher.publish(Task::new("").with_key("a")).await.unwrap()));
        ids[2].push(number(&publisher.publish(Task::new("")).await.unwrap()));
    }
    for numbers in ids {
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "{numbers:x?}");
    }
}
