//! Three members, one of which may fail.

use crate::{own_with, raw};
use bytes::Bytes;
use kafkaq_adapter_tests::{create, key, one, read, until};
use kafkaq_core::{Effect, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use xtask::services::{Server, free_port};

/// One member that two others join, one after the other.
async fn three() -> Vec<Server> {
    // Otherwise each has to wait until the others have been connected for five seconds.
    const AT_ONCE: &str = "--strict-reconfig-check=false";
    // The defaults: a leader that is only slow stays the leader.
    const PATIENT: [&str; 2] = ["--heartbeat-interval=100", "--election-timeout=1000"];
    let mut servers = vec![own_with(&[AT_ONCE, PATIENT[0], PATIENT[1]])];
    let mut client = raw(&servers[0]).await;
    let mut all: Vec<String> = Vec::new();
    for member in client.member_list().await.unwrap().members() {
        all.push(format!("{}={}", member.name(), member.peer_urls()[0]));
    }
    for name in ["second", "third"] {
        let peer = format!("http://127.0.0.1:{}", free_port().unwrap());
        client.member_add([peer.as_str()], None).await.unwrap();
        all.push(format!("{name}={peer}"));
        servers.push(own_with(&[
            &format!("--name={name}"),
            &format!("--listen-peer-urls={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
            &format!("--initial-cluster={}", all.join(",")),
            "--initial-cluster-state=existing",
            AT_ONCE,
            PATIENT[0],
            PATIENT[1],
        ]));
    }
    servers
}

/// Counts up for a second, reading back whatever is in doubt, and returns how far it got.
async fn count_for_a_second(store: &EtcdStore, mut is: u32) -> u32 {
    let k = key("counter");
    let bytes = |n: u32| Some(Bytes::from(n.to_string()));
    let begin = Instant::now();
    let mut last_success = begin;
    while last_success < begin + Duration::from_secs(1) {
        match one(store, Swap::new(k.clone(), bytes(is), bytes(is + 1), None)).await {
            Ok(Swapped::Done) => {
                is += 1;
                last_success = Instant::now();
            }
            // An earlier one had taken effect after all; a refused one never may.
            Ok(Swapped::Conflict(current)) => {
                assert_eq!(current, bytes(is + 1), "a value that was never in doubt");
                is += 1;
            }
            Err(e) => {
                assert!(last_success.elapsed() < Duration::from_secs(90), "it doesn't recover: {e}");
                if e.effect() == Effect::NotApplied {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
    is
}

#[tokio::test(flavor = "multi_thread")]
async fn store_keeps_working_whichever_member_is_killed_or_frozen() {
    let mut servers = three().await;
    let endpoints: Vec<_> = servers.iter().map(Server::url).collect();
    let store = EtcdStore::builder(endpoints).request_timeout(Duration::from_secs(2)).build().unwrap();
    until("the counter is there", async || {
        let _ = one(&store, create(&key("counter"), "0")).await;
        read(&store, &key("counter")).await.is_ok_and(|is| is.is_some())
    })
    .await;
    let mut is = count_for_a_second(&store, 0).await;
    for server in &mut servers {
        server.kill().unwrap();
        is = count_for_a_second(&store, is).await;
        server.start_again().unwrap();
        server.pause().unwrap();
        is = count_for_a_second(&store, is).await;
        server.resume().unwrap();
    }
    until("the counter is as far", async || {
        read(&store, &key("counter")).await.is_ok_and(|found| found == Some(Bytes::from(is.to_string())))
    })
    .await;
}
