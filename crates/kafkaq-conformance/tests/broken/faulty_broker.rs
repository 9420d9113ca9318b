//! Brokers whose groups break one rule each.

use crate::{gate::Gate, passes, planted, prove};
use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use kafkaq::memory::MemoryLog;
use kafkaq_conformance::{Kit, Suite};
use kafkaq_core::{
    Assignment, Broker, Commit, Consumer, Error, ErrorKind, Event, EventStream, JoinRequest, Log, Member,
    NewRecord, Partition, Result, TopicInfo, TopicSpec,
};
use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    SkipsToTheEnd,
    ReadsTooMuchAtOnce,
    LosesEvents,
    IgnoresPause,
    LosesABatchAtResume,
    PausesOldAssignments,
    GivesEverythingToEverybody,
    ForgetsCommits,
    SharesCommitsBetweenGroups,
    AnswersCommitsInWrongOrder,
    ReleasesAtOnce,
    CommitsAfterRevoke,
    FencesPartitionsOnly,
    ReadsOnWhileRevoking,
    RepeatsEpochs,
    HoldsForEver,
    LeavesOnlyInWords,
    StaysWhenDropped,
    NeverEndsItsStream,
    CommitsOnlyWhenPolled,
    KeepsItsMembersAtClose,
    EndsAtTheFirstError,
    CannotLeaveWithoutAServer,
    IgnoresReassign,
    ReassignsOldAssignments,
    ReadsOnInARecreatedTopic,
    RecreatesInSilence,
    KeepsCommitsOfDeletedTopics,
    /// Not a fault: after that many events a member loses everything once, as if the broker hadn't heard from it for a
    /// session timeout, and gets it back.
    Expels(usize),
}

#[derive(Debug)]
struct Faulty {
    inner: MemoryLog,
    fault: Fault,
    gate: Gate,
    closed: AtomicBool,
    committed: Committed,
}

/// How far any group has committed, whatever has happened to the topic since.
type Committed = Arc<Mutex<HashMap<Partition, i64>>>;

fn kit(fault: Fault) -> Kit<dyn Broker> {
    let (log, gate, committed) = (MemoryLog::new(), Gate::default(), Committed::default());
    let (network, topics) = (gate.clone(), log.clone());
    let make = move || {
        let (closed, committed) = (AtomicBool::new(false), committed.clone());
        std::future::ready(Ok(Faulty { inner: log.clone(), fault, gate: network.clone(), closed, committed }))
    };
    let delete = move |name: String| std::future::ready(topics.delete_topic(&name).map_err(Into::into));
    kafkaq_conformance::broker("broker", make)
        .with_paused_clock()
        .with_outage(gate)
        .with_topic_deletion(delete)
        .answers_within(Duration::from_secs(4))
}

