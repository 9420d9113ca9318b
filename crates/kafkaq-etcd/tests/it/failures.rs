//! Errors when the server or the network fails, and the switch to the next endpoint.

use crate::{Etcd, own};
use kafkaq_adapter_tests::{Stopwatch, all_cases, create, key, one, read, until};
use kafkaq_core::Swapped;
use kafkaq_etcd::EtcdStore;
use std::{net::TcpListener, time::Duration};

all_cases!(Etcd);

#[tokio::test]
async fn endpoint_without_a_server_is_skipped() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = own();
    let nobody = format!("127.0.0.1:{}", xtask::services::free_port().unwrap());
    let endpoints = [nobody, silent.local_addr().unwrap().to_string(), server.url()];
    let store = EtcdStore::builder(endpoints).request_timeout(Duration::from_secs(60)).build().unwrap();
    assert_eq!(one(&store, create(&key("a"), "a")).await.unwrap(), Swapped::Done);
    for _ in 0..20 {
        read(&store, &key("a")).await.unwrap();
    }
}

#[tokio::test]
async fn after_a_failure_the_next_endpoint_comes_first() {
    let (first, second) = (own(), own());
    let limit = Duration::from_secs(6);
    let builder = EtcdStore::builder([first.url(), second.url()]);
    let store = builder.request_timeout(limit).build().unwrap();
    until("it works", async || read(&store, &key("a")).await.is_ok()).await;
    first.pause().unwrap();
    read(&store, &key("a")).await.unwrap_err();
    let watch = Stopwatch::start();
    read(&store, &key("a")).await.unwrap();
    // Half of the limit would have gone to the first.
    assert!(watch.elapsed() < limit / 2, "{:?}", watch.elapsed());
}
