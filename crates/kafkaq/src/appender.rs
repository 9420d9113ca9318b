//! Appending with natural batching: what is pushed while a request is under way goes into the next.
//!
//! Each partition has a line. Whoever pushes into an idle line starts its flush, a task of its own, so that a
//! publisher that goes away stops nobody; the flush ends when the line is empty, so an idle partition costs nothing.

use crate::{driver::every_answer, sync::lock};
use kafkaq_core::{Effect, Error, ErrorKind, Log, NewRecord, Partition, Result, Retry};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

/// The most records and about the most bytes of one request.
const MAX_RECORDS: usize = 1000;
const MAX_BYTES: usize = 900_000;
/// What a record costs beside its own bytes, so that many small ones are bounded too.
const OVERHEAD: usize = 256;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// The lines of one topic.
#[derive(Debug)]
pub(crate) struct Appender {
    log: Arc<dyn Log>,
    lines: Vec<Line>,
    /// Bytes that may wait or be under way, shared by the topics of a queue.
    room: Room,
    timeout: Duration,
}

#[derive(Debug)]
struct Line {
    partition: Partition,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    flushing: bool,
}

/// One record on its way.
#[derive(Debug)]
struct Waiting {
    record: NewRecord,
    size: usize,
    until: Instant,
    /// An earlier try may have taken effect, so the outcome is unknown even if the last one certainly had none.
    in_doubt: bool,
    answer: oneshot::Sender<Result<i64>>,
    _room: OwnedSemaphorePermit,
}

/// A bound on bytes.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    limit: u32,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Self {
        let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
        Room { bytes: Arc::new(Semaphore::new(limit as usize)), limit }
    }

    /// Waits for room, in order. A record larger than all of the room takes all of it.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit);
        self.bytes
            .clone()
            .acquire_many_owned(bytes)
            .await
            .map_err(|_| Error::not_applied(ErrorKind::Closed, "publish"))
    }
}

/// The outcome of a record that was pushed: its offset.
pub(crate) type Outcome = oneshot::Receiver<Result<i64>>;

impl Appender {
    pub(crate) fn new(
        log: Arc<dyn Log>,
        topic: &Arc<str>,
        partitions: i32,
        room: Room,
        timeout: Duration,
    ) -> Arc<Self> {
        let line = |n| Line { partition: Partition::new(topic.clone(), n), state: Mutex::default() };
        Arc::new(Appender { log, lines: (0..partitions.max(1)).map(line).collect(), room, timeout })
    }

    pub(crate) fn partitions(&self) -> i32 {
        self.lines.len() as i32
    }

    pub(crate) fn partition(&self, index: i32) -> &Partition {
        &self.lines[self.line(index)].partition
    }

    fn line(&self, index: i32) -> usize {
        index.unsigned_abs() as usize % self.lines.len()
    }

    /// Puts a record into its line, once there is room. From then on it is appended even if nobody waits for the
    /// outcome. Dropped before it returns, it has done nothing.
    pub(crate) async fn push(self: &Arc<Self>, index: i32, record: NewRecord) -> Result<Outcome> {
        let size = record.size() + OVERHEAD;
        let until = Instant::now() + self.timeout;
        let room = self.room.take(size).await?;
        let (answer, outcome) = oneshot::channel();
        let line = self.line(index);
        let idle = {
            let mut state = lock(&self.lines[line].state);
            state.waiting.push_back(Waiting { record, size, until, in_doubt: false, answer, _room: room });
            !std::mem::replace(&mut state.flushing, true)
        };
        if idle {
            let appender = self.clone();
            tokio::spawn(async move { appender.flush(&appender.lines[line]).await });
        }
        Ok(outcome)
    }

