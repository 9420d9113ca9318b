//! The producer's bounds, on the mock cluster and, if `KAFKAQ_TEST_KAFKA=host:port` is set, on that server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use kafkaq_adapter_tests::{Stopwatch, noise};
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_as_large_as_its_topic_takes_is_appended_and_read() {
    const SIZE: usize = 20 << 20;
    for site in sites("large").into_iter().filter(|site| site.mock.is_none()).take(1) {
        let kafka = site.kafka();
        let mut spec = TopicSpec::new(site.topic());
        (spec.partitions, spec.max_record_bytes) = (Some(1), Some(SIZE + 1024));
        kafka.ensure_topics(&[spec]).await.unwrap();
        let of = Partition::new(site.topic(), 0);
        kafka.append(&of, &[record(vec![7; SIZE])]).await.remove(0).unwrap();
        let from = Position { partition: of.clone(), offset: 0 };
        let batch = kafka.fetch(&from, FetchLimit::new(LONG, 1)).await.unwrap();
        assert_eq!(batch.records[0].size(), SIZE);
        let mut consumer = kafka.join(site.request("g")).await.unwrap();
        let batch = loop {
            if let Event::Records(_, batch) = next(&mut consumer).await {
                break batch;
            }
        };
        assert_eq!(batch.records[0].size(), SIZE);
        let e = kafka.append(&of, &[record(noise(SIZE + 2048))]).await.remove(0).unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
        kafka.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_with_a_larger_limit_than_the_clients_are_refused_with_the_setting() {
    for (limit, needs) in [(None, 65 << 20), (Some(2_000_000), 2_000_001)] {
        let mut builder = RdKafka::builder("127.0.0.1:1").request_timeout(Duration::from_secs(1));
        if let Some(limit) = limit {
            builder = builder.set("message.max.bytes", limit.to_string());
        }
        let kafka = builder.build().unwrap();
        let mut spec = TopicSpec::new("large");
        spec.max_record_bytes = Some(needs);
        let e = kafka.ensure_topics(&[spec]).await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied), "{e}");
        assert!(e.to_string().contains("`message.max.bytes`") && e.to_string().contains("large"), "{e}");
        kafka.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advice_never_names_a_limit_that_the_client_refuses() {
    const MOST: usize = 1_000_000_000;
    let builder = |limit: usize| RdKafka::builder("127.0.0.1:1").set("message.max.bytes", limit.to_string());
    builder(MOST).build().unwrap().close().await.unwrap();
    builder(MOST + 1).build().unwrap_err();
    let kafka = RdKafka::builder("127.0.0.1:1").build().unwrap();
    for (needs, is_possible) in [(MOST, true), (MOST + 1, false), (i32::MAX as usize, false)] {
        let mut spec = TopicSpec::new("large");
        spec.max_record_bytes = Some(needs);
        let e = kafka.ensure_topics(&[spec]).await.unwrap_err();
        assert_eq!(e.to_string().contains("set `message.max.bytes`"), is_possible, "{e}");
        assert!(e.to_string().contains("max.message.bytes of the topics"), "{e}");
    }
    kafka.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_records_get_outcomes_within_the_timeout_during_an_outage() {
    for limit in [Duration::from_millis(200), Duration::from_secs(2)] {
        let mock = Mock::new(1).unwrap();
        mock.create_topic("t", 8, 1).unwrap();
        let kafka = RdKafka::builder(mock.bootstrap_servers()).request_timeout(limit).build().unwrap();
        let partitions: Vec<_> = (0..8).map(|p| Partition::new("t", p)).collect();
        mock.broker_down(1).unwrap();
        let records: Vec<_> = (0..5000).map(|n| record(n.to_string())).collect();
        // Later appends find the client's queue full of earlier records.
        for round in 0..3 {
            let watch = Stopwatch::start();
            let calls = partitions.iter().map(|to| kafka.append(to, &records));
            let outcomes = futures_util::future::join_all(calls).await;
            let took = watch.elapsed();
            println!("{limit:?}, round {round}: 40000 records without a server in {took:?}");
            // Handing over so many records takes a while on a busy machine.
            assert!(took < limit + Duration::from_secs(4), "{took:?}");
            for e in outcomes.into_iter().flatten().map(Result::unwrap_err) {
                assert_eq!(e.retry(), Retry::Yes, "{e}");
            }
        }
        // What is still queued may be too much for so short a time.
        let _ = kafka.close().await;
    }
}
