//! A member's poll thread: the only one that polls its consumers.
//!
//! ```text
//!   librdkafka ── rebalances ──────────> Group ──┐
//!              ── errors, logs ──────────────────┼─> pending ─┬─> channel ─> Events
//!              ── a queue a partition ── batches ─────────────┘
//! ```
//! It parks when there is nothing to do and is rung by librdkafka (a queue is no longer empty), by the handle, by the
//! stream and by checks. A queue rings only when it was empty, so whatever is left in one is remembered in
//! `Slot::ready`. Such a ring can be lost, so all queues are looked into every [`SWEEP`].

use crate::{
    batch,
    check::{Checker, Outcome},
    error,
    group::Group,
    locked,
    log::Trouble,
    member::{Events, Handle, Item, Shared},
    settings::{GroupProtocol, Settings},
    slot::WentBack,
};
use kafkaq_core::{
    Batch, Consumer, Error, ErrorKind, Event, JoinRequest, Partition, PartitionLog, Result, Retry,
};
use rdkafka::{consumer::Consumer as _, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle as Runtime,
    sync::{mpsc, oneshot},
};

const READ: &str = "read";
/// Batches that wait in the stream, of all partitions.
const CHANNEL: usize = 32;
/// How often all queues are looked into. It also keeps `max.poll.interval.ms`.
const SWEEP: Duration = Duration::from_secs(1);
/// How often what was read is compared with the log, and how soon again after an error.
const CHECK_EVERY: Duration = Duration::from_secs(9);
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// The same error is reported once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// A consumer that has failed is built anew after this, and after twice as long each time until one has lived for
/// `HEALTHY`.
const REBUILD: Duration = Duration::from_millis(250);
const MAX_REBUILD: Duration = Duration::from_secs(30);
const HEALTHY: Duration = Duration::from_secs(60);

/// Joins the group: answers when the consumer is there, not when the group has given it partitions.
pub(crate) async fn start(
    settings: Arc<Settings>,
    log: Arc<dyn PartitionLog>,
    request: JoinRequest,
) -> Result<(Consumer, Arc<Shared>)> {
    let runtime = Runtime::try_current().map_err(|e| {
        let e = Error::not_applied(ErrorKind::Invalid, "join").with_source(e);
        e.with_advice("Call it within a Tokio runtime")
    })?;
    let (shared, gone) = Shared::new(settings);
    let (tx, items) = mpsc::channel(CHANNEL);
    let (opened, is_open) = oneshot::channel();
    let member = shared.clone();
    let life = move || {
        member.polled_here();
        match member.start_committer() {
            Ok(committer) => {
                Poller::new(&request, &member, log, runtime, tx).live(opened);
                member.end_commits();
                let _ = committer.join();
            }
            Err(e) => {
                let _ = opened.send(Err(Error::not_applied(ErrorKind::Other, "join").with_source(e)));
            }
        }
        gone.send_replace(true);
    };
    let failed = |e| Error::not_applied(ErrorKind::Other, "join").with_source(e);
    thread::Builder::new().name("kafkaq-poll".into()).spawn(life).map_err(failed)?;
    let events = Events { items, shared: shared.clone() };
    is_open.await.unwrap_or_else(|_| Err(Error::not_applied(ErrorKind::Other, "join")))?;
    let consumer = Consumer { events: Box::pin(events), member: Arc::new(Handle(shared.clone())) };
    Ok((consumer, shared))
}

/// Why the poll thread has nothing more to do with its consumers.
enum End {
    Left,
    NoSuchProtocol,
}

/// A consumer that has failed and is built anew.
struct Rebuild {
    topics: Vec<Arc<str>>,
    /// Of the one that has failed. The other consumers go on meanwhile.
    closing: JoinHandle<()>,
    failures: u32,
    due: Instant,
}

struct Poller<'a> {
    // Before the groups: the stream ends before a consumer takes its leave, which can last.
    tx: mpsc::Sender<Item>,
    groups: Vec<Group>,
    rebuilds: Vec<Rebuild>,
    trouble: Arc<Trouble>,
    shared: &'a Arc<Shared>,
    request: &'a JoinRequest,
    protocol: GroupProtocol,
    checker: Checker,
    outcomes: mpsc::Receiver<Outcome>,
    /// What is not a batch and found the channel full. `Group::rebalance` bounds it.
    pending: VecDeque<Item>,
    /// The queue to look at first, so that a busy partition does not starve the others.
    first: usize,
    reported: Option<(Code, Instant)>,
    swept: Instant,
    checked: Instant,
    check_at: Instant,
}