    async fn flush(&self, line: &Line) {
        let mut backoff = FIRST_BACKOFF;
        while let Some(batch) = line.next_batch() {
            let (again, pause) = self.send(batch, &line.partition).await;
            if again.is_empty() {
                backoff = FIRST_BACKOFF;
                continue;
            }
            line.put_back(again);
            tokio::time::sleep(pause.unwrap_or(backoff)).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// One request. Answers what is decided; returns what is to be tried again, and how long the log asked to wait
    /// before.
    async fn send(&self, mut batch: Vec<Waiting>, partition: &Partition) -> (Vec<Waiting>, Option<Duration>) {
        let records: Arc<[_]> = batch.iter_mut().map(|w| std::mem::take(&mut w.record)).collect();
        // On a task of its own, so that an adapter that panics is an unknown effect and no stuck line.
        let answers = tokio::spawn({
            let (log, partition, records) = (self.log.clone(), partition.clone(), records.clone());
            async move { log.append(&partition, &records).await }
        });
        let answers = every_answer(answers.await);
        let (mut again, mut pause) = (Vec::new(), None);
        for ((mut waiting, answer), record) in batch.into_iter().zip(answers).zip(&*records) {
            match answer {
                Err(e) if may_help(&e) && Instant::now() < waiting.until => {
                    waiting.in_doubt |= e.effect() == Effect::Unknown;
                    if let Retry::After(d) = e.retry() {
                        pause = pause.max(Some(d.min(LAST_BACKOFF)));
                    }
                    waiting.record = record.clone();
                    again.push(waiting);
                }
                // A receiver that is gone doesn't want to know.
                decided => drop(waiting.answer.send(decided.map_err(|e| failed(e, waiting.in_doubt)))),
            }
        }
        (again, pause)
    }
}

impl Line {
    /// The front of the line; or nothing, and then the line is idle.
    fn next_batch(&self) -> Option<Vec<Waiting>> {
        let mut state = lock(&self.state);
        let mut bytes = 0;
        let fits = |w: &&Waiting| {
            bytes += w.size;
            bytes <= MAX_BYTES
        };
        let fitting = state.waiting.iter().take(MAX_RECORDS).take_while(fits).count();
        // The first one is sent whatever its size.
        let n = fitting.max(1).min(state.waiting.len());
        state.flushing = n > 0;
        state.flushing.then(|| state.waiting.drain(..n).collect())
    }

    fn put_back(&self, again: Vec<Waiting>) {
        let mut state = lock(&self.state);
        again.into_iter().rev().for_each(|w| state.waiting.push_front(w));
    }
}

/// The same record, with the same id, is one task however often it is appended.
fn may_help(e: &Error) -> bool {
    e.retry() != Retry::No || (e.effect() == Effect::Unknown && e.kind() != ErrorKind::Closed)
}

fn failed(e: Error, in_doubt: bool) -> Error {
    let new = match e.effect() {
        Effect::NotApplied if !in_doubt => Error::not_applied(e.kind(), "publish"),
        _ => Error::unknown(e.kind(), "publish"),
    };
    new.with_retry(e.retry()).with_source(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use kafkaq_core::{Headers, TopicInfo, TopicSpec};

    /// Answers as it is told, one answer a record, and remembers the size of each request. It waits for `gate`.
    #[derive(Debug)]
    struct Fake {
        requests: Mutex<Vec<Vec<NewRecord>>>,
        answers: Mutex<VecDeque<Error>>,
        gate: Semaphore,
    }

    #[async_trait]
    impl Log for Fake {
        async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
            Ok(Vec::new())
        }
        async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
            Ok(vec![None; names.len()])
        }
        async fn append(&self, _: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
            self.gate.acquire().await.unwrap().forget();
            self.requests.lock().unwrap().push(records.to_vec());
            let mut answers = self.answers.lock().unwrap();
            let answer = |i| answers.pop_front().map_or(Ok(i as i64), Err);
            (0..records.len()).map(answer).collect()
        }
        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    fn fake(open: usize, answers: impl IntoIterator<Item = Error>) -> Arc<Fake> {
        Arc::new(Fake {
            requests: Mutex::default(),
            answers: Mutex::new(answers.into_iter().collect()),
            gate: Semaphore::new(open),
        })
    }

    fn appender(log: &Arc<Fake>, room: usize, timeout: Duration) -> Arc<Appender> {
        Appender::new(log.clone(), &"t".into(), 2, Room::new(room), timeout)
    }

    fn record(size: usize) -> NewRecord {
        NewRecord::new(None, Some(Bytes::from(vec![7; size])), Headers::new())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn what_comes_while_a_request_is_under_way_goes_into_the_next() {
        let log = fake(0, []);
        let a = appender(&log, 1 << 20, SECOND);
        let mut outcomes = vec![a.push(0, record(1)).await.unwrap()];
        tokio::task::yield_now().await;
        for _ in 0..100 {
            outcomes.push(a.push(0, record(1)).await.unwrap());
        }
        log.gate.add_permits(9);
        for outcome in outcomes {
            outcome.await.unwrap().unwrap();
        }
        let sizes: Vec<_> = log.requests.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 100]);
    }

    #[tokio::test]
    async fn a_request_is_bounded_in_records_and_in_bytes() {
        for (size, n, most) in [(1, 2500, MAX_RECORDS), (100_000, 30, 8), (2_000_000, 3, 1)] {
            let log = fake(0, []);
            let a = appender(&log, 64 << 20, SECOND);
            let mut outcomes = Vec::new();
            for _ in 0..n {
                outcomes.push(a.push(1, record(size)).await.unwrap());
            }
            log.gate.add_permits(n);
            for outcome in outcomes {
                outcome.await.unwrap().unwrap();
            }
            let requests = log.requests.lock().unwrap();
            assert_eq!(requests.iter().map(Vec::len).max(), Some(most));
            assert_eq!(requests.iter().map(Vec::len).sum::<usize>(), n);
        }
    }

    #[tokio::test]
    async fn a_record_in_doubt_is_appended_again_and_stays_in_doubt() {
        let unknown = Error::unknown(ErrorKind::Timeout, "append");
        let log = fake(9, [unknown.clone()]);
        appender(&log, 1 << 20, SECOND).push(0, record(5)).await.unwrap().await.unwrap().unwrap();
        let requests = log.requests.lock().unwrap().clone();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0], requests[1]);

