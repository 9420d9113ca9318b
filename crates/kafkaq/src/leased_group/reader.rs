//! Reads one partition by long polls, so that a record is picked up when it is appended.

use super::{caught::caught, locate, member::Shared};
use crate::sync::lock;
use kafkaq_core::{Assignment, Batch, Cursor, Error, FetchLimit, Mark, Position, Result, Retry};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

const MAX_WAIT: Duration = Duration::from_millis(500);
const MAX_BYTES: usize = 1 << 20;
/// Doubles with each failure in a row, up to `MAX_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How often it makes sure that the topic is still the same. Also after every failure, and when it hasn't read for
/// longer than `GAP`: a topic can't be made anew under a fetch without either.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const GAP: Duration = Duration::from_secs(1);

pub(super) struct Reader {
    shared: Arc<Shared>,
    assignment: Assignment,
    taken: Arc<Notify>,
    at: Position,
    /// The last record that was read.
    last: Option<Mark>,
    check_at: Instant,
    /// In a row.
    failures: u32,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, assignment: Assignment, from: Cursor, taken: Arc<Notify>) -> Self {
        let at = Position { partition: assignment.partition.clone(), offset: from.offset };
        let check_at = Instant::now() + CHECK_EVERY;
        Reader { shared, assignment, taken, at, last: from.mark, check_at, failures: 0 }
    }

    /// Runs until it is aborted, which ends its assignment, or until reading can't go on where it is; then the
    /// partition is lost, and won again where it can.
    pub(super) async fn run(mut self) {
        loop {
            match caught("read", self.step()).await {
                Ok(Ok(true)) => self.failures = 0,
                Ok(Ok(false)) => break,
                Ok(Err(error)) => self.failed(error).await,
                Err(panic) => {
                    // Who knows what was handed over.
                    self.failed(panic).await;
                    break;
                }
            }
        }
        lock(&self.shared.group).handle_broken(&self.assignment);
        self.shared.wake.notify_one();
    }

    /// One fetch, and whether reading goes on. One batch waits in the outbox while the next is fetched.
    async fn step(&mut self) -> Result<bool> {
        if Instant::now() >= self.check_at {
            if !locate::goes_on(&*self.shared.log, &self.at, self.last).await? {
                return Ok(false);
            }
            self.check_at = Instant::now() + CHECK_EVERY;
        }
        let batch = self.shared.log.fetch(&self.at, FetchLimit::new(MAX_WAIT, MAX_BYTES)).await?;
        if batch.next > self.at.offset {
            self.at.offset = batch.next;
            self.last = batch.records.last().map(Mark::of).or(self.last);
            let read = Instant::now();
            self.hand_over(batch).await;
            if read.elapsed() > GAP {
                self.check_at = Instant::now();
            }
        }
        Ok(true)
    }

    async fn failed(&mut self, error: Error) {
        let pause = match error.retry() {
            Retry::After(pause) => pause,
            _ => (BACKOFF * 2_u32.pow(self.failures.min(10))).min(MAX_BACKOFF),
        };
        self.failures += 1;
        self.check_at = Instant::now();
        lock(&self.shared.outbox).failed(error.on(&self.at.partition).with_retry(Retry::Yes));
        tokio::time::sleep(pause).await;
    }

    async fn hand_over(&self, batch: Batch) {
        for part in split(batch, self.shared.max_batch) {
            let mut waiting = Some(part);
            while let Some(part) = waiting.take() {
                let back = lock(&self.shared.outbox).put(&self.assignment, part);
                if let Some(part) = back {
                    self.taken.notified().await;
                    waiting = Some(part);
                }
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
