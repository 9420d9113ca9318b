//! A member's poll thread: the only one that polls its consumers.
//!
//! ```text
//!   librdkafka ── rebalances ──────────> Group ──┐
//!              ── errors, logs ──────────────────┼─> pending ─┬─> channel ─> Events
//!              ── a queue a partition ── batches ─────────────┘
//! ```
//! It parks when there is nothing to do and is rung by librdkafka (a queue is no longer empty), by the handle and by
//! the stream. A queue rings only when it was empty, so whatever is left in one is remembered in `Slot::ready`.

use crate::{
    batch, error,
    group::Group,
    locked,
    log::Trouble,
    member::{self, Events, Handle, Item, Shared},
    settings::{GroupProtocol, Settings},
};
use kafkaq_core::{Batch, Consumer, Error, ErrorKind, Event, JoinRequest, Result, Retry};
use rdkafka::{consumer::Consumer as _, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Batches that wait in the stream, of all partitions.
const CHANNEL: usize = 32;
/// The longest sleep. Not needed for what rings; it keeps `max.poll.interval.ms` and looks after a lost ring.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same error is reported once in this time.
const QUIET: Duration = Duration::from_secs(5);

/// Joins the group: answers when the consumer is there, not when the group has given it partitions.
pub(crate) async fn start(settings: Arc<Settings>, request: JoinRequest) -> Result<(Consumer, Arc<Shared>)> {
    let (shared, gone) = Shared::new(settings.clone());
    let (tx, items) = mpsc::channel(CHANNEL);
    let (opened, is_open) = oneshot::channel();
    let member = shared.clone();
    let life = move || {
        member.polled_here();
        live(&settings, &request, &member, tx, opened);
        gone.send_replace(true);
    };
    let failed = |e| Error::not_applied(ErrorKind::Other, "join").with_source(e);
    thread::Builder::new().name("kafkaq-poll".into()).spawn(life).map_err(failed)?;
    let events = Events { items, shared: shared.clone() };
    is_open.await.unwrap_or_else(|_| Err(Error::not_applied(ErrorKind::Other, "join")))?;
    let consumer = Consumer { events: Box::pin(events), member: Arc::new(Handle(shared.clone())) };
    Ok((consumer, shared))
}

/// The thread's life: by one group protocol, or by two in turn where the server lacks the new one.
fn live(
    settings: &Settings,
    request: &JoinRequest,
    shared: &Arc<Shared>,
    tx: mpsc::Sender<Item>,
    opened: oneshot::Sender<Result<()>>,
) {
    let committer = match member::start_committer(shared) {
        Ok(thread) => thread,
        Err(e) => {
            let _ = opened.send(Err(Error::not_applied(ErrorKind::Other, "join").with_source(e)));
            return;
        }
    };
    let (mut protocol, mut has_another) = match settings.protocol() {
        GroupProtocol::Auto => (GroupProtocol::Consumer, true),
        chosen => (chosen, false),
    };
    let mut opened = Some(opened);
    loop {
        let trouble = Arc::new(Trouble::default());
        let groups = Group::join(settings, request, shared, &trouble, protocol);
        let opening = groups.as_ref().map(|_| ()).map_err(Clone::clone);
        match opened.take() {
            Some(opened) => drop(opened.send(opening)),
            None => drop(opening.map_err(|e| tx.blocking_send((Err(e), None)))),
        }
        let Ok(groups) = groups else { break };
        let mut poller = Poller {
            tx: tx.clone(),
            groups,
            trouble,
            shared,
            request,
            settings,
            pending: VecDeque::new(),
            first: 0,
            reported: None,
        };
        match poller.run(has_another) {
            End::NoSuchProtocol => {
                tracing::info!(group = %request.group, "the server lacks KIP-848; joining by the classic protocol");
                (protocol, has_another) = (GroupProtocol::Classic, false);
            }
            End::Left => {
                // The stream ends now, not when the consumer has taken its leave.
                drop(tx);
                drop(poller);
                break;
            }
        }
    }
    shared.end_commits();
    let _ = committer.join();
}

enum End {
    Left,
    NoSuchProtocol,
}

struct Poller<'a> {
    // Before the groups: the stream ends before a consumer takes its leave, which can last.
    tx: mpsc::Sender<Item>,
    groups: Vec<Group>,
    trouble: Arc<Trouble>,
    shared: &'a Shared,
    request: &'a JoinRequest,
    settings: &'a Settings,
    /// What is not a batch and found the channel full. `Group::rebalance` bounds it.
    pending: VecDeque<Item>,
    /// The queue to look at first, so that a busy partition does not starve the others.
    first: usize,
    reported: Option<(Code, Instant)>,
}

