//! Logs that break one rule each.

use crate::{
    gate::{Gate, Manners, Passage, Way},
    passes, planted, prove,
};
use async_trait::async_trait;
use bytes::Bytes;
use kafkaq::memory::MemoryLog;
use kafkaq_conformance::{Kit, Suite};
use kafkaq_core::{
    Batch, Effect, Error, ErrorKind, FetchLimit, Headers, Log, NewRecord, Offsets, Partition, PartitionLog,
    Position, Result, TopicInfo, TopicSpec,
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    AnswersInWrongOrder,
    SaysThatItMadeEverything,
    RemakesTopics,
    MakesTopicsWithItsOwnRetention,
    DescribesInWrongOrder,
    DescribesByCreating,
    LosesTheRaceForATopic,
    NeedsAWhileForATopic,
    MakesUnknownTopics,
    GivesNoAdvice,
    RepeatsOffsets,
    Reorders,
    OffByOne,
    DropsOneOfAThousand,
    KeepsItInABuffer,
    CountsOnItsOwn,
    PassesOverWhatIsBeingWritten,
    IsNotSureAboutLargeRecords,
    MixesUpAnswers,
    StallsAfterADroppedCall,
    GoesOnAfterClose,
    WantsTextInValues,
    TakesNoKeyForEmpty,
    TakesTombstonesForEmpty,
    WantsTextInHeaders,
    SortsHeaders,
    TakesNullHeadersForEmpty,
    ReadsFromTheStart,
    SkipsARecord,
    FailsAtTheEnd,
    WaitsBeyondTheEnd,
    FindsNothingInNoTopic,
    SleepsInsteadOfWaiting,
    HoldsBackLargeRecords,
    LosesWhatADroppedFetchRead,
    OneCallAtATime,
    WaitsBeyondClose,
    AnswersOffsetsInWrongOrder,
    Network(Manners),
}

#[derive(Debug, Default)]
struct Shared {
    gate: Gate,
    /// What only its writer can see.
    buffered: Mutex<HashSet<(Partition, i64)>>,
    being_written: Mutex<HashSet<(Partition, i64)>>,
    young: Mutex<HashSet<Arc<str>>>,
}

#[derive(Debug)]
struct Faulty {
    inner: MemoryLog,
    fault: Fault,
    way: Way,
    shared: Arc<Shared>,
    mine: Mutex<HashSet<(Partition, i64)>>,
    counted: Mutex<HashMap<Partition, i64>>,
    closed: AtomicBool,
    stalled: AtomicBool,
    answer: AtomicI64,
    /// Whose fetch was dropped.
    fetching: AtomicBool,
    one: tokio::sync::Mutex<()>,
}

fn kit(fault: Fault) -> Kit<dyn PartitionLog> {
    let (log, shared) = (MemoryLog::new(), Arc::<Shared>::default());
    let (gate, manners) =
        (shared.gate.clone(), if let Fault::Network(manners) = fault { manners } else { Manners::Good });
    let make = move || {
        std::future::ready(Ok(Faulty {
            inner: log.clone(),
            fault,
            way: Way::new(shared.gate.clone(), manners),
            shared: shared.clone(),
            mine: Mutex::default(),
            counted: Mutex::default(),
            closed: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            answer: AtomicI64::new(0),
            fetching: AtomicBool::new(false),
            one: tokio::sync::Mutex::default(),
        }))
    };
    kafkaq_conformance::log("log", make)
        .with_paused_clock()
        .with_outage(gate)
        .answers_within(Duration::from_secs(2))
}

fn text(bytes: Bytes) -> Bytes {
    Bytes::from(String::from_utf8_lossy(&bytes).into_owned())
}

impl Faulty {
    fn headers(&self, headers: &Headers) -> Headers {
        let mut pairs: Vec<_> = headers.iter().map(|(n, v)| (n.clone(), v.cloned())).collect();
        match self.fault {
            Fault::WantsTextInHeaders => pairs.iter_mut().for_each(|(_, v)| *v = v.take().map(text)),
            Fault::SortsHeaders => pairs.sort_by(|a, b| a.0.cmp(&b.0)),
            Fault::TakesNullHeadersForEmpty => {
                pairs.iter_mut().for_each(|(_, v)| *v = Some(v.take().unwrap_or_default()));
            }
            _ => {}
        }
        pairs.into_iter().collect()
    }

