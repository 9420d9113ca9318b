//! A member's two halves as the driver sees them: the handle and the stream of events. Both talk to the poll thread
//! (see `poller`) through what is shared here. Only a commit and the leave wait, and neither for the other.

use crate::{error, group::Watch, locked, settings::Settings};
use async_trait::async_trait;
use futures_core::Stream;
use kafkaq_core::{Assignment, Commit, Error, ErrorKind, Event, Member, Partition, Result, Retry};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::KafkaResult,
    types::RDKafkaErrorCode as Code,
};
use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    task::{Context, Poll},
    thread::{self, JoinHandle, Thread},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

const COMMIT: &str = "commit";
/// Commits that wait for the one under way. The driver has one at a time; more pile up only when no server answers.
const COMMITS: usize = 16;

/// A partition while it is ours, under one epoch.
pub(crate) struct Slot {
    pub(crate) assignment: Assignment,
    /// Whom the group gave it to. The poll thread owns the consumer; a commit borrows it.
    consumer: Weak<BaseConsumer<Watch>>,
    /// Its queue in the client may hold records.
    pub(crate) ready: AtomicBool,
    /// The driver wants no more of them.
    pub(crate) paused: AtomicBool,
    /// A batch of it waits in the stream. There is never a second, so that a pause takes effect.
    pub(crate) queued: AtomicBool,
    /// The driver has let go.
    pub(crate) released: AtomicBool,
    /// Commits under way: the partition is not given away under them.
    pub(crate) committing: AtomicUsize,
}

impl Slot {
    pub(crate) fn new(assignment: Assignment, consumer: &Arc<BaseConsumer<Watch>>) -> Self {
        Slot {
            assignment,
            consumer: Arc::downgrade(consumer),
            ready: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            released: AtomicBool::new(false),
            committing: AtomicUsize::new(0),
        }
    }
}

/// What the handle, the stream and the poll thread share.
pub(crate) struct Shared {
    settings: Arc<Settings>,
    /// What is ours. The poll thread puts in and takes out; a commit is checked against it under the lock.
    pub(crate) owned: Mutex<HashMap<Partition, Arc<Slot>>>,
    epochs: AtomicU64,
    /// To the committer; `None` when the member has left.
    commits: Mutex<Option<SyncSender<Job>>>,
    poll_thread: OnceLock<Thread>,
    leaving: AtomicBool,
    left: watch::Receiver<bool>,
}

impl Shared {
    /// Also the sender by which the poll thread tells that it is gone.
    pub(crate) fn new(settings: Arc<Settings>) -> (Arc<Self>, watch::Sender<bool>) {
        let (tx, left) = watch::channel(false);
        let shared = Shared {
            settings,
            owned: Mutex::default(),
            epochs: AtomicU64::new(0),
            commits: Mutex::default(),
            poll_thread: OnceLock::new(),
            leaving: AtomicBool::new(false),
            left,
        };
        (Arc::new(shared), tx)
    }

    /// Called once, by the poll thread, before it first looks around.
    pub(crate) fn polled_here(&self) {
        let _ = self.poll_thread.set(std::thread::current());
    }

    /// Wakes the poll thread. It is called with librdkafka's locks held, so it must do no more than this.
    pub(crate) fn ring(&self) {
        if let Some(thread) = self.poll_thread.get() {
            thread.unpark();
        }
    }

    pub(crate) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(SeqCst)
    }

    pub(crate) fn ask_to_leave(&self) {
        self.leaving.store(true, SeqCst);
        self.ring();
    }

    /// Waits until the poll thread is gone.
    pub(crate) async fn left(&self, limit: Duration) -> Result<()> {
        let mut left = self.left.clone();
        match tokio::time::timeout(limit, left.wait_for(|gone| *gone)).await {
            // A sender that is gone has gone with its thread.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unknown(ErrorKind::Timeout, "leave").with_advice(
                "The group was not told in time; it will notice by itself after the session timeout. Leaving \
                 goes on in the background",
            )),
        }
    }

    fn with(&self, assignments: &[Assignment], change: impl Fn(&Slot)) {
        let owned = locked(&self.owned);
        for a in assignments {
            if let Some(slot) = owned.get(&a.partition)
                && slot.assignment.epoch == a.epoch
            {
                change(slot);
            }
        }
        drop(owned);
        self.ring();
    }
}

