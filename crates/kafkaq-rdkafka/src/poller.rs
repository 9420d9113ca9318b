//! A member's poll thread: the only one that polls its consumers.
//!
//! ```text
//!   librdkafka ── rebalances ──────────> Group ──┐
//!              ── errors, logs ──────────────────┼─> pending ─┬─> channel ─> Events
//!              ── a queue a partition ── batches ─────────────┘
//! ```
//! It parks when there is nothing to do and is woken by librdkafka (a queue is no longer empty), by the handle, by the
//! stream and by checks. A queue notifies only when it was empty, so leftovers are remembered in `Slot::ready`.
//! Notifications can be lost, so all queues are checked every [`SWEEP`].

use crate::{
    aside, batch,
    check::{self, Checker, Outcome},
    error,
    group::{Group, Pending},
    log::ConnectionErrors,
    member::{Events, Handle, Item, Shared},
    plan::Plan,
    session::{Agreed, MAX_REBALANCE},
    settings::{GroupProtocol, Settings},
    slot::{Doubt, Slot, WentBack},
};
use kafkaq_core::{
    Batch, Consumer, Error, ErrorKind, Event, JoinRequest, Partition, PartitionLog, Result, Retry, lock,
};
use rdkafka::{consumer::Consumer as _, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle as Runtime,
    sync::{mpsc, oneshot},
};

const READ: &str = "read";
/// How many batches may wait in the stream, over all partitions.
const CHANNEL: usize = 32;
/// How often all queues are checked. This also satisfies `max.poll.interval.ms`.
const SWEEP: Duration = Duration::from_secs(1);
/// The shortest sleep.
const SHORT: Duration = Duration::from_millis(10);
/// How often what was read is compared with the log, and how soon again after an error.
const CHECK_EVERY: Duration = Duration::from_secs(9);
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// The shortest time between two reports of the same error.
pub(crate) const QUIET: Duration = Duration::from_secs(60);
/// How long after a lost response of the group it rejoins, unless the group has responded again.
const UNSURE: Duration = Duration::from_secs(4);
/// How soon a failed consumer is rebuilt; doubles each time until one survives.
const REBUILD: Duration = Duration::from_millis(250);
const MAX_REBUILD: Duration = Duration::from_secs(30);
/// How long it waits for the failed one to close. For one that leaves: beyond its session.
const CLOSING: Duration = Duration::from_secs(5);

/// Joins the group: returns when the consumer exists, not when the group has assigned partitions.
pub(crate) async fn start(
    settings: Arc<Settings>,
    log: Arc<dyn PartitionLog>,
    request: JoinRequest,
) -> Result<(Consumer, Arc<Shared>)> {
    if request.topics.is_empty() || request.max_batch == 0 {
        return Err(Error::not_applied(ErrorKind::Invalid, "join")
            .on(format_args!("group {}", request.group))
            .with_advice("A member reads at least one topic, and at least one record at a time"));
    }
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
        Poller::new(&request, &member, log, runtime, tx).live(opened);
        gone.send_replace(true);
    };
    let failed = |e| Error::not_applied(ErrorKind::Other, "join").with_source(e);
    thread::Builder::new().name("kafkaq-poll".into()).spawn(life).map_err(failed)?;
    let events = Events { items, shared: shared.clone() };
    is_open.await.unwrap_or_else(|_| Err(Error::not_applied(ErrorKind::Other, "join")))?;
    let consumer = Consumer { events: Box::pin(events), member: Arc::new(Handle(shared.clone())) };
    Ok((consumer, shared))
}

/// A failed consumer that is being rebuilt.
struct Rebuild {
    plan: Plan,
    /// The thread that closes the failed one, if there was one. The other consumers continue meanwhile.
    closing: Option<JoinHandle<()>>,
    due: Instant,
}

