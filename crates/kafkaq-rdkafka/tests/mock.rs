//! Faults that only a mock cluster can produce.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use futures_util::{StreamExt, future::join_all};
use kafkaq_adapter_tests::Stopwatch;
use kafkaq_core::*;
use kafkaq_rdkafka::{Builder, RdKafka};
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr as Resp},
};
use std::time::{Duration, Instant};

type Mock = MockCluster<'static, DefaultProducerContext>;

/// Longer than anything takes that doesn't hang, even on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

fn cluster() -> (Mock, Builder) {
    let mock = Mock::new(1).unwrap();
    mock.create_topic("t", 1, 1).unwrap();
    let builder = RdKafka::builder(mock.bootstrap_servers()).request_timeout(LONG);
    (mock, builder)
}

fn records(n: usize) -> Vec<NewRecord> {
    (0..n).map(|i| NewRecord::new(None, Some(i.to_string().into()), Headers::new())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_client_queue_makes_an_append_wait_and_not_fail() {
    let (_mock, builder) = cluster();
    let kafka = builder.set_producer("queue.buffering.max.messages", "50").build().unwrap();
    let out = kafka.append(&Partition::new("t", 0), &records(1000)).await;
    for (outcome, offset) in out.into_iter().zip(0..) {
        assert_eq!(outcome.unwrap(), offset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_stays_full_is_an_error_in_time() {
    let (mock, builder) = cluster();
    let limit = Duration::from_secs(4);
    let kafka = builder
        .request_timeout(limit)
        .set_producer("queue.buffering.max.messages", "50")
        .set_producer("message.timeout.ms", "60000")
        .build()
        .unwrap();
    let to = Partition::new("t", 0);
    let until = Instant::now() + LONG;
    while kafka.append(&to, &records(1)).await[0].is_err() {
        assert!(Instant::now() < until, "the server is there");
    }
    mock.broker_down(1).unwrap();
    let watch = Stopwatch::start();
    let out = kafka.append(&to, &records(60)).await;
    assert!(watch.elapsed() < limit + Duration::from_millis(500), "{:?}", watch.elapsed());
    for (i, outcome) in out.iter().enumerate() {
        let e = outcome.as_ref().unwrap_err();
        let effect = if i < 50 { Effect::Unknown } else { Effect::NotApplied };
        assert_eq!((e.effect(), e.retry()), (effect, Retry::Yes), "{i}: {e}");
    }
}

/// The client retries by itself, and reports only how the last attempt ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_does_not_hide_an_earlier_attempt_that_may_have_appended() {
    let (mock, builder) = cluster();
    let to = Partition::new("t", 0);
    let outcome = async |kafka: &RdKafka, tries: &[Resp]| {
        mock.request_errors(RDKafkaApiKey::Produce, tries);
        let e = kafka.append(&to, &records(1)).await.remove(0).unwrap_err();
        assert!(e.retry() == Retry::No && e.advice().is_some() == (e.kind() == ErrorKind::Denied), "{e}");
        (e.kind(), e.effect())
    };
    let forbidden = Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let invalid = Resp::RD_KAFKA_RESP_ERR_POLICY_VIOLATION;
    for maybe in [
        Resp::RD_KAFKA_RESP_ERR__TRANSPORT,
        Resp::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Resp::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        // Also of a leader that steps down while it waits for the replicas.
        Resp::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    ] {
        // A client that was denied a topic doesn't request it again for a while.
        let kafka = builder.clone().build().unwrap();
        kafka.append(&to, &records(1)).await.remove(0).unwrap();
        let plain = outcome(&kafka, &[invalid]).await;
        assert_eq!(plain, (ErrorKind::Invalid, Effect::NotApplied));
        let doubtful = outcome(&kafka, &[maybe, invalid]).await;
        assert_eq!(doubtful, (ErrorKind::Invalid, Effect::Unknown), "{maybe:?}");
        assert_eq!(outcome(&kafka, &[invalid]).await, plain, "that was another record");
        let doubtful = outcome(&kafka, &[maybe, forbidden]).await;
        assert_eq!(doubtful, (ErrorKind::Denied, Effect::Unknown), "{maybe:?}");
        let kafka = builder.clone().build().unwrap();
        kafka.append(&to, &records(1)).await.remove(0).unwrap();
        let plain = outcome(&kafka, &[forbidden]).await;
        assert_eq!(plain, (ErrorKind::Denied, Effect::NotApplied));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_record_in_doubt_is_resent_compressed_and_stays_in_doubt() {
    let (mock, builder) = cluster();
    let kafka = builder.build().unwrap();
    let to = Partition::new("t", 0);
    kafka.append(&to, &records(1)).await.remove(0).unwrap();
    let (maybe, refused) =
        (Resp::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Resp::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    mock.request_errors(RDKafkaApiKey::Produce, &[maybe, refused, refused]);
    let e = kafka.append(&to, &records(1)).await.remove(0).unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::Unknown), "{e}");
    mock.request_errors(RDKafkaApiKey::Produce, &[refused, refused]);
    let e = kafka.append(&to, &records(1)).await.remove(0).unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
    mock.request_errors(RDKafkaApiKey::Produce, &[maybe, refused]);
    kafka.append(&to, &records(1)).await.remove(0).unwrap();
    // The last refusal gives the reason.
    mock.request_errors(
        RDKafkaApiKey::Produce,
        &[maybe, refused, Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let e = kafka.append(&to, &records(1)).await.remove(0).unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::Unknown), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_refused_for_its_size_is_resent_in_smaller_pieces() {
    let (mock, builder) = cluster();
    let kafka = builder.build().unwrap();
    let to = Partition::new("t", 0);
    kafka.append(&to, &records(1)).await.remove(0).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, &[Resp::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 3]);
    let out = kafka.append(&to, &records(100)).await;
    let mut offsets: Vec<i64> = out.into_iter().collect::<Result<_>>().unwrap();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..101).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permanently_failed_producer_is_replaced_at_the_next_append() {
    let (mock, builder) = cluster();
    let kafka = builder.set_producer("enable.gapless.guarantee", "true").build().unwrap();
    let to = Partition::new("t", 0);
    kafka.append(&to, &records(1)).await.remove(0).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, &[Resp::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let e = kafka.append(&to, &records(1)).await.remove(0).unwrap_err();
    println!("{e}");
    assert_eq!(
        kafka.append(&to, &records(3)).await.into_iter().collect::<Result<Vec<_>>>().unwrap().len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_reported_and_reading_goes_on() {
    let (mock, builder) = cluster();
    // With the new protocol the server, not the client, looks for the topic, and waits for it silently.
    let kafka = builder.set("group.protocol", "classic").build().unwrap();
    mock.topic_error("late", Resp::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut c = kafka.join(JoinRequest::new("g", vec!["late".into()], [1; 16])).await.unwrap();
    let e = tokio::time::timeout(LONG, c.events.next()).await.unwrap().unwrap().unwrap_err();
    println!("{e}");
    assert_eq!((e.kind(), e.retry()), (ErrorKind::NotFound, Retry::Yes));
    assert!(e.to_string().contains("late"), "{e}");
    c.member.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_is_prompt_without_calls_in_flight_even_if_the_broker_is_gone() {
    for protocol in ["classic", "consumer"] {
        let (mock, builder) = cluster();
        // Closing takes this long, in vain.
        let builder = builder.request_timeout(Duration::from_secs(10));
        let kafka = builder.set("group.protocol", protocol).build().unwrap();
        let mut c = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
        while !matches!(c.events.next().await, Some(Ok(Event::Assigned(_)))) {}
        mock.broker_down(1).unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let watch = Stopwatch::start();
        c.member.leave().await.unwrap();
        println!("{protocol}: left in {:?}", watch.elapsed());
        assert!(watch.elapsed() < Duration::from_secs(5), "{:?}", watch.elapsed());
        kafka.close().await.unwrap();
    }
}

/// librdkafka ends the process if a commit reaches a consumer that is on its last steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_while_a_member_leaves_do_not_end_the_process() {
    const MEMBERS: usize = 40;
    let (mock, builder) = cluster();
    // A commit waits this long for a server that is down.
    let builder = builder.set("group.protocol", "classic").set("session.timeout.ms", "3000");
    let builder = builder.set("heartbeat.interval.ms", "500").request_timeout(Duration::from_millis(200));
    let join = async |n: usize| {
        let kafka = builder.clone().build().unwrap();
        let request = JoinRequest::new(format!("g{n}"), vec!["t".into()], [1; 16]);
        let mut c = kafka.join(request).await.unwrap();
        loop {
            if let Some(Ok(Event::Assigned(mine))) = c.events.next().await {
                break (kafka, c, mine);
            }
        }
    };
    let members = join_all((0..MEMBERS).map(join)).await;
    let leave = async |(kafka, c, mine): (RdKafka, Consumer, Vec<Assignment>)| {
        let commits = [Commit { assignment: mine[0].clone(), offset: 0 }];
        // Some are made while the broker is down and the client doesn't know it yet: they never get a response.
        while c.member.commit(&commits).await[0].is_ok() {}
        for _ in 0..10 {
            assert!(c.member.commit(&commits).await[0].is_err());
        }
        let until = Instant::now() + 2 * LONG;
        while c.member.leave().await.is_err() {
            assert!(Instant::now() < until, "leaving continues in the background, and ends");
        }
        drop(kafka);
    };
    let go_away = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        mock.broker_down(1).unwrap();
    };
    tokio::join!(join_all(members.into_iter().map(leave)), go_away);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fenced_consumer_is_rebuilt_and_continues_under_a_new_epoch() {
    let (mock, builder) = cluster();
    let builder = builder.set("group.protocol", "classic").set_consumer("group.instance.id", "one");
    let builder = builder.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "300");
    let kafka = builder.build().unwrap();
    kafka.append(&Partition::new("t", 0), &records(5)).await.remove(0).unwrap();
    let mut c = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
    let read = async |c: &mut Consumer| loop {
        match tokio::time::timeout(LONG, c.events.next()).await.unwrap().unwrap() {
            Ok(Event::Records(of, batch)) => break (of, batch.records[0].offset),
            Ok(_) => {}
            Err(e) => {
                println!("{e}");
                assert_eq!(e.retry(), Retry::Yes);
            }
        }
    };
    let (first, _) = read(&mut c).await;
    let outcomes = c.member.commit(&[Commit { assignment: first.clone(), offset: 2 }]).await;
    outcomes.into_iter().collect::<Result<Vec<_>>>().unwrap();
    for _ in 0..2 {
        mock.request_errors(RDKafkaApiKey::Heartbeat, &[Resp::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
        let (again, offset) = read(&mut c).await;
        assert!(again.partition == first.partition && again.epoch > first.epoch, "{again}");
        assert_eq!(offset, 2, "from the committed offset on");
        let e =
            c.member.commit(&[Commit { assignment: first.clone(), offset: 3 }]).await.remove(0).unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::NotOwner, Effect::NotApplied));
    }
    kafka.close().await.unwrap();
}

/// The client notices that the group has expelled it only once it has given back the revoked partitions, and until then
/// a driver that takes its time would work in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_expelled_during_a_revoke_loses_it_at_once() {
    let (mock, builder) = cluster();
    mock.create_topic("two", 2, 1).unwrap();
    let kafka = builder.set("group.protocol", "classic").set("heartbeat.interval.ms", "300").build().unwrap();
    let mut request = JoinRequest::new("g", vec!["two".into()], [1; 16]);
    request.release_limit = 10 * LONG;
    let mut a = kafka.join(request.clone()).await.unwrap();
    let next = async |c: &mut Consumer| tokio::time::timeout(LONG, c.events.next()).await.unwrap().unwrap();
    let mut assigned = 0;
    while assigned < 2 {
        if let Event::Assigned(more) = next(&mut a).await.unwrap() {
            assigned += more.len();
        }
    }
    request.member = [2; 16];
    let _b = kafka.join(request).await.unwrap();
    let revoking = loop {
        if let Event::Revoking(revoking) = next(&mut a).await.unwrap() {
            break revoking;
        }
    };
    mock.request_errors(RDKafkaApiKey::OffsetCommit, &[Resp::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    let commit = Commit { assignment: revoking[0].clone(), offset: 1 };
    a.member.commit(&[commit]).await.remove(0).unwrap_err();
    let lost = loop {
        if let Event::Lost(lost) = next(&mut a).await.unwrap() {
            break lost;
        }
    };
    assert!(revoking.iter().all(|gone| lost.contains(gone)), "{revoking:?}, {lost:?}");
    kafka.close().await.unwrap();
}
