//! The rules of the log in memory: topics, records, fetching. Those of its groups are in `memory_group.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::StreamExt;
use kafkaq::memory::MemoryLog;
use kafkaq_core::{
    Broker, Commit, Effect, ErrorKind, Event, FetchLimit, Headers, JoinRequest, Log, NewRecord, Offsets,
    Partition, PartitionLog, Position, TopicSpec,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::{Instant, timeout};

fn record(text: impl ToString) -> NewRecord {
    NewRecord::new(None, Some(text.to_string().into()), Headers::new())
}

fn at(index: i32, offset: i64) -> Position {
    Position { partition: Partition::new("t", index), offset }
}

fn limit(max_wait_ms: u64, max_bytes: usize) -> FetchLimit {
    FetchLimit::new(Duration::from_millis(max_wait_ms), max_bytes)
}

async fn with_topic(spec: impl FnOnce(&mut TopicSpec)) -> MemoryLog {
    let log = MemoryLog::new();
    let mut topic = TopicSpec::new("t");
    topic.partitions = Some(2);
    spec(&mut topic);
    log.ensure_topics(&[topic]).await.unwrap();
    log
}

async fn append(log: &MemoryLog, index: i32, texts: &[&str]) -> Vec<i64> {
    let records: Vec<_> = texts.iter().map(record).collect();
    let outcomes = log.append(&Partition::new("t", index), &records).await;
    outcomes.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn topic_is_created_once_and_described_as_it_is() {
    let log = MemoryLog::with_partitions(4);
    let mut wide = TopicSpec::new("wide");
    wide.partitions = Some(9);
    wide.max_record_bytes = Some(77);
    wide.append_time = true;
    wide.compacted = true;
    let infos = log.ensure_topics(&[TopicSpec::new("usual"), wide.clone(), wide.clone()]).await.unwrap();
    let seen: Vec<_> = infos.iter().map(|i| (&*i.name, i.partitions, i.created)).collect();
    assert_eq!(seen, [("usual", 4, true), ("wide", 9, true), ("wide", 9, false)]);
    assert_eq!((infos[1].max_record_bytes, infos[1].append_time), (Some(77), Some(true)));
    assert_eq!((infos[1].compacted, infos[1].retention_bytes), (Some(true), Some(-1)));
    assert_eq!((infos[0].compacted, infos[0].append_time), (Some(false), Some(false)));
    assert_eq!(infos[0].retention, Some(Duration::MAX));

    wide.partitions = Some(2);
    let again = log.ensure_topics(&[wide]).await.unwrap();
    assert_eq!((again[0].partitions, again[0].created), (9, false), "it is not changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_creations_of_a_topic_create_it_once_and_all_can_append() {
    let log = MemoryLog::new();
    for round in 0..100 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let log = log.clone();
            tasks.spawn(async move {
                let name = format!("t{round}");
                let info = log.ensure_topics(&[TopicSpec::new(name.as_str())]).await.unwrap().remove(0);
                log.append(&Partition::new(name, 5), &[record("x")]).await.remove(0).unwrap();
                info.created
            });
        }
        assert_eq!(tasks.join_all().await.into_iter().filter(|made| *made).count(), 1);
    }
}

#[tokio::test]
async fn a_topic_that_kafka_would_refuse_is_refused_and_nothing_is_made() {
    let log = MemoryLog::new();
    let mut none = TopicSpec::new("none");
    none.partitions = Some(0);
    for bad in [TopicSpec::new(""), TopicSpec::new("a b"), TopicSpec::new(".."), none] {
        let error = log.ensure_topics(&[TopicSpec::new("good"), bad]).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Invalid, Effect::NotApplied));
        assert!(error.advice().is_some());
    }
    assert!(log.ensure_topics(&[TopicSpec::new("good")]).await.unwrap()[0].created);
}

#[tokio::test]
async fn offsets_are_given_in_order_and_each_partition_has_its_own() {
    let log = with_topic(|_| {}).await;
    assert_eq!(append(&log, 0, &["a", "b"]).await, [0, 1]);
    assert_eq!(append(&log, 1, &["c"]).await, [0]);
    assert_eq!(append(&log, 0, &["d"]).await, [2]);
    assert_eq!(append(&log, 0, &[]).await, Vec::<i64>::new());
    let ends = log.offsets(&[Partition::new("t", 1), Partition::new("t", 0)]).await;
    let ends: Vec<_> = ends.into_iter().map(Result::unwrap).collect();
    assert_eq!(ends, [Offsets { first: 0, next: 1 }, Offsets { first: 0, next: 3 }]);
}

