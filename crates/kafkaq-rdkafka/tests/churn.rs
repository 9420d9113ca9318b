//! Members that come and go under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Reads as the driver does: commits what it has seen, on a revoke and now and then, and lets go at once.
/// Notes each record, and checks what every assignment must keep.
async fn work(
    kafka: RdKafka,
    request: JoinRequest,
    seen: Seen,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut c = kafka.join(request).await.unwrap();
    let mut done: BTreeMap<(Partition, u64), i64> = BTreeMap::new();
    let assignment =
        |(partition, epoch): &(Partition, u64)| Assignment { partition: partition.clone(), epoch: *epoch };
    let commits = |done: &BTreeMap<(Partition, u64), i64>| -> Vec<Commit> {
        done.iter().map(|(a, next)| Commit { assignment: assignment(a), offset: *next }).collect()
    };
    let member = c.member.clone();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = tick.tick() => drop(member.commit(&commits(&done)).await),
            event = event(&mut c) => match event {
                Event::Records(of, batch) => {
                    let mut seen = seen.lock().unwrap();
                    for r in &batch.records {
                        let next = done.entry((of.partition.clone(), of.epoch)).or_insert(r.offset);
                        assert_eq!(*next, r.offset, "no gap and no repetition within {of}");
                        *next += 1;
                        *seen.entry((of.partition.clone(), r.offset)).or_insert(0) += 1;
                    }
                }
                Event::Revoking(list) => {
                    let mut mine = done.clone();
                    mine.retain(|a, _| list.contains(&assignment(a)));
                    done.retain(|a, _| !list.contains(&assignment(a)));
                    commit(&*member, &commits(&mine)).await;
                    member.release(&list);
                }
                Event::Lost(list) => done.retain(|a, _| !list.contains(&assignment(a))),
                _ => {}
            }
        }
    }
    commit(&*member, &commits(&done)).await;
    kafka.close().await.unwrap();
}

type Seen = Arc<std::sync::Mutex<BTreeMap<(Partition, i64), u32>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_members_come_and_go_every_record_is_read_once() {
    on_each_site("churn", async |site| {
        let (tasks, wait) = (site.topic(), site.wait_topic());
        let site = site.with_topic(2).await.with(wait.clone(), 2).await;
        let partitions = [&tasks, &tasks, &wait, &wait].into_iter().zip([0, 1, 0, 1]);
        let partitions: Vec<_> =
            partitions.map(|(topic, index)| Partition::new(topic.clone(), index)).collect();
        let kafka = site.kafka();
        let seen = Seen::default();
        let start = || {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let mut request = site.request_for_both("g");
            // Whom the group takes for dead on a busy machine loses what it has not committed.
            request.session_timeout = Duration::from_secs(45);
            (stop, tokio::spawn(work(site.kafka(), request, seen.clone(), stopped)))
        };
        let mut written = 0;
        let mut members = vec![start()];
        for round in 1..=6 {
            if round % 3 == 0 {
                let (stop, end) = members.remove(0);
                stop.send_replace(true);
                end.await.unwrap();
            } else {
                members.push(start());
            }
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                for partition in &partitions {
                    fill(&kafka, partition, written, 20).await;
                }
                written += 20;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let end = Instant::now() + LONG;
        while seen.lock().unwrap().len() < 4 * written && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (stop, end) in members {
            stop.send_replace(true);
            end.await.unwrap();
        }
        kafka.close().await.unwrap();
        let seen = seen.lock().unwrap();
        let twice: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).map(|(at, _)| at).collect();
        println!("{} records, {} of them more than once", seen.len(), twice.len());
        assert_eq!(seen.len(), 4 * written);
        assert!(twice.is_empty(), "a two-phase revoke leaves nothing to read again: {:?}", twice.first());
    })
    .await;
}