impl<'a> Poller<'a> {
    fn new(
        request: &'a JoinRequest,
        shared: &'a Arc<Shared>,
        log: Arc<dyn PartitionLog>,
        runtime: Runtime,
        tx: mpsc::Sender<Item>,
    ) -> Self {
        let (checker, outcomes) = Checker::new(log, shared.clone(), runtime);
        let now = Instant::now();
        Poller {
            tx,
            groups: Vec::new(),
            rebuilds: Vec::new(),
            trouble: shared.settings.trouble().clone(),
            shared,
            request,
            protocol: shared.settings.protocol(),
            checker,
            outcomes,
            pending: VecDeque::new(),
            first: 0,
            reported: None,
            swept: now,
            checked: now,
            check_at: now + CHECK_EVERY,
        }
    }

    /// The thread's life: by one group protocol, or by two in turn where the server lacks the new one.
    fn live(mut self, opened: oneshot::Sender<Result<()>>) {
        let has_another = self.protocol == GroupProtocol::Auto;
        if has_another {
            self.protocol = GroupProtocol::Consumer;
        }
        let joined = self.join();
        let is_open = joined.is_ok();
        let _ = opened.send(joined);
        if is_open && matches!(self.run(has_another), End::NoSuchProtocol) {
            let group = &self.request.group;
            tracing::info!(%group, "the server lacks KIP-848; joining by the classic protocol");
            self.protocol = GroupProtocol::Classic;
            self.groups.clear();
            match self.join() {
                Ok(()) => drop(self.run(false)),
                Err(e) => self.end_with(e),
            }
        }
        let Poller { tx, groups, rebuilds, checker, mut outcomes, .. } = self;
        // The stream ends now, not when the consumers have taken their leave. That can last for seconds where a
        // rebalance is under way, so they do it side by side.
        drop(tx);
        let closing: Vec<_> = groups.into_iter().map(close).collect();
        drop(checker);
        let closing = rebuilds.into_iter().map(|rebuild| rebuild.closing).chain(closing);
        closing.for_each(|closing| drop(closing.join()));
        // Until the last check has ended.
        while outcomes.blocking_recv().is_some() {}
    }

    fn join(&mut self) -> Result<()> {
        let topics = &self.request.topics;
        // By the classic protocol one consumer for each topic. Its `cooperative-sticky` assignor evens out the sum
        // over all topics of a consumer: whoever joins second may get all of one topic and nothing of the other. Its
        // `range` shares each topic, and stops everybody at every change.
        let share = if self.protocol == GroupProtocol::Classic { 1 } else { topics.len().max(1) };
        for topics in topics.chunks(share) {
            let group = self.join_as_one(topics.to_vec(), 0)?;
            self.groups.push(group);
        }
        Ok(())
    }

    fn join_as_one(&self, topics: Vec<Arc<str>>, failures: u32) -> Result<Group> {
        Group::join(self.request, topics, self.shared, &self.checker, &self.trouble, self.protocol, failures)
    }

    /// Until the member leaves, or until it turns out that the server lacks the group protocol and there is another.
    fn run(&mut self, has_another: bool) -> End {
        loop {
            if self.shared.is_leaving() {
                return End::Left;
            }
            if let Some((at, code, reason)) = self.serve_main_queues() {
                let lacking = matches!(code, Code::UnsupportedFeature | Code::UnsupportedVersion);
                if lacking && has_another && locked(&self.shared.owned).is_empty() {
                    return End::NoSuchProtocol;
                }
                if !self.fail(at, code, reason) {
                    return End::Left;
                }
            }
            self.take_outcomes();
            self.serve_groups();
            if let Err(e) = self.rebuild() {
                self.end_with(e);
                return End::Left;
            }
            self.flush();
            self.sweep();
            self.compare();
            if !self.deliver() {
                self.park();
            }
        }
    }

    fn park(&self) {
        let rebuilds = self.rebuilds.iter().map(|r| r.due);
        let due = self.groups.iter().filter_map(Group::due).chain(rebuilds);
        let due = due.chain([self.swept + SWEEP, self.check_at]).min();
        let patience = due.map_or(SWEEP, |due| due.saturating_duration_since(Instant::now()));
        // A client that is being closed is looked after now and then.
        thread::park_timeout(patience.clamp(Duration::from_millis(1), SWEEP));
    }