    fn record(&self, record: &NewRecord) -> NewRecord {
        let mut record = record.clone();
        record.headers = self.headers(&record.headers);
        match self.fault {
            Fault::WantsTextInValues => record.value = record.value.map(text),
            Fault::TakesNoKeyForEmpty => record.key = Some(record.key.unwrap_or_default()),
            Fault::TakesTombstonesForEmpty => record.value = Some(record.value.unwrap_or_default()),
            _ => {}
        }
        record
    }

    async fn write(&self, to: &Partition, mut records: Vec<NewRecord>) -> Vec<Result<i64>> {
        match self.fault {
            Fault::MakesUnknownTopics => {
                let mut spec = TopicSpec::new(to.topic.clone());
                spec.partitions = Some(10);
                self.inner.ensure_topics(&[spec]).await.unwrap();
            }
            Fault::NeedsAWhileForATopic
                if self.shared.young.lock().unwrap().contains(&to.topic) && to.index > 6 =>
            {
                return vec![Err(Error::not_applied(ErrorKind::Unavailable, "append")); records.len()];
            }
            Fault::Reorders => records.reverse(),
            Fault::DropsOneOfAThousand if records.len() == 1000 => drop(records.pop()),
            _ => {}
        }
        let dropped = self.fault == Fault::DropsOneOfAThousand && records.len() == 999;
        let mut outcomes = self.inner.append(to, &records).await;
        if dropped {
            outcomes.push(Ok(outcomes[998].as_ref().unwrap() + 1));
        }
        outcomes
    }

    async fn outcomes(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let mut outcomes = self.write(to, records.iter().map(|r| self.record(r)).collect()).await;
        for outcome in &mut outcomes {
            match (self.fault, &mut *outcome) {
                (Fault::RepeatsOffsets, Ok(offset)) => *offset /= 2,
                (Fault::OffByOne, Ok(offset)) => *offset += 1,
                (Fault::MixesUpAnswers, Ok(offset)) => {
                    self.answer.store(*offset, SeqCst);
                    tokio::task::yield_now().await;
                    *offset = self.answer.load(SeqCst);
                }
                (Fault::CountsOnItsOwn, Ok(offset)) => {
                    let mut counted = self.counted.lock().unwrap();
                    let next = counted.entry(to.clone()).or_insert(*offset);
                    *offset = *next;
                    *next += 1;
                }
                (Fault::KeepsItInABuffer, Ok(offset)) => {
                    self.shared.buffered.lock().unwrap().insert((to.clone(), *offset));
                    self.mine.lock().unwrap().insert((to.clone(), *offset));
                }
                (Fault::GivesNoAdvice, Err(error)) if error.kind() == ErrorKind::NotFound => {
                    *outcome = Err(Error::not_applied(ErrorKind::NotFound, "append"));
                }
                (Fault::IsNotSureAboutLargeRecords, Err(error)) if error.effect() == Effect::NotApplied => {
                    *outcome = Err(Error::unknown(error.kind(), "append").with_advice("Look it up"));
                }
                _ => {}
            }
        }
        if self.fault == Fault::PassesOverWhatIsBeingWritten {
            let these: HashSet<_> = outcomes.iter().flatten().map(|offset| (to.clone(), *offset)).collect();
            self.shared.being_written.lock().unwrap().extend(these.iter().cloned());
            sleep(Duration::from_millis(2)).await;
            self.shared.being_written.lock().unwrap().retain(|at| !these.contains(at));
        }
        outcomes
    }

    fn closed(&self, op: &'static str) -> Option<Error> {
        let closed = self.closed.load(SeqCst) && self.fault != Fault::GoesOnAfterClose;
        closed.then(|| Error::not_applied(ErrorKind::Closed, op))
    }
}

