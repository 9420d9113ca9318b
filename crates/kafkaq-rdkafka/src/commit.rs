//! Commits. Each carries marks of what was read, so that the next owner of the partition can check whether it is still
//! the same log.

use crate::{error, group::Client, member::Shared, poller::QUIET, slot::Slot};
use kafkaq_core::{Assignment, Commit, Error, ErrorKind, Partition, Result, Retry, lock};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    error::KafkaResult,
    types::RDKafkaErrorCode as Code,
};
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::Ordering::SeqCst,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};
use tokio::{sync::oneshot, time::Instant};

const COMMIT: &str = "commit";
/// How many commits may wait for the one in flight, per consumer. The driver makes one at a time; more pile up only when
/// no server responds.
const COMMITS: usize = 32;

/// The part of a commit for one consumer, with one topic.
struct Request {
    committer: Weak<Committer>,
    topic: Arc<str>,
    /// The indices of these commits.
    items: Vec<usize>,
    highest: HashMap<Partition, (i64, Arc<Slot>)>,
    under_way: UnderWay,
}

impl Request {
    fn new(shared: &Arc<Shared>, slot: &Slot) -> Self {
        Request {
            committer: slot.committer.clone(),
            topic: slot.assignment.partition.topic.clone(),
            items: Vec::new(),
            highest: HashMap::new(),
            under_way: UnderWay { shared: shared.clone(), slots: Vec::new() },
        }
    }

    /// The client returns one outcome for a whole request, so a deleted topic must not affect another.
    fn is_for(&self, slot: &Slot) -> bool {
        self.committer.ptr_eq(&slot.committer) && self.topic == slot.assignment.partition.topic
    }

    fn add(&mut self, item: usize, commit: &Commit, slot: Arc<Slot>) {
        self.items.push(item);
        let partition = commit.assignment.partition.clone();
        let (offset, _) = self.highest.entry(partition).or_insert((commit.offset, slot.clone()));
        *offset = commit.offset.max(*offset);
        self.under_way.slots.push(slot);
    }

    fn list(&self) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(self.highest.len());
        for (partition, (offset, slot)) in &self.highest {
            let mut element = list.add_partition(&partition.topic, partition.index);
            element.set_offset(Offset::Offset(*offset))?;
            element.set_metadata(lock(&slot.trail).cursor(*offset).metadata());
        }
        Ok(list)
    }
}

/// Keeps the partitions of a commit from being released until it has ended, even if nobody waits for it anymore.
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

/// The outcome; `None` if it was not made.
type Made = Option<KafkaResult<()>>;
type Answer = oneshot::Receiver<Made>;

/// A commit for the committer.
struct Job {
    consumer: Arc<Client>,
    list: TopicPartitionList,
    under_way: UnderWay,
    answer: oneshot::Sender<Made>,
}

impl Shared {
    pub(crate) async fn commit(self: &Arc<Self>, commits: &[Commit]) -> Vec<Result<()>> {
        let mut outcomes = Vec::with_capacity(commits.len());
        let mut requests: Vec<Request> = Vec::new();
        for (i, commit) in commits.iter().enumerate() {
            outcomes.push(self.admit(commit).map(|slot| {
                let of_it = requests.iter().position(|r| r.is_for(&slot));
                let of_it = of_it.unwrap_or_else(|| {
                    requests.push(Request::new(self, &slot));
                    requests.len() - 1
                });
                requests[of_it].add(i, commit, slot);
            }));
        }
        let deadline = Instant::now() + self.settings.request_timeout();
        // All are sent before the first is waited for.
        let sent: Vec<_> =
            requests.into_iter().map(|mut r| (std::mem::take(&mut r.items), self.send(r))).collect();
        for (items, answer) in sent {
            if let Err(e) = self.answered(answer, deadline).await {
                for i in items {
                    outcomes[i] = Err(self.judge(&e, &commits[i].assignment));
                }
            }
        }
        outcomes
    }