struct Poller<'a> {
    // Before the groups: the stream ends before a consumer leaves, which can take long.
    tx: mpsc::Sender<Item>,
    groups: Vec<Group>,
    rebuilds: Vec<Rebuild>,
    connection_errors: Arc<ConnectionErrors>,
    shared: &'a Arc<Shared>,
    request: &'a JoinRequest,
    protocol: GroupProtocol,
    /// The protocol was our choice, and the server may turn out not to support it.
    may_change: bool,
    checker: Checker,
    outcomes: mpsc::Receiver<Outcome>,
    pending: Pending,
    /// The queue to start with, so that a busy partition does not starve the others.
    first: usize,
    /// Reported errors, by partition, with their times.
    reported: Vec<(Code, Option<Partition>, Instant)>,
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
            connection_errors: shared.settings.connection_errors().clone(),
            shared,
            request,
            protocol: shared.settings.protocol(),
            may_change: false,
            checker,
            outcomes,
            pending: Pending::new(),
            first: 0,
            reported: Vec::new(),
            swept: now,
            checked: now,
            check_at: now + CHECK_EVERY,
        }
    }

    /// The thread's main function.
    fn live(mut self, opened: oneshot::Sender<Result<()>>) {
        // KIP-848 leaves the session timeout to the servers. If we may choose the protocol, it depends on whether they
        // allow the requested one: a dead member keeps its partitions for that long.
        if self.protocol != GroupProtocol::Classic {
            let topic = self.request.topics.first().cloned().unwrap_or_default();
            self.checker.agree(self.request.group.clone(), topic, self.request.session_timeout);
        }
        let joined = if self.protocol == GroupProtocol::Auto { Ok(()) } else { self.join() };
        let is_open = joined.is_ok();
        let _ = opened.send(joined);
        if is_open && let Err(e) = self.run() {
            self.end_with(e);
        }
        let Poller { tx, groups, checker, mut outcomes, request, .. } = self;
        // The stream ends now, not when the consumers have left. That can take seconds during a rebalance, so they
        // leave concurrently.
        drop(tx);
        // Unusable ones are not waited for: they may never end.
        let closing: Vec<_> = groups.into_iter().map(aside).collect();
        drop(checker);
        // Closing waits for the commit in flight. If a coordinator went down, librdkafka never completes a commit that
        // is queued for it while it is down: it retries unsent ones without limit.
        let until = closed_by(Instant::now(), request.session_timeout);
        while !closing.iter().flatten().all(JoinHandle::is_finished) {
            if Instant::now() > until {
                tracing::warn!(group = %request.group, "a consumer is closed in the background, since its \
                    coordinator is down");
                return;
            }
            thread::park_timeout(SHORT);
        }
        // Until the last check has ended.
        while outcomes.blocking_recv().is_some() {}
    }

    /// Switches to another protocol.
    fn change_to(&mut self, protocol: GroupProtocol, why: &str) {
        tracing::info!(group = %self.request.group, ?protocol, "{why}");
        self.protocol = protocol;
        self.groups.drain(..).for_each(|group| drop(aside(group)));
        for plan in self.plans() {
            self.join_or_retry(plan);
        }
    }

    fn join(&mut self) -> Result<()> {
        for plan in self.plans() {
            let group = self.join_as_one(plan)?;
            self.groups.push(group);
        }
        Ok(())
    }

    /// A client that can't be created now may succeed later: threads and descriptors may be exhausted for a moment.
    fn join_or_retry(&mut self, plan: Plan) {
        match self.join_as_one(plan.clone()) {
            Ok(group) => self.groups.push(group),
            Err(e) => self.retry(plan, None, Code::Fail, e),
        }
    }

    fn plans(&self) -> Vec<Plan> {
        let topics = &self.request.topics;
        // With the classic protocol, one consumer per topic. Its `cooperative-sticky` assignor balances the total over
        // all topics of a consumer: the second member may get all of one topic and nothing of the other. Its `range`
        // shares each topic, but interrupts everybody at every change.
        let share = if self.protocol == GroupProtocol::Classic { 1 } else { topics.len().max(1) };
        topics.chunks(share).map(Plan::new).collect()
    }

    fn join_as_one(&self, plan: Plan) -> Result<Group> {
        Group::join(self.request, plan, self.shared, &self.connection_errors, self.protocol)
    }

    /// Runs until the member leaves, or until an error occurs that an operator has to fix.
    fn run(&mut self) -> Result<()> {
        while !self.shared.is_leaving() {
            if let Some((at, code, reason)) = self.serve_main_queues() {
                self.fail(at, code, reason)?;
            }
            self.take_outcomes()?;
            self.serve_groups();
            self.build();
            self.flush();
            self.sweep();
            self.compare();
            if !self.deliver() {
                self.park();
            }
        }
        Ok(())
    }

    fn park(&self) {
        let rebuilds = self.rebuilds.iter().map(|r| r.due);
        let due = self.groups.iter().filter_map(Group::due).chain(rebuilds);
        let check = self.pending.is_empty().then_some(self.check_at);
        let due = due.chain(check).min().unwrap_or(self.swept + SWEEP).min(self.swept + SWEEP);
        // What is due may still have to wait for something without a notification.
        thread::park_timeout(due.saturating_duration_since(Instant::now()).max(SHORT));
    }

    /// A queue whose notification was lost waits at most this long for the next check, however busy the others are.
    fn sweep(&mut self) {
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            let queues = self.groups.iter().flat_map(|group| &group.queues);
            queues.for_each(|(slot, _)| slot.ready.store(true, SeqCst));
            self.rejoin();
        }
    }

    /// Handles rebalances (recorded), errors (reported) and logs (written). Returns an error that a group doesn't
    /// survive.
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
                // Every partition is split off before it is assigned, so no records arrive here.
                Some(Ok(_)) => {}
                None if served == consumer.context().served() => at += 1,
                None => {}
            }
        }
        let broken = |(at, group): (usize, &Group)| {
            let (code, reason) = group.broken()?;
            Some((at, code, reason))
        };
        self.groups.iter().enumerate().find_map(broken)
    }

    fn take_outcomes(&mut self) -> Result<()> {
        while let Ok(outcome) = self.outcomes.try_recv() {
            match outcome {
                Outcome::Begin(slot, start) if start.is_replaced && slot.doubt != Doubt::Log => {
                    self.replaced(&slot, start.first);
                }
                Outcome::Begin(slot, start) => {
                    if let Some(group) = self.groups.iter_mut().find(|group| group.has(&slot)) {
                        group.begin(slot, start);
                    }
                }
                Outcome::Intact(slot, checked, end) => {
                    let flags = [&slot.ready, &slot.paused, &slot.queued, &slot.doubted];
                    let is_empty = !flags.iter().any(|flag| flag.load(SeqCst));
                    if let Some(next) = lock(&slot.trail).is_intact(&checked, end, is_empty) {
                        self.checker.prove(&slot, next);
                    }
                }
                Outcome::Replaced(slot, first) => self.replaced(&slot, first),
                Outcome::Nothing(slot, from, next) => lock(&slot.trail).nothing_until(from, next),
                Outcome::Stalled(slot) => {
                    // While it gives partitions back, the client doesn't read.
                    if let Some(at) = self.group_of(&slot).filter(|at| !self.groups[*at].is_holding()) {
                        let e = Error::not_applied(ErrorKind::Other, "read").on(&slot.assignment.partition);
                        let e = e.with_source("the client doesn't return the existing records");
                        self.rebuild(at, Some((Code::Fail, e)), None);
                    }
                }
                Outcome::Alarm(e) => self.pending.push_back(Err(e)),
                Outcome::Failed(e) => self.warn(Code::Fail, None, e),
                Outcome::Agreed(agreed) => match (agreed, self.protocol) {
                    (Agreed::Yes, GroupProtocol::Auto) => {
                        self.change_to(GroupProtocol::Consumer, "joining with KIP-848");
                        self.may_change = true;
                    }
                    (Agreed::No(why), GroupProtocol::Auto) => {
                        self.change_to(
                            GroupProtocol::Classic,
                            &format!("joining with the classic protocol: {why}"),
                        );
                    }
                    (Agreed::No(why), _) => self.pending.push_back(Err(self.slow_to_notice(why))),
                    (Agreed::Yes, _) => {}
                },
            }
        }
        Ok(())
    }

    /// The warning that a dead member keeps its partitions for longer than requested.
    fn slow_to_notice(&self, why: String) -> Error {
        let wanted = self.request.session_timeout;
        Error::not_applied(ErrorKind::Misconfigured, "join")
            .on(format_args!("group {}", self.request.group))
            .with_source(why)
            .with_retry(Retry::Yes)
            .with_advice(format!(
                "The partitions of a process that dies may wait longer than {wanted:?} for another one: set \
                 `group.consumer.min.session.timeout.ms` on the servers to {} or less and allow this user AlterConfigs \
                 on the group, or use the classic protocol",
                wanted.as_millis()
            ))
    }

    fn group_of(&self, slot: &Arc<Slot>) -> Option<usize> {
        self.groups.iter().position(|group| group.has(slot))
    }

    /// A client's metadata of a topic can be permanently stale once that was recreated: librdkafka considers its leader
    /// outdated, because its epochs start over, and never reads it. So the consumer is rebuilt. It is reported here,
    /// since the partition may go to another member, which doesn't know.
    fn replaced(&mut self, slot: &Arc<Slot>, first: i64) {
        if let Some(at) = self.group_of(slot) {
            let of = &slot.assignment.partition;
            tracing::info!(partition = %slot.assignment, "the log was replaced; rebuilding the consumer");
            self.rebuild(at, None, Some(of.topic.clone()));
            self.shared.past_positions.replacement_reported(of);
            self.pending.push_back(Err(check::replaced(of, first)));
        }
    }

    fn serve_groups(&mut self) {
        for group in &mut self.groups {
            group.rebalance(&self.checker, &mut self.pending);
            if self.pending.is_empty() {
                group.reassign(&self.checker, &mut self.pending);
            }
            self.pending.extend(group.begin_reading().into_iter().map(Err));
            group.ask(Instant::now());
        }
    }

    /// Rejoins the group, which sends the assignment to a joining member.
    fn rejoin(&mut self) {
        // Not all members at once: they lost their responses together.
        let patience = UNSURE + Duration::from_secs(u64::from(self.request.member[0] % 8));
        if let Some(at) = self.groups.iter().position(|group| group.is_unsure(patience)) {
            tracing::info!(group = %self.request.group, "a response of the group was lost; rejoining");
            self.rebuild(at, None, None);
        }
    }

    fn compare(&mut self) {
        let now = Instant::now();
        if now < self.check_at || !self.pending.is_empty() {
            return;
        }
        (self.checked, self.check_at) = (now, now + CHECK_EVERY);
        self.checker.compare(self.groups.iter().flat_map(|group| &group.queues).map(|(slot, _)| slot));
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() {
            let Ok(room) = self.tx.try_reserve() else { return };
            if let Some(item) = self.pending.pop_front() {
                room.send((item, None));
            }
        }
    }

    /// Delivers one batch per partition that has records and whose last batch was taken. Returns whether to check
    /// again.
    fn deliver(&mut self) -> bool {
        let (mut again, mut check_soon, mut errors) = (false, false, Vec::new());
        let queues = self.groups.iter().flat_map(|group| {
            let context = group.consumer.context();
            group.queues.iter().map(move |queue| (queue, context))
        });
        let n = queues.clone().count();
        self.first = if n == 0 { 0 } else { (self.first + 1) % n };
        for ((slot, queue), context) in queues.cycle().skip(self.first).take(n) {
            // Pending events go first, or records would arrive before their assignment.
            if !self.pending.is_empty() || self.tx.capacity() == 0 {
                break;
            }
            let held = slot.paused.load(SeqCst) || slot.queued.load(SeqCst) || slot.doubted.load(SeqCst);
            if held || !slot.ready.swap(false, SeqCst) {
                continue;
            }
            let mut taken = batch::take(queue, self.request.max_batch);
            if taken.more {
                slot.ready.store(true, SeqCst);
                again = true;
            }
            let of = &slot.assignment.partition;
            errors.extend(taken.error.map(|e| (e, context.take_reason(), of.clone())));
            let mut trail = lock(&slot.trail);
            trail.leave_out_repeated(&mut taken.records);
            let Some(last) = taken.records.last() else { continue };
            let next = last.offset + 1;
            let (read, is_unproven) = (trail.read(&taken.records), trail.is_unproven());
            drop(trail);
            if read == Err(WentBack) {
                slot.doubted.store(true, SeqCst);
                again = true;
                continue;
            }
            check_soon |= is_unproven;
            slot.queued.store(true, SeqCst);
            let end = context.end_of(of).map(|end| end.max(next));
            let event = Event::Records(slot.assignment.clone(), Batch::new(taken.records, next, end));
            // There is room; this only fails if the stream is gone, and then the member leaves.
            let _ = self.tx.try_send((Ok(event), Some(slot.clone())));
        }
        if check_soon || !errors.is_empty() {
            self.check_at = self.check_at.min(self.checked + CHECK_AGAIN);
        }
        errors.iter().for_each(|(e, reason, of)| self.report(e, reason, Some(of)));
        again
    }

    /// Reports an error that reading survives, or that stops a partition. Errors that librdkafka recovers from appear
    /// only in its log, and outages only in the log of connections; but a caller that joins gets them.
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
        self.warn(code, of, e.on(format_args!("group {}", self.request.group)));
    }

    /// Passes an error on unless the same was passed on recently.
    fn warn(&mut self, code: Code, of: Option<&Partition>, e: Error) {
        self.reported.retain(|(.., at)| at.elapsed() < QUIET);
        let again = self.reported.iter().any(|(c, p, _)| *c == code && p.as_ref() == of);
        if again || self.pending.len() >= CHANNEL {
            tracing::debug!(group = %self.request.group, error = %e, "still");
            return;
        }
        self.reported.push((code, of.cloned(), Instant::now()));
        self.pending.push_back(Err(e.with_retry(Retry::Yes)));
    }

    /// Handles the permanent failure of a consumer. It is rebuilt, unless an operator has to fix something first.
    fn fail(&mut self, at: usize, code: Code, reason: String) -> Result<()> {
        let is_lacking = matches!(code, Code::UnsupportedFeature | Code::UnsupportedVersion);
        if is_lacking && self.may_change && lock(&self.shared.owned).is_empty() {
            self.may_change = false;
            self.change_to(
                GroupProtocol::Classic,
                "the server doesn't support KIP-848; joining with the classic protocol",
            );
            return Ok(());
        }
        let e = self.error(code).with_source(reason);
        if needs_operator(code) {
            return Err(e);
        }
        self.rebuild(at, Some((code, e)), None);
        Ok(())
    }

    /// Replaces an unusable consumer: its partitions are lost, and come back with the next one.
    fn rebuild(&mut self, at: usize, why: Option<(Code, Error)>, replaced: Option<Arc<str>>) {
        let mut group = self.groups.remove(at);
        group.lose_all(&mut self.pending);
        let mut plan = group.plan();
        if let Some(topic) = replaced {
            plan.replaced(topic);
        }
        let closing = aside(group);
        match why {
            Some((code, e)) => self.retry(plan, closing, code, e),
            None => self.rebuilds.push(Rebuild { plan, closing, due: Instant::now() + REBUILD }),
        }
    }

    /// Retries after a failure, with backoff.
    fn retry(&mut self, mut plan: Plan, closing: Option<JoinHandle<()>>, code: Code, e: Error) {
        let wait = (REBUILD * 2_u32.pow(plan.failures.min(10))).min(MAX_REBUILD);
        plan.failures += 1;
        self.warn(code, None, e.with_advice(format!("The consumer is rebuilt in {wait:?}")));
        self.rebuilds.push(Rebuild { plan, closing, due: Instant::now() + wait });
    }

    /// Rebuilds a failed consumer, once that has been closed: instance ids in a group should be unique. But closing may
    /// take long without a server.
    fn build(&mut self) {
        let now = Instant::now();
        let is_closed = |r: &Rebuild| r.closing.as_ref().is_none_or(JoinHandle::is_finished);
        let is_due = |r: &mut Rebuild| now >= r.due && (is_closed(r) || now >= r.due + CLOSING);
        let due: Vec<_> = self.rebuilds.extract_if(.., is_due).collect();
        due.into_iter().for_each(|rebuild| self.join_or_retry(rebuild.plan));
    }

    /// Sends the last item, once the driver has taken what precedes it.
    fn end_with(&mut self, e: Error) {
        self.groups.iter_mut().for_each(|group| group.lose_all(&mut self.pending));
        self.pending.push_back(Err(e.with_retry(Retry::No)));
        self.flush();
        while !self.pending.is_empty() && !self.shared.is_leaving() {
            thread::park_timeout(SWEEP);
            self.flush();
        }
    }

    /// Reads change nothing, so nothing took effect.
    fn error(&self, code: Code) -> Error {
        error::rejected(code, READ, self.settings().bootstrap())
            .on(format_args!("group {}", self.request.group))
    }

    fn settings(&self) -> &Settings {
        &self.shared.settings
    }
}

/// Until when a consumer that leaves is waited for.
fn closed_by(now: Instant, session: Duration) -> Instant {
    now + session.min(MAX_REBALANCE) + CLOSING
}

/// Whether an error would recur with a new consumer.
fn needs_operator(code: Code) -> bool {
    match code {
        // The group's response to a member that it no longer knows.
        Code::InvalidRequest => false,
        _ => matches!(
            error::kind(code),
            ErrorKind::Denied | ErrorKind::Misconfigured | ErrorKind::Unsupported | ErrorKind::Invalid
        ),
    }
}

#[cfg(test)]
mod tests;