    /// A queue whose ring was lost waits no longer than this for the next look, however busy the others are.
    fn sweep(&mut self) {
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            let queues = self.groups.iter().flat_map(|group| &group.queues);
            queues.for_each(|(slot, _)| slot.ready.store(true, SeqCst));
        }
    }

    /// Rebalances (noted), errors (reported) and logs (written). Answers the error that a group doesn't survive.
    fn serve_main_queues(&mut self) -> Option<(usize, Code, String)> {
        let mut at = 0;
        while let Some(Group { consumer, .. }) = self.groups.get(at) {
            let served = consumer.context().served();
            match consumer.poll(Duration::ZERO) {
                Some(Err(e)) => {
                    if let Some((code, reason)) = consumer.client().fatal_error() {
                        return Some((at, code, reason));
                    }
                    let reason = consumer.context().take_reason();
                    self.report(&e, &reason, None);
                }
                // Every partition is split off before it is assigned, so no records come this way.
                Some(Ok(_)) => {}
                None if served == consumer.context().served() => at += 1,
                None => {}
            }
        }
        let broken = |(at, group): (usize, &Group)| {
            let e = group.broken()?;
            Some((at, error::code_of(e), format!("the client could not take up a rebalance: {e}")))
        };
        self.groups.iter().enumerate().find_map(broken)
    }

    fn take_outcomes(&mut self) {
        while let Ok(outcome) = self.outcomes.try_recv() {
            match outcome {
                Outcome::Begin(slot, start) => {
                    if let Some(group) = self.groups.iter_mut().find(|group| group.has(&slot)) {
                        group.begin(slot, start);
                    }
                }
                Outcome::Intact(slot, checked) => locked(&slot.trail).is_intact(&checked),
                Outcome::Replaced(slot) => slot.doubted.store(true, SeqCst),
                Outcome::Alarm(e) => self.pending.push_back((Err(e), None)),
                Outcome::Failed(e) => self.warn(Code::Fail, e),
            }
        }
    }

    fn serve_groups(&mut self) {
        for group in &mut self.groups {
            let has_heard = self.pending.is_empty();
            let pending = &mut self.pending;
            group.rebalance(has_heard, &mut |event| pending.push_back((Ok(event), None)));
            if pending.is_empty() {
                group.reassign(&mut |event| pending.push_back((Ok(event), None)));
            }
            pending.extend(group.begin_reading().into_iter().map(|alarm| (Err(alarm), None)));
        }
    }

    fn compare(&mut self) {
        let now = Instant::now();
        if now < self.check_at || !self.pending.is_empty() {
            return;
        }
        (self.checked, self.check_at) = (now, now + CHECK_EVERY);
        for (slot, _) in self.groups.iter().flat_map(|group| &group.queues) {
            self.checker.compare(slot);
        }
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() {
            let Ok(room) = self.tx.try_reserve() else { return };
            if let Some(item) = self.pending.pop_front() {
                room.send(item);
            }
        }
    }

    /// One batch of each partition that has some and whose last one was taken. Answers whether to look again.
    fn deliver(&mut self) -> bool {
        let (mut again, mut errors) = (false, Vec::new());
        let queues = self.groups.iter().flat_map(|group| {
            let context = group.consumer.context();
            group.queues.iter().map(move |queue| (queue, context))
        });
        let n = queues.clone().count();
        self.first = if n == 0 { 0 } else { (self.first + 1) % n };
        for ((slot, queue), context) in queues.cycle().skip(self.first).take(n) {
            // What is pending goes first, or records would come before their assignment.
            if !self.pending.is_empty() || self.tx.capacity() == 0 {
                break;
            }
            let held = slot.paused.load(SeqCst) || slot.queued.load(SeqCst) || slot.doubted.load(SeqCst);
            if held || !slot.ready.swap(false, SeqCst) {
                continue;
            }
            let taken = batch::take(queue, self.request.max_batch);
            if taken.more {
                slot.ready.store(true, SeqCst);
                again = true;
            }
            let of = &slot.assignment.partition;
            errors.extend(taken.error.map(|e| (e, context.take_reason(), of.clone())));
            let Some(last) = taken.records.last() else { continue };
            let next = last.offset + 1;
            if locked(&slot.trail).read(&taken.records) == Err(WentBack) {
                slot.doubted.store(true, SeqCst);
                again = true;
                continue;
            }
            slot.queued.store(true, SeqCst);
            let end = context.end_of(of).map(|end| end.max(next));
            let event = Event::Records(slot.assignment.clone(), Batch::new(taken.records, next, end));
            // There is room; it fails only when the stream is gone, and then the member leaves.
            let _ = self.tx.try_send((Ok(event), Some(slot.clone())));
        }
        if !errors.is_empty() {
            self.check_at = self.check_at.min(self.checked + CHECK_AGAIN);
        }
        errors.iter().for_each(|(e, reason, of)| self.report(e, reason, Some(of)));
        again
    }

    /// An error that reading survives, or that stops a partition. What librdkafka mends by itself is left to its log, and
    /// an outage to that of the connections; but whoever joins hears of it.
    fn report(&mut self, e: &KafkaError, reason: &str, of: Option<&Partition>) {
        let (code, settings) = (error::code_of(e), &self.shared.settings);
        let e = match error::unreadable(code, reason, READ, settings.bootstrap()) {
            Some(e) => of.map_or(e.clone(), |of| e.on(of)),
            None if code == Code::AllBrokersDown && !self.shared.was_assigned() => {
                error::no_answer(READ, settings)
            }
            None => {
                tracing::debug!(group = %self.request.group, %code, "the consumer reports");
                return;
            }
        };
        self.warn(code, e.on(format_args!("group {}", self.request.group)));
    }

    /// Passes an error on unless it was passed on a short time ago.
    fn warn(&mut self, code: Code, e: Error) {
        let again = self.reported.is_some_and(|(c, at)| c == code && at.elapsed() < QUIET);
        if again || self.pending.iter().any(|(item, _)| item.is_err()) {
            tracing::debug!(group = %self.request.group, error = %e, "still");
            return;
        }
        self.reported = Some((code, Instant::now()));
        self.pending.push_back((Err(e.with_retry(Retry::Yes)), None));
    }

    /// A consumer is of no more use: what it had is lost. It is built anew, unless a person has to mend something
    /// first: then that is the last item, and the answer is false.
    fn fail(&mut self, at: usize, code: Code, reason: String) -> bool {
        let mut group = self.groups.remove(at);
        let pending = &mut self.pending;
        group.lose_all(&mut |event| pending.push_back((Ok(event), None)));
        let e = self.error(code).with_source(reason);
        if takes_a_person(code) {
            self.end_with(e);
            return false;
        }
        let failures = if group.lived() >= HEALTHY { 0 } else { group.failures };
        let wait = (REBUILD * 2_u32.pow(failures.min(10))).min(MAX_REBUILD);
        let due = Instant::now() + wait;
        self.warn(code, e.with_advice(format!("The consumer is built anew in {wait:?}")));
        let (topics, failures) = (group.topics.clone(), failures + 1);
        self.rebuilds.push(Rebuild { topics, closing: close(group), failures, due });
        true
    }

    /// Builds what has failed anew, once that has been closed: no two of a group may have the same instance id.
    fn rebuild(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_due = |r: &mut Rebuild| now >= r.due && r.closing.is_finished();
        let due: Vec<_> = self.rebuilds.extract_if(.., is_due).collect();
        for rebuild in due {
            let group = self.join_as_one(rebuild.topics, rebuild.failures)?;
            self.groups.push(group);
        }
        Ok(())
    }

    /// The last item, once the driver has taken what is before it.
    fn end_with(&mut self, e: Error) {
        let pending = &mut self.pending;
        for group in &mut self.groups {
            group.lose_all(&mut |event| pending.push_back((Ok(event), None)));
        }
        self.pending.push_back((Err(e.with_retry(Retry::No)), None));
        self.flush();
        while !self.pending.is_empty() && !self.shared.is_leaving() {
            thread::park_timeout(SWEEP);
            self.flush();
        }
    }

    /// Reading changes nothing, so nothing took effect.
    fn error(&self, code: Code) -> Error {
        error::rejected(code, READ, self.settings().bootstrap())
            .on(format_args!("group {}", self.request.group))
    }

    fn settings(&self) -> &Settings {
        &self.shared.settings
    }
}

/// Leaves the group. That can last.
fn close(group: Group) -> JoinHandle<()> {
    thread::spawn(move || drop(group))
}

/// Whether an error comes again whatever a new consumer does.
fn takes_a_person(code: Code) -> bool {
    match code {
        // The group's answer to a member that it doesn't know any more.
        Code::InvalidRequest => false,
        _ => matches!(
            error::kind(code),
            ErrorKind::Denied | ErrorKind::Misconfigured | ErrorKind::Unsupported | ErrorKind::Invalid
        ),
    }
}
