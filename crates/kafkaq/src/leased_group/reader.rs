//! Reads one partition by long polls, so that a record is picked up when it is appended.

use super::{locate, member::Shared};
use crate::sync::lock;
use kafkaq_core::{Assignment, Batch, FetchLimit, Position, Retry};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

const MAX_WAIT: Duration = Duration::from_millis(500);
const MAX_BYTES: usize = 1 << 20;
const BACKOFF: Duration = Duration::from_millis(100);

/// Runs until it is aborted: its assignment is over then. One batch waits in the outbox while the next is fetched.
pub(super) async fn read(shared: Arc<Shared>, assignment: Assignment, from: i64, taken: Arc<Notify>) {
    let mut at = Position { partition: assignment.partition.clone(), offset: from };
    loop {
        match shared.log.fetch(&at, FetchLimit::new(MAX_WAIT, MAX_BYTES)).await {
            Ok(batch) => {
                let moved = batch.next > at.offset;
                at.offset = batch.next;
                if moved {
                    hand_over(&shared, &assignment, batch, &taken).await;
                }
            }
            Err(error) => {
                let pause = match error.retry() {
                    Retry::After(pause) => pause,
                    _ => BACKOFF,
                };
                if error.retry() == Retry::No {
                    let ends = locate::ends(&*shared.log, &at.partition).await;
                    let inside = |e: kafkaq_core::Offsets| (e.first..=e.next).contains(&at.offset);
                    if ends.is_ok_and(|e| !inside(e)) {
                        lock(&shared.group).handle_broken(&assignment);
                        shared.wake.notify_one();
                    }
                }
                lock(&shared.outbox).failed(error.on(&at.partition).with_retry(Retry::Yes));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn hand_over(shared: &Shared, assignment: &Assignment, batch: Batch, taken: &Notify) {
    for part in split(batch, shared.max_batch) {
        let mut waiting = Some(part);
        while let Some(part) = waiting.take() {
            let back = lock(&shared.outbox).put(assignment, part);
            if let Some(part) = back {
                taken.notified().await;
                waiting = Some(part);
            }
        }
    }
}

fn split(batch: Batch, max: usize) -> Vec<Batch> {
    let (mut rest, mut parts) = (batch.records, Vec::new());
    while rest.len() > max {
        let tail = rest.split_off(max);
        let next = rest.last().map_or(batch.next, |r| r.offset + 1);
        parts.push(Batch::new(rest, next, batch.end));
        rest = tail;
    }
    parts.push(Batch::new(rest, batch.next, batch.end));
    parts
}
