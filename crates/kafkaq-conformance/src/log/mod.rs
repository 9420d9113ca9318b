//! The rules of every log and those of a log without groups, and helpers of their cases.

mod append;
mod bytes;
mod failures;
mod fetch;
mod topics;

pub use append::noise;

use crate::{
    case::{Case, Context, case, member, unique},
    check::{Checked, Failed},
};
use ::bytes::Bytes;
use async_trait::async_trait;
use futures_util::StreamExt;
use kafkaq_core::{
    Broker, Event, FetchLimit, Headers, JoinRequest, Log, NewRecord, Partition, PartitionLog, Position,
    Record, Retry, TopicInfo, TopicSpec,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

/// For both kinds of logs.
pub(crate) fn cases<L: AnyLog + ?Sized>() -> Vec<Case<L>> {
    vec![
        case!(topics::ensure_topics_answers_in_order),
        case!(topics::ensure_topics_leaves_a_topic_that_exists_alone),
        case!(topics::a_topic_tells_the_settings_it_was_made_with),
        case!(topics::describe_topics_answers_in_order_and_creates_nothing),
        case!(topics::two_may_make_the_same_topics_at_once),
        case!(topics::a_new_topic_takes_records_at_once),
        case!(topics::an_unknown_topic_is_not_found),
        case!(append::appended_offsets_ascend),
        case!(append::records_keep_their_order),
        case!(append::each_outcome_is_its_own_records),
        case!(append::a_batch_may_be_empty_or_have_a_thousand_records),
        case!(append::another_client_finds_what_was_appended, SecondClient),
        case!(append::clients_append_behind_one_another, SecondClient),
        case!(append::a_reader_beside_writers_misses_nothing),
        case!(append::a_record_that_is_too_large_is_refused, RecordLimit),
        case!(append::concurrent_appends_get_their_own_answers),
        case!(append::a_dropped_append_leaves_the_others_right),
        case!(append::close_is_idempotent_and_final),
        case!(bytes::keys_and_values_come_back_byte_for_byte),
        case!(bytes::no_key_is_not_an_empty_key),
        case!(bytes::a_tombstone_is_not_an_empty_value),
        case!(bytes::headers_come_back_byte_for_byte),
        case!(bytes::repeated_headers_come_back_in_order, RepeatedHeaders),
        case!(bytes::a_null_header_is_not_an_empty_one, NullHeaders),
        case!(failures::an_append_of_unknown_effect_is_reported_as_unknown, Outage),
        case!(failures::without_a_server_every_call_ends_in_time, Outage),
        case!(failures::it_reconnects_by_itself, Outage),
    ]
}

/// For logs without groups.
pub(crate) fn partition_cases() -> Vec<Case<dyn PartitionLog>> {
    vec![
        case!(fetch::fetch_starts_at_any_offset),
        case!(fetch::batches_follow_one_another_without_gaps),
        case!(fetch::at_the_end_a_fetch_answers_an_empty_batch),
        case!(fetch::a_fetch_of_what_is_not_there_fails),
        case!(fetch::a_fetch_wakes_at_the_first_record),
        case!(fetch::one_record_comes_even_if_it_is_larger_than_the_limit),
        case!(fetch::a_dropped_fetch_loses_nothing),
        case!(fetch::a_waiting_fetch_holds_up_nobody),
        case!(fetch::close_ends_a_waiting_fetch),
        case!(fetch::offsets_tell_the_ends_in_order),
    ]
}

/// What the cases for both kinds of logs need: the log, and a way to read what is in it.
#[async_trait]
pub(crate) trait AnyLog: Log {
    /// The first records of a partition, by offset; `count` of them have to come, and none may take longer than
    /// `patience`.
    async fn read(&self, of: &Partition, count: usize, patience: Duration) -> Checked<Vec<Record>>;
}

fn too_few(of: &Partition, got: usize, count: usize) -> Failed {
    Failed(format!("{of} has {count} records, but only {got} could be read"))
}

#[async_trait]
impl AnyLog for dyn PartitionLog {
    async fn read(&self, of: &Partition, count: usize, patience: Duration) -> Checked<Vec<Record>> {
        let (mut at, mut records) = (Position { partition: of.clone(), offset: 0 }, Vec::new());
        let limit = FetchLimit::new(Duration::from_millis(500), 1 << 20);
        let mut last = Instant::now();
        while records.len() < count {
            let batch = self.fetch(&at, limit).await?;
            match batch.records.is_empty() {
                false => last = Instant::now(),
                true if last.elapsed() > patience => return Err(too_few(of, records.len(), count)),
                true => {}
            }
            records.extend(batch.records);
            at.offset = batch.next;
        }
        Ok(records)
    }
}

#[async_trait]
impl AnyLog for dyn Broker {
    async fn read(&self, of: &Partition, count: usize, patience: Duration) -> Checked<Vec<Record>> {
        // A group of its own, so that it starts at the first record.
        let name = unique();
        let request = JoinRequest::new(name.as_str(), vec![of.topic.clone()], member(&name));
        let mut consumer = self.join(request).await?;
        let mut records = Vec::new();
        while records.len() < count {
            match tokio::time::timeout(patience, consumer.events.next()).await {
                Ok(Some(Ok(Event::Records(from, batch)))) if from.partition == *of => {
                    records.extend(batch.records);
                }
                Ok(Some(Err(error))) if error.retry() == Retry::No => return Err(error.into()),
                // Reading continues after any other error.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(too_few(of, records.len(), count)),
            }
        }
        consumer.member.leave().await?;
        Ok(records)
    }
}

/// Creates a topic for this case only.
async fn topic<L: AnyLog + ?Sized>(cx: &Context<L>, log: &L, partitions: i32) -> Checked<Arc<str>> {
    let mut spec = TopicSpec::new(cx.space());
    spec.partitions = Some(partitions);
    made(cx.create_topic(log, spec).await?, &[(cx.space(), partitions)])?;
    Ok(cx.space().into())
}

/// Checks that the infos are those of these topics.
fn made(infos: Vec<TopicInfo>, topics: &[(&str, i32)]) -> Checked<Vec<TopicInfo>> {
    let got: Vec<_> = infos.iter().map(|info| (&*info.name, info.partitions)).collect();
    if got != topics {
        return Err(Failed(format!("ensure_topics: expected {topics:?}, got {got:?}")));
    }
    Ok(infos)
}

fn record(value: impl fmt::Display) -> NewRecord {
    NewRecord::new(None, Some(Bytes::from(value.to_string())), Headers::new())
}

fn records(numbers: impl IntoIterator<Item = usize>) -> Vec<NewRecord> {
    numbers.into_iter().map(record).collect()
}

fn text(record: &Record) -> String {
    String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
}

/// Appends what has to succeed, and returns the offsets.
async fn append<L: Log + ?Sized>(log: &L, to: &Partition, records: &[NewRecord]) -> Checked<Vec<i64>> {
    let outcomes = log.append(to, records).await;
    if outcomes.len() != records.len() {
        return Err(Failed(format!(
            "{} records were appended, but {} outcomes returned",
            records.len(),
            outcomes.len()
        )));
    }
    Ok(outcomes.into_iter().collect::<Result<_, _>>()?)
}
