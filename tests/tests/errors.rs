//! Errors for what can't work give the reason and advice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    Error, ErrorKind, Queue, Retry, Task,
    backend::{Log, Partition, PartitionLog, TopicSpec},
    rdkafka::RdKafka,
    redis::RedisStore,
    rskafka::RsKafka,
};
use kafkaq_conformance::Proxy;
use kafkaq_tests::{Built, PATIENCE, kafka, own_kafka_behind, own_server, queue, redis, unique};
use std::time::Duration;
use tokio::time::timeout;
use xtask::services::{Service, free_port};

fn tells(error: &Error) {
    println!("{error}");
    assert!(error.advice().is_some_and(|a| a.len() > 10), "no advice: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_at_start_is_an_error() {
    let broker = RdKafka::builder("127.0.0.1:1").request_timeout(Duration::from_secs(3)).build().unwrap();
    let error =
        timeout(PATIENCE, Queue::builder("q").broker(broker).build_publisher()).await.expect("in time");
    let error = error.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
    tells(&error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_down_fails_publish_in_time() {
    let mut server = own_server(Service::Kafka);
    let broker = RdKafka::builder(server.url()).request_timeout(PATIENCE).build().unwrap();
    let publisher = Queue::builder(unique("down"))
        .broker(broker)
        .publish_timeout(Duration::from_secs(4))
        .built_publisher()
        .await;
    publisher.publish(Task::new("while it is up")).await.unwrap();
    server.kill().unwrap();
    // Within the publisher's limit, not the client's.
    let published = timeout(PATIENCE / 2, publisher.publish(Task::new("while it is down"))).await;
    let error = published.expect("in time").unwrap_err();
    tells(&error);
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_that_can_not_be_created_is_an_error() {
    let error = queue(&unique("copies"), &redis()).replication(3).build().await.unwrap_err();
    tells(&error);
}

/// A server that knows too few of the others yet may know enough at the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn too_few_brokers_for_the_servers_default_is_retryable() {
    let server = Service::Kafka.own_with(None, &["--override", "default.replication.factor=3"]).unwrap();
    let rdkafka = Queue::builder(unique("few")).broker(RdKafka::builder(server.url()).build().unwrap());
    let rskafka = Queue::builder(unique("few")).log(RsKafka::builder(server.url()).build().unwrap());
    for builder in [rdkafka, rskafka] {
        let error = builder.build_publisher().await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Yes), "{error}");
        tells(&error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_above_the_limit_is_refused_and_one_at_the_limit_passes_through_every_topic() {
    let queue = queue(&unique("large"), &redis()).max_failures(2).built().await;
    let error = queue.publish(Task::new(vec![0; 2_000_000])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    tells(&error);
    // What is accepted must also fit when it is copied and dead-lettered.
    let largest = (500_000..1_100_000).rev().step_by(1000).map(|n| Task::new(vec![0; n]));
    let mut id = None;
    for task in largest {
        match queue.publish(task).await {
            Ok(published) => {
                id = Some(published);
                break;
            }
            Err(e) => assert_eq!(e.kind(), ErrorKind::TooLarge),
        }
    }
    let id = id.expect("some size fits");
    for _ in 0..2 {
        queue.get_job().await.unwrap().retry(Duration::ZERO, "not now").await.unwrap();
    }
    assert_eq!(queue.jobs().get(&id).await.unwrap().status, kafkaq::JobStatus::Dead);
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_at_start_is_an_error() {
    let broker = RdKafka::builder(kafka()).build().unwrap();
    let store =
        RedisStore::builder("redis://127.0.0.1:1").request_timeout(Duration::from_secs(1)).build().unwrap();
    let error = Queue::builder(unique("nostore")).broker(broker).store(store).build().await.unwrap_err();
    tells(&error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_topic_that_would_lose_tasks_is_refused() {
    let name = unique("compacted");
    let made = queue(&name, &redis()).partitions(2).built().await;
    made.shutdown(PATIENCE).await.unwrap();
    // The task topic has two partitions, too few for the lanes.
    let error = queue(&unique("other"), &redis()).wait_topic(name).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    tells(&error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_topic_with_too_short_a_retention_is_refused_through_either_client() {
    let wait = unique("short");
    let by_hand = RsKafka::builder(kafka()).build().unwrap();
    let mut spec = TopicSpec::new(wait.as_str());
    spec.partitions = Some(12);
    spec.retention = Some(Duration::from_secs(3600));
    spec.unlimited_bytes = true;
    spec.max_record_bytes = Some(2 << 20);
    by_hand.ensure_topics(&[spec]).await.unwrap();
    let store = || RedisStore::builder(redis()).build().unwrap();
    let builder = || Queue::builder(unique("forgets")).store(store()).wait_topic(wait.as_str());
    for builder in [
        builder().log(RsKafka::builder(kafka()).build().unwrap()),
        builder().broker(RdKafka::builder(kafka()).build().unwrap()),
    ] {
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
        assert!(
            error.advice().unwrap().contains(&format!("--entity-name {wait} --add-config retention.ms="))
        );
        tells(&error);
    }
}

/// As when a firewall has forgotten the connection: nothing closes it, and no response arrives.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_despite_a_dead_connection() {
    let port = free_port().unwrap();
    let proxy = Proxy::to(("127.0.0.1", port)).unwrap();
    let _server = own_kafka_behind(proxy.addr().port(), port);
    // Part of it is spent on the dead connection.
    let (limit, server) = (Duration::from_secs(24), proxy.addr().to_string());
    let rdkafka = RdKafka::builder(&server).request_timeout(limit).build().unwrap();
    let rskafka = RsKafka::builder(&server).request_timeout(limit).build().unwrap();
    let clients: [&dyn PartitionLog; 2] = [&rdkafka, &rskafka];
    let mut spec = TopicSpec::new("t");
    spec.partitions = Some(1);
    for client in clients {
        client.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
        let of = [Partition::new("t", 0)];
        client.offsets(&of).await.remove(0).unwrap();
        proxy.mute();
        let ends = client.offsets(&of).await.remove(0).unwrap();
        assert_eq!((ends.first, ends.next), (0, 0));
    }
}