#[async_trait]
impl Log for Faulty {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        if let Some(error) = self.closed("ensure_topics") {
            return Err(error);
        }
        if let Passage::Arrives(error) | Passage::Lost(error) = self.way.pass("ensure_topics").await {
            return Err(error);
        }
        if self.fault == Fault::LosesTheRaceForATopic {
            let first = [Partition::new(topics[0].name.clone(), 0)];
            let was_there = self.inner.offsets(&first).await[0].is_ok();
            sleep(Duration::from_millis(1)).await;
            if !was_there && self.inner.offsets(&first).await[0].is_ok() {
                return Err(Error::not_applied(ErrorKind::Other, "ensure_topics"));
            }
        }
        let mut infos = self.inner.ensure_topics(topics).await?;
        match self.fault {
            Fault::AnswersInWrongOrder => infos.reverse(),
            Fault::SaysThatItMadeEverything => infos.iter_mut().for_each(|info| info.created = true),
            Fault::RemakesTopics => {
                for (info, spec) in infos.iter_mut().zip(topics) {
                    info.partitions = spec.partitions.unwrap_or(info.partitions);
                }
            }
            Fault::MakesTopicsWithItsOwnRetention => {
                infos.iter_mut().for_each(|info| info.retention = Some(Duration::from_secs(7 * 24 * 3600)));
            }
            Fault::NeedsAWhileForATopic => {
                self.shared.young.lock().unwrap().extend(topics.iter().map(|spec| spec.name.clone()));
            }
            _ => {}
        }
        Ok(infos)
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        if let Some(error) = self.closed("describe_topics") {
            return Err(error);
        }
        if let Passage::Arrives(error) | Passage::Lost(error) = self.way.pass("describe_topics").await {
            return Err(error);
        }
        if self.fault == Fault::DescribesByCreating {
            let specs: Vec<_> = names.iter().map(|name| TopicSpec::new(name.clone())).collect();
            return Ok(self.inner.ensure_topics(&specs).await?.into_iter().map(Some).collect());
        }
        let mut infos = self.inner.describe_topics(names).await?;
        if self.fault == Fault::DescribesInWrongOrder {
            infos.reverse();
        }
        Ok(infos)
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        if let Some(error) = self.closed("append") {
            return vec![Err(error); records.len()];
        }
        let passage = self.way.pass("append").await;
        if let Passage::Lost(error) = passage {
            return vec![Err(error); records.len()];
        }
        let _one = if self.fault == Fault::OneCallAtATime { Some(self.one.lock().await) } else { None };
        if self.fault == Fault::StallsAfterADroppedCall {
            if self.stalled.swap(true, SeqCst) {
                return vec![Err(Error::unknown(ErrorKind::Other, "append")); records.len()];
            }
            sleep(Duration::from_micros(50)).await;
            self.stalled.store(false, SeqCst);
        }
        let outcomes = self.outcomes(to, records).await;
        match passage {
            Passage::Arrives(error) => vec![Err(error); records.len()],
            _ => outcomes,
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, SeqCst);
        match self.fault {
            Fault::GoesOnAfterClose | Fault::WaitsBeyondClose => Ok(()),
            _ => self.inner.close().await,
        }
    }
}

#[async_trait]
impl PartitionLog for Faulty {
    async fn fetch(&self, from: &Position, mut limit: FetchLimit) -> Result<Batch> {
        if let Passage::Arrives(error) | Passage::Lost(error) = self.way.pass("fetch").await {
            return Err(error);
        }
        let _one = if self.fault == Fault::OneCallAtATime { Some(self.one.lock().await) } else { None };
        let mut from = from.clone();
        match self.fault {
            Fault::ReadsFromTheStart => from.offset = 0,
            Fault::SleepsInsteadOfWaiting => {
                sleep(limit.max_wait).await;
                limit.max_wait = Duration::ZERO;
            }
            Fault::LosesWhatADroppedFetchRead => {
                let dropped = self.fetching.swap(true, SeqCst);
                sleep(Duration::from_micros(50)).await;
                self.fetching.store(false, SeqCst);
                from.offset += i64::from(dropped && from.offset > 0);
            }
            _ => {}
        }
        let mut batch = match (self.fault, self.inner.fetch(&from, limit).await) {
            (Fault::WaitsBeyondTheEnd, Err(e)) if e.kind() == ErrorKind::Invalid => {
                Batch::new(Vec::new(), from.offset, None)
            }
            (Fault::FindsNothingInNoTopic, Err(e)) if e.kind() == ErrorKind::NotFound => {
                Batch::new(Vec::new(), from.offset, None)
            }
            (_, fetched) => fetched?,
        };
        match self.fault {
            Fault::SkipsARecord if batch.end.is_some_and(|end| batch.next < end) => batch.next += 1,
            Fault::FailsAtTheEnd if batch.records.is_empty() => {
                return Err(Error::not_applied(ErrorKind::NotFound, "fetch"));
            }
            Fault::PassesOverWhatIsBeingWritten => {
                let being_written = self.shared.being_written.lock().unwrap();
                batch.records.retain(|r| !being_written.contains(&(from.partition.clone(), r.offset)));
            }
            Fault::HoldsBackLargeRecords => batch.records.retain(|r| r.size() <= limit.max_bytes),
            Fault::KeepsItInABuffer => {
                let (hidden, mine) = (self.shared.buffered.lock().unwrap(), self.mine.lock().unwrap());
                let key = |offset| (from.partition.clone(), offset);
                batch.records.retain(|r| !hidden.contains(&key(r.offset)) || mine.contains(&key(r.offset)));
            }
            _ => {}
        }
        Ok(batch)
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let mut outcomes = self.inner.offsets(of).await;
        if self.fault == Fault::AnswersOffsetsInWrongOrder {
            outcomes.reverse();
        }
        outcomes
    }
}