impl Faulty {
    fn reachable(&self, op: &'static str) -> Result<()> {
        if self.closed.load(SeqCst) {
            return Err(Error::not_applied(ErrorKind::Closed, op));
        }
        match self.gate.is_cut() {
            true => Err(Error::not_applied(ErrorKind::Unavailable, op)),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Log for Faulty {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.reachable("ensure_topics")?;
        self.inner.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.reachable("describe_topics")?;
        self.inner.describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        match self.reachable("append") {
            Ok(()) => self.inner.append(to, records).await,
            Err(error) => vec![Err(error); records.len()],
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, SeqCst);
        match self.fault {
            Fault::KeepsItsMembersAtClose => Ok(()),
            _ => self.inner.close().await,
        }
    }
}

#[async_trait]
impl Broker for Faulty {
    async fn join(&self, mut request: JoinRequest) -> Result<Consumer> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        self.reachable("join")?;
        match self.fault {
            Fault::ReadsTooMuchAtOnce => request.max_batch *= 3,
            Fault::GivesEverythingToEverybody if request.group.as_ref() == "g" => {
                request.group = format!("g{}", NUMBER.fetch_add(1, SeqCst)).into();
            }
            Fault::SharesCommitsBetweenGroups => request.group = "all".into(),
            Fault::HoldsForEver => request.release_limit = Duration::from_secs(3600),
            _ => {}
        }
        let consumer = self.inner.join(request).await?;
        let state = Arc::new(State {
            inner: consumer.member,
            fault: self.fault,
            gate: self.gate.clone(),
            epochs: Mutex::default(),
            paused: Mutex::default(),
            committed: self.committed.clone(),
            read: Mutex::default(),
            polled: tokio::sync::Notify::new(),
        });
        let events = Events {
            inner: consumer.events,
            state: state.clone(),
            count: 0,
            last: None,
            extra: Vec::new(),
            mine: Vec::new(),
        };
        let events: EventStream = match self.fault {
            Fault::NeverEndsItsStream => Box::pin(events.chain(stream::pending())),
            Fault::StaysWhenDropped => Box::pin(Undying(Some(Box::pin(events)))),
            _ => Box::pin(events),
        };
        Ok(Consumer { events, member: Arc::new(Handle(state)) })
    }
}

/// What the two halves of a member share.
struct State {
    inner: Arc<dyn Member>,
    fault: Fault,
    gate: Gate,
    /// The epochs as the broker knows them.
    epochs: Mutex<HashMap<Partition, u64>>,
    /// Whose next batch gets lost.
    paused: Mutex<HashSet<Partition>>,
    committed: Committed,
    /// Up to where the member has read.
    read: Mutex<HashMap<Partition, i64>>,
    polled: tokio::sync::Notify,
}

impl State {
    /// The assignment as the broker knows it.
    fn real(&self, told: &Assignment) -> Assignment {
        let known = self.epochs.lock().unwrap().get(&told.partition).copied();
        let same = |fault| self.fault == fault;
        match known {
            Some(epoch) if same(Fault::RepeatsEpochs) && told.epoch != 1 => {
                Assignment { epoch: epoch + 1, ..told.clone() }
            }
            Some(epoch) if same(Fault::RepeatsEpochs) || same(Fault::FencesPartitionsOnly) => {
                Assignment { epoch, ..told.clone() }
            }
            _ => told.clone(),
        }
    }

    fn real_all(&self, told: &[Assignment]) -> Vec<Assignment> {
        told.iter().map(|assignment| self.real(assignment)).collect()
    }

    /// The current assignments of the partitions, whatever their epochs.
    fn present(&self, assignments: &[Assignment]) -> Vec<Assignment> {
        let epochs = self.epochs.lock().unwrap();
        let present = |a: &Assignment| Some(Assignment { epoch: *epochs.get(&a.partition)?, ..a.clone() });
        assignments.iter().filter_map(present).collect()
    }