#[tokio::test]
async fn missing_topic_or_partition_is_not_found_with_advice() {
    let log = with_topic(|_| {}).await;
    for (partition, advice) in [
        (Partition::new("u", 0), "ensure_topics"),
        (Partition::new("t", 2), "0 to 1"),
        (Partition::new("t", -1), "0 to 1"),
    ] {
        let mut outcomes = log.append(&partition, &[record(1), record(2)]).await;
        assert_eq!(outcomes.len(), 2);
        let from = Position { partition: partition.clone(), offset: 0 };
        for error in [
            outcomes.remove(1).unwrap_err(),
            log.fetch(&from, limit(0, 1)).await.unwrap_err(),
            log.offsets(std::slice::from_ref(&partition)).await.remove(0).unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.effect()), (ErrorKind::NotFound, Effect::NotApplied));
            assert!(error.to_string().contains(&partition.to_string()), "{error}");
            assert!(error.advice().unwrap().contains(advice), "{error}");
        }
    }
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_alone() {
    let log = with_topic(|t| t.max_record_bytes = Some(10)).await;
    let records = [record("0123456789"), record("0123456789a"), record("b")];
    let outcomes = log.append(&Partition::new("t", 0), &records).await;
    assert_eq!(*outcomes[0].as_ref().unwrap(), 0);
    let error = outcomes[1].as_ref().unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
    assert!(error.to_string().contains("11 bytes"), "{error}");
    assert_eq!(*outcomes[2].as_ref().unwrap(), 1);
    assert_eq!(log.fetch(&at(0, 0), limit(0, usize::MAX)).await.unwrap().records.len(), 2);

    let usual = with_topic(|_| {}).await;
    let huge = [record("x".repeat(1_048_589))];
    let outcome = usual.append(&Partition::new("t", 0), &huge).await.remove(0);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TooLarge, "Kafka's default");
}

#[tokio::test]
async fn record_is_read_as_it_was_appended() {
    let log = with_topic(|_| {}).await;
    let mut headers = Headers::new();
    headers.push("h", Some("1".into()));
    headers.push("h", None);
    let mut full = NewRecord::new(Some("key".into()), Some("value".into()), headers.clone());
    full.timestamp = Some(UNIX_EPOCH + Duration::from_millis(1234));
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    log.append(&Partition::new("t", 0), &[full, NewRecord::default()]).await;
    let batch = log.fetch(&at(0, 0), limit(0, usize::MAX)).await.unwrap();
    let [one, two] = &batch.records[..] else { panic!("{batch:?}") };
    assert_eq!((one.offset, one.timestamp_ms), (0, 1234));
    assert_eq!((one.key.as_deref(), one.value.as_deref()), (Some(&b"key"[..]), Some(&b"value"[..])));
    assert_eq!(one.headers, headers);
    assert_eq!((two.offset, &two.key, &two.value), (1, &None, &None));
    assert!((before..before + 60_000).contains(&two.timestamp_ms));
    assert_eq!((batch.next, batch.end), (2, Some(2)));
}

#[tokio::test]
async fn a_topic_with_append_time_ignores_the_clients_time() {
    let log = with_topic(|t| t.append_time = true).await;
    let mut old = record("x");
    old.timestamp = Some(UNIX_EPOCH);
    log.append(&Partition::new("t", 0), &[old]).await;
    let batch = log.fetch(&at(0, 0), limit(0, usize::MAX)).await.unwrap();
    assert!(batch.records[0].timestamp_ms > 1_000_000_000_000);
}

#[tokio::test]
async fn fetch_respects_its_byte_limit_but_returns_at_least_one_record() {
    let log = with_topic(|_| {}).await;
    append(&log, 0, &["aaaa", "bbbb", "cccc"]).await;
    for (from, bytes, next) in [(0, 0, 1), (0, 7, 1), (0, 8, 2), (1, 100, 3), (2, 1, 3)] {
        let batch = log.fetch(&at(0, from), limit(0, bytes)).await.unwrap();
        assert_eq!((batch.next, batch.end), (next, Some(3)), "from {from}, {bytes} bytes");
        assert_eq!(batch.records.len() as i64, next - from);
        assert_eq!(batch.records[0].offset, from);
    }
}

