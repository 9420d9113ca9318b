//! What is logged while a broker can't be reached.

use super::*;
use crate::{failure::Failure, outage::Outages};
use futures_util::future::join_all;
use kafkaq_adapter_tests::Log;
use kafkaq_core::Log as _;

#[tokio::test(start_paused = true)]
async fn outage_is_logged_when_it_begins_once_per_minute_and_when_it_ends() {
    let log = Log::capture();
    let (outages, one, other) = (Outages::default(), Arc::from("kafka-1:9092"), Arc::from("kafka-2:9092"));
    let refused = || Failure::io(std::io::Error::from_raw_os_error(111));
    outages.ended(&one);
    assert!(log.lines().is_empty());
    // For 150 s, ten calls per second to one of two brokers.
    for _ in 0..1500 {
        outages.began(&one, &refused());
        outages.ended(&other);
        tokio::time::advance(millis(100)).await;
    }
    for _ in 0..10 {
        outages.ended(&one);
    }
    let lines = log.lines();
    let levels: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(levels, ["WARN", "WARN", "WARN", "INFO"], "{lines:#?}");
    assert!(lines[0].contains("refused") && lines[2].contains("for 120 s"), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("kafka-1:9092")), "{lines:#?}");
}

#[tokio::test(flavor = "current_thread")]
async fn many_calls_to_an_unreachable_broker_log_one_line() {
    let log = Log::capture();
    let broker = Broker::of_fetches(|fetch| vec![Part::of(batch(0, 1)); fetch.parts.len()]).await;
    let kafka = RsKafka::builder(&broker.address).request_timeout(millis(800)).build().unwrap();
    fetch(&kafka, 0, 0, PATIENCE).await.unwrap();
    broker.state.refuse(true);
    let to = Partition::new("t", 1);
    for _ in 0..3 {
        let fetches = join_all((0..3).map(|index| fetch(&kafka, index, 0, millis(10))));
        let appends = join_all((0..3).map(|_| async {
            let record = NewRecord::new(None, Some("x".into()), Headers::new());
            kafka.append(&to, &[record]).await.remove(0)
        }));
        let (fetched, appended) = tokio::join!(fetches, appends);
        for e in
            fetched.into_iter().map(|f| f.unwrap_err()).chain(appended.into_iter().map(|a| a.unwrap_err()))
        {
            assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
            assert!(e.to_string().contains(&broker.address), "{e}");
        }
    }
    assert_eq!(log.warnings().len(), 1, "{:#?}", log.lines());
    broker.state.refuse(false);
    fetch(&kafka, 0, 0, PATIENCE).await.unwrap();
    let last = log.lines().pop().unwrap();
    assert!(last.starts_with("INFO") && last.contains("responds again"), "{last}");
    assert_eq!(log.warnings().len(), 1);
}

/// Half of the cluster is behind a firewall, and the rest is far away.
#[tokio::test(flavor = "current_thread")]
async fn a_slow_broker_is_reached_although_others_do_not_answer() {
    let broker = Broker::new(|_| None).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let mut others: Vec<_> = silent.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    broker.state.set_topic(|topic| (topic.controller, topic.others) = (others.remove(0), others));
    *lock(&broker.state.latency) = millis(1_100);
    let limit = millis(24_000);
    let kafka = RsKafka::builder(&broker.address).request_timeout(limit).build().unwrap();
    let link = &kafka.link;
    for round in 0..2 {
        let deadline = tokio::time::Instant::now() + limit;
        let found = link.cluster.topics(&link.connections, &["t".into()], deadline).await;
        assert_eq!(found.unwrap().remove(0).unwrap().partitions.len(), 3, "{round}");
        // The next round has to connect, and knows four addresses.
        link.connections.close_idle();
    }
}

#[test]
fn exhausted_file_descriptors_are_reported_as_such() {
    let place = crate::failure::Place { bootstrap: "b:9092", partition: None, limit: SOON };
    for code in [23, 24] {
        let e = Failure::io(std::io::Error::from_raw_os_error(code)).unsent();
        let e = e.error(crate::failure::APPEND, &place);
        assert_eq!(
            (e.kind(), e.effect(), e.retry()),
            (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes)
        );
        assert!(e.advice().unwrap().contains("ulimit -n"), "{e}");
        assert!(!e.to_string().contains("a broker responds"), "{e}");
    }
}