/// The handle.
pub(crate) struct Handle(pub(crate) Arc<Shared>);

#[async_trait]
impl Member for Handle {
    async fn commit(&self, commits: &[Commit]) -> Vec<Result<()>> {
        let shared = &self.0;
        let mut outcomes = Vec::with_capacity(commits.len());
        let mut requests: Vec<Request> = Vec::new();
        for (i, commit) in commits.iter().enumerate() {
            outcomes.push(shared.admit(commit).map(|slot| {
                let of_it = requests.iter().position(|r| r.consumer.ptr_eq(&slot.consumer));
                let of_it = of_it.unwrap_or_else(|| {
                    requests.push(Request::new(shared, &slot));
                    requests.len() - 1
                });
                requests[of_it].add(i, commit, slot);
            }));
        }
        let deadline = Instant::now() + shared.settings.request_timeout();
        // All are on their way before the first is waited for.
        let sent: Vec<_> =
            requests.into_iter().map(|mut r| (std::mem::take(&mut r.items), shared.send(r))).collect();
        for (items, answer) in sent {
            if let Err(e) = shared.answered(answer, deadline).await {
                for i in items {
                    outcomes[i] = Err(shared.judge(&e, &commits[i].assignment));
                }
            }
        }
        outcomes
    }

    fn pause(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.paused.store(true, SeqCst));
    }

    fn resume(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.paused.store(false, SeqCst));
    }

    fn release(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.released.store(true, SeqCst));
    }

    fn reassign(&self, _: &[Assignment]) {}

    async fn leave(&self) -> Result<()> {
        self.0.ask_to_leave();
        self.0.left(self.0.settings.request_timeout()).await
    }
}

/// The part of a commit that one consumer makes.
struct Request {
    consumer: Weak<BaseConsumer<Watch>>,
    /// Which of the commits these are.
    items: Vec<usize>,
    highest: HashMap<Partition, i64>,
    under_way: UnderWay,
}

impl Request {
    fn new(shared: &Arc<Shared>, slot: &Slot) -> Self {
        Request {
            consumer: slot.consumer.clone(),
            items: Vec::new(),
            highest: HashMap::new(),
            under_way: UnderWay { shared: shared.clone(), slots: Vec::new() },
        }
    }

    fn add(&mut self, item: usize, commit: &Commit, slot: Arc<Slot>) {
        self.items.push(item);
        self.under_way.slots.push(slot);
        let offset = self.highest.entry(commit.assignment.partition.clone()).or_insert(commit.offset);
        *offset = commit.offset.max(*offset);
    }
}

/// Keeps the partitions of a commit from being given away until it has ended, also if nobody waits for it any more.
struct UnderWay {
    shared: Arc<Shared>,
    slots: Vec<Arc<Slot>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        for slot in &self.slots {
            slot.committing.fetch_sub(1, SeqCst);
        }
        self.shared.ring();
    }
}

type Answer = oneshot::Receiver<KafkaResult<()>>;

impl Shared {
    /// The slot of a commit that may be made, counted as under way.
    fn admit(&self, commit: &Commit) -> Result<Arc<Slot>> {
        if commit.offset < 0 {
            return Err(Error::not_applied(ErrorKind::Invalid, COMMIT).with_advice("Offsets start at 0"));
        }
        let owned = locked(&self.owned);
        match current(&owned, &commit.assignment) {
            Some(slot) => {
                slot.committing.fetch_add(1, SeqCst);
                Ok(slot.clone())
            }
            _ if self.is_leaving() => Err(error::closed(COMMIT)),
            _ => Err(Error::not_applied(ErrorKind::NotOwner, COMMIT)),
        }
    }

