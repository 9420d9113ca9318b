//! The event loop: one task that owns the machine, starts its calls, and passes events and outcomes to it.

use super::{Shared, calls::Calls, job_slot::JobSlot, shared::Inbox, start::shut_down};
use crate::clock::FAR;
use kafkaq_core::{
    Commit, Consumer, Error, ErrorKind, Event, LeaseStore, Log, LostReason, Result, Retry, Swapped,
    machine::{Alarm, Answer, Command, FlowControl, JobKey, Machine, Notice, Now, OpId, Ready, Recall},
};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Items per call of the store, and concurrent calls of each kind. For etcd, 500 items are four full requests.
const STORE_BATCH: usize = 500;
const SWAP_CALLS: usize = 2;
const GET_CALLS: usize = 2;
/// Records per append, and concurrent appends.
const APPEND_BATCH: usize = 1000;
const APPEND_CALLS: usize = 8;

/// How long jobs may still run when the queue stops, before it leaves the group: nobody takes new tasks meanwhile.
const LEAVE_AFTER: Duration = Duration::from_millis(300);

/// What an event loop is created from.
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) consumer: Consumer,
    pub(super) log: Arc<dyn Log>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct EventLoop {
    machine: Machine,
    consumer: Consumer,
    log: Arc<dyn Log>,
    store: Arc<dyn LeaseStore>,
    shared: Arc<Shared>,
    stop: watch::Receiver<Option<Instant>>,
    swaps: Calls<OpId, Swapped>,
    gets: Calls<OpId, Option<bytes::Bytes>>,
    appends: Calls<OpId, i64>,
    commits: Calls<Commit, ()>,
    /// Jobs that are ready or held, until their holder can send no more commands.
    slots: HashMap<JobKey, Arc<JobSlot>, foldhash::fast::RandomState>,
    inbox: Inbox,
    ready: Vec<Ready>,
    offers: Vec<Arc<JobSlot>>,
    stopping: Option<Instant>,
    /// When it leaves the group even if jobs still run, so that others can take over their partitions.
    leave_at: Option<Instant>,
    leaving: Option<JoinHandle<()>>,
    events_ended: bool,
    outcome: Result<()>,
}

impl EventLoop {
    pub(super) fn new(parts: Parts, stop: watch::Receiver<Option<Instant>>) -> Self {
        let counters = parts.shared.counters.clone();
        parts.shared.run();
        EventLoop {
            machine: parts.machine,
            consumer: parts.consumer,
            log: parts.log,
            store: parts.store,
            shared: parts.shared,
            stop,
            swaps: Calls::new(SWAP_CALLS, counters.store_swaps.clone()),
            gets: Calls::new(GET_CALLS, counters.store_reads.clone()),
            appends: Calls::new(APPEND_CALLS, counters.copies.clone()),
            commits: Calls::new(1, counters.commits.clone()),
            slots: HashMap::default(),
            inbox: Inbox::default(),
            ready: Vec::new(),
            offers: Vec::new(),
            stopping: None,
            leave_at: None,
            leaving: None,
            events_ended: false,
            outcome: Ok(()),
        }
    }

