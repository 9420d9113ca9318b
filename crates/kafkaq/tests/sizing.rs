//! Checks the formulas and tables of `docs/sizing.md` against the queue.

#![allow(clippy::unwrap_used)]

mod common;

use common::forward;
use kafkaq::{
    Queue, Result, Task, TaskId,
    backend::{Key, Swap, Swapped},
    memory::{MemoryLog, MemoryStore},
};
use kafkaq_core::{
    Wall,
    machine::{Ladder, Settings},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const GUIDE: &str = include_str!("../docs/sizing.md");
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A store in memory that knows how many bytes it keeps.
#[derive(Debug, Default)]
struct Counting {
    store: MemoryStore,
    bytes: Mutex<HashMap<Key, usize>>,
}

impl Counting {
    /// Keys and values.
    fn bytes(&self) -> usize {
        self.bytes.lock().unwrap().values().sum()
    }
}

forward!(impl LeaseStore for Counting by store {
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let outcomes = self.store.swap(swaps).await;
        let mut bytes = self.bytes.lock().unwrap();
        for (swap, outcome) in swaps.iter().zip(&outcomes) {
            if let (Ok(Swapped::Done), Some(new)) = (outcome, &swap.new) {
                bytes.insert(swap.key.clone(), swap.key.as_str().len() + new.len());
            }
        }
        outcomes
    }
});

/// Returns how many bytes the store keeps per finished task, for 500 tasks.
async fn measured(queue: &str, group: &str, id: impl Fn(usize) -> String) -> f64 {
    const TASKS: usize = 500;
    let store = Arc::new(Counting::default());
    let queue = Queue::builder(queue).group(group).broker(MemoryLog::new()).store(store.clone());
    let queue = queue.build().await.unwrap();
    let tasks = (0..TASKS).map(|n| Task::new("work").with_id(TaskId::new(id(n)).unwrap()));
    for outcome in queue.publish_many(tasks).await {
        outcome.unwrap();
    }
    for n in 0..TASKS {
        let mut job = queue.get_job().await.unwrap();
        match n % 4 {
            // The reasons of failures go when the task is done.
            0 => drop(job.retry(Duration::ZERO, "busy").await.unwrap()),
            1 => {
                job.extend(Duration::from_secs(90)).await.unwrap();
                job.done().await.unwrap();
            }
            _ => job.done().await.unwrap(),
        }
    }
    for _ in 0..TASKS / 4 {
        queue.get_job().await.unwrap().done().await.unwrap();
    }
    assert_eq!(store.bytes.lock().unwrap().len(), TASKS, "one value per task");
    store.bytes() as f64 / TASKS as f64
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_finished_task_match_the_formula() {
    assert!(GUIDE.contains("bytes = 32 + queue + group + id + token\n"));
    assert!(GUIDE.contains("By the formula, kafkaq accounts for 83\n"));
    let formula = |queue: &str, group: &str, id: usize| {
        let names = 32 + queue.len() + group.len() + id;
        // Between 500 and 1,125 leases were taken: a token's number has one byte up to 127, and then two.
        (names + 1) as f64..=(names + 2) as f64
    };
    let uuid = |n| format!("018c2f6e-7d0a-7000-8000-{n:012}");
    let cases: [(&str, &str, usize, f64); 3] = [
        ("emails", "kafkaq", 36, measured("emails", "kafkaq", uuid).await),
        ("q", "g", 4, measured("q", "g", |n| format!("{n:04}")).await),
        // A slash is escaped, by three bytes.
        (
            "orders-of-all-customers",
            "billing",
            12,
            measured("orders-of-all-customers", "billing", |n| format!("2026/{n:05}")).await,
        ),
    ];
    for (queue, group, id, measured) in cases {
        let says = formula(queue, group, id);
        assert!(says.contains(&measured), "{queue}, {group}, ids of {id}: {measured}, not {says:?}");
    }
}

#[test]
fn partitions_of_the_wait_topic_match_the_table() {
    for (row, max_delay) in [
        ("| 1 hour | 7 |", DAY / 24),
        ("| 1 day | 10 |", DAY),
        ("| 7 days (default) | 11 |", 7 * DAY),
        ("| 30 days | 12 |", 30 * DAY),
        ("| 1 year | 14 |", 365 * DAY),
    ] {
        assert!(GUIDE.contains(row), "{row}");
        assert!(row.ends_with(&format!("| {} |", Ladder::lanes(max_delay))), "{row}");
    }
    assert_eq!(Settings::default().max_delay, 7 * DAY);
}

#[test]
fn copies_of_a_delay_match_the_table() {
    let ladder = Ladder::new(Duration::from_secs(61), 7 * DAY, Ladder::lanes(7 * DAY));
    for (row, delay) in [
        ("| 1 s | 1 |", Duration::from_secs(1)),
        ("| a minute | 6 |", Duration::from_secs(60)),
        ("| an hour | 6 |", DAY / 24),
        ("| a day | 6 |", DAY),
        ("| a week | 12 |", 7 * DAY),
    ] {
        assert!(GUIDE.contains(row), "{row}");
        let due = Wall(0).plus(delay);
        let (mut now, mut copies) = (Wall(0), 0);
        while now < due {
            now = ladder.place(now, due, &TaskId::new("any").unwrap()).1;
            copies += 1;
        }
        assert!(row.ends_with(&format!("| {copies} |")), "{row}: {copies}");
    }
}

#[test]
fn limits_of_the_memory_formula_match_the_machine() {
    assert_eq!(Settings::default().window_bytes, 16 << 20);
    assert_eq!(6 + Ladder::lanes(Settings::default().max_delay), 17);
}
