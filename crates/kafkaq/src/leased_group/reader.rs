//! Reads one partition with long polls, so that a record is picked up when it is appended.

use super::{
    caught::{caught, in_time},
    member::Shared,
    outbox::Alarm,
};
use crate::sync::lock;
use kafkaq_core::{
    Assignment, Batch, Cursor, Error, ErrorKind, FetchLimit, Position, Result, Retry, Standing, group::Trail,
    standing,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

const MAX_WAIT: Duration = Duration::from_millis(500);
const MAX_BYTES: usize = 1 << 20;
/// Doubles with each failure in a row, up to `MAX_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How often it checks that the log is still the one that was read. Also after every failure, and if it hasn't read for
/// longer than `GAP`, or a fetch took that much longer than it should: the log may have been replaced meanwhile.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const GAP: Duration = Duration::from_millis(250);

pub(super) struct Reader {
    shared: Arc<Shared>,
    assignment: Assignment,
    /// The last batch was taken out of the outbox.
    taken: Arc<Notify>,
    trail: Arc<Mutex<Trail>>,
    check_at: Instant,
    /// Consecutive failures.
    failures: u32,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        assignment: Assignment,
        trail: Arc<Mutex<Trail>>,
        taken: Arc<Notify>,
    ) -> Self {
        let check_at = Instant::now() + CHECK_EVERY;
        Reader { shared, assignment, taken, trail, check_at, failures: 0 }
    }

    /// Runs until it is aborted, which ends its assignment, or until reading can't continue from its position; then the
    /// partition is lost, and taken again where reading can start.
    pub(super) async fn run(mut self) {
        loop {
            match caught("read", self.step()).await {
                Ok(Ok(true)) => self.failures = 0,
                Ok(Ok(false)) => break,
                Ok(Err(error)) => self.failed(error).await,
                Err(panic) => {
                    // It is unknown what was handed over.
                    self.failed(panic).await;
                    break;
                }
            }
        }
        lock(&self.shared.group).handle_broken(&self.assignment, self.shared.clock.mono());
        self.shared.wake.notify_one();
    }

    /// Fetches once. Returns whether reading continues. One batch waits in the outbox while the next is fetched.
    async fn step(&mut self) -> Result<bool> {
        if Instant::now() >= self.check_at && !self.check(i64::MAX).await? {
            return Ok(false);
        }
        let at = lock(&self.trail).position().offset;
        let from = Position { partition: self.assignment.partition.clone(), offset: at };
        let begun = Instant::now();
        let fetch = self.shared.log.fetch(&from, FetchLimit::new(MAX_WAIT, MAX_BYTES));
        let batch = in_time("fetch", fetch).await?;
        let begin = batch.records.first().map_or(batch.next, |record| record.offset);
        // These records count only if what was read before them is still there.
        let late = begun.elapsed() > MAX_WAIT + GAP;
        if (late || lock(&self.trail).is_doubtful(&batch)) && !self.check(begin).await? {
            return Ok(false);
        }
        let position = lock(&self.trail).position();
        if !lock(&self.trail).read(&batch) {
            self.alarm(Standing::Replaced { first: 0 }, &position);
            return Ok(false);
        }
        if batch.next == at { Ok(true) } else { self.hand_over(batch).await }
    }

    /// Checks whether the log is still the one that was read. Records that were deleted unread are skipped, up to
    /// `begin`, where records were read that are gone by now.
    async fn check(&mut self, begin: i64) -> Result<bool> {
        let (position, floor) = {
            let trail = lock(&self.trail);
            (trail.position(), trail.floor())
        };
        let found = standing(&*self.shared.log, &self.assignment.partition, &position, floor);
        let found = in_time("check the log", found).await?;
        match found {
            Standing::Replaced { .. } => {
                self.alarm(found, &position);
                return Ok(false);
            }
            Standing::DeletedUnread { first } => {
                let first = first.min(begin);
                if first > position.offset {
                    self.alarm(Standing::DeletedUnread { first }, &position);
                    lock(&self.trail).skip_to(first);
                }
            }
            Standing::Intact => lock(&self.trail).confirm(&position),
        }
        self.check_at = Instant::now() + CHECK_EVERY;
        Ok(true)
    }

    fn alarm(&self, standing: Standing, position: &Cursor) {
        if let Some(alarm) = Alarm::of(standing, &self.assignment.partition, position) {
            lock(&self.shared.outbox).reader_alarm(&self.assignment, alarm);
        }
    }

    async fn failed(&mut self, error: Error) {
        let pause = match error.retry() {
            Retry::After(pause) => pause,
            _ => (BACKOFF * 2_u32.pow(self.failures.min(10))).min(MAX_BACKOFF),
        };
        self.failures += 1;
        self.check_at = Instant::now();
        self.tell(error);
        tokio::time::sleep(pause).await;
    }

    fn tell(&self, error: Error) {
        if error.kind() == ErrorKind::NotFound {
            self.shared.look.notify_one();
        }
        let error = error.on(&self.assignment.partition).with_retry(Retry::Yes);
        lock(&self.shared.outbox).reader_failed(&self.assignment, error);
    }

    /// Puts a batch into the outbox once there is room, and checks the log while there is none. Returns whether reading
    /// continues.
    async fn hand_over(&mut self, batch: Batch) -> Result<bool> {
        let begun = Instant::now();
        for part in split(batch, self.shared.max_batch) {
            let mut waiting = Some(part);
            while let Some(part) = waiting.take() {
                waiting = lock(&self.shared.outbox).put(&self.assignment, part);
                let taken = self.taken.notified();
                if waiting.is_some() && timeout_at(self.check_at, taken).await.is_err() {
                    match self.check(i64::MAX).await {
                        Ok(true) => {}
                        Ok(false) => return Ok(false),
                        // The waiting batch was read, so it must not be lost.
                        Err(error) => {
                            self.tell(error);
                            self.check_at = Instant::now() + MAX_BACKOFF;
                        }
                    }
                }
            }
        }
        if begun.elapsed() > GAP {
            self.check_at = Instant::now();
        }
        Ok(true)
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