        let log = fake(9, [unknown, Error::not_applied(ErrorKind::Denied, "append")]);
        let e = appender(&log, 1 << 20, SECOND).push(0, record(5)).await.unwrap().await.unwrap().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::Unknown));
    }

    #[tokio::test]
    async fn what_cannot_succeed_is_answered_at_once_and_the_others_pass() {
        let log = fake(9, [Error::not_applied(ErrorKind::TooLarge, "append")]);
        let a = appender(&log, 1 << 20, SECOND);
        let (one, two) = (a.push(0, record(5)).await.unwrap(), a.push(0, record(6)).await.unwrap());
        let e = one.await.unwrap().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
        two.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn trying_again_ends_with_the_timeout() {
        let log = fake(
            999,
            std::iter::repeat_with(|| Error::not_applied(ErrorKind::Unavailable, "append")).take(999),
        );
        let started = Instant::now();
        let a = appender(&log, 1 << 20, Duration::from_millis(200));
        let e = a.push(0, record(5)).await.unwrap().await.unwrap().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
        assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < 5 * SECOND);
        assert!(log.requests.lock().unwrap().len() > 1);
    }

    #[tokio::test]
    async fn a_publisher_that_goes_away_leaves_no_stuck_line() {
        let log = fake(0, []);
        let a = appender(&log, 1 << 20, SECOND);
        drop(a.push(0, record(1)).await.unwrap());
        let two = a.push(0, record(2)).await.unwrap();
        log.gate.add_permits(9);
        two.await.unwrap().unwrap();
        assert_eq!(log.requests.lock().unwrap().iter().map(Vec::len).sum::<usize>(), 2);
    }

    #[tokio::test]
    async fn the_buffer_is_bounded() {
        let log = fake(0, []);
        let a = appender(&log, 10 * (OVERHEAD + 100), SECOND);
        let mut outcomes = Vec::new();
        for _ in 0..10 {
            outcomes.push(a.push(0, record(100)).await.unwrap());
        }
        let mut eleventh = Box::pin(a.push(0, record(100)));
        assert!(futures_util::poll!(&mut eleventh).is_pending());
        log.gate.add_permits(99);
        for outcome in outcomes {
            outcome.await.unwrap().unwrap();
        }
        eleventh.await.unwrap().await.unwrap().unwrap();
    }
}
