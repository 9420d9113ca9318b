//! How soon another process gets the partitions of a killed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use futures_util::StreamExt;
use kafkaq_adapter_tests::Stopwatch;
use kafkaq_core::*;
use kafkaq_rdkafka::{GroupProtocol, RdKafka};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};
use xtask::services::Service;

const CHILD: &str = "KAFKAQ_TEST_CHILD";

fn kafka(bootstrap: &str, protocol: GroupProtocol) -> RdKafka {
    // The servers' and the client's own defaults.
    RdKafka::builder(bootstrap).group_protocol(protocol).build().unwrap()
}

/// What the other process does: it reads until it is killed. Does nothing when it is run as a test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [bootstrap, protocol, topic] = told.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let protocol = if protocol == "Classic" { GroupProtocol::Classic } else { GroupProtocol::Auto };
    let kafka = kafka(bootstrap, protocol);
    let mut c = kafka.join(JoinRequest::new(topic, vec![topic.into()], [9; 16])).await.unwrap();
    while let Some(event) = c.events.next().await {
        if let Ok(Event::Records(..)) = event {
            println!("reading");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_a_killed_process_are_read_by_another_within_the_session_timeout() {
    on_each_real_site("killed", another_reads).await;
}

/// With KIP-848 the timeout is a setting of the group, which defaults to the servers' setting. Where they don't let it
/// be changed, the member joins with the classic protocol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_gets_the_requested_session_timeout_from_servers_with_another_default() {
    let (usual, least) =
        ("group.consumer.session.timeout.ms=45000", "group.consumer.min.session.timeout.ms=45000");
    for settings in [&[usual][..], &[usual, least][..]] {
        let options: Vec<&str> = settings.iter().flat_map(|setting| ["--override", setting]).collect();
        let server = Service::Kafka.own_with(None, &options).unwrap();
        let (bootstrap, name) = (server.addr().to_string(), "killed".into());
        another_reads(Site { mock: None, bootstrap, name, protocol: GroupProtocol::Auto }).await;
    }
}

async fn another_reads(site: Site) {
    let site = site.with_topic(1).await;
    let kafka = kafka(&site.bootstrap, site.protocol);
    fill(&kafka, &Partition::new(site.topic(), 0), 0, 5).await;
    let told = format!("{} {:?} {}", site.bootstrap, site.protocol, site.name);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, told)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let reads = tokio::task::spawn_blocking(move || out.any(|line| line.unwrap() == "reading"));
    let reads = tokio::time::timeout(2 * LONG, reads).await;
    assert!(reads.is_ok_and(|reads| reads.unwrap()), "the other process reads");
    let request = JoinRequest::new(site.name.clone(), vec![site.topic()], [8; 16]);
    let session = request.session_timeout;
    let mut c = kafka.join(request).await.unwrap();
    // Until this process is a member itself, so that only the other's death is missing.
    tokio::time::sleep(Duration::from_secs(8)).await;
    child.kill().unwrap();
    let killed = Stopwatch::start();
    child.wait().unwrap();
    while !matches!(next(&mut c).await, Event::Records(..)) {}
    println!("{:?}: read {:?} after the other process was killed", site.protocol, killed.elapsed());
    // A rebalance comes on top.
    assert!(killed.elapsed() < session + Duration::from_secs(6), "{:?}", killed.elapsed());
    kafka.close().await.unwrap();
}
