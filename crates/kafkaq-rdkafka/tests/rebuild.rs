//! Consumers that fail permanently, and partitions that are added.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use futures_util::StreamExt;
use kafkaq_core::*;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
};
use std::time::Instant;

/// Two members with one instance id: with the classic protocol the second fences the first, with KIP-848 it is refused.
/// Either is fatal to librdkafka's consumer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permanently_failed_consumer_is_rebuilt_and_its_partitions_return() {
    on_each_real_site("fenced", async |site| {
        let site = site.with_topic(1).await;
        let partition = Partition::new(site.topic(), 0);
        let start = || {
            let builder = site.builder().set_consumer("group.instance.id", "one");
            builder.build().unwrap()
        };
        let (one, two) = (start(), start());
        fill(&one, &partition, 0, 10).await;
        let mut a = one.join(site.request("g")).await.unwrap();
        let mut had = assigned(&mut a, 1).await;
        let mut b = two.join(site.request("g")).await.unwrap();
        let mut begun = Begun::default();
        // Until one of them has failed.
        let until = Instant::now() + LONG;
        loop {
            let (event, of_a) = tokio::select! {
                event = a.events.next() => (event.expect("the stream continues"), true),
                event = b.events.next() => (event.expect("the stream continues"), false),
                () = tokio::time::sleep_until(until.into()) => panic!("neither has failed"),
            };
            match event {
                Err(e) => {
                    println!("{:?}, {}: {e}", site.protocol, if of_a { "the first" } else { "the second" });
                    assert_eq!(e.retry(), Retry::Yes, "{e}");
                    assert!(!of_a || had.is_empty(), "what it had is lost first");
                    break;
                }
                Ok(Event::Lost(lost)) if of_a => had.retain(|a| !lost.contains(a)),
                Ok(_) if of_a => {}
                Ok(event) => begun.take(&*b.member, event),
            }
        }
        // The first one leaves, and the second gets everything.
        a.member.leave().await.unwrap();
        one.close().await.unwrap();
        let until = Instant::now() + 3 * LONG;
        while !begun.is_over(1) {
            let event =
                tokio::time::timeout_at(until.into(), b.events.next()).await.expect("records in time");
            match event {
                Some(Ok(event)) => begun.take(&*b.member, event),
                Some(Err(e)) => assert_eq!(e.retry(), Retry::Yes, "{e}"),
                None => panic!("the stream has ended"),
            }
        }
        assert_eq!(begun.first[&partition], 0);
        two.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_partition_is_read_long_before_the_client_librarys_default_of_five_minutes() {
    on_each_real_site("added", async |site| {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        let mut c = kafka.join(site.request("g")).await.unwrap();
        assigned(&mut c, 1).await;
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap();
        let more = [NewPartitions::new(&site.name, 2)];
        admin.create_partitions(&more, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let added = Instant::now();
        // Its publisher has to notice it as well.
        let to = Partition::new(site.topic(), 1);
        while kafka.append(&to, &[record("x")]).await[0].is_err() {
            assert!(added.elapsed() < LONG, "an append in time");
        }
        // The client checks every 30 s, and then there is a rebalance.
        let until = added + LONG;
        loop {
            match tokio::time::timeout_at(until.into(), c.events.next()).await.expect("a record in time") {
                Some(Ok(Event::Records(of, _))) if of.partition == to => break,
                Some(Ok(Event::Revoking(list))) => c.member.release(&list),
                Some(Ok(_)) => {}
                Some(Err(e)) => assert_eq!(e.retry(), Retry::Yes, "{e}"),
                None => panic!("the stream has ended"),
            }
        }
        println!("{:?}: read after {:?}", site.protocol, added.elapsed());
        kafka.close().await.unwrap();
    })
    .await;
}