#[tokio::test]
async fn a_fetch_at_the_end_is_empty_and_beyond_it_is_an_error() {
    let log = with_topic(|_| {}).await;
    append(&log, 0, &["a"]).await;
    let batch = log.fetch(&at(0, 1), limit(0, 100)).await.unwrap();
    assert_eq!((batch.records.len(), batch.next, batch.end), (0, 1, Some(1)));
    let error = log.fetch(&at(0, 2), limit(0, 100)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_fetch_wakes_at_the_append() {
    let log = with_topic(|_| {}).await;
    let (reader, start) = (log.clone(), Instant::now());
    let fetch = tokio::spawn(async move { reader.fetch(&at(0, 0), limit(60_000, 100)).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    append(&log, 1, &["elsewhere"]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!fetch.is_finished(), "an append to another partition doesn't wake it");
    append(&log, 0, &["a"]).await;
    assert_eq!(fetch.await.unwrap().unwrap().records.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_as_long_as_it_may_and_not_longer() {
    let log = with_topic(|_| {}).await;
    let start = Instant::now();
    assert!(log.fetch(&at(0, 0), limit(700, 100)).await.unwrap().records.is_empty());
    let waited = start.elapsed().as_millis();
    assert!((700..750).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn closed_client_fails_with_closed_ends_its_streams_and_keeps_the_data() {
    let log = with_topic(|_| {}).await;
    append(&log, 0, &["a"]).await;
    let other = log.clone();
    let mut consumer = log.join(JoinRequest::new("g", vec!["t".into()], [0; 16])).await.unwrap();
    let log = Arc::new(log);
    let reader = log.clone();
    let fetch = tokio::spawn(async move { reader.fetch(&at(1, 0), limit(60_000, 100)).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    log.close().await.unwrap();
    log.close().await.unwrap();
    let fetched = timeout(Duration::from_secs(10), fetch).await.unwrap().unwrap();
    let closed = |kind| assert_eq!(kind, ErrorKind::Closed);
    closed(fetched.unwrap_err().kind());
    assert!(consumer.events.next().await.is_none());
    closed(log.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err().kind());
    closed(log.append(&Partition::new("t", 0), &[record("b")]).await.remove(0).unwrap_err().kind());
    closed(log.offsets(&[Partition::new("t", 0)]).await.remove(0).unwrap_err().kind());
    closed(log.join(JoinRequest::new("g", vec!["t".into()], [0; 16])).await.unwrap_err().kind());
    assert_eq!(append(&other, 0, &["b"]).await, [1]);
    assert_eq!(append(&MemoryLog::clone(&log), 0, &["c"]).await, [2]);
}

#[tokio::test]
async fn records_are_kept_until_all_groups_have_committed_them_if_forgetting_was_asked_for() {
    for forget in [false, true] {
        let log = if forget { MemoryLog::new().forget_committed() } else { MemoryLog::new() };
        let mut topic = TopicSpec::new("t");
        topic.partitions = Some(1);
        log.ensure_topics(&[topic]).await.unwrap();
        append(&log, 0, &["a", "b", "c", "d"]).await;
        let first = async || log.offsets(&[Partition::new("t", 0)]).await.remove(0).unwrap().first;
        let mut members = Vec::new();
        for group in ["g", "h"] {
            let mut consumer = log.join(JoinRequest::new(group, vec!["t".into()], [0; 16])).await.unwrap();
            let Some(Ok(Event::Assigned(mut mine))) = consumer.events.next().await else { panic!() };
            members.push((consumer, mine.remove(0)));
        }
        for ((consumer, mine), (offset, first_then)) in members.iter().zip([(3, 0), (2, 2)]) {
            let commit = Commit { assignment: mine.clone(), offset };
            consumer.member.commit(&[commit]).await.remove(0).unwrap();
            assert_eq!(first().await, if forget { first_then } else { 0 });
        }
        let batch = log.fetch(&at(0, 0), limit(0, 100)).await.unwrap();
        assert_eq!((batch.records[0].offset, batch.next), (if forget { 2 } else { 0 }, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn records_get_the_time_of_tokios_clock() {
    let hour = Duration::from_secs(3600);
    for append_time in [false, true] {
        let log = with_topic(|t| t.append_time = append_time).await;
        append(&log, 0, &["now"]).await;
        tokio::time::sleep(hour).await;
        append(&log, 0, &["later"]).await;
        let batch = log.fetch(&at(0, 0), limit(0, usize::MAX)).await.unwrap();
        let between = batch.records[1].timestamp_ms - batch.records[0].timestamp_ms;
        // The system's clock advances while the test itself runs.
        assert!((between - 3_600_000).abs() < 60_000, "{between}");
    }
}
