//! Members that come and go under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// What all members read and lost.
#[derive(Default)]
struct Seen {
    /// How often each record was read.
    times: BTreeMap<(Partition, i64), u32>,
    /// Offsets that a member had read but not committed when the group expelled it.
    lost: Vec<(Partition, Range<i64>)>,
}

impl Seen {
    /// Records that a member was expelled with these.
    fn lose(&mut self, owned: Owned) {
        let lost = owned.into_iter().filter(|(_, at)| at.committed < at.next);
        self.lost.extend(lost.map(|((partition, _), at)| (partition, at.committed..at.next)));
    }

    /// Records that were read again although no member had lost them.
    fn again(&self) -> Vec<&(Partition, i64)> {
        let lost = |(partition, offset): &(Partition, i64)| {
            self.lost.iter().any(|(of, offsets)| of == partition && offsets.contains(offset))
        };
        self.times.iter().filter(|(at, n)| **n > 1 && !lost(at)).map(|(at, _)| at).collect()
    }
}

/// A member's progress in one assignment.
struct Progress {
    committed: i64,
    next: i64,
}

type Owned = BTreeMap<(Partition, u64), Progress>;

fn assignment((partition, epoch): &(Partition, u64)) -> Assignment {
    Assignment { partition: partition.clone(), epoch: *epoch }
}

fn take(owned: &mut Owned, list: &[Assignment]) -> Owned {
    let (taken, kept) = std::mem::take(owned).into_iter().partition(|(of, _)| list.contains(&assignment(of)));
    *owned = kept;
    taken
}

/// Commits what was read. Returns whether another attempt may help.
async fn commit(member: &dyn Member, owned: &mut Owned) -> bool {
    let commits: Vec<_> =
        owned.iter().map(|(of, at)| Commit { assignment: assignment(of), offset: at.next }).collect();
    let mut may_help = false;
    for (at, outcome) in owned.values_mut().zip(member.commit(&commits).await) {
        match outcome {
            Ok(()) => at.committed = at.next,
            Err(e) => may_help |= e.retry() == Retry::Yes,
        }
    }
    may_help
}

/// Repeats that until it succeeds or the group has expelled the member.
async fn commit_all(member: &dyn Member, owned: &mut Owned) {
    let end = Instant::now() + LONG;
    while commit(member, owned).await {
        assert!(Instant::now() < end, "a commit was refused for {LONG:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads as the driver does: commits what it has seen, on a revoke and now and then, and releases at once. Notes each
/// record, and checks what every assignment must keep.
async fn work(
    kafka: RdKafka,
    request: JoinRequest,
    seen: Arc<Mutex<Seen>>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut c = kafka.join(request).await.unwrap();
    let mut owned = Owned::new();
    let member = c.member.clone();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = tick.tick() => drop(commit(&*member, &mut owned).await),
            event = event(&mut c) => match event {
                Event::Records(of, batch) => {
                    let mut seen = seen.lock().unwrap();
                    for r in &batch.records {
                        let first = Progress { committed: r.offset, next: r.offset };
                        let at = owned.entry((of.partition.clone(), of.epoch)).or_insert(first);
                        assert_eq!(at.next, r.offset, "no gap and no repetition within {of}");
                        at.next += 1;
                        *seen.times.entry((of.partition.clone(), r.offset)).or_insert(0) += 1;
                    }
                }
                Event::Revoking(list) => {
                    let mut revoked = take(&mut owned, &list);
                    commit_all(&*member, &mut revoked).await;
                    member.release(&list);
                    // What could not be committed is lost, as an event will report.
                    revoked.retain(|_, at| at.committed < at.next);
                    owned.append(&mut revoked);
                }
                Event::Lost(list) => seen.lock().unwrap().lose(take(&mut owned, &list)),
                _ => {}
            }
        }
    }
    commit_all(&*member, &mut owned).await;
    // Only an event says that the group has expelled the member: a refusal without one is a fault.
    owned.retain(|_, at| at.committed < at.next);
    while !owned.is_empty() {
        match event(&mut c).await {
            Event::Lost(list) => seen.lock().unwrap().lose(take(&mut owned, &list)),
            Event::Revoking(list) => member.release(&list),
            _ => {}
        }
    }
    kafka.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_members_come_and_go_every_record_is_read_once() {
    on_each_site("churn", async |site| {
        let (tasks, wait) = (site.topic(), site.wait_topic());
        let site = site.with_topic(2).await.with(wait.clone(), 2).await;
        let partitions = [&tasks, &tasks, &wait, &wait].into_iter().zip([0, 1, 0, 1]);
        let partitions: Vec<_> =
            partitions.map(|(topic, index)| Partition::new(topic.clone(), index)).collect();
        let kafka = site.kafka();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let start = || {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let mut request = site.request_for_both("g");
            // A member that the group expels, as it does on a busy machine, loses what it has not committed.
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
        while seen.lock().unwrap().times.len() < 4 * written && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (stop, end) in members {
            stop.send_replace(true);
            end.await.unwrap();
        }
        kafka.close().await.unwrap();
        let seen = seen.lock().unwrap();
        let again = seen.again();
        println!("{} records, lost on the way: {:?}", seen.times.len(), seen.lost);
        assert_eq!(seen.times.len(), 4 * written);
        assert!(again.is_empty(), "a two-phase revoke leaves nothing to read again: {:?}", again.first());
    })
    .await;
}
