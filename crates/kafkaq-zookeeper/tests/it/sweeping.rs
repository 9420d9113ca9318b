//! What is swept, and what isn't.

use crate::{builder, client, nodes, shared};
use kafkaq_adapter_tests::{create, key, one, read, remove, until, value};
use kafkaq_core::Swap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

#[tokio::test]
async fn the_sweeper_takes_removed_and_expired_nodes_and_nothing_else() {
    let server = shared();
    // The server's clock and ours are the same; a session lasts a second here.
    let linger = Duration::from_secs(2);
    let sweeping = builder(&server, "sweep")
        .session_timeout(Duration::from_secs(1))
        .request_timeout(Duration::from_millis(900))
        .sweep_every(Duration::from_secs(1))
        .linger(linger)
        .build()
        .unwrap();
    let store = builder(&server, "sweep").build().unwrap();
    let zk = client(&server).await;
    let ttl = |time| Some(Duration::from_millis(time));
    one(&store, create(&key("stays"), "a")).await.unwrap();
    one(&store, Swap::new(key("lives"), None, value("a"), ttl(600_000))).await.unwrap();
    let begin = Instant::now();
    one(&store, Swap::new(key("expires"), None, value("a"), ttl(1))).await.unwrap();
    one(&store, create(&key("removed"), "a")).await.unwrap();
    one(&store, remove(&key("removed"), "a")).await.unwrap();
    let mut left = nodes(&zk, "sweep").await;
    assert_eq!(left.len(), 4);
    until("the other store is connected", async || read(&sweeping, &key("stays")).await.is_ok()).await;
    while left.len() > 2 {
        assert!(begin.elapsed() < Duration::from_secs(90), "{left:?}");
        sleep(Duration::from_millis(50)).await;
        left = nodes(&zk, "sweep").await;
        // Node times are in whole milliseconds.
        assert!(
            left.len() == 4 || begin.elapsed() + Duration::from_millis(2) >= linger,
            "too early: {left:?}"
        );
    }
    sleep(Duration::from_millis(1500)).await;
    let mut left: Vec<_> =
        nodes(&zk, "sweep").await.iter().map(|n| n.rsplit(':').next().unwrap().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["lives", "stays"]);
    // And what was swept can be created again.
    one(&store, create(&key("removed"), "b")).await.unwrap();
}
