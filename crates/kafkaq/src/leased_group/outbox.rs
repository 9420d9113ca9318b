//! What waits for the event stream to be polled: changes first, then at most one batch a partition.
//!
//! It is bounded although nobody may poll: a partition has at most one batch here, and a change that is overtaken
//! by a later one before anybody saw it is left out.

use kafkaq_core::{Assignment, Batch, Error, Event, Mark, Partition, Result};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::{sync::Notify, task::AbortHandle};

/// More marks than records that a window holds. Beyond it the oldest go, which makes a cursor's mark older, not wrong.
const MAX_MARKS: usize = 1 << 16;

#[derive(Default)]
pub(super) struct Outbox {
    changes: VecDeque<Event>,
    error: Option<Error>,
    ready: VecDeque<Partition>,
    readers: HashMap<Partition, Reader>,
    ended: bool,
    waker: Option<Waker>,
}

pub(super) struct Reader {
    epoch: u64,
    paused: bool,
    batch: Option<Batch>,
    /// Of what was handed to the outbox and isn't committed.
    marks: VecDeque<Mark>,
    taken: Arc<Notify>,
    task: AbortHandle,
}

impl Outbox {
    pub(super) fn assigned(&mut self, assignment: Assignment, taken: Arc<Notify>, task: AbortHandle) {
        let reader = Reader {
            epoch: assignment.epoch,
            paused: false,
            batch: None,
            marks: VecDeque::new(),
            taken,
            task,
        };
        self.readers.insert(assignment.partition.clone(), reader);
        self.changes.push_back(Event::Assigned(vec![assignment]));
        self.wake();
    }

    /// Reading ends; commits go on until the partition is lost.
    pub(super) fn revoking(&mut self, assignment: Assignment) {
        self.stop(&assignment);
        self.changes.push_back(Event::Revoking(vec![assignment]));
        self.wake();
    }

    pub(super) fn lost(&mut self, assignment: Assignment) {
        self.stop(&assignment);
        self.readers.remove(&assignment.partition);
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

    fn stop(&mut self, assignment: &Assignment) {
        self.ready.retain(|p| *p != assignment.partition);
        if let Some(reader) = self.readers.get_mut(&assignment.partition) {
            reader.task.abort();
            reader.batch = None;
        }
    }

    /// Only the last error is kept: the same server says the same again.
    pub(super) fn failed(&mut self, error: Error) {
        self.error = Some(error);
        self.wake();
    }

    /// Puts a batch in, unless the last one is still there; then it comes back.
    pub(super) fn put(&mut self, assignment: &Assignment, batch: Batch) -> Option<Batch> {
        let reader = self.readers.get_mut(&assignment.partition)?;
        if reader.batch.is_some() {
            return Some(batch);
        }
        let room = MAX_MARKS.saturating_sub(batch.records.len());
        let over = reader.marks.len().saturating_sub(room);
        reader.marks.drain(..over);
        reader.marks.extend(batch.records.iter().map(Mark::of));
        reader.batch = Some(batch);
        self.ready.push_back(assignment.partition.clone());
        self.wake();
        None
    }

    /// The mark of the last record below `offset`.
    pub(super) fn mark_below(&mut self, assignment: &Assignment, offset: i64) -> Option<Mark> {
        let reader = self.readers.get_mut(&assignment.partition).filter(|r| r.epoch == assignment.epoch)?;
        let below = reader.marks.partition_point(|m| m.offset < offset);
        reader.marks.drain(..below.saturating_sub(1));
        reader.marks.front().copied().filter(|m| m.offset < offset)
    }

    pub(super) fn pause(&mut self, of: &[Assignment], paused: bool) {
        for assignment in of {
            if let Some(reader) = self.readers.get_mut(&assignment.partition)
                && reader.epoch == assignment.epoch
            {
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
        if let Some(change) = self.changes.pop_front() {
            return Poll::Ready(Some(Ok(change)));
        }
        if let Some(error) = self.error.take() {
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
    use kafkaq_core::{Headers, Record};

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

    /// A partition that comes and goes for a week, and nobody polls.
    #[tokio::test]
    async fn what_nobody_polls_has_a_limit() {
        let mut outbox = Outbox::default();
        for epoch in 0..1_000 {
            outbox.assigned(assignment(epoch), Arc::default(), task());
            assert!(outbox.put(&assignment(epoch), batch(0, 10)).is_none());
            let back = outbox.put(&assignment(epoch), batch(10, 10));
            assert!(back.is_some(), "one batch waits, the next comes back");
            outbox.failed(Error::unknown(kafkaq_core::ErrorKind::Timeout, "fetch"));
            outbox.revoking(assignment(epoch));
            outbox.lost(assignment(epoch));
        }
        assert!(outbox.changes.is_empty() && outbox.ready.is_empty() && outbox.readers.is_empty());
    }

    #[tokio::test]
    async fn marks_have_a_limit_and_the_newest_stay() {
        let mut outbox = Outbox::default();
        outbox.assigned(assignment(1), Arc::default(), task());
        for n in 0..10 {
            assert!(outbox.put(&assignment(1), batch(n * 10_000, 10_000)).is_none());
            outbox.readers.values_mut().for_each(|r| r.batch = None);
        }
        assert_eq!(outbox.readers.values().next().map(|r| r.marks.len()), Some(MAX_MARKS));
        let mark = |outbox: &mut Outbox, below| outbox.mark_below(&assignment(1), below).map(|m| m.offset);
        assert_eq!(mark(&mut outbox, 10), None, "forgotten");
        assert_eq!(mark(&mut outbox, 99_000), Some(98_999));
        assert_eq!(mark(&mut outbox, 100_000), Some(99_999));
    }
}