    pub(super) async fn run(mut self) -> Result<()> {
        let shared = self.shared.clone();
        let clock = shared.clock;
        let mut timer = pin!(sleep_until(Instant::now()));
        loop {
            self.hand_out();
            shared.counters.jobs.store(self.slots.len(), Ordering::Relaxed);
            self.start_calls();
            if self.stopping.is_some() && self.machine.is_drained() {
                break;
            }
            let timeout = self.machine.poll_timeout().map(|at| clock.at(at));
            if let Some(at) = timeout
                && at != timer.deadline()
            {
                timer.as_mut().reset(at);
            }
            let (limit, leave_at) = (self.stopping, self.leave_at);
            // Every branch is cancel-safe, and none awaits a call.
            tokio::select! {
                ended = self.swaps.ended() => {
                    let now = clock.now();
                    ended.for_each(|(op, outcome)| self.machine.handle_swapped(now, op, outcome));
                }
                ended = self.gets.ended() => {
                    let now = clock.now();
                    ended.for_each(|(op, outcome)| self.machine.handle_got(now, op, outcome));
                }
                ended = self.appends.ended() => {
                    let now = clock.now();
                    ended.for_each(|(op, outcome)| self.machine.handle_appended(now, op, outcome));
                }
                ended = self.commits.ended() => {
                    let now = clock.now();
                    ended.for_each(|(commit, outcome)| self.machine.handle_committed(now, &commit, outcome));
                }
                event = poll_fn(|cx| self.consumer.events.as_mut().poll_next(cx)), if !self.events_ended => {
                    self.take_event(event);
                }
                () = shared.bell.notified() => {
                    // Lets tasks that are about to send a command join the same batch.
                    tokio::task::yield_now().await;
                    self.read_inbox();
                }
                () = timer.as_mut(), if timeout.is_some() => self.machine.handle_timeout(clock.now()),
                Ok(()) = self.stop.changed() => self.begin_to_stop(),
                () = async { if let Some(at) = limit { sleep_until(at).await } }, if limit.is_some() => {
                    self.give_up();
                    break;
                }
                () = async { if let Some(at) = leave_at { sleep_until(at).await } }, if leave_at.is_some() => {
                    self.leave();
                }
            }
        }
        // Leaving may take long, and nobody reads the inbox meanwhile.
        self.shared.end(self.slots.drain().map(|(_, slot)| slot));
        self.leave();
        if let Some(left) = self.leaving.take() {
            let _ = left.await;
        }
        std::mem::replace(&mut self.outcome, Ok(()))
    }

    /// Begins to leave the group. Jobs that still run may finish.
    fn leave(&mut self) {
        self.leave_at = None;
        self.events_ended = true;
        self.machine.handle_left(self.shared.clock.now());
        let member = self.consumer.member.clone();
        self.leaving.get_or_insert_with(|| {
            tokio::spawn(async move {
                if let Err(e) = member.leave().await {
                    tracing::warn!(
                        target: "kafkaq", error = %e,
                        "could not leave the group; the other members take over after the member timeout"
                    );
                }
            })
        });
    }

    /// Passes the machine's jobs and answers to the users' tasks.
    fn hand_out(&mut self) {
        self.machine.poll_ready(&mut self.ready);
        let offered = !self.ready.is_empty();
        if offered {
            for ready in self.ready.drain(..) {
                let (job, slot) = (ready.job, Arc::new(JobSlot::new(ready)));
                self.slots.insert(job, slot.clone());
                self.offers.push(slot);
            }
            self.shared.ready_queue.offer(self.offers.drain(..));
        }
        while let Some(notice) = self.machine.poll_notice() {
            self.pass_on(notice);
        }
        // Once it is stopping, nobody takes jobs that become ready.
        let recall = self.machine.poll_recall().max(self.stopping.map(|_| Recall::All));
        if let Some(recall) = recall {
            let now = self.shared.clock.now();
            let take = |ready: &mut VecDeque<Arc<JobSlot>>| recall.take_back(ready, now, |slot| &slot.ready);
            let back = self.shared.ready_queue.recall(take);
            for slot in back {
                self.slots.remove(&slot.ready.job);
                self.machine.handle_untaken(now, slot.ready.job);
            }
        }
        if offered {
            self.tell_demand(self.shared.clock.now());
        }
    }

    fn pass_on(&mut self, notice: Notice) {
        match notice {
            Notice::Answered(job, no, answer) => {
                if let Answer::Lost(why) = answer {
                    self.lease_lost(job, why);
                }
                if self.slots.get(&job).is_some_and(|slot| slot.commands.answer(no, answer)) {
                    self.slots.remove(&job);
                }
            }
            Notice::LeaseLost(job, why) => self.lease_lost(job, why),
            Notice::DeadLettered(why) => self.shared.meter.dead_lettered(why),
            Notice::Alarm(alarm) => report(&alarm),
        }
    }

