//! The whole broker against librdkafka's in-process mock cluster, and, if `KAFKAQ_TEST_KAFKA=host:port` is set,
//! against that server too: each test says which it ran on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use bytes::Bytes;
use common::*;
use futures_util::StreamExt;
use kafkaq_adapter_tests::{Stopwatch, noise};
use kafkaq_core::*;
use kafkaq_rdkafka::{GroupProtocol, RdKafka};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_is_read_byte_for_byte() {
    on_each_site("round-trip", async |site| {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        let to = Partition::new(site.topic(), 0);
        let mut headers = Headers::new();
        headers.push(HEADER, Some(Bytes::from_static(&[0, 255, 1])));
        headers.push("twice", Some("1".into()));
        headers.push("twice", None);
        headers.push("twice", Some(Bytes::new()));
        headers.push("ümlaut", Some("x".into()));
        let records = [
            NewRecord::new(Some("key".into()), Some("value".into()), headers.clone()),
            NewRecord::new(None, None, Headers::new()),
            NewRecord::new(Some(Bytes::new()), Some(Bytes::new()), Headers::new()),
            record(vec![7; 300_000]),
        ];
        let offsets: Vec<i64> = kafka.append(&to, &records).await.into_iter().collect::<Result<_>>().unwrap();
        assert_eq!(offsets, [0, 1, 2, 3]);
        let mut consumer = kafka.join(site.request("g")).await.unwrap();
        let mine = assigned(&mut consumer, 1).await;
        let mut read = Vec::new();
        while read.len() < records.len() {
            if let Event::Records(of, batch) = next(&mut consumer).await {
                assert_eq!(of, mine[0]);
                assert_eq!(batch.next, batch.records.last().unwrap().offset + 1);
                read.extend(batch.records);
            }
        }
        for ((sent, got), offset) in records.iter().zip(&read).zip(0..) {
            assert_eq!(got.offset, offset);
            assert_eq!((&sent.key, &sent.value, &sent.headers), (&got.key, &got.value, &got.headers));
            assert!(got.timestamp_ms > 1_600_000_000_000);
        }
        kafka.close().await.unwrap();
        assert!(consumer.events.next().await.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_header_name_that_is_not_utf8_loses_the_header_and_not_the_record() {
    on_each_site("header-name", async |site| {
        let site = site.with_topic(1).await;
        // On a real server several addresses would need the leader's; the tests' servers have one node.
        let value = |value: &'static [u8]| Some(value);
        let headers = [(&b"good"[..], value(b"1")), (b"\xff\xfe", value(b"2")), (b"also", value(b"3"))];
        wire::produce(&site.bootstrap, &site.name, &headers);
        let kafka = site.kafka();
        fill(&kafka, &Partition::new(site.topic(), 0), 1, 1).await;
        let mut consumer = kafka.join(site.request("g")).await.unwrap();
        let mut read = Vec::new();
        while read.len() < 2 {
            if let Event::Records(_, batch) = next(&mut consumer).await {
                read.extend(batch.records);
            }
        }
        assert_eq!(read[0].value.as_deref(), Some(&b"payload"[..]));
        let headers: Vec<_> = read[0].headers.iter().map(|(n, v)| (&n[..], v.map(|v| &v[..]))).collect();
        let expected: [(&[u8], Option<&[u8]>); 3] =
            [(b"good", Some(b"1")), (b"kafkaq-unreadable-header", None), (b"also", Some(b"3"))];
        assert_eq!(headers, expected);
        assert_eq!(read[1].value.as_deref(), Some(&b"1"[..]), "and reading continues");
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_waits_for_the_release_and_a_commit_in_between_counts() {
    on_each_site_that_keeps_members("revoke", async |site| {
        let site = site.with_topic(4).await;
        let kafka = site.kafka();
        for p in 0..4 {
            fill(&kafka, &Partition::new(site.topic(), p), 0, 10).await;
        }
        let mut request = site.lasting_request("g");
        // Whatever happens here happens long before it.
        request.release_limit = 10 * LONG;
        let mut a = kafka.join(request).await.unwrap();
        let of_a = assigned(&mut a, 4).await;
        let other = site.kafka();
        let mut b = other.join(site.lasting_request("g")).await.unwrap();
        let revoking = revoking(&mut a).await;
        assert!(!revoking.is_empty() && revoking.iter().all(|r| of_a.contains(r)));
        let commits: Vec<_> = revoking.iter().map(|r| Commit { assignment: r.clone(), offset: 7 }).collect();
        commit(&*a.member, &commits).await;
        assert!(tokio::time::timeout(Duration::from_millis(700), event(&mut b)).await.is_err());
        a.member.release(&revoking);
        for outcome in a.member.commit(&commits).await {
            let e = outcome.unwrap_err();
            assert_eq!((e.kind(), e.effect()), (ErrorKind::NotOwner, Effect::NotApplied));
        }
        let mut of_b = Begun::default();
        while !of_b.is_over(revoking.len()) {
            let event = next(&mut b).await;
            of_b.take(&*b.member, event);
        }
        let got: BTreeSet<_> = of_b.assigned.iter().map(|x| &x.partition).collect();
        let gave: BTreeSet<_> = revoking.iter().map(|x| &x.partition).collect();
        assert_eq!(got, gave);
        // B starts where A committed.
        assert!(of_b.first.values().all(|o| *o == 7), "{:?}", of_b.first);
        b.member.leave().await.unwrap();
        // Partitions that return have a higher epoch, and the old one stays refused.
        let back = assigned(&mut a, revoking.len()).await;
        let old = revoking.iter().map(|r| r.epoch).max().unwrap();
        assert!(back.iter().all(|n| n.epoch > old));
        assert!(a.member.commit(&commits).await.iter().all(|o| o.is_err()));
        other.close().await.unwrap();
        kafka.close().await.unwrap();
    })
    .await;
}

/// Even a member that joins late: an assignor that balances the total over all topics gives it half of all partitions,
/// which may be all of one topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_gets_its_share_of_each_topic_and_commits_both_at_once() {
    on_each_site("share", async |site| {
        let wait = site.wait_topic();
        let site = site.with_topic(4).await.with(wait.clone(), 4).await;
        let kafka = site.kafka();
        let mut a = kafka.join(site.request_for_both("g")).await.unwrap();
        let of_a = assigned(&mut a, 8).await;
        let to_commit = |assignment: &Assignment| {
            let offset = i64::from(assignment.partition.index) + 1;
            Commit { assignment: assignment.clone(), offset }
        };
        for partition in of_a.iter().map(|of_it| &of_it.partition) {
            fill(&kafka, partition, 0, 10).await;
        }
        let commits: Vec<_> = of_a.iter().map(to_commit).collect();
        commit(&*a.member, &commits).await;
        let other = site.kafka();
        let mut b = other.join(site.request_for_both("g")).await.unwrap();
        let mut of_b = Begun::default();
        while !of_b.is_over(4) {
            tokio::select! {
                event = event(&mut a) => if let Event::Revoking(revoking) = event {
                    a.member.release(&revoking);
                },
                event = next(&mut b) => of_b.take(&*b.member, event),
            }
        }
        let Begun { assigned: of_b, first } = of_b;
        let of_topic = |topic: &str| of_b.iter().filter(|of_it| *of_it.partition.topic == *topic).count();
        assert_eq!((of_topic(&site.name), of_topic(&wait)), (2, 2), "{of_b:?}");
        // It starts where the other committed, in both.
        assert!(first.iter().all(|(of, offset)| *offset == i64::from(of.index) + 1), "{first:?}");
        other.close().await.unwrap();
        kafka.close().await.unwrap();
    })
    .await;
}

/// The servers request a heartbeat every half hour, so whatever happens sooner happens because a member polls by
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_learns_of_changes_before_its_next_heartbeat_is_due() {
    on_each_real_site("heartbeat", async |site| {
        if site.protocol == GroupProtocol::Classic {
            return;
        }
        let site = site.with_topic(4).await;
        let request = site.request("g");
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap();
        let seldom = AlterConfig::new(ResourceSpecifier::Group(&request.group))
            .set("consumer.session.timeout.ms", "3600000")
            .set("consumer.heartbeat.interval.ms", "1800000");
        admin.alter_configs([&seldom], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
        let kafka = site.kafka();
        let mut a = kafka.join(request).await.unwrap();
        assigned(&mut a, 4).await;
        let other = site.kafka();
        let mut b = other.join(site.request("g")).await.unwrap();
        let revoking = revoking(&mut a).await;
        a.member.release(&revoking);
        assigned(&mut b, revoking.len()).await;
        b.member.leave().await.unwrap();
        assigned(&mut a, revoking.len()).await;
        other.close().await.unwrap();
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_that_is_not_released_ends_at_the_limit_with_lost() {
    on_each_site("limit", async |site| {
        let site = site.with_topic(2).await;
        let kafka = site.kafka();
        let mut request = site.lasting_request("g");
        request.release_limit = Duration::from_secs(2);
        let mut a = kafka.join(request).await.unwrap();
        assigned(&mut a, 2).await;
        let other = site.kafka();
        let mut b = other.join(site.lasting_request("g")).await.unwrap();
        let revoking = revoking(&mut a).await;
        let (held, watch) = (Instant::now(), Stopwatch::start());
        let lost = lost(&mut a).await;
        assert_eq!(revoking, lost);
        let (least, most) = (Duration::from_millis(1800), Duration::from_secs(4));
        assert!(held.elapsed() > least && watch.elapsed() < most, "{:?}", held.elapsed());
        let late = Commit { assignment: lost[0].clone(), offset: 1 };
        assert_eq!(a.member.commit(&[late]).await[0].as_ref().unwrap_err().kind(), ErrorKind::NotOwner);
        assigned(&mut b, lost.len()).await;
        other.close().await.unwrap();
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_sends_one_more_batch_at_most_and_loses_nothing() {
    on_each_site("pause", async |site| {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        let to = Partition::new(site.topic(), 0);
        fill(&kafka, &to, 0, 5000).await;
        let mut request = site.request("g");
        request.max_batch = 100;
        let mut c = kafka.join(request).await.unwrap();
        let mine = assigned(&mut c, 1).await;
        let mut offsets = Vec::new();
        let mut batches = 0;
        for round in 0..4 {
            for _ in 0..5 {
                if let Event::Records(_, batch) = next(&mut c).await {
                    assert!(batch.records.len() <= 100);
                    offsets.extend(batch.records.iter().map(|r| r.offset));
                }
            }
            c.member.pause(&mine);
            let mut more = 0;
            while let Ok(event) = tokio::time::timeout(Duration::from_millis(400), event(&mut c)).await {
                if let Event::Records(_, batch) = event {
                    more += 1;
                    offsets.extend(batch.records.iter().map(|r| r.offset));
                }
            }
            assert!(more <= 1, "{more} batches after the pause of round {round}");
            batches += more;
            c.member.resume(&mine);
        }
        while offsets.len() < 5000 {
            if let Event::Records(_, batch) = next(&mut c).await {
                offsets.extend(batch.records.iter().map(|r| r.offset));
            }
        }
        assert_eq!(offsets, (0..5000).collect::<Vec<i64>>());
        println!("{batches} batches came after a pause");
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_when_polls_are_dropped_every_millisecond() {
    on_each_site("tick", async |site| {
        let site = site.with_topic(2).await;
        let kafka = site.kafka();
        let mut request = site.request("g");
        request.max_batch = 3;
        let mut c = kafka.join(request).await.unwrap();
        for p in 0..2 {
            fill(&kafka, &Partition::new(site.topic(), p), 0, 500).await;
        }
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let mut seen: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        let end = Instant::now() + LONG;
        while seen.values().map(Vec::len).sum::<usize>() < 1000 && Instant::now() < end {
            tokio::select! {
                _ = tick.tick() => {}
                event = event(&mut c) => if let Event::Records(of, batch) = event {
                    seen.entry(of.partition.index).or_default().extend(batch.records.iter().map(|r| r.offset));
                }
            }
        }
        for offsets in seen.values() {
            assert_eq!(offsets, &(0..500).collect::<Vec<i64>>());
        }
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_consumer_gets_a_record_without_waiting_for_a_tick() {
    for site in sites("latency") {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        let to = Partition::new(site.topic(), 0);
        let mut c = kafka.join(site.request("g")).await.unwrap();
        assigned(&mut c, 1).await;
        let mut took = Vec::new();
        for i in 0..20 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let watch = Stopwatch::start();
            fill(&kafka, &to, i, 1).await;
            while !matches!(next(&mut c).await, Event::Records(..)) {}
            took.push(watch.elapsed());
        }
        took.sort();
        println!("from append to event: median {:?}, worst {:?}", took[10], took[19]);
        // The poll thread ticks every second. The mock cluster responds to a waiting fetch only at its end, half a
        // second later.
        let limit = if site.mock.is_some() { 900 } else { 300 };
        assert!(took[10] < Duration::from_millis(limit), "{took:?}");
        kafka.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_records_are_read_as_soon_as_a_partition_is_assigned() {
    on_each_real_site("first", async |site| {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        fill(&kafka, &Partition::new(site.topic(), 0), 0, 1).await;
        let mut took = Vec::new();
        for i in 0..7 {
            let mut c = kafka.join(site.request(&format!("g{i}"))).await.unwrap();
            assigned(&mut c, 1).await;
            let watch = Stopwatch::start();
            while !matches!(next(&mut c).await, Event::Records(..)) {}
            took.push(watch.elapsed());
            c.member.leave().await.unwrap();
        }
        took.sort();
        println!("from assignment to event: median {:?}, worst {:?}", took[3], took[6]);
        // A thread of librdkafka that is not woken checks every second.
        assert!(took[3] < Duration::from_millis(600), "{took:?}");
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_is_prompt_in_every_state() {
    on_each_site("leave", async |site| {
        let site = site.with_topic(2).await;
        let kafka = site.kafka();
        let prompt = |watch: Stopwatch, state: &str| {
            println!("left in {:?}: {state}", watch.elapsed());
            assert!(watch.elapsed() < Duration::from_secs(5), "{state} took {:?}", watch.elapsed());
        };
        // Before anything was assigned, and twice.
        let mut c = kafka.join(site.request("g0")).await.unwrap();
        let watch = Stopwatch::start();
        c.member.leave().await.unwrap();
        c.member.leave().await.unwrap();
        prompt(watch, "never assigned");
        assert!(c.events.next().await.is_none());
        // The stream is full and nobody polls it.
        for p in 0..2 {
            fill(&kafka, &Partition::new(site.topic(), p), 0, 2000).await;
        }
        let mut request = site.request("g1");
        request.max_batch = 1;
        let mut c = kafka.join(request).await.unwrap();
        assigned(&mut c, 2).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let watch = Stopwatch::start();
        c.member.leave().await.unwrap();
        prompt(watch, "with unread records");
        assert!(c.events.next().await.is_none());
        // While a revoke is held, and the other member gets everything soon after.
        let mut a = kafka.join(site.request("g2")).await.unwrap();
        assigned(&mut a, 2).await;
        let mut b = kafka.join(site.request("g2")).await.unwrap();
        while !matches!(next(&mut a).await, Event::Revoking(_)) {}
        let watch = Stopwatch::start();
        a.member.leave().await.unwrap();
        prompt(watch, "during a held revoke");
        assigned(&mut b, 2).await;
        // The stream is dropped: the next one gets the partitions.
        drop(b.events);
        let mut d = kafka.join(site.request("g2")).await.unwrap();
        assigned(&mut d, 2).await;
        // Close without leave.
        let watch = Stopwatch::start();
        kafka.close().await.unwrap();
        prompt(watch, "by close");
        assert!(d.events.next().await.is_none());
        let e = kafka.join(site.request("g3")).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Closed);
        assert_eq!(
            kafka.append(&Partition::new(site.topic(), 0), &[record("x")]).await[0]
                .as_ref()
                .unwrap_err()
                .kind(),
            ErrorKind::Closed
        );
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_broker_down_every_call_ends_in_time() {
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let mock = Mock::new(1).unwrap();
        mock.create_topic("t", 1, 1).unwrap();
        let limit = Duration::from_secs(4);
        let kafka = RdKafka::builder(mock.bootstrap_servers())
            .group_protocol(protocol)
            .request_timeout(limit)
            .build()
            .unwrap();
        let to = Partition::new("t", 0);
        let until = Instant::now() + LONG;
        while kafka.append(&to, &[record("x")]).await[0].is_err() {
            assert!(Instant::now() < until, "the server is there");
        }
        let mut c = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
        let mine = assigned(&mut c, 1).await;
        mock.broker_down(1).unwrap();
        let watch = Stopwatch::start();
        let out = kafka.append(&to, &[record("a"), record("b")]).await;
        println!("append: {:?} after {:?}", out[0], watch.elapsed());
        assert!(watch.elapsed() < limit + Duration::from_millis(500));
        for outcome in out {
            let e = outcome.unwrap_err();
            assert!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout));
            assert_eq!((e.effect(), e.retry()), (Effect::Unknown, Retry::Yes));
            assert!(e.advice().unwrap().contains("127.0.0.1"));
        }
        let watch = Stopwatch::start();
        let out = c.member.commit(&[Commit { assignment: mine[0].clone(), offset: 1 }]).await;
        println!("commit: {:?} after {:?}", out[0], watch.elapsed());
        assert!(out[0].is_err() && watch.elapsed() < limit + Duration::from_millis(500));
        let watch = Stopwatch::start();
        let e = kafka.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err();
        println!("ensure: {e} after {:?}", watch.elapsed());
        assert!(watch.elapsed() < limit + Duration::from_secs(1));
        let watch = Stopwatch::start();
        let left = c.member.leave().await;
        println!("leave: {left:?} after {:?}", watch.elapsed());
        assert!(watch.elapsed() < limit + Duration::from_millis(500));
        let watch = Stopwatch::start();
        let closed = kafka.close().await;
        println!("close: {closed:?} after {:?}", watch.elapsed());
        assert!(watch.elapsed() < 2 * limit + Duration::from_secs(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_address_fails_within_timeout_and_is_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let limit = Duration::from_secs(2);
    let kafka = RdKafka::builder(&at).request_timeout(limit).build().unwrap();
    let watch = Stopwatch::start();
    let out = kafka.append(&Partition::new("t", 0), &[record("a")]).await;
    let e = out[0].as_ref().unwrap_err();
    println!("{e} after {:?}", watch.elapsed());
    assert!(watch.elapsed() < limit + Duration::from_millis(500));
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().contains(&at));
    let e = kafka.ensure_topics(&[TopicSpec::new("t")]).await.unwrap_err();
    println!("{e}");
    assert!(e.to_string().contains(&at));
    let mut c = kafka.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap();
    let told = tokio::time::timeout(LONG, c.events.next()).await.unwrap().unwrap().unwrap_err();
    println!("{told}");
    assert_eq!((told.kind(), told.retry()), (ErrorKind::Unavailable, Retry::Yes));
    let watch = Stopwatch::start();
    c.member.leave().await.unwrap();
    kafka.close().await.unwrap();
    assert!(watch.elapsed() < limit + Duration::from_secs(2), "{:?}", watch.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_errors_affect_only_that_record_and_give_advice() {
    on_each_site("errors", async |site| {
        let site = site.with_topic(1).await;
        let kafka = site.kafka();
        let to = Partition::new(site.topic(), 0);
        let huge = record(vec![0; (64 << 20) + 1]);
        let out = kafka.append(&to, &[record("a"), huge, record("b")]).await;
        let e = out[1].as_ref().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
        assert!(e.advice().unwrap().contains("max.message.bytes"), "{e}");
        assert_eq!((out[0].as_ref().unwrap(), out[2].as_ref().unwrap()), (&0, &1));
        let mut headers = Headers::new();
        headers.push(&b"\xff"[..], None);
        let out = kafka.append(&to, &[NewRecord::new(None, None, headers)]).await;
        let e = out[0].as_ref().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied));
        let out = kafka.append(&Partition::new(site.topic(), 9), &[record("a")]).await;
        let e = out[0].as_ref().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::NotFound, Effect::NotApplied), "{e}");
        if site.mock.is_none() {
            let out = kafka.append(&Partition::new("there-is-no-such-topic", 0), &[record("a")]).await;
            let e = out[0].as_ref().unwrap_err();
            println!("{e}");
            assert_eq!((e.kind(), e.effect()), (ErrorKind::NotFound, Effect::NotApplied), "{e}");
            // Larger than the topic allows, smaller than the client does: the server says so.
            let out = kafka.append(&to, &[record("c"), record(noise(3_000_000)), record("d")]).await;
            let e = out[1].as_ref().unwrap_err();
            println!("{e}");
            assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
            assert!(out[0].is_ok() && out[2].is_ok(), "{out:?}");
            // A topic's limit is for a whole batch: many small records must not fail for being together.
            let mut tight = TopicSpec::new(format!("{}.tight", site.name));
            tight.max_record_bytes = Some(20_000);
            let to = Partition::new(tight.name.clone(), 0);
            kafka.ensure_topics(&[tight]).await.unwrap();
            let mut records: Vec<_> = (0..200).map(|_| record(vec![0; 1000])).collect();
            records[77] = record(noise(50_000));
            for (i, outcome) in kafka.append(&to, &records).await.into_iter().enumerate() {
                assert_eq!(outcome.is_ok(), i != 77, "{i}: {outcome:?}");
            }
            // Another client may have compressed what has to be copied.
            let large = record(vec![0; 50_000]);
            kafka.append(&to, std::slice::from_ref(&large)).await.remove(0).unwrap();
            let from = Position { partition: to, offset: 199 };
            let read = kafka.fetch(&from, FetchLimit::new(LONG, 100_000)).await.unwrap().records;
            assert!(read[0].value == large.value, "{:?}", read[0].offset);
        }
        kafka.close().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creations_create_each_topic_once_as_specified() {
    for site in sites("topics").into_iter().filter(|s| s.mock.is_none()) {
        let mut wait = TopicSpec::new(site.wait_topic());
        wait.partitions = Some(12);
        wait.replication = Some(1);
        wait.retention = Some(Duration::MAX);
        wait.unlimited_bytes = true;
        wait.max_record_bytes = Some(2_000_000);
        wait.append_time = true;
        let mut dead = TopicSpec::new(format!("{}.dead", site.name));
        dead.compacted = true;
        dead.retention = Some(Duration::from_secs(86_400));
        let specs = [TopicSpec::new(site.topic()), wait, dead];
        let (one, two) = (site.kafka(), site.kafka());
        let (a, b) = tokio::join!(one.ensure_topics(&specs), two.ensure_topics(&specs));
        let (a, b) = (a.unwrap(), b.unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.name, a.partitions, a.retention), (&b.name, b.partitions, b.retention));
            assert!(a.created != b.created, "exactly one created {}", a.name);
        }
        assert_eq!((a[1].partitions, a[1].retention), (12, Some(Duration::MAX)));
        assert_eq!((a[1].retention_bytes, a[1].max_record_bytes), (Some(-1), Some(2_000_000)));
        assert_eq!((a[1].append_time, a[1].compacted), (Some(true), Some(false)));
        assert_eq!((a[2].compacted, a[2].retention), (Some(true), Some(Duration::from_secs(86_400))));
        for p in 0..12 {
            one.append(&Partition::new(specs[1].name.clone(), p), &[record("x")]).await.remove(0).unwrap();
        }
        assert!(one.ensure_topics(&specs).await.unwrap().iter().all(|t| !t.created));
        let mut many = TopicSpec::new(format!("{}.many", site.name));
        many.replication = Some(3);
        let e = one.ensure_topics(&[many]).await.unwrap_err();
        println!("{e}");
        assert!(e.effect() == Effect::NotApplied && e.advice().unwrap().contains("brokers"));
        one.close().await.unwrap();
        two.close().await.unwrap();
    }
}