#[test]
fn a_log_without_a_fault_passes() {
    passes(kit(Fault::None).results());
}

#[test]
fn each_fault_of_a_log_is_caught_by_the_case_that_names_the_rule() {
    use Fault::*;
    let table = [
        planted(
            AnswersInWrongOrder,
            "ensure_topics_answers_in_order",
            &["two_may_make_the_same_topics_at_once"],
        ),
        planted(
            SaysThatItMadeEverything,
            "ensure_topics_leaves_a_topic_that_exists_alone",
            &["ensure_topics_answers_in_order"],
        ),
        planted(RemakesTopics, "ensure_topics_leaves_a_topic_that_exists_alone", &[]),
        planted(MakesTopicsWithItsOwnRetention, "a_topic_tells_the_settings_it_was_made_with", &[]),
        planted(DescribesInWrongOrder, "describe_topics_answers_in_order_and_creates_nothing", &[]),
        planted(DescribesByCreating, "describe_topics_answers_in_order_and_creates_nothing", &[]),
        planted(LosesTheRaceForATopic, "two_may_make_the_same_topics_at_once", &[]),
        planted(
            NeedsAWhileForATopic,
            "a_new_topic_takes_records_at_once",
            &["an_unknown_topic_is_not_found"],
        ),
        planted(MakesUnknownTopics, "an_unknown_topic_is_not_found", &[]),
        planted(GivesNoAdvice, "an_unknown_topic_is_not_found", &[]),
        planted(
            RepeatsOffsets,
            "appended_offsets_ascend",
            &[
                "clients_append_behind_one_another",
                "a_reader_beside_writers_misses_nothing",
                "each_outcome_is_its_own_records",
                "another_client_finds_what_was_appended",
                "concurrent_appends_get_their_own_answers",
                "a_dropped_append_leaves_the_others_right",
                "an_append_of_unknown_effect_is_reported_as_unknown",
                "fetch_starts_at_any_offset",
                "one_record_comes_even_if_it_is_larger_than_the_limit",
                "at_the_end_a_fetch_answers_an_empty_batch",
                "a_fetch_wakes_at_the_first_record",
                "a_dropped_fetch_loses_nothing",
                "offsets_tell_the_ends_in_order",
            ],
        ),
        planted(
            Reorders,
            "records_keep_their_order",
            &[
                "each_outcome_is_its_own_records",
                "a_record_that_is_too_large_is_refused",
                "concurrent_appends_get_their_own_answers",
                "keys_and_values_come_back_byte_for_byte",
                "no_key_is_not_an_empty_key",
                "a_tombstone_is_not_an_empty_value",
                "headers_come_back_byte_for_byte",
                "fetch_starts_at_any_offset",
                "batches_follow_one_another_without_gaps",
            ],
        ),
        planted(
            OffByOne,
            "each_outcome_is_its_own_records",
            &[
                "clients_append_behind_one_another",
                "a_reader_beside_writers_misses_nothing",
                "another_client_finds_what_was_appended",
                "concurrent_appends_get_their_own_answers",
                "a_dropped_append_leaves_the_others_right",
                "an_append_of_unknown_effect_is_reported_as_unknown",
                "fetch_starts_at_any_offset",
                "at_the_end_a_fetch_answers_an_empty_batch",
                "a_fetch_wakes_at_the_first_record",
                "one_record_comes_even_if_it_is_larger_than_the_limit",
                "a_dropped_fetch_loses_nothing",
                "a_waiting_fetch_holds_up_nobody",
                "offsets_tell_the_ends_in_order",
            ],
        ),
        planted(DropsOneOfAThousand, "a_batch_may_be_empty_or_have_a_thousand_records", &[]),
        planted(
            KeepsItInABuffer,
            "another_client_finds_what_was_appended",
            &["clients_append_behind_one_another", "a_reader_beside_writers_misses_nothing"],
        ),
        planted(
            CountsOnItsOwn,
            "clients_append_behind_one_another",
            &["a_reader_beside_writers_misses_nothing", "an_append_of_unknown_effect_is_reported_as_unknown"],
        ),
        planted(
            PassesOverWhatIsBeingWritten,
            "a_reader_beside_writers_misses_nothing",
            &["a_fetch_wakes_at_the_first_record", "an_append_of_unknown_effect_is_reported_as_unknown"],
        ),
        planted(
            IsNotSureAboutLargeRecords,
            "a_record_that_is_too_large_is_refused",
            &["an_unknown_topic_is_not_found"],
        ),
        planted(
            MixesUpAnswers,
            "concurrent_appends_get_their_own_answers",
            &["a_reader_beside_writers_misses_nothing", "an_append_of_unknown_effect_is_reported_as_unknown"],
        ),
        planted(
            StallsAfterADroppedCall,
            "a_dropped_append_leaves_the_others_right",
            &[
                "a_reader_beside_writers_misses_nothing",
                "concurrent_appends_get_their_own_answers",
                "an_append_of_unknown_effect_is_reported_as_unknown",
            ],
        ),
        planted(GoesOnAfterClose, "close_is_idempotent_and_final", &["close_ends_a_waiting_fetch"]),
        planted(
            WantsTextInValues,
            "keys_and_values_come_back_byte_for_byte",
            &["a_record_that_is_too_large_is_refused"],
        ),
        planted(
            TakesNoKeyForEmpty,
            "no_key_is_not_an_empty_key",
            &[
                "headers_come_back_byte_for_byte",
                "repeated_headers_come_back_in_order",
                "a_null_header_is_not_an_empty_one",
            ],
        ),
        planted(TakesTombstonesForEmpty, "a_tombstone_is_not_an_empty_value", &[]),
        planted(WantsTextInHeaders, "headers_come_back_byte_for_byte", &[]),
        planted(SortsHeaders, "repeated_headers_come_back_in_order", &[]),
        planted(TakesNullHeadersForEmpty, "a_null_header_is_not_an_empty_one", &[]),
        planted(
            ReadsFromTheStart,
            "fetch_starts_at_any_offset",
            &[
                "a_reader_beside_writers_misses_nothing",
                "a_fetch_of_what_is_not_there_fails",
                "batches_follow_one_another_without_gaps",
                "at_the_end_a_fetch_answers_an_empty_batch",
                "a_fetch_wakes_at_the_first_record",
                "one_record_comes_even_if_it_is_larger_than_the_limit",
                "a_dropped_fetch_loses_nothing",
            ],
        ),
        planted(SkipsARecord, "batches_follow_one_another_without_gaps", &[]),
        planted(WaitsBeyondTheEnd, "a_fetch_of_what_is_not_there_fails", &[]),
        planted(FindsNothingInNoTopic, "a_fetch_of_what_is_not_there_fails", &[]),
        planted(
            FailsAtTheEnd,
            "at_the_end_a_fetch_answers_an_empty_batch",
            &["a_reader_beside_writers_misses_nothing"],
        ),
        planted(
            SleepsInsteadOfWaiting,
            "a_fetch_wakes_at_the_first_record",
            &[
                "a_dropped_fetch_loses_nothing",
                "a_waiting_fetch_holds_up_nobody",
                "close_ends_a_waiting_fetch",
            ],
        ),
        planted(HoldsBackLargeRecords, "one_record_comes_even_if_it_is_larger_than_the_limit", &[]),
        planted(LosesWhatADroppedFetchRead, "a_dropped_fetch_loses_nothing", &[]),
        planted(OneCallAtATime, "a_waiting_fetch_holds_up_nobody", &["a_fetch_wakes_at_the_first_record"]),
        planted(WaitsBeyondClose, "close_ends_a_waiting_fetch", &[]),
        planted(AnswersOffsetsInWrongOrder, "offsets_tell_the_ends_in_order", &[]),
        planted(Network(Manners::Denies), "an_append_of_unknown_effect_is_reported_as_unknown", &[]),
        planted(
            Network(Manners::Hangs),
            "without_a_server_every_call_ends_in_time",
            &["an_append_of_unknown_effect_is_reported_as_unknown", "it_reconnects_by_itself"],
        ),
        planted(
            Network(Manners::NeverComesBack),
            "it_reconnects_by_itself",
            &["an_append_of_unknown_effect_is_reported_as_unknown"],
        ),
    ];
    prove(|fault| Suite::from(kit(fault)), &table);
}