    fn send(&self, request: Request) -> Result<Answer> {
        let Some(consumer) = request.consumer.upgrade() else { return Err(error::closed(COMMIT)) };
        let mut list = TopicPartitionList::with_capacity(request.highest.len());
        for (partition, offset) in &request.highest {
            // It fails only for a negative offset, and those were not admitted.
            let _ = list.add_partition_offset(&partition.topic, partition.index, Offset::Offset(*offset));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job { consumer, list, under_way: request.under_way, answer };
        match locked(&self.commits).as_ref().map(|c| c.try_send(job)) {
            Some(Ok(())) => Ok(answered),
            Some(Err(TrySendError::Full(_))) => Err(Error::not_applied(ErrorKind::Unavailable, COMMIT)
                .with_advice("Earlier commits still wait for the group's coordinator")),
            Some(Err(TrySendError::Disconnected(_))) | None => Err(error::closed(COMMIT)),
        }
    }

    async fn answered(&self, answer: Result<Answer>, deadline: Instant) -> Result<()> {
        match tokio::time::timeout_at(deadline, answer?).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(e))) => Err(self.commit_failed(error::code_of(&e))),
            Ok(Err(_)) => Err(Error::unknown(ErrorKind::Other, COMMIT)),
            Err(_) => Err(error::uncertain(Code::OperationTimedOut, COMMIT, self.settings.bootstrap())),
        }
    }

    /// No commit is taken any more; the committer ends after those it has.
    pub(crate) fn end_commits(&self) {
        locked(&self.commits).take();
    }

    /// In a rebalance the group's count runs ahead of the member's for a moment, and a commit is refused although the
    /// partition stays here. If it does not stay, an event says so.
    fn judge(&self, e: &Error, of: &Assignment) -> Error {
        if e.kind() == ErrorKind::NotOwner && current(&locked(&self.owned), of).is_some() {
            return Error::not_applied(ErrorKind::Unavailable, COMMIT)
                .with_source("the group is in the middle of a rebalance");
        }
        e.clone()
    }

    fn commit_failed(&self, code: Code) -> Error {
        let bootstrap = self.settings.bootstrap();
        match code {
            // The group refuses the member as a whole.
            Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch
            | Code::FencedInstanceId
            | Code::RebalanceInProgress
            | Code::GroupAuthorizationFailed => error::rejected(code, COMMIT, bootstrap),
            _ => error::uncertain(code, COMMIT, bootstrap).with_retry(Retry::Yes),
        }
    }
}

/// The slot of an assignment that may commit. Released is given away: whoever has it next may have read the committed
/// offset already.
fn current<'a>(owned: &'a HashMap<Partition, Arc<Slot>>, of: &Assignment) -> Option<&'a Arc<Slot>> {
    owned.get(&of.partition).filter(|s| s.assignment.epoch == of.epoch && !s.released.load(SeqCst))
}

/// A commit on its way to the committer.
struct Job {
    consumer: Arc<BaseConsumer<Watch>>,
    list: TopicPartitionList,
    under_way: UnderWay,
    answer: oneshot::Sender<KafkaResult<()>>,
}

/// The committer: the client's asynchronous commit never reports, and its synchronous one blocks, with no server for
/// as long as the session timeout. So it has a thread of its own, which no runtime waits for.
pub(crate) fn start_committer(shared: &Shared) -> io::Result<JoinHandle<()>> {
    let (tx, jobs) = sync_channel::<Job>(COMMITS);
    let work = move || {
        for Job { consumer, list, under_way, answer } in jobs {
            let outcome = consumer.commit(&list, CommitMode::Sync);
            drop((consumer, under_way));
            let _ = answer.send(outcome);
        }
    };
    let thread = thread::Builder::new().name("kafkaq-commit".into()).spawn(work)?;
    *locked(&shared.commits) = Some(tx);
    Ok(thread)
}

/// An event on its way to the driver, with the slot of the records in it.
pub(crate) type Item = (Result<Event>, Option<Arc<Slot>>);

/// The stream. Its state is the channel, so a dropped `next()` loses nothing.
pub(crate) struct Events {
    pub(crate) items: mpsc::Receiver<Item>,
    pub(crate) shared: Arc<Shared>,
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.shared.is_leaving() {
            // What still waits here is no longer ours.
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.items.poll_recv(cx));
        Poll::Ready(item.map(|(event, slot)| {
            if let Some(slot) = slot {
                slot.queued.store(false, SeqCst);
            }
            self.shared.ring();
            event
        }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.ask_to_leave();
    }
}