    /// A loss may answer several commands, but counts as one.
    fn lease_lost(&self, job: JobKey, why: LostReason) {
        if why != LostReason::Over
            && let Some(slot) = self.slots.get(&job)
            && slot.commands.lose(why)
        {
            self.shared.meter.lease_lost(why);
        }
    }

    fn tell_demand(&mut self, now: Now) {
        let (waiting, ready) = self.shared.ready_queue.demand();
        self.machine.handle_demand(now, waiting, ready);
    }

    /// Starts the machine's calls to the backends, as far as there is room.
    fn start_calls(&mut self) {
        while self.swaps.has_room() {
            let mut batch = Vec::new();
            self.machine.poll_swaps(STORE_BATCH, &mut batch);
            if batch.is_empty() {
                break;
            }
            let (ops, swaps): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let store = self.store.clone();
            self.swaps.start(ops, async move {
                let out = store.swap(&swaps).await;
                named(out, swaps.iter().map(|s| &s.key))
            });
        }
        while self.gets.has_room() {
            let mut batch = Vec::new();
            self.machine.poll_gets(STORE_BATCH, &mut batch);
            if batch.is_empty() {
                break;
            }
            let (ops, keys): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let store = self.store.clone();
            self.gets.start(ops, async move {
                let out = store.get(&keys).await;
                named(out, keys.iter())
            });
        }
        while self.appends.has_room() {
            let mut batch = Vec::new();
            let Some(partition) = self.machine.poll_appends(APPEND_BATCH, &mut batch) else { break };
            let (ops, records): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let log = self.log.clone();
            self.appends.start(ops, async move {
                let out = log.append(&partition, &records).await;
                named(out, std::iter::repeat(&partition))
            });
        }
        if self.commits.has_room() {
            let mut commits = Vec::new();
            self.machine.poll_commits(&mut commits);
            if !commits.is_empty() {
                let (member, names) = (self.consumer.member.clone(), commits.clone());
                self.commits.start(names, async move {
                    let out = member.commit(&commits).await;
                    named(out, commits.iter().map(|c| &c.assignment))
                });
            }
        }
        let mut released = Vec::new();
        self.machine.poll_releases(&mut released);
        if !released.is_empty() {
            self.consumer.member.release(&released);
        }
        let mut replaced = Vec::new();
        self.machine.poll_reassigns(&mut replaced);
        if !replaced.is_empty() {
            self.consumer.member.reassign(&replaced);
        }
        while let Some((assignment, control)) = self.machine.poll_flow() {
            let member = &self.consumer.member;
            match control {
                FlowControl::Pause => member.pause(&[assignment]),
                FlowControl::Resume => member.resume(&[assignment]),
            }
        }
    }

    fn take_event(&mut self, event: Option<Result<Event>>) {
        match event {
            Some(Ok(event)) => self.machine.handle_event(self.shared.clock.now(), event),
            Some(Err(e)) if e.retry() == Retry::No => self.fail(e),
            Some(Err(e)) if e.kind() == ErrorKind::DataLoss => {
                tracing::error!(target: "kafkaq", error = %e, "the log has lost records");
            }
            Some(Err(e)) => {
                tracing::warn!(target: "kafkaq", error = %e, "an error while reading from the log; reading continues");
            }
            None => {
                self.events_ended = true;
                if self.stopping.is_none() {
                    self.fail(
                        Error::not_applied(ErrorKind::Other, "read the log")
                            .with_advice("The broker ended the event stream"),
                    );
                }
            }
        }
    }

    /// Stops, because the broker delivers nothing more. Held jobs may finish within one lease duration.
    fn fail(&mut self, e: Error) {
        tracing::error!(target: "kafkaq", error = %e, "the queue has failed and hands out no more jobs");
        self.events_ended = true;
        self.outcome = Err(e.clone());
        self.shared.close(e);
        self.stop_by(Instant::now() + self.machine.settings().lease.min(FAR));
    }

