//! Descriptions of topics and of their ends, on the server that `KAFKAQ_TEST_KAFKA=host:port` names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_of_each_topic_is_reported() {
    for site in sites("retention").into_iter().filter(|site| site.mock.is_none()).take(1) {
        let kafka = site.kafka();
        let day = Duration::from_secs(24 * 3600);
        let limits = [(Some(day), false), (Some(Duration::MAX), true), (None, false)];
        let specs = limits.iter().enumerate().map(|(n, (retention, unlimited))| {
            let mut spec = TopicSpec::new(format!("{}-{n}", site.name));
            (spec.partitions, spec.retention, spec.unlimited_bytes) = (Some(1), *retention, *unlimited);
            spec
        });
        let specs: Vec<_> = specs.collect();
        let made = kafka.ensure_topics(&specs).await.unwrap();
        let mut names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        names.insert(1, format!("{}-missing", site.name).into());
        let mut seen = kafka.describe_topics(&names).await.unwrap();
        assert_eq!(seen.remove(1), None);
        for (of, (retention, _)) in limits.into_iter().enumerate() {
            for info in [&made[of], seen[of].as_ref().unwrap()] {
                assert_eq!(info.name, specs[of].name);
                // Kafka's own default is a week, and no limit by size.
                assert_eq!(info.retention, Some(retention.unwrap_or(7 * day)), "{info:?}");
                assert_eq!(info.retention_bytes, Some(-1), "{info:?}");
                assert_eq!(info.compacted, Some(false), "{info:?}");
            }
        }
        kafka.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_a_group_report_its_lag() {
    const ALL: i64 = 200;
    on_each_site("lag", async |site| {
        let site = site.with_topic(1).await;
        let often = RdKafka::builder(&site.bootstrap).group_protocol(site.protocol);
        let kafka = often.set_consumer("statistics.interval.ms", "100").build().unwrap();
        let of = Partition::new(site.topic(), 0);
        let mut request = site.request("g");
        request.max_batch = 1;
        let mut consumer = kafka.join(request).await.unwrap();
        let mine = assigned(&mut consumer, 1).await;
        consumer.member.pause(&mine);
        fill(&kafka, &of, 0, usize::try_from(ALL).unwrap()).await;
        // Until the client has seen and reported them.
        let limit = Instant::now() + LONG;
        loop {
            consumer.member.resume(&mine);
            let Event::Records(_, batch) = next(&mut consumer).await else { continue };
            assert!(batch.end.is_none_or(|end| batch.next <= end && end <= ALL), "{batch:?}");
            if batch.end == Some(ALL) && batch.next < ALL {
                break;
            }
            consumer.member.pause(&mine);
            assert!(Instant::now() < limit && batch.next < ALL, "{batch:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        kafka.close().await.unwrap();
    })
    .await;
}
