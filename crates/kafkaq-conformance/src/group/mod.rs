//! The rules of a broker's groups, and helpers of their cases.

mod commits;
mod failures;
mod handover;
mod reading;
mod replaced;

use crate::{
    case::{Case, Context, case, member, unique},
    check::{Checked, Failed},
};
use bytes::Bytes;
use futures_util::{StreamExt, future::select_all};
use kafkaq_core::{
    Assignment, Broker, Commit, Consumer, Error, ErrorKind, Event, Headers, JoinRequest, NewRecord,
    Partition, Result, Retry, TopicSpec,
};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

type Cx = Context<dyn Broker>;

pub(crate) fn cases() -> Vec<Case<dyn Broker>> {
    vec![
        case!(reading::a_group_starts_at_the_first_record),
        case!(reading::batches_keep_their_size_and_order),
        case!(reading::no_event_is_lost_beside_a_tick),
        case!(reading::after_pause_comes_at_most_one_more_batch),
        case!(reading::resume_brings_all_the_rest),
        case!(reading::an_old_assignment_pauses_nothing),
        case!(reading::two_members_share_and_read_everything),
        case!(commits::a_group_goes_on_at_its_commit),
        case!(commits::groups_know_nothing_of_one_another),
        case!(commits::commit_outcomes_come_in_order),
        case!(commits::a_commit_while_revoking_counts),
        case!(commits::a_commit_after_the_release_is_refused),
        case!(commits::a_commit_of_an_older_epoch_is_refused),
        case!(handover::no_records_follow_revoking),
        case!(handover::what_comes_back_has_a_higher_epoch),
        case!(handover::a_revoked_partition_is_held_until_its_release),
        case!(handover::what_is_not_released_in_time_is_lost),
        case!(handover::leaving_hands_over_at_once),
        case!(handover::a_dropped_stream_leaves_too),
        case!(handover::the_stream_ends_after_leave),
        case!(handover::no_call_needs_the_stream_to_be_polled),
        case!(handover::close_ends_the_members),
        case!(replaced::a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch),
        case!(replaced::an_old_assignment_is_not_reassigned),
        case!(replaced::a_recreated_topic_is_read_whole_under_a_higher_epoch, TopicDeletion),
        case!(replaced::a_recreated_topic_is_reported, TopicDeletion),
        case!(replaced::a_commit_of_a_deleted_topic_counts_for_nothing, TopicDeletion),
        case!(failures::a_member_goes_on_after_an_outage, Outage),
        case!(failures::leave_ends_in_time_without_a_server, Outage),
    ]
}

/// A broker with one topic, in which each partition has the records "0", "1" and so on.
struct Stage {
    /// How long a call may take.
    limit: Duration,
    broker: Arc<dyn Broker>,
    topic: Arc<str>,
    partitions: i32,
}

async fn stage(cx: &Cx, partitions: i32, records: usize) -> Checked<Stage> {
    let broker = cx.client().await?;
    let mut spec = TopicSpec::new(cx.space());
    spec.partitions = Some(partitions);
    cx.create_topic(&*broker, spec).await?;
    let stage = Stage { limit: cx.answers_within(), broker, topic: cx.space().into(), partitions };
    for index in 0..partitions {
        stage.append(index, 0..records).await?;
    }
    Ok(stage)
}

impl Stage {
    fn partition(&self, index: i32) -> Partition {
        Partition::new(self.topic.clone(), index)
    }

    async fn append(&self, to: i32, numbers: impl IntoIterator<Item = usize>) -> Checked {
        let value = |n: usize| NewRecord::new(None, Some(Bytes::from(n.to_string())), Headers::new());
        let records: Vec<_> = numbers.into_iter().map(value).collect();
        for outcome in self.broker.append(&self.partition(to), &records).await {
            outcome?;
        }
        Ok(())
    }

    async fn join(&self, group: &str) -> Checked<Reader> {
        self.join_with(group, |_| {}).await
    }

    async fn join_with(&self, group: &str, change: impl FnOnce(&mut JoinRequest)) -> Checked<Reader> {
        let mut request = JoinRequest::new(group, vec![self.topic.clone()], member(&unique()));
        // No case waits for it, and a server on a busy machine should not expel members meanwhile.
        request.session_timeout = 2 * self.limit;
        change(&mut request);
        Ok(Reader {
            limit: self.limit,
            consumer: self.broker.join(request).await?,
            mine: BTreeMap::new(),
            read: BTreeMap::new(),
            warnings: Vec::new(),
        })
    }
}

/// A member that records its events.
struct Reader {
    /// How long a call may take.
    limit: Duration,
    consumer: Consumer,
    /// What is assigned to it, including what is being revoked.
    mine: BTreeMap<Partition, Assignment>,
    /// The values that it read since it last lost the partition, in order, with their offsets.
    read: BTreeMap<Partition, Vec<(i64, usize)>>,
    /// Errors after which it continued.
    warnings: Vec<Error>,
}