impl Poller<'_> {
    /// Until the member leaves, or until it turns out that the server lacks the group protocol and there is another.
    fn run(&mut self, has_another: bool) -> End {
        loop {
            if self.shared.is_leaving() {
                return End::Left;
            }
            if let Some((code, reason)) = self.serve_main_queues() {
                let lacking = matches!(code, Code::UnsupportedFeature | Code::UnsupportedVersion);
                if lacking && has_another && locked(&self.shared.owned).is_empty() {
                    return End::NoSuchProtocol;
                }
                self.fatal(code, reason);
                return End::Left;
            }
            for group in &mut self.groups {
                let (has_heard, pending) = (self.pending.is_empty(), &mut self.pending);
                group.rebalance(has_heard, &mut |event| pending.push_back((Ok(event), None)));
            }
            self.flush();
            if !self.deliver() {
                self.park();
            }
        }
    }

    fn park(&self) {
        let patience = match self.groups.iter().filter_map(Group::held_until).min() {
            Some(until) => until.saturating_duration_since(Instant::now()).min(PATIENCE),
            None => PATIENCE,
        };
        let asleep = Instant::now();
        thread::park_timeout(patience);
        if asleep.elapsed() >= PATIENCE {
            let queues = self.groups.iter().flat_map(|group| &group.queues);
            queues.for_each(|(slot, _)| slot.ready.store(true, SeqCst));
        }
    }

    /// Rebalances (noted), errors (reported) and logs (written). Answers the error that ends it all, if there is one.
    fn serve_main_queues(&mut self) -> Option<(Code, String)> {
        let mut at = 0;
        while let Some(Group { consumer, .. }) = self.groups.get(at) {
            let served = consumer.context().served();
            match consumer.poll(Duration::ZERO) {
                Some(Err(e)) => {
                    if let Some(fatal) = consumer.client().fatal_error() {
                        return Some(fatal);
                    }
                    self.report(&e);
                }
                // Every partition is split off before it is assigned, so no records come this way.
                Some(Ok(_)) => {}
                None if served == consumer.context().served() => at += 1,
                None => {}
            }
        }
        None
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
        let queues = self.groups.iter().flat_map(|group| &group.queues);
        let n = queues.clone().count();
        self.first = if n == 0 { 0 } else { (self.first + 1) % n };
        for (slot, queue) in queues.cycle().skip(self.first).take(n) {
            // What is pending goes first, or records would come before their assignment.
            if !self.pending.is_empty() || self.tx.capacity() == 0 {
                break;
            }
            if slot.paused.load(SeqCst) || slot.queued.load(SeqCst) || !slot.ready.swap(false, SeqCst) {
                continue;
            }
            let taken = batch::take(queue, self.request.max_batch);
            if taken.more {
                slot.ready.store(true, SeqCst);
                again = true;
            }
            if let Some(last) = taken.records.last() {
                let next = last.offset + 1;
                slot.queued.store(true, SeqCst);
                let event = Event::Records(slot.assignment.clone(), Batch::new(taken.records, next, None));
                // There is room; it fails only when the stream is gone, and then the member leaves.
                let _ = self.tx.try_send((Ok(event), Some(slot.clone())));
            }
            errors.extend(taken.error);
        }
        errors.iter().for_each(|e| self.report(e));
        again
    }

    /// An error that reading survives. What librdkafka mends by itself is left to its log.
    fn report(&mut self, e: &KafkaError) {
        let code = error::code_of(e);
        let told = match error::kind(code) {
            ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Misconfigured => true,
            _ => code == Code::AllBrokersDown,
        };
        let again = self.reported.is_some_and(|(c, at)| c == code && at.elapsed() < QUIET);
        if !told || again || self.pending.iter().any(|(item, _)| item.is_err()) {
            tracing::debug!(group = %self.request.group, %code, "the consumer reports");
            return;
        }
        self.reported = Some((code, Instant::now()));
        let e = self.error(code).with_retry(Retry::Yes);
        let e = match self.trouble.within(QUIET) {
            Some(reason) => e.with_source(reason),
            None => e,
        };
        self.pending.push_back((Err(e), None));
    }

    /// The consumer is of no more use: the last items are what was lost and why.
    fn fatal(&mut self, code: Code, reason: String) {
        for group in &mut self.groups {
            let pending = &mut self.pending;
            group.lose_all(&mut |event| pending.push_back((Ok(event), None)));
        }
        let e = self.error(code).with_source(reason).with_retry(Retry::No);
        self.pending.push_back((Err(e), None));
        self.flush();
        while !self.pending.is_empty() && !self.shared.is_leaving() {
            thread::park_timeout(PATIENCE);
            self.flush();
        }
    }

    /// Reading changes nothing, so nothing took effect.
    fn error(&self, code: Code) -> Error {
        error::rejected(code, "read", self.settings.bootstrap())
            .on(format_args!("group {}", self.request.group))
    }
}
