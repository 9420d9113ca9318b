//! Three members, of which one may go.

use crate::{
    key, one, read,
    server::{Ports, Server},
    sleep,
};
use bytes::Bytes;
use kafkaq_core::{Effect, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::time::{Duration, Instant};

fn three() -> Vec<Server> {
    let ports = [(); 3].map(|()| Ports::free());
    let all = ports.iter().enumerate().map(|(n, p)| format!("m{n}={}", p.peer_url()));
    let cluster = format!("--initial-cluster={}", all.collect::<Vec<_>>().join(","));
    let start = |(n, ports): (usize, &Ports)| {
        let client = format!("http://127.0.0.1:{}", ports.client);
        Server::launch(
            *ports,
            &[
                &format!("--name=m{n}"),
                &cluster,
                &format!("--listen-client-urls={client}"),
                &format!("--advertise-client-urls={client}"),
            ],
        )
    };
    let mut servers: Vec<_> = ports.iter().enumerate().map(start).collect();
    assert!(servers.iter_mut().all(Server::await_ready), "the cluster did not start");
    servers
}

/// Counts up for a second, reading back whatever is in doubt, and returns how far it came.
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
                assert_eq!(current, bytes(is + 1), "another value than was ever in doubt");
                is += 1;
            }
            Err(e) => {
                assert!(last_success.elapsed() < Duration::from_secs(15), "no way back: {e}");
                if e.effect() == Effect::NotApplied {
                    sleep(5).await;
                }
            }
        }
    }
    is
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_member_is_killed_or_frozen_the_store_goes_on() {
    let mut servers = three();
    let endpoints: Vec<_> = servers.iter().map(Server::address).collect();
    let store = EtcdStore::builder(endpoints).request_timeout(Duration::from_millis(500)).build().unwrap();
    one(&store, Swap::new(key("counter"), None, Some("0".into()), None)).await.unwrap();
    let mut is = count_for_a_second(&store, 0).await;
    for server in &mut servers {
        server.kill();
        is = count_for_a_second(&store, is).await;
        server.start_again();
        server.freeze();
        is = count_for_a_second(&store, is).await;
        server.thaw();
        assert!(server.await_ready());
    }
    assert_eq!(read(&store, &key("counter")).await, Some(Bytes::from(is.to_string())));
}