    /// The assignment as the member is told of it.
    fn told(&self, assignment: &mut Assignment) {
        self.epochs.lock().unwrap().insert(assignment.partition.clone(), assignment.epoch);
        if self.fault == Fault::RepeatsEpochs {
            assignment.epoch = 1;
        }
    }
}

struct Events {
    inner: EventStream,
    state: Arc<State>,
    count: usize,
    last: Option<kafkaq_core::Batch>,
    extra: Vec<Event>,
    mine: Vec<Assignment>,
}

impl Events {
    /// Spoils an event; `None`: it is dropped.
    fn spoil(&mut self, mut event: Event) -> Option<Event> {
        match &mut event {
            Event::Assigned(of) | Event::Lost(of) | Event::Revoking(of) => {
                of.iter_mut().for_each(|a| self.state.told(a));
            }
            Event::Records(of, _) => self.state.told(of),
            _ => {}
        }
        match (self.state.fault, &mut event) {
            (Fault::SkipsToTheEnd, Event::Records(_, batch)) if batch.records.first()?.offset == 0 => {
                return None;
            }
            (Fault::LosesEvents, Event::Records(..)) => {
                self.count += 1;
                if self.count.is_multiple_of(20) {
                    return None;
                }
            }
            (Fault::LosesABatchAtResume, Event::Records(of, _))
                if self.state.paused.lock().unwrap().remove(&of.partition) =>
            {
                return None;
            }
            // What lies below was read, in whichever topic.
            (Fault::ReadsOnInARecreatedTopic, Event::Records(of, batch)) => {
                let mut read = self.state.read.lock().unwrap();
                let next = read.entry(of.partition.clone()).or_default();
                batch.records.retain(|record| record.offset >= *next);
                *next = batch.next.max(*next);
            }
            (Fault::KeepsCommitsOfDeletedTopics, Event::Records(of, batch)) => {
                let committed = self.state.committed.lock().unwrap().get(&of.partition).copied();
                batch.records.retain(|record| record.offset >= committed.unwrap_or(0));
            }
            (Fault::ReadsOnWhileRevoking, Event::Records(_, batch)) => {
                self.last = Some(batch.clone());
            }
            (Fault::ReadsOnWhileRevoking, Event::Revoking(asked)) => {
                let batch = self.last.clone().unwrap_or_else(|| kafkaq_core::Batch::new(Vec::new(), 0, None));
                self.extra.push(Event::Records(asked[0].clone(), batch));
            }
            (Fault::ReleasesAtOnce, Event::Revoking(asked)) => self.state.inner.release(asked),
            (Fault::Expels(after), event) => {
                self.count += 1;
                match event {
                    Event::Assigned(of) => self.mine.extend(of.iter().cloned()),
                    Event::Revoking(of) | Event::Lost(of) => self.mine.retain(|a| !of.contains(a)),
                    _ => {}
                }
                if self.count == after {
                    self.state.inner.reassign(&self.mine);
                }
            }
            _ => {}
        }
        Some(event)
    }
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.state.polled.notify_waiters();
        if self.state.fault == Fault::EndsAtTheFirstError && self.state.gate.is_cut() {
            return Poll::Ready(Some(Err(Error::not_applied(ErrorKind::Other, "poll"))));
        }
        if let Some(event) = self.extra.pop() {
            return Poll::Ready(Some(Ok(event)));
        }
        loop {
            let event = match self.inner.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(event))) => event,
                Poll::Ready(Some(Err(_))) if self.state.fault == Fault::RecreatesInSilence => continue,
                other => return other,
            };
            if let Some(event) = self.spoil(event) {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

/// A stream that continues after it is dropped.
struct Undying(Option<Pin<Box<Events>>>);

impl Stream for Undying {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().unwrap().as_mut().poll_next(cx)
    }
}

impl Drop for Undying {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

struct Handle(Arc<State>);

#[async_trait]
impl Member for Handle {
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>> {
        let state = &self.0;
        let real = |c: &Commit| Commit { assignment: state.real(&c.assignment), offset: c.offset };
        match state.fault {
            Fault::ForgetsCommits => return vec![Ok(()); offsets.len()],
            Fault::CommitsOnlyWhenPolled => state.polled.notified().await,
            Fault::KeepsCommitsOfDeletedTopics => {
                let offset = |c: &Commit| (c.assignment.partition.clone(), c.offset);
                state.committed.lock().unwrap().extend(offsets.iter().map(offset));
            }
            _ => {}
        }
        let mut outcomes = state.inner.commit(&offsets.iter().map(real).collect::<Vec<_>>()).await;
        match state.fault {
            Fault::AnswersCommitsInWrongOrder => outcomes.reverse(),
            Fault::CommitsAfterRevoke => outcomes.iter_mut().for_each(|outcome| *outcome = Ok(())),
            _ => {}
        }
        outcomes
    }

    fn pause(&self, assignments: &[Assignment]) {
        let state = &self.0;
        match state.fault {
            Fault::IgnoresPause => return,
            Fault::LosesABatchAtResume => {
                state.paused.lock().unwrap().extend(assignments.iter().map(|a| a.partition.clone()));
            }
            Fault::PausesOldAssignments => return state.inner.pause(&state.present(assignments)),
            _ => {}
        }
        state.inner.pause(&state.real_all(assignments));
    }

    fn resume(&self, assignments: &[Assignment]) {
        self.0.inner.resume(&self.0.real_all(assignments));
    }

    fn release(&self, assignments: &[Assignment]) {
        self.0.inner.release(&self.0.real_all(assignments));
    }

    fn reassign(&self, assignments: &[Assignment]) {
        let state = &self.0;
        match state.fault {
            Fault::IgnoresReassign => {}
            Fault::ReassignsOldAssignments => state.inner.reassign(&state.present(assignments)),
            _ => state.inner.reassign(&state.real_all(assignments)),
        }
    }

