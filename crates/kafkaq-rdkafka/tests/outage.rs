//! Log messages and errors while no broker can be reached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use futures_util::StreamExt;
use kafkaq_adapter_tests::Log;
use kafkaq_core::{Log as _, *};
use kafkaq_rdkafka::RdKafka;
use std::{
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

/// Waits for a line beyond the first `after` ones.
async fn wait_for(log: &Log, what: &str, of: &str, after: usize) {
    let limit = Instant::now() + LONG;
    while !log.lines().iter().skip(after).any(|line| line.contains(what) && line.contains(of)) {
        assert!(Instant::now() < limit, "no line with `{what}`: {:#?}", log.lines());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The subscriber is global to the process, so this is the only test here that checks log lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_one_line_when_it_begins_and_one_when_it_ends() {
    let log = Log::capture_all_threads();
    let mock = Mock::new(1).unwrap();
    mock.create_topic("t", 4, 1).unwrap();
    let limit = Duration::from_secs(4);
    let kafka = Arc::new(RdKafka::builder(mock.bootstrap_servers()).request_timeout(limit).build().unwrap());
    let of = Partition::new("t", 0);
    let began = Instant::now();
    while kafka.append(&of, &[record("x")]).await.remove(0).is_err() {
        assert!(began.elapsed() < LONG);
    }
    let mut consumer = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
    assigned(&mut consumer, 4).await;
    let events = tokio::spawn(async move {
        while let Some(event) = consumer.events.next().await {
            if let Err(e) = event {
                println!("event: {e}");
            }
        }
    });
    let from = Position { partition: of.clone(), offset: 1 };
    // On a busy machine there may have been an outage before this one.
    let before = log.lines().len();
    mock.broker_down(1).unwrap();
    for _ in 0..3 {
        // Everything that a process does, with all of its clients.
        let records = [record("x")];
        let (appended, fetched, described) = tokio::join!(
            kafka.append(&of, &records),
            kafka.fetch(&from, FetchLimit::new(limit, 1 << 20)),
            kafka.describe_topics(std::slice::from_ref(&of.topic)),
        );
        assert!(appended[0].is_err() && fetched.is_err() && described.is_err());
        let described = described.unwrap_err();
        assert_eq!((described.kind(), described.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
        assert!(described.to_string().contains("refused"), "{described}");
    }
    mock.broker_up(1).unwrap();
    wait_for(&log, "works again", &mock.bootstrap_servers(), before).await;
    kafka.close().await.unwrap();
    events.await.unwrap();
    let mut told: Vec<_> = log.lines().split_off(before);
    // Not those of other tests.
    told.retain(|line| line.contains(&mock.bootstrap_servers()));
    println!("{told:#?}");
    let told = |what: &str| told.iter().filter(|line| line.contains(what)).count();
    assert_eq!(told(" is failing: "), 1);
    assert_eq!(told("works again"), 1);
    // Messages about the consequences.
    assert!(told("WARN") + told("ERROR") <= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_have_no_effect_when_the_server_does_not_respond() {
    // It accepts connections and never responds.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = deaf.local_addr().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for at in [silent, nobody] {
        let limit = Duration::from_secs(1);
        let kafka = RdKafka::builder(at.to_string()).request_timeout(limit).build().unwrap();
        let of = Partition::new("t", 0);
        let from = Position { partition: of.clone(), offset: 0 };
        let errors = [
            kafka.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err(),
            kafka.describe_topics(&["t".into()]).await.unwrap_err(),
            kafka.offsets(&[of]).await.remove(0).unwrap_err(),
            kafka.fetch(&from, FetchLimit::new(Duration::ZERO, 1)).await.unwrap_err(),
        ];
        for e in errors {
            println!("{e}");
            assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{e}");
            assert_eq!((e.effect(), e.retry()), (Effect::NotApplied, Retry::Yes), "{e}");
            assert!(e.to_string().contains(&at.to_string()), "{e}");
        }
        let _ = kafka.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_or_wrong_credentials_are_reported_as_denied() {
    let mock = Mock::new(1).unwrap();
    let limit = Duration::from_secs(10);
    let kafka = RdKafka::builder(mock.bootstrap_servers())
        .request_timeout(limit)
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", "u")
        .set("sasl.password", "p")
        .build()
        .unwrap();
    let e = kafka.describe_topics(&["t".into()]).await.unwrap_err();
    println!("{e}");
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
    let e = kafka.append(&Partition::new("t", 0), &[record("x")]).await.remove(0).unwrap_err();
    println!("{e}");
    assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
    assert!(e.advice().unwrap().contains("sasl.mechanism"), "{e}");
    let _ = kafka.close().await;
}

/// A child of this test with few descriptors, whose Kafka is the parent's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_that_are_used_up_are_named() {
    const AT: &str = "KAFKAQ_TEST_FEW_DESCRIPTORS";
    let Ok(at) = std::env::var(AT) else {
        let mock = Mock::new(1).unwrap();
        let mut child = std::process::Command::new("sh");
        child.args([
            "-c",
            "ulimit -n 64; exec \"$0\" --exact descriptors_that_are_used_up_are_named --nocapture",
        ]);
        let child = child.arg(std::env::current_exe().unwrap()).env(AT, mock.bootstrap_servers());
        let ended = tokio::task::block_in_place(|| child.output()).unwrap();
        println!("{}", String::from_utf8_lossy(&ended.stdout));
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        return;
    };
    let mut used = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        used.push(file);
    }
    let kafka = RdKafka::builder(at).request_timeout(Duration::from_secs(10)).build().unwrap();
    let appended = kafka.append(&Partition::new("t", 0), &[record("x")]).await.remove(0);
    for e in [appended.unwrap_err(), kafka.describe_topics(&["t".into()]).await.unwrap_err()] {
        println!("{e}");
        assert!(e.advice().unwrap().contains("ulimit"), "{e}");
    }
}
