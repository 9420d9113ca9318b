//! Events that wait for the stream to be polled: alarms and changes first, then at most one batch per partition.
//!
//! It is bounded even if nobody polls: a partition has at most one batch and one alarm, a change that is superseded
//! before anybody saw it is left out, and the same failure is reported once per minute.
//!
//! Anything that names an assignment other than the current one is ignored, and so are batches of one that is being
//! revoked: an aborted reader may still be running, and a caller may be late.

use crate::sync::lock;
use kafkaq_core::{
    Assignment, Batch, Cursor, Error, ErrorKind, Event, Partition, Result, Standing, group::Trail,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

#[derive(Default)]
pub(super) struct Outbox {
    changes: VecDeque<Event>,
    /// Alarms for the operator: the last per partition, or per topic, with index -1.
    alarms: BTreeMap<Partition, Error>,
    /// Partitions whose reader has reported another log: this is not reported again where reading starts over.
    replaced: HashSet<Partition>,
    failures: HashMap<Failure, Told>,
    ready: VecDeque<Partition>,
    readers: HashMap<Partition, Reader>,
    ended: bool,
    waker: Option<Waker>,
}

/// How often the same failure is reported.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What failed, and how; and on which partition, unless the server is down, which affects all of them.
type Failure = (&'static str, ErrorKind, Option<Partition>);

struct Told {
    at: Instant,
    /// `None` once it was polled.
    error: Option<Error>,
}

/// An alarm about a partition's log.
pub(super) struct Alarm {
    pub(super) error: Error,
    /// Whether it says that the log is not the one that was read.
    pub(super) replaced: bool,
}

impl Alarm {
    /// `None` if the log is intact.
    pub(super) fn of(standing: Standing, of: &Partition, cursor: &Cursor) -> Option<Alarm> {
        let replaced = matches!(standing, Standing::Replaced { .. });
        Some(Alarm { error: standing.alarm(of, cursor)?, replaced })
    }
}

pub(super) struct Reader {
    epoch: u64,
    paused: bool,
    /// It was aborted, but may still be running.
    stopped: bool,
    batch: Option<Batch>,
    trail: Arc<Mutex<Trail>>,
    taken: Arc<Notify>,
    task: AbortHandle,
}

impl Outbox {
    pub(super) fn assigned(
        &mut self,
        assignment: Assignment,
        trail: Arc<Mutex<Trail>>,
        taken: Arc<Notify>,
        task: AbortHandle,
    ) {
        let reader = Reader {
            epoch: assignment.epoch,
            paused: false,
            stopped: false,
            batch: None,
            trail,
            taken,
            task,
        };
        if let Some(before) = self.readers.insert(assignment.partition.clone(), reader) {
            before.task.abort();
            self.ready.retain(|p| *p != assignment.partition);
        }
        self.changes.push_back(Event::Assigned(vec![assignment]));
        self.wake();
    }

    fn reader(&mut self, of: &Assignment) -> Option<&mut Reader> {
        self.readers.get_mut(&of.partition).filter(|reader| reader.epoch == of.epoch)
    }

    /// Reading ends; commits continue until the partition is lost.
    pub(super) fn revoking(&mut self, assignment: Assignment) {
        self.stop(&assignment);
        self.changes.push_back(Event::Revoking(vec![assignment]));
        self.wake();
    }

    pub(super) fn lost(&mut self, assignment: Assignment) {
        if self.stop(&assignment) {
            self.readers.remove(&assignment.partition);
        }
        let of = |event: &Event, of: &Assignment| match event {
            Event::Assigned(a) | Event::Revoking(a) => a.contains(of),
            _ => false,
        };
        let unseen = self.changes.iter().any(|e| matches!(e, Event::Assigned(_)) && of(e, &assignment));
        self.changes.retain(|event| !of(event, &assignment));
        if !unseen {
            self.changes.push_back(Event::Lost(vec![assignment]));
        }
        self.wake();
    }

    /// Whether there was something to stop.
    fn stop(&mut self, assignment: &Assignment) -> bool {
        let Some(reader) = self.reader(assignment) else { return false };
        reader.task.abort();
        reader.stopped = true;
        reader.batch = None;
        self.ready.retain(|p| *p != assignment.partition);
        true
    }

    pub(super) fn failed(&mut self, on: Option<&Partition>, error: Error) {
        let away = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled);
        let failure = (error.op(), error.kind(), on.filter(|_| !away).cloned());
        let now = Instant::now();
        self.failures.retain(|_, told| told.error.is_some() || now < told.at + TELL_EVERY);
        match self.failures.entry(failure) {
            Entry::Occupied(told) if told.get().error.is_none() => {
                tracing::debug!(target: "kafkaq", %error, "again");
            }
            told => {
                told.insert_entry(Told { at: now, error: Some(error) });
                self.wake();
            }
        }
    }

    pub(super) fn reader_failed(&mut self, of: &Assignment, error: Error) {
        if self.reader(of).is_some() {
            self.failed(Some(&of.partition), error);
        }
    }

    pub(super) fn alarm(&mut self, of: Partition, error: Error) {
        self.alarms.insert(of, error);
        self.wake();
    }

    pub(super) fn reader_alarm(&mut self, of: &Assignment, alarm: Alarm) {
        if self.reader(of).is_some() {
            if alarm.replaced {
                self.replaced.insert(of.partition.clone());
            }
            self.alarm(of.partition.clone(), alarm.error);
        }
    }

    /// A new start was found, perhaps with an alarm.
    pub(super) fn start_alarm(&mut self, of: &Partition, alarm: Option<Alarm>) {
        let told = self.replaced.remove(of);
        if let Some(alarm) = alarm.filter(|alarm| !(told && alarm.replaced)) {
            self.alarm(of.clone(), alarm.error);
        }
    }

    /// Adds a batch, unless reading has ended. If the last one is still there, returns the batch instead.
    pub(super) fn put(&mut self, assignment: &Assignment, batch: Batch) -> Option<Batch> {
        let reader = self.reader(assignment).filter(|reader| !reader.stopped)?;
        if reader.batch.is_some() {
            return Some(batch);
        }
        reader.batch = Some(batch);
        self.ready.push_back(assignment.partition.clone());
        self.wake();
        None
    }

    /// Returns the cursor to commit if everything below `offset` is finished.
    pub(super) fn below(&mut self, assignment: &Assignment, offset: i64) -> Cursor {
        let reader = self.reader(assignment);
        reader.map_or(Cursor::new(offset), |reader| lock(&reader.trail).below(offset))
    }

    pub(super) fn pause(&mut self, of: &[Assignment], paused: bool) {
        for assignment in of {
            if let Some(reader) = self.reader(assignment) {
                reader.paused = paused;
            }
        }
        self.wake();
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
        self.readers.drain().for_each(|(_, reader)| reader.task.abort());
        self.wake();
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some((_, alarm)) = self.alarms.pop_first() {
            return Poll::Ready(Some(Err(alarm)));
        }
        if let Some(change) = self.changes.pop_front() {
            return Poll::Ready(Some(Ok(change)));
        }
        if let Some(error) = self.failures.values_mut().find_map(|told| told.error.take()) {
            return Poll::Ready(Some(Err(error)));
        }
        let open = |p: &Partition| self.readers.get(p).is_some_and(|r| !r.paused);
        if let Some(n) = self.ready.iter().position(open)
            && let Some(partition) = self.ready.remove(n)
            && let Some(reader) = self.readers.get_mut(&partition)
            && let Some(batch) = reader.batch.take()
        {
            reader.taken.notify_one();
            let assignment = Assignment { partition, epoch: reader.epoch };
            return Poll::Ready(Some(Ok(Event::Records(assignment, batch))));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{ErrorKind, Headers, Record};
    use std::task::Waker;

    fn assignment(epoch: u64) -> Assignment {
        Assignment { partition: Partition::new("t", 0), epoch }
    }

    fn batch(from: i64, n: i64) -> Batch {
        let record = |offset| Record::new(offset, 0, None, None, Headers::new());
        Batch::new((from..from + n).map(record).collect(), from + n, None)
    }

    fn task() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    fn assign(outbox: &mut Outbox, epoch: u64) -> Arc<Mutex<Trail>> {
        let trail = Arc::new(Mutex::new(Trail::new(Cursor::new(0))));
        outbox.assigned(assignment(epoch), trail.clone(), Arc::default(), task());
        trail
    }

    fn alarm(error: Error) -> Alarm {
        Alarm { error, replaced: true }
    }

    fn next(outbox: &mut Outbox) -> Option<Result<Event>> {
        match outbox.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(item) => item,
            Poll::Pending => None,
        }
    }

    /// A partition is assigned and revoked for a week while nobody polls.
    #[tokio::test]
    async fn unpolled_events_are_bounded() {
        let mut outbox = Outbox::default();
        let error = || Error::unknown(ErrorKind::Timeout, "fetch");
        for epoch in 0..1_000 {
            assign(&mut outbox, epoch);
            assert!(outbox.put(&assignment(epoch), batch(0, 10)).is_none());
            let back = outbox.put(&assignment(epoch), batch(10, 10));
            assert!(back.is_some(), "one batch waits, the next comes back");
            outbox.failed(None, error());
            outbox.reader_alarm(&assignment(epoch), alarm(error()));
            outbox.revoking(assignment(epoch));
            outbox.lost(assignment(epoch));
        }
        assert!(outbox.changes.is_empty() && outbox.ready.is_empty() && outbox.readers.is_empty());
        assert_eq!((outbox.alarms.len(), outbox.replaced.len(), outbox.failures.len()), (1, 1, 1));
    }

    /// Aborting a reader doesn't stop it at once: on another thread it may be about to hand over what it has read.
    #[tokio::test]
    async fn results_of_an_older_epoch_are_ignored() {
        let mut outbox = Outbox::default();
        let (old, new) = (assignment(1), assignment(2));
        assert!(lock(&assign(&mut outbox, 1)).read(&batch(0, 10)));
        outbox.lost(old.clone());
        assert!(lock(&assign(&mut outbox, 2)).read(&batch(0, 3)));
        while next(&mut outbox).is_some() {}

        assert!(outbox.put(&old, batch(0, 10)).is_none());
        outbox.reader_failed(&old, Error::unknown(ErrorKind::Timeout, "fetch"));
        outbox.reader_alarm(&old, alarm(Error::unknown(ErrorKind::Timeout, "fetch")));
        assert!(next(&mut outbox).is_none(), "neither handed over nor reported");
        assert!(outbox.replaced.is_empty());

        assert!(outbox.put(&new, batch(0, 3)).is_none());
        outbox.pause(std::slice::from_ref(&old), true);
        outbox.revoking(old.clone());
        assert!(matches!(next(&mut outbox), Some(Ok(Event::Revoking(of))) if of == [old.clone()]));
        outbox.lost(old.clone());
        assert!(matches!(next(&mut outbox), Some(Ok(Event::Lost(of))) if of == [old.clone()]));
        assert_eq!(outbox.below(&old, 10), Cursor::new(10), "no mark of the new assignment");
        assert_eq!(outbox.below(&new, 3).mark.map(|m| m.offset), Some(2), "nor was it moved");
        let read = next(&mut outbox);
        assert!(matches!(&read, Some(Ok(Event::Records(of, b))) if *of == new && b.next == 3), "{read:?}");
    }

    #[tokio::test]
    async fn nothing_is_handed_over_once_it_is_being_revoked() {
        let mut outbox = Outbox::default();
        let of = assignment(1);
        assert!(lock(&assign(&mut outbox, 1)).read(&batch(0, 10)));
        outbox.revoking(of.clone());
        assert!(outbox.put(&of, batch(0, 10)).is_none());
        assert!(matches!(next(&mut outbox), Some(Ok(Event::Assigned(_)))));
        assert!(matches!(next(&mut outbox), Some(Ok(Event::Revoking(_)))));
        let after = next(&mut outbox);
        assert!(after.is_none(), "{after:?}");
        assert_eq!(outbox.below(&of, 10).mark.map(|m| m.offset), Some(9), "commits still carry their mark");
    }

    #[tokio::test]
    async fn a_reader_of_an_older_epoch_is_stopped_by_the_next_assignment() {
        let mut outbox = Outbox::default();
        let running = tokio::spawn(std::future::pending::<()>());
        outbox.assigned(
            assignment(1),
            Arc::new(Mutex::new(Trail::new(Cursor::new(0)))),
            Arc::default(),
            running.abort_handle(),
        );
        assert!(outbox.put(&assignment(1), batch(0, 3)).is_none());
        assign(&mut outbox, 2);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), running).await;
        assert!(ended.expect("it keeps running").unwrap_err().is_cancelled());
        while let Some(event) = next(&mut outbox) {
            assert!(!matches!(event, Ok(Event::Records(..))), "{event:?}");
        }
    }

    #[tokio::test]
    async fn alarm_is_reported_once() {
        let mut outbox = Outbox::default();
        assign(&mut outbox, 1);
        let error = |op| Error::unknown(ErrorKind::Timeout, op);
        outbox.reader_alarm(&assignment(1), alarm(error("alarm")));
        outbox.failed(None, error("one"));
        outbox.start_alarm(&assignment(1).partition, Some(alarm(error("again"))));
        assert_eq!(told(&mut outbox), ["alarm", "one"]);
        outbox.start_alarm(&assignment(1).partition, Some(alarm(error("later"))));
        assert_eq!(told(&mut outbox), ["later"]);
    }

    fn told(outbox: &mut Outbox) -> Vec<&'static str> {
        std::iter::from_fn(|| next(outbox)).filter_map(Result::err).map(|e| e.op()).collect()
    }

    /// A hundred readers that fail once per second for two minutes.
    #[tokio::test(start_paused = true)]
    async fn shared_failure_is_reported_once_per_minute() {
        let mut outbox = Outbox::default();
        let (mut of_server, mut of_partition) = (0, 0);
        for second in 0..120 {
            for index in 0..100 {
                let on = Partition::new("t", index);
                outbox.failed(Some(&on), Error::unknown(ErrorKind::Timeout, "fetch"));
                if index < 2 {
                    outbox.failed(Some(&on), Error::not_applied(ErrorKind::Corrupt, "fetch"));
                }
                while let Some(Err(error)) = next(&mut outbox) {
                    *(if error.kind() == ErrorKind::Timeout { &mut of_server } else { &mut of_partition }) +=
                        1;
                }
            }
            assert!(second > 0 || (of_server, of_partition) == (1, 2), "at once");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(
            (of_server, of_partition),
            (2, 4),
            "a failure of a single partition is reported by that partition"
        );
        assert_eq!(outbox.failures.len(), 3);
    }
}