    /// Returns the slot of a commit that is allowed, and counts it as in flight.
    fn admit(&self, commit: &Commit) -> Result<Arc<Slot>> {
        if commit.offset < 0 {
            return Err(Error::not_applied(ErrorKind::Invalid, COMMIT).with_advice("Offsets start at 0"));
        }
        let owned = lock(&self.owned);
        match current(&owned, &commit.assignment) {
            Some(slot) if lock(&slot.trail).is_unproven() => {
                Err(Error::not_applied(ErrorKind::Unavailable, COMMIT)
                    .with_source("what was read has not been compared with the log yet"))
            }
            Some(slot) => {
                slot.committing.fetch_add(1, SeqCst);
                Ok(slot.clone())
            }
            _ if self.is_leaving() => Err(error::closed(COMMIT)),
            _ => Err(Error::not_applied(ErrorKind::NotOwner, COMMIT)),
        }
    }

    fn send(&self, request: Request) -> Result<Answer> {
        let committer = request.committer.upgrade();
        let consumer = committer.as_ref().and_then(|committer| committer.consumer.upgrade());
        let (Some(committer), Some(consumer)) = (committer, consumer) else {
            return Err(error::closed(COMMIT));
        };
        let invalid = |e| Error::not_applied(ErrorKind::Invalid, COMMIT).with_source(e);
        let list = request.list().map_err(invalid)?;
        let (answer, answered) = oneshot::channel();
        match committer.jobs.try_send(Job { consumer, list, under_way: request.under_way, answer }) {
            Ok(()) => Ok(answered),
            Err(TrySendError::Full(_)) => Err(Error::not_applied(ErrorKind::Unavailable, COMMIT)
                .with_advice("Earlier commits still wait for the group's coordinator")),
            Err(TrySendError::Disconnected(_)) => Err(error::closed(COMMIT)),
        }
    }

    async fn answered(&self, answer: Result<Answer>, deadline: Instant) -> Result<()> {
        match tokio::time::timeout_at(deadline, answer?).await {
            Ok(Ok(Some(Ok(())))) => Ok(()),
            Ok(Ok(Some(Err(e)))) => Err(self.commit_failed(error::code_of(&e))),
            Ok(Ok(None)) if self.is_leaving() => Err(error::closed(COMMIT)),
            Ok(Ok(None)) => Err(Error::not_applied(ErrorKind::NotOwner, COMMIT)),
            Ok(Err(_)) => Err(Error::unknown(ErrorKind::Other, COMMIT)),
            Err(_) => Err(error::uncertain(Code::OperationTimedOut, COMMIT, self.settings.bootstrap())),
        }
    }

    /// During a rebalance the group's epoch is briefly ahead of the member's, and a commit is refused although the
    /// partition stays here. If it doesn't stay, an event says so.
    fn judge(&self, e: &Error, of: &Assignment) -> Error {
        if e.kind() == ErrorKind::NotOwner && current(&lock(&self.owned), of).is_some() {
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
            | Code::GroupAuthorizationFailed
            // Refused without marks, too.
            | Code::OffsetMetadataTooLarge
            | Code::InvalidCommitOffsetSize => error::rejected(code, COMMIT, bootstrap),
            _ => error::uncertain(code, COMMIT, bootstrap).with_retry(Retry::Yes),
        }
    }
}

/// Makes the commits of one consumer: the client's asynchronous commit never reports, and its synchronous one blocks,
/// without a server for as long as the session timeout. So it has a thread of its own, which no runtime waits for.
///
/// It ends with the consumer, after its pending commits. With a client that never completes a commit it never ends, but
/// it doesn't delay the next consumer's commits: such a client costs one more thread than its own, and only one that
/// was assigned partitions can get into that state.
pub(crate) struct Committer {
    pub(crate) consumer: Weak<Client>,
    jobs: SyncSender<Job>,
}