    fn read_inbox(&mut self) {
        let now = self.shared.clock.now();
        self.shared.empty_inbox(&mut self.inbox);
        for slot in self.inbox.asking.drain(..) {
            let Some((no, ask)) = slot.commands.asked() else { continue };
            let job = slot.ready.job;
            if matches!(ask, Command::Abandoned) {
                self.slots.remove(&job);
            }
            self.machine.handle_command(now, job, no, ask);
        }
        for slot in self.inbox.stale.drain(..) {
            self.slots.remove(&slot.ready.job);
            self.machine.handle_untaken(now, slot.ready.job);
        }
        for caller in self.inbox.stats_requests.drain(..) {
            let _ = caller.send(self.machine.stats());
        }
        self.tell_demand(now);
    }

    fn begin_to_stop(&mut self) {
        let told = *self.stop.borrow_and_update();
        if let Some(until) = told {
            self.shared.close(shut_down());
            self.stop_by(until);
        }
    }

    fn stop_by(&mut self, until: Instant) {
        if self.stopping.is_none() {
            self.machine.handle_shutdown(self.shared.clock.now());
            self.leave_at = Some(Instant::now() + LEAVE_AFTER);
        }
        self.stopping = Some(self.stopping.map_or(until, |earlier| earlier.min(until)));
    }

    fn give_up(&mut self) {
        if self.outcome.is_ok() {
            let left = match self.slots.len() {
                0 => "calls to the log or the store".to_owned(),
                left => format!("{left} running jobs"),
            };
            self.outcome = Err(Error::unknown(ErrorKind::Timeout, "shut down")
                .on(left)
                .with_retry(Retry::No)
                .with_advice("Tasks that are not done are handed out again when their leases end"));
        }
    }
}

impl Drop for EventLoop {
    /// Also when it panics or is aborted: nobody may wait forever.
    fn drop(&mut self) {
        self.shared.end(self.slots.drain().map(|(_, slot)| slot));
    }
}

/// Adds to each error which item failed, which adapters leave out.
fn named<T, N: fmt::Display>(mut outcomes: Vec<Result<T>>, names: impl Iterator<Item = N>) -> Vec<Result<T>> {
    for (outcome, name) in outcomes.iter_mut().zip(names) {
        if let Err(e) = outcome {
            *e = e.clone().on(name);
        }
    }
    outcomes
}

fn report(alarm: &Alarm) {
    match alarm {
        Alarm::Stuck { at, error } => tracing::warn!(
            target: "kafkaq", partition = %at.partition, offset = at.offset, error = %error,
            "the log refuses a copy or a dead letter of this record; the record stays where it is and is considered again. \
             Compare max.message.bytes of the wait and dead-letter topics with the task topic's, and their permissions"
        ),
        Alarm::StoreRefuses { at, error } => tracing::warn!(
            target: "kafkaq", partition = %at.partition, offset = at.offset, error = %error,
            "the store refuses an operation for this record; it is retried"
        ),
        Alarm::Newer { at, version } => tracing::error!(
            target: "kafkaq", partition = %at.partition, offset = at.offset, version,
            "this record or its lease was written by a later kafkaq, and this process can't read it; it \
             waits for one that can. Upgrade this process"
        ),
        Alarm::LogReplaced { assignment, offset } => tracing::error!(
            target: "kafkaq", partition = %assignment.partition, offset,
            "a different record arrived at a known offset: the topic was truncated, or deleted and \
             recreated; it is read again from where it was committed, or from its first record if the commit \
             was of the earlier topic"
        ),
        Alarm::Undecodable { at, why } => tracing::error!(
            target: "kafkaq", partition = %at.partition, offset = at.offset, why,
            "a record that can't be decoded was moved to the dead-letter topic"
        ),
        other => tracing::warn!(target: "kafkaq", alarm = ?other, "alarm"),
    }
}