impl Reader {
    /// The next event; `None` when the stream has ended. Safe to drop.
    async fn next(&mut self) -> Checked<Option<Event>> {
        loop {
            match self.consumer.events.next().await {
                Some(Ok(event)) => {
                    self.note(&event)?;
                    return Ok(Some(event));
                }
                Some(Err(error)) if error.retry() != Retry::No => self.warnings.push(error),
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(None),
            }
        }
    }

    fn note(&mut self, event: &Event) -> Checked {
        match event {
            Event::Assigned(mine) => {
                self.mine.extend(mine.iter().map(|a| (a.partition.clone(), a.clone())));
            }
            // A broker that hasn't heard from a member for a while, on a busy machine, takes all its partitions and
            // returns them later. Then reading begins again at the commit.
            Event::Lost(lost) => {
                for assignment in lost {
                    self.forget(assignment);
                    self.read.remove(&assignment.partition);
                }
            }
            Event::Records(from, batch) => {
                let read = self.read.entry(from.partition.clone()).or_default();
                for record in &batch.records {
                    let value = record.value.as_deref().unwrap_or_default();
                    read.push((record.offset, std::str::from_utf8(value)?.parse()?));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forget(&mut self, assignment: &Assignment) {
        if self.mine.get(&assignment.partition) == Some(assignment) {
            self.mine.remove(&assignment.partition);
        }
    }

    /// Returns the first result that `pick` returns for an event; the events before it are recorded.
    async fn until<T>(
        &mut self,
        cx: &Cx,
        what: &str,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> Checked<T> {
        let find = async {
            while let Some(event) = self.next().await? {
                if let Some(found) = pick(&event) {
                    return Ok(found);
                }
            }
            Err(Failed(format!("{what}: the stream has ended")))
        };
        cx.in_time(what, find).await?
    }

    /// Returns all events within that time.
    async fn during(&mut self, time: Duration) -> Checked<Vec<Event>> {
        let (end, mut events) = (Instant::now() + time, Vec::new());
        while let Ok(event) = tokio::time::timeout_at(end, self.next()).await {
            events.extend(event?);
            // A backend that is always ready must not prevent checking the clock.
            if Instant::now() > end {
                break;
            }
        }
        Ok(events)
    }

    async fn assigned(&mut self, cx: &Cx) -> Checked<Vec<Assignment>> {
        self.until(cx, "an assignment", |event| match event {
            Event::Assigned(mine) if !mine.is_empty() => Some(mine.clone()),
            _ => None,
        })
        .await
    }

    async fn revoking(&mut self, cx: &Cx) -> Checked<Vec<Assignment>> {
        self.until(cx, "a revocation", |event| match event {
            Event::Revoking(mine) if !mine.is_empty() => Some(mine.clone()),
            _ => None,
        })
        .await
    }

    /// Reads until a partition has given that many records.
    async fn read(&mut self, cx: &Cx, of: &Partition, count: usize) -> Checked<&[(i64, usize)]> {
        let limit = Instant::now() + cx.answers_within();
        while self.count(of) < count {
            let left = limit.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.next()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Err(failed)) => return Err(failed),
                Ok(Ok(None)) | Err(_) => {
                    let got = self.count(of);
                    return Err(Failed(format!("{of} has {count} records to read, but only {got} arrived")));
                }
            }
        }
        Ok(&self.read[of])
    }

    fn count(&self, of: &Partition) -> usize {
        self.read.get(of).map_or(0, Vec::len)
    }

    async fn commit(&self, assignment: &Assignment, offset: i64) -> Result<()> {
        let commit = Commit { assignment: assignment.clone(), offset };
        let answer = tokio::time::timeout(self.limit, self.consumer.member.commit(&[commit])).await;
        // Too few outcomes, or none in time.
        let unknown = || Err(Error::unknown(ErrorKind::Timeout, "commit"));
        answer.ok().and_then(|mut outcomes| outcomes.pop()).unwrap_or_else(unknown)
    }

    fn release(&mut self, assignments: &[Assignment]) {
        assignments.iter().for_each(|a| self.forget(a));
        self.consumer.member.release(assignments);
    }
}

/// Polls all members, releasing revoked partitions at once, until `done`.
async fn settle(
    cx: &Cx,
    what: impl fmt::Display,
    readers: &mut [Reader],
    mut done: impl FnMut(&[Reader]) -> bool,
) -> Checked {
    let run = async {
        while !done(readers) {
            let events = readers.iter_mut().map(|reader| Box::pin(reader.next()));
            let (event, who, _) = select_all(events).await;
            match event? {
                Some(Event::Revoking(mine)) => readers[who].release(&mine),
                Some(_) => {}
                None => return Err(Failed(format!("{what}: a stream has ended"))),
            }
        }
        Ok(())
    };
    cx.in_time(&what, run).await?
}
