//! State shared by the users' tasks and the event loop.

use super::{
    job_slot::JobSlot,
    ready_queue::{Closed, ReadyQueue},
};
use crate::{clock::Clock, stats::DriverCounters, sync::lock, telemetry::JobMeter};
use kafkaq_core::{
    Error, ErrorKind, Result,
    machine::{Answer, Command, MachineStats},
};
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ready_queue: ReadyQueue<Arc<JobSlot>>,
    inbox: Mutex<Inbox>,
    /// Rung when the inbox is no longer empty, or when the demand has changed.
    pub(super) bell: Arc<Notify>,
    pub(super) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<DriverCounters>,
    pub(crate) meter: JobMeter,
    closed: OnceLock<Error>,
    /// The event loop reads the inbox.
    running: AtomicBool,
}

/// Limits on the commands of a job's holder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The longest delay of a retry.
    pub(crate) delay: Duration,
    /// The longest extension of a lease.
    pub(crate) extension: Duration,
    /// The most hand-outs of a task.
    #[cfg(feature = "worker")]
    pub(crate) handouts: u32,
}

/// What the event loop has to process. Bounded by the number of jobs that are handed out.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Jobs whose holder has sent a command.
    pub(super) asking: Vec<Arc<JobSlot>>,
    /// Jobs that were not handed out, because they had been ready for too long, or were lost meanwhile.
    pub(super) stale: Vec<Arc<JobSlot>>,
    /// Callers that wait for statistics.
    pub(super) stats_requests: Vec<oneshot::Sender<MachineStats>>,
    ended: bool,
}

impl Shared {
    /// `prefetch` is how many jobs may be ready before a caller waits.
    pub(crate) fn new(queue: &str, prefetch: usize, limits: Limits, clock: Clock) -> Self {
        let bell = Arc::new(Notify::new());
        Shared {
            ready_queue: ReadyQueue::new(prefetch / 2, bell.clone()),
            inbox: Mutex::default(),
            bell,
            clock,
            limits,
            counters: Arc::new(DriverCounters::new(queue)),
            meter: JobMeter::new(queue),
            closed: OnceLock::new(),
            running: AtomicBool::new(false),
        }
    }

    /// Waits for the next job, for a caller that wants `wanted`. Cancel-safe.
    ///
    /// # Errors
    /// Why the queue hands out no more jobs.
    pub(crate) async fn take(&self, wanted: usize) -> Result<Arc<JobSlot>> {
        while let Some(slot) = self.ready_queue.take(wanted).await {
            if let Some(slot) = self.unless_stale(slot) {
                return Ok(slot);
            }
        }
        Err(self.why_closed())
    }

    /// Returns a job if one is ready.
    ///
    /// # Errors
    /// The same as for [`Shared::take`].
    pub(crate) fn try_take(&self) -> Result<Option<Arc<JobSlot>>> {
        while let Some(slot) = self.ready_queue.try_take().map_err(|Closed| self.why_closed())? {
            if let Some(slot) = self.unless_stale(slot) {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// Gives a job back that has been ready for too long, or that was lost meanwhile.
    fn unless_stale(&self, slot: Arc<JobSlot>) -> Option<Arc<JobSlot>> {
        if slot.ready.is_fresh(self.clock.now()) && slot.commands.lost().is_none() {
            return Some(slot);
        }
        let first = {
            let mut inbox = lock(&self.inbox);
            inbox.stale.push(slot);
            inbox.stale.len() == 1
        };
        if first {
            self.bell.notify_one();
        }
        None
    }

    fn why_closed(&self) -> Error {
        self.closed.get().cloned().unwrap_or_else(|| gone("get a job"))
    }

    /// Passes a command on. Never waits and never fails, so that a `Drop` can call it.
    pub(crate) fn ask(&self, slot: &Arc<JobSlot>, ask: Command) {
        if !slot.commands.ask(ask) {
            return;
        }
        let first = {
            let mut inbox = lock(&self.inbox);
            if inbox.ended {
                drop(inbox);
                return slot.commands.answer_last(Answer::Failed(gone("finish the job")));
            }
            inbox.asking.push(slot.clone());
            inbox.asking.len() == 1
        };
        if first {
            self.bell.notify_one();
        }
    }

    /// Returns the machine's statistics: empty before the queue has joined its group and after it has left.
    pub(crate) async fn machine_stats(&self) -> MachineStats {
        if !self.running.load(Ordering::Relaxed) {
            return MachineStats::default();
        }
        let (answer, stats) = oneshot::channel();
        {
            let mut inbox = lock(&self.inbox);
            if inbox.ended {
                return MachineStats::default();
            }
            inbox.stats_requests.push(answer);
        }
        self.bell.notify_one();
        stats.await.unwrap_or_default()
    }

    /// Records that the inbox is read from now on.
    pub(super) fn run(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Exchanges the inbox for an empty one, which keeps the allocations of both.
    pub(super) fn empty_inbox(&self, into: &mut Inbox) {
        std::mem::swap(into, &mut lock(&self.inbox));
    }

    /// Stops handing out jobs, for this reason. The first reason stays.
    pub(super) fn close(&self, why: Error) {
        let _ = self.closed.set(why);
        self.ready_queue.close();
    }

    /// Records that the inbox is no longer read: every command, including later ones, is answered with a failure.
    pub(super) fn end(&self, held: impl Iterator<Item = Arc<JobSlot>>) {
        self.close(gone("get a job"));
        let left = {
            let mut inbox = lock(&self.inbox);
            inbox.ended = true;
            inbox.stats_requests.clear();
            std::mem::take(&mut inbox.asking)
        };
        let failed = || Error::unknown(ErrorKind::Closed, "finish the job").with_advice(AFTERWARDS);
        held.chain(left).for_each(|slot| slot.commands.answer_last(Answer::Failed(failed())));
    }
}

fn gone(op: &'static str) -> Error {
    Error::not_applied(ErrorKind::Closed, op).with_advice(AFTERWARDS)
}

const AFTERWARDS: &str =
    "The queue has stopped; a task that is not done is handed out again when its lease ends";
