//! Reading without a group, on the mock cluster and, if `KAFKAQ_TEST_KAFKA=host:port` is set, on that server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use futures_util::{StreamExt, future::join_all};
use kafkaq_adapter_tests::Stopwatch;
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

const WAIT: Duration = LONG;

/// Reading has no group protocol, so of two sites that differ in it one is enough.
async fn on_both(test: &str, run: impl AsyncFn(Site)) {
    let mut done = BTreeSet::new();
    for site in sites(test) {
        if done.insert(site.mock.is_some()) {
            run(site).await;
        }
    }
}

/// Runs a test only on the server, for what a mock cluster doesn't have.
async fn on_the_server(test: &str, run: impl AsyncFn(Site)) {
    on_both(test, async |site| {
        if site.mock.is_none() {
            run(site).await;
        }
    })
    .await;
}

async fn fetch(log: &RdKafka, of: &Partition, offset: i64, wait: Duration, bytes: usize) -> Result<Batch> {
    let from = Position { partition: of.clone(), offset };
    log.fetch(&from, FetchLimit::new(wait, bytes)).await
}

fn values(batch: &Batch) -> Vec<String> {
    let text = |r: &Record| String::from_utf8(r.value.as_deref().unwrap_or_default().to_vec()).unwrap();
    batch.records.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_beyond_the_end_is_invalid_and_the_end_itself_is_not() {
    on_both("beyond", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        fill(&kafka, &of, 0, 10).await;
        for bytes in [1, 1 << 20] {
            let e = fetch(&kafka, &of, 11, WAIT, bytes).await.unwrap_err();
            assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied), "{e}");
            assert!(e.to_string().contains("11") && e.to_string().contains(&*of.topic), "{e}");
            let batch = fetch(&kafka, &of, 10, Duration::ZERO, bytes).await.unwrap();
            assert_eq!((batch.records.len(), batch.next, batch.end), (0, 10, Some(10)));
            let batch = fetch(&kafka, &of, -7, WAIT, bytes).await.unwrap();
            assert_eq!((batch.records[0].offset, batch.end), (0, Some(10)), "before the first is the first");
        }
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_are_read_at_once_by_one_thread() {
    const PARTITIONS: i32 = 60;
    on_both("many", async |site| {
        let site = site.with_topic(PARTITIONS).await;
        let kafka = site.kafka();
        let all: Vec<_> = (0..PARTITIONS).map(|p| Partition::new(site.topic(), p)).collect();
        for of in &all {
            fill(&kafka, of, 0, 3).await;
        }
        for ends in kafka.offsets(&all).await {
            assert_eq!(ends.unwrap(), Offsets { first: 0, next: 3 });
        }
        let read = join_all(all.iter().map(|of| fetch(&kafka, of, 1, WAIT, 1 << 20))).await;
        for (of, batch) in all.iter().zip(read) {
            let mut found = values(&batch.unwrap());
            // What follows may come with the next fetch.
            if found.len() == 1 {
                found.extend(values(&fetch(&kafka, of, 2, WAIT, 1 << 20).await.unwrap()));
            }
            assert_eq!(found, ["1", "2"]);
        }
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let name =
            |t: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(t.ok()?.path().join("comm")).ok();
        let names: Vec<_> = threads.filter_map(name).collect();
        // Of other tests too.
        let readers = names.iter().filter(|n| n.trim() == "kafkaq-read").count();
        assert!((1..=8).contains(&readers) && names.len() < 200, "{names:?}");
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_at_different_offsets_of_one_partition_wait_side_by_side() {
    on_both("side-by-side", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        fill(&kafka, &of, 0, 8).await;
        // Some wait at the end, and at the same time others read what is before it.
        let waiting = join_all((0..3).map(|_| fetch(&kafka, &of, 8, WAIT, 1 << 20)));
        let reading = async {
            for round in 0..4 {
                for offset in 0..8 {
                    let batch = fetch(&kafka, &of, offset, WAIT, 1 << (10 + 2 * round)).await.unwrap();
                    assert_eq!(batch.records[0].offset, offset);
                }
            }
            fill(&kafka, &of, 8, 1).await;
        };
        let (waited, ()) = tokio::join!(waiting, reading);
        for batch in waited {
            assert_eq!(values(&batch.unwrap()), ["8"]);
        }
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_readers_of_one_partition_than_there_are_consumers_take_turns() {
    on_both("turns", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        fill(&kafka, &of, 0, 30).await;
        for bytes in [1, 1 << 20] {
            let read = join_all((0..30).map(|offset| fetch(&kafka, &of, offset, WAIT, bytes))).await;
            for (offset, batch) in read.into_iter().enumerate() {
                assert_eq!(values(&batch.unwrap())[0], offset.to_string());
            }
        }
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_that_never_waits_skips_no_concurrently_appended_record() {
    const RECORDS: usize = 300;
    on_both("meanwhile", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        let writing = async {
            for n in 0..RECORDS {
                fill(&kafka, &of, n, 1).await;
            }
        };
        let reading = async {
            let (mut at, mut read) = (0, Vec::new());
            while read.len() < RECORDS {
                let batch = fetch(&kafka, &of, at, Duration::ZERO, 1 << 20).await.unwrap();
                read.extend(values(&batch));
                at = batch.next;
                assert_eq!(usize::try_from(at).unwrap(), read.len(), "the last of them is {:?}", read.last());
            }
        };
        tokio::join!(writing, reading);
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_goes_on_beyond_a_transactions_marker_at_the_end() {
    on_the_server("marker", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        let other: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &site.bootstrap)
            .set("transactional.id", &site.name)
            .create()
            .unwrap();
        other.init_transactions(WAIT).unwrap();
        for value in ["committed", "aborted"] {
            other.begin_transaction().unwrap();
            for _ in 0..3 {
                other.send(BaseRecord::<(), _>::to(&of.topic).partition(0).payload(value)).unwrap();
            }
            other.flush(WAIT).unwrap();
            if value == "aborted" {
                // Until then it is unknown.
                let batch = fetch(&kafka, &of, 4, Duration::ZERO, 1 << 20).await.unwrap();
                assert_eq!((batch.records.len(), batch.next, batch.end), (0, 4, Some(4)));
                other.abort_transaction(WAIT).unwrap();
            } else {
                other.commit_transaction(WAIT).unwrap();
            }
        }
        for bytes in [1 << 20, 1] {
            let mut at = 0;
            let mut read = Vec::new();
            while at < 8 {
                let batch = fetch(&kafka, &of, at, Duration::from_secs(1), bytes).await.unwrap();
                assert!(batch.next > at, "{at}: {batch:?}");
                read.extend(values(&batch));
                at = batch.next;
            }
            assert_eq!(
                (read.as_slice(), at),
                (&["committed".to_string(), "committed".into(), "committed".into()][..], 8)
            );
        }
        fill_after(&kafka, &of, 8).await;
        assert_eq!(values(&fetch(&kafka, &of, 4, WAIT, 1 << 20).await.unwrap()), ["more"]);
        kafka.close().await.unwrap();
    })
    .await;
}

async fn fill_after(kafka: &RdKafka, of: &Partition, offset: i64) {
    assert_eq!(kafka.append(of, &[record("more")]).await.remove(0).unwrap(), offset);
}

fn admin(site: &Site) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_whose_record_was_deleted_reads_from_the_first() {
    on_the_server("deleted", async |site| {
        let site = site.with_topic(1).await;
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        fill(&kafka, &of, 0, 10).await;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&of.topic, 0, Offset::Offset(6)).unwrap();
        admin(&site).delete_records(&list, &AdminOptions::new()).await.unwrap();
        for bytes in [1, 1 << 20] {
            let batch = fetch(&kafka, &of, 2, WAIT, bytes).await.unwrap();
            assert_eq!(values(&batch)[0], "6");
        }
        assert_eq!(kafka.offsets(&[of]).await.remove(0).unwrap(), Offsets { first: 6, next: 10 });
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreated_topic_is_recognized_by_its_marks() {
    on_the_server("recreated", async |site| {
        for then in [5, 10, 20] {
            let site = Site {
                mock: None,
                bootstrap: site.bootstrap.clone(),
                name: format!("{}-{then}", site.name),
                protocol: site.protocol,
            };
            let site = site.with_topic(1).await;
            let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
            fill(&kafka, &of, 0, 10).await;
            let last = fetch(&kafka, &of, 9, WAIT, 1).await.unwrap().records.remove(0);
            let mut cursor = Cursor::new(10);
            cursor.mark = Some(Mark::of(&last));
            assert_eq!(standing(&kafka, &of, &cursor, None).await.unwrap(), Standing::Intact);
            admin(&site).delete_topics(&[&of.topic], &AdminOptions::new()).await.unwrap();
            let other = site.kafka();
            let limit = Instant::now() + WAIT;
            // The broker may still serve the earlier topic for a while, and what is there is not created.
            while other.describe_topics(std::slice::from_ref(&of.topic)).await.unwrap()[0].is_some() {
                assert!(Instant::now() < limit, "the earlier topic stays");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let mut spec = TopicSpec::new(of.topic.clone());
            spec.partitions = Some(1);
            while other.ensure_topics(std::slice::from_ref(&spec)).await.is_err() {
                assert!(Instant::now() < limit);
            }
            let values: Vec<_> = (0..then).map(|n| record(format!("new {n}"))).collect();
            for outcome in other.append(&of, &values).await {
                outcome.unwrap();
            }
            assert_eq!(
                standing(&kafka, &of, &cursor, None).await.unwrap(),
                Standing::Replaced { first: 0 },
                "the log now has {then} records"
            );
            let batch = fetch(&kafka, &of, 0, WAIT, 1 << 20).await.unwrap();
            assert_eq!(batch.records[0].value.as_deref(), Some(&b"new 0"[..]));
            kafka.close().await.unwrap();
            other.close().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_not_found_and_is_read_once_it_is_there() {
    on_the_server("missing", async |site| {
        let (kafka, of) = (site.kafka(), Partition::new(site.topic(), 0));
        for bytes in [1, 1 << 20] {
            let asked = Instant::now();
            let e = fetch(&kafka, &of, 0, Duration::ZERO, bytes).await.unwrap_err();
            assert_eq!((e.kind(), e.effect()), (ErrorKind::NotFound, Effect::NotApplied), "{e}");
            println!("{e} after {:?}", asked.elapsed());
        }
        let site = site.with_topic(1).await;
        fill(&kafka, &of, 0, 1).await;
        for bytes in [1, 1 << 20] {
            assert_eq!(values(&fetch(&kafka, &of, 0, WAIT, bytes).await.unwrap()), ["0"]);
        }
        let asked = Instant::now();
        let e = fetch(&kafka, &Partition::new(site.topic(), 7), 0, WAIT, 1).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
        assert!(asked.elapsed() < WAIT, "it waited for records of a partition that doesn't exist");
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_a_fetch_fails_in_time_and_changed_nothing() {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("t", 1, 1).unwrap();
    let limit = Duration::from_secs(1);
    let kafka = RdKafka::builder(mock.bootstrap_servers()).request_timeout(limit).build().unwrap();
    let of = Partition::new("t", 0);
    // With a handle that has a longer timeout.
    let patient = RdKafka::builder(mock.bootstrap_servers()).request_timeout(WAIT).build().unwrap();
    fill(&patient, &of, 0, 1).await;
    assert_eq!(fetch(&patient, &of, 0, WAIT, 1 << 20).await.unwrap().records.len(), 1);
    mock.broker_down(1).unwrap();
    for offset in [0, 1] {
        let watch = Stopwatch::start();
        let e = fetch(&kafka, &of, offset, limit, 1 << 20).await.unwrap_err();
        assert!(watch.elapsed() < 4 * limit, "{:?}", watch.elapsed());
        assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{e}");
        assert_eq!((e.effect(), e.retry()), (Effect::NotApplied, Retry::Yes), "{e}");
    }
    mock.broker_up(1).unwrap();
    let limit = Instant::now() + WAIT;
    while fetch(&kafka, &of, 0, Duration::from_secs(1), 1).await.is_err() {
        assert!(Instant::now() < limit, "the server is back and the client isn't");
    }
    kafka.close().await.unwrap();
    assert_eq!(fetch(&kafka, &of, 0, WAIT, 1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(kafka.offsets(&[of]).await.remove(0).unwrap_err().kind(), ErrorKind::Closed);
}

/// The server compresses here, with the code that Java's producer has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_records_are_read_or_the_error_names_the_missing_feature() {
    on_the_server("codec", async |site| {
        let codecs = [
            ("gzip", cfg!(feature = "gzip")),
            ("snappy", true),
            ("lz4", true),
            ("zstd", cfg!(feature = "zstd")),
        ];
        for (codec, is_on) in codecs {
            let topic = format!("{}-{codec}", site.name);
            let (server, named) = (site.bootstrap.clone(), topic.clone());
            tokio::task::spawn_blocking(move || wire::create(&server, &named, "compression.type", codec))
                .await
                .unwrap();
            let (kafka, of) = (site.kafka(), Partition::new(topic, 0));
            let limit = Instant::now() + WAIT;
            while kafka.append(&of, &[record("x".repeat(3000))]).await.remove(0).is_err() {
                assert!(Instant::now() < limit);
            }
            let read = fetch(&kafka, &of, 0, WAIT, 1 << 20).await;
            let mut consumer = kafka
                .join(JoinRequest::new(format!("{codec}-{}", site.name), vec![of.topic.clone()], [1; 16]))
                .await
                .unwrap();
            let joined = loop {
                match tokio::time::timeout(LONG, consumer.events.next()).await.unwrap().unwrap() {
                    Ok(Event::Records(_, batch)) => break Ok(batch),
                    Ok(_) => {}
                    Err(e) => break Err(e),
                }
            };
            for outcome in [read, joined] {
                if is_on {
                    assert_eq!(values(&outcome.unwrap())[0].len(), 3000, "{codec}");
                } else {
                    let e = outcome.unwrap_err();
                    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
                    assert!(e.to_string().contains(&format!("feature `{codec}`")), "{e}");
                }
            }
            kafka.close().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_outage_affects_only_its_own_partitions() {
    let mock = Mock::new(2).unwrap();
    mock.create_topic("t", 6, 1).unwrap();
    for p in 0..6 {
        mock.partition_leader("t", p, Some(1 + p % 2)).unwrap();
    }
    let limit = Duration::from_secs(4);
    let kafka = RdKafka::builder(mock.bootstrap_servers()).request_timeout(limit).build().unwrap();
    let all: Vec<_> = (0..6).map(|p| Partition::new("t", p)).collect();
    // With a handle that has a longer timeout.
    let patient = RdKafka::builder(mock.bootstrap_servers()).request_timeout(WAIT).build().unwrap();
    for of in &all {
        fill(&patient, of, 0, 1 + usize::try_from(of.index).unwrap()).await;
    }
    let twice: Vec<_> = all.iter().chain(&all).cloned().collect();
    for (of, ends) in twice.iter().zip(patient.offsets(&twice).await) {
        assert_eq!(ends.unwrap(), Offsets { first: 0, next: i64::from(of.index) + 1 });
    }
    let until = Instant::now() + WAIT;
    while kafka.offsets(&all).await.iter().any(Result::is_err) {
        assert!(Instant::now() < until, "the server is there");
    }
    mock.broker_down(2).unwrap();
    for (of, ends) in all.iter().zip(kafka.offsets(&all).await) {
        match of.index % 2 {
            0 => assert_eq!(ends.unwrap().next, i64::from(of.index) + 1),
            _ => {
                let e = ends.unwrap_err();
                assert_eq!((e.effect(), e.retry()), (Effect::NotApplied, Retry::Yes), "{e}");
                assert!(e.to_string().contains(&of.to_string()), "{e}");
            }
        }
    }
    let _ = kafka.close().await;
}

/// A codec that librdkafka doesn't know stands for one that it was built without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_that_can_not_be_decompressed_stops_its_partition_with_a_message() {
    const UNKNOWN: i16 = 7;
    let mock = Mock::new(1).unwrap();
    mock.create_topic("t", 1, 1).unwrap();
    let kafka = RdKafka::builder(mock.bootstrap_servers()).build().unwrap();
    let of = Partition::new("t", 0);
    fill(&kafka, &of, 0, 1).await;
    let server = mock.bootstrap_servers();
    tokio::task::spawn_blocking(move || wire::produce_compressed(&server, "t", UNKNOWN)).await.unwrap();
    assert_eq!(values(&fetch(&kafka, &of, 0, WAIT, 1 << 20).await.unwrap()), ["0"]);
    for bytes in [1, 1 << 20] {
        let e = fetch(&kafka, &of, 1, WAIT, bytes).await.unwrap_err();
        println!("{e}");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unsupported, Retry::No), "{e}");
        assert!(e.to_string().contains("t/0") && e.to_string().contains("message at 1 "), "{e}");
    }
    let mut consumer = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
    let mut read = 0;
    let e = loop {
        match tokio::time::timeout(LONG, consumer.events.next()).await.unwrap().unwrap() {
            Ok(Event::Records(_, batch)) => read += batch.records.len(),
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    println!("{e}");
    assert_eq!((read, e.kind(), e.retry()), (1, ErrorKind::Unsupported, Retry::Yes), "{e}");
    assert!(e.to_string().contains("t/0") && e.advice().is_some(), "{e}");
    // It isn't reported for each attempt.
    let more = tokio::time::timeout(Duration::from_secs(3), consumer.events.next()).await;
    assert!(more.is_err(), "{more:?}");
    kafka.close().await.unwrap();
}