    async fn leave(&self) -> Result<()> {
        let away = self.0.gate.is_cut();
        match self.0.fault {
            Fault::LeavesOnlyInWords => Ok(()),
            Fault::CannotLeaveWithoutAServer if away => std::future::pending().await,
            _ => self.0.inner.leave().await,
        }
    }
}

#[test]
fn a_broker_without_a_fault_passes() {
    passes(kit(Fault::None).results());
}

/// The rules of reading hold for as long as a member has a partition, and start over when it gets the partition back.
#[test]
fn a_member_that_reads_may_be_expelled_and_come_back_at_any_time() {
    const READS: [&str; 7] = [
        "a_group_starts_at_the_first_record",
        "batches_keep_their_size_and_order",
        "no_event_is_lost_beside_a_tick",
        "after_pause_comes_at_most_one_more_batch",
        "resume_brings_all_the_rest",
        "an_old_assignment_pauses_nothing",
        "two_members_share_and_read_everything",
    ];
    for after in [1, 2, 3, 4, 8, 16, 32] {
        let mut reports = kit(Fault::Expels(after)).results();
        reports.retain(|report| READS.iter().any(|name| report.name.ends_with(&format!("::{name}"))));
        assert_eq!(reports.len(), READS.len());
        passes(reports);
    }
}

const COMMITTING: &[&str] = &[
    "a_group_goes_on_at_its_commit",
    "groups_know_nothing_of_one_another",
    "commit_outcomes_come_in_order",
    "a_commit_while_revoking_counts",
    "a_commit_after_the_release_is_refused",
    "a_commit_of_an_older_epoch_is_refused",
    "what_is_not_released_in_time_is_lost",
    "a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch",
    "an_old_assignment_is_not_reassigned",
    "a_recreated_topic_is_read_whole_under_a_higher_epoch",
    "a_commit_of_a_deleted_topic_counts_for_nothing",
];

const HANDING_OVER: &[&str] = &[
    "a_commit_while_revoking_counts",
    "a_commit_after_the_release_is_refused",
    "a_commit_of_an_older_epoch_is_refused",
    "what_comes_back_has_a_higher_epoch",
    "leaving_hands_over_at_once",
    "a_dropped_stream_leaves_too",
    "no_records_follow_revoking",
    "a_revoked_partition_is_held_until_its_release",
    "what_is_not_released_in_time_is_lost",
    "the_stream_ends_after_leave",
    "close_ends_the_members",
    "a_group_goes_on_at_its_commit",
    "a_commit_of_a_deleted_topic_counts_for_nothing",
];

/// Cases that read what was appended before they joined.
const READING: &[&str] = &[
    "ensure_topics_leaves_a_topic_that_exists_alone",
    "records_keep_their_order",
    "each_outcome_is_its_own_records",
    "a_batch_may_be_empty_or_have_a_thousand_records",
    "another_client_finds_what_was_appended",
    "clients_append_behind_one_another",
    "a_reader_beside_writers_misses_nothing",
    "a_record_that_is_too_large_is_refused",
    "concurrent_appends_get_their_own_answers",
    "a_dropped_append_leaves_the_others_right",
    "keys_and_values_come_back_byte_for_byte",
    "no_key_is_not_an_empty_key",
    "a_tombstone_is_not_an_empty_value",
    "headers_come_back_byte_for_byte",
    "repeated_headers_come_back_in_order",
    "a_null_header_is_not_an_empty_one",
    "an_append_of_unknown_effect_is_reported_as_unknown",
    "it_reconnects_by_itself",
    "batches_keep_their_size_and_order",
    "no_event_is_lost_beside_a_tick",
    "after_pause_comes_at_most_one_more_batch",
    "resume_brings_all_the_rest",
    "an_old_assignment_pauses_nothing",
    "two_members_share_and_read_everything",
    "a_group_goes_on_at_its_commit",
    "groups_know_nothing_of_one_another",
    "commit_outcomes_come_in_order",
    "a_commit_while_revoking_counts",
    "a_commit_after_the_release_is_refused",
    "a_commit_of_an_older_epoch_is_refused",
    "no_call_needs_the_stream_to_be_polled",
    "a_member_goes_on_after_an_outage",
    "leave_ends_in_time_without_a_server",
    "a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch",
    "an_old_assignment_is_not_reassigned",
    "a_recreated_topic_is_read_whole_under_a_higher_epoch",
    "a_recreated_topic_is_reported",
    "a_commit_of_a_deleted_topic_counts_for_nothing",
];

#[test]
fn each_fault_of_a_broker_is_caught_by_the_case_that_names_the_rule() {
    use Fault::*;
    let table = [
        planted(SkipsToTheEnd, "a_group_starts_at_the_first_record", READING),
        planted(
            ReadsTooMuchAtOnce,
            "batches_keep_their_size_and_order",
            &["after_pause_comes_at_most_one_more_batch"],
        ),
        planted(LosesEvents, "no_event_is_lost_beside_a_tick", READING),
        planted(IgnoresPause, "after_pause_comes_at_most_one_more_batch", &[]),
        planted(
            LosesABatchAtResume,
            "resume_brings_all_the_rest",
            &["after_pause_comes_at_most_one_more_batch", "an_old_assignment_pauses_nothing"],
        ),
        planted(PausesOldAssignments, "an_old_assignment_pauses_nothing", &[]),
        planted(GivesEverythingToEverybody, "two_members_share_and_read_everything", HANDING_OVER),
        planted(ForgetsCommits, "a_group_goes_on_at_its_commit", COMMITTING),
        planted(SharesCommitsBetweenGroups, "groups_know_nothing_of_one_another", READING),
        planted(AnswersCommitsInWrongOrder, "commit_outcomes_come_in_order", &[]),
        planted(ReleasesAtOnce, "a_revoked_partition_is_held_until_its_release", HANDING_OVER),
        planted(CommitsAfterRevoke, "a_commit_after_the_release_is_refused", COMMITTING),
        planted(
            FencesPartitionsOnly,
            "a_commit_of_an_older_epoch_is_refused",
            &[
                "an_old_assignment_pauses_nothing",
                "commit_outcomes_come_in_order",
                "a_commit_after_the_release_is_refused",
                "what_is_not_released_in_time_is_lost",
                "a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch",
                "an_old_assignment_is_not_reassigned",
                "a_recreated_topic_is_read_whole_under_a_higher_epoch",
            ],
        ),
        planted(ReadsOnWhileRevoking, "no_records_follow_revoking", &["a_commit_while_revoking_counts"]),
        planted(RepeatsEpochs, "what_comes_back_has_a_higher_epoch", COMMITTING),
        planted(HoldsForEver, "what_is_not_released_in_time_is_lost", &[]),
        planted(LeavesOnlyInWords, "leaving_hands_over_at_once", HANDING_OVER),
        planted(StaysWhenDropped, "a_dropped_stream_leaves_too", &[]),
        planted(NeverEndsItsStream, "the_stream_ends_after_leave", &["close_ends_the_members"]),
        planted(CommitsOnlyWhenPolled, "no_call_needs_the_stream_to_be_polled", COMMITTING),
        planted(KeepsItsMembersAtClose, "close_ends_the_members", &[]),
        planted(EndsAtTheFirstError, "a_member_goes_on_after_an_outage", &[]),
        planted(CannotLeaveWithoutAServer, "leave_ends_in_time_without_a_server", &[]),
        planted(
            IgnoresReassign,
            "a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch",
            &["an_old_assignment_is_not_reassigned"],
        ),
        planted(ReassignsOldAssignments, "an_old_assignment_is_not_reassigned", &[]),
        planted(
            ReadsOnInARecreatedTopic,
            "a_recreated_topic_is_read_whole_under_a_higher_epoch",
            &[
                "a_commit_of_an_older_epoch_is_refused",
                "a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch",
                "an_old_assignment_is_not_reassigned",
                "a_recreated_topic_is_reported",
            ],
        ),
        planted(RecreatesInSilence, "a_recreated_topic_is_reported", &[]),
        planted(
            KeepsCommitsOfDeletedTopics,
            "a_commit_of_a_deleted_topic_counts_for_nothing",
            &["groups_know_nothing_of_one_another", "a_recreated_topic_is_read_whole_under_a_higher_epoch"],
        ),
    ];
    prove(|fault| Suite::from(kit(fault)), &table);
}