impl Committer {
    pub(crate) fn start(consumer: &Arc<Client>) -> io::Result<Arc<Self>> {
        let (tx, jobs) = sync_channel::<Job>(COMMITS);
        let work = move || {
            for Job { consumer, list, under_way, answer } in jobs {
                let commit = || make(&consumer, &list, &under_way.shared);
                let made = consumer.context().unless_closing(commit);
                drop((consumer, under_way));
                let _ = answer.send(made);
            }
        };
        thread::Builder::new().name("kafkaq-commit".into()).spawn(work)?;
        Ok(Arc::new(Committer { consumer: Arc::downgrade(consumer), jobs: tx }))
    }
}

/// Makes a commit, without its marks if the servers refuse these: without any commit, every task would be executed
/// again after each rebalance.
fn make(client: &Client, list: &TopicPartitionList, shared: &Shared) -> KafkaResult<()> {
    let commit = |list: &TopicPartitionList| client.commit(list, CommitMode::Sync);
    let Err(refused) = commit(list) else { return Ok(()) };
    let code = error::code_of(&refused);
    let made = if error::is_of_offsets(code) { commit(&without_marks(list)?) } else { Err(refused) };
    let code = made.as_ref().err().map_or(code, error::code_of);
    if shared.failed_commits.is_due(Instant::now(), code) {
        let error = shared.commit_failed(code);
        let topic = list.elements().first().map(|element| element.topic().to_owned());
        match &made {
            Ok(()) => tracing::warn!(
                topic, %error, "offsets are committed without marks: a recreated topic may go unnoticed"
            ),
            Err(_) => tracing::warn!(topic, %error, "offsets can't be committed"),
        }
    }
    made
}

fn without_marks(list: &TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    let mut bare = TopicPartitionList::with_capacity(list.count());
    for element in list.elements() {
        bare.add_partition_offset(element.topic(), element.partition(), element.offset())?;
    }
    Ok(bare)
}

/// Failures of commits that were logged within the last minute.
#[derive(Debug, Default)]
pub(crate) struct FailedCommits(Mutex<Vec<(Code, Instant)>>);

impl FailedCommits {
    /// Returns whether to log a failure. Outages are logged elsewhere, by their connections, and a rebalance is not a
    /// failure.
    fn is_due(&self, now: Instant, code: Code) -> bool {
        use ErrorKind::*;
        if matches!(error::kind(code), Unavailable | Timeout | Throttled | NotOwner | Closed) {
            return false;
        }
        let mut logged = lock(&self.0);
        logged.retain(|(_, at)| now.duration_since(*at) < QUIET);
        let is_due = logged.iter().all(|(of, _)| *of != code);
        if is_due {
            logged.push((code, now));
        }
        is_due
    }
}

/// The slot of an assignment that may commit. A released one may not: the next owner may already have read the
/// committed offset. And records of a log that was replaced don't count.
fn current<'a>(owned: &'a HashMap<Partition, Arc<Slot>>, of: &Assignment) -> Option<&'a Arc<Slot>> {
    owned.get(&of.partition).filter(|s| s.assignment.epoch == of.epoch && !s.is_released())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn permanently_failing_commit_is_logged_once_per_minute_and_an_outage_is_not() {
        let (failed, now) = (FailedCommits::default(), Instant::now());
        let due = |after, code| failed.is_due(now + after, code);
        let (at_once, later) = (Duration::ZERO, QUIET - Duration::from_millis(1));
        assert!(due(at_once, Code::OffsetMetadataTooLarge) && due(at_once, Code::GroupAuthorizationFailed));
        assert!(!due(at_once, Code::OffsetMetadataTooLarge) && !due(later, Code::GroupAuthorizationFailed));
        assert!(due(QUIET, Code::OffsetMetadataTooLarge) && !due(QUIET, Code::OffsetMetadataTooLarge));
        for code in [Code::CoordinatorNotAvailable, Code::OperationTimedOut, Code::RebalanceInProgress] {
            assert!(!due(at_once, code), "{code:?}");
        }
    }
}
