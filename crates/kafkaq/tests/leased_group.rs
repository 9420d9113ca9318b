//! The rules of a consumer group over a log without one, on the log and the store in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod leased;

use futures_util::StreamExt;
use kafkaq::{
    LeasedGroup, Queue, Task,
    memory::{MemoryLog, MemoryStore},
};
use kafkaq_core::{
    Broker, Commit, Consumer, ErrorKind, Event, JoinRequest, Key, LeaseStore, Log, Partition, Swap,
};
use leased::{View, append, join, memory_log};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep, timeout};

const TIMEOUT: Duration = Duration::from_millis(1000);
const PATIENCE: Duration = Duration::from_secs(90);

fn group(log: &MemoryLog, store: &MemoryStore) -> LeasedGroup {
    LeasedGroup::new(log.clone(), store.clone())
        .with_member_timeout(TIMEOUT)
        .with_checkpoint_every(Duration::from_millis(100))
}

async fn next(consumer: &mut Consumer) -> Event {
    timeout(PATIENCE, consumer.events.next()).await.expect("it hangs").expect("it has ended").unwrap()
}

/// Returns how long it took, in steps that this task has slept: a machine that is suspended takes one of them.
async fn until(what: &str, check: impl Fn() -> bool) -> Duration {
    const STEP: Duration = Duration::from_millis(5);
    let (begin, mut steps) = (Instant::now(), 0);
    while !check() {
        assert!(begin.elapsed() < PATIENCE, "{what} does not happen");
        sleep(STEP).await;
        steps += 1;
    }
    STEP * steps
}

#[tokio::test(start_paused = true)]
async fn members_share_the_partitions_and_a_record_is_picked_up_at_once() {
    let (log, store) = (memory_log(6).await, MemoryStore::new());
    let group = group(&log, &store);
    let a = View::watch(join(&group, 1).await);
    until("the first member has all", || a.held() == 6).await;
    let b = View::watch(join(&group, 2).await);
    let c = View::watch(join(&group, 3).await);
    until("an equal share", || [&a, &b, &c].map(View::held) == [2, 2, 2]).await;
    sleep(Duration::from_millis(700)).await;
    for index in 0..6 {
        let begin = Instant::now();
        append(&log, index, [index as u64]).await;
        let arrived = || [&a, &b, &c].into_iter().find_map(|view| view.read_at(index as u64));
        until("the record arrives", || arrived().is_some()).await;
        let latency = arrived().unwrap() - begin;
        assert!(latency < Duration::from_millis(20), "{latency:?}");
    }
}

/// A killed process says nothing more, neither to the store nor to the log.
#[test]
fn a_killed_member_is_replaced_within_the_timeout_and_nothing_is_lost() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mine, theirs) = (runtime(), runtime());
    mine.block_on(async {
        let (log, store) = (memory_log(4).await, MemoryStore::new());
        let (there, its_log, its_store) = (theirs.handle().clone(), log.clone(), store.clone());
        let dying = async move { View::watch(join(&group(&its_log, &its_store), 1).await) };
        let a = there.spawn(dying).await.unwrap();
        let b = View::watch(join(&group(&log, &store), 2).await);
        until("an equal share", || [&a, &b].map(View::held) == [2, 2]).await;
        // Each value is that of one record of one partition.
        let values = |index: u64, of: std::ops::Range<u64>| of.map(move |n| 100 * index + n);
        for index in 0..4 {
            append(&log, index as i32, values(index, 0..10)).await;
        }
        theirs.shutdown_background();
        for index in 0..4 {
            append(&log, index as i32, values(index, 10..20)).await;
        }
        let took = until("the other takes over", || b.held() == 4).await;
        assert!(took < TIMEOUT + Duration::from_secs(1), "{took:?}");
        let all: BTreeSet<_> = (0..4).flat_map(|index| values(index, 0..20)).collect();
        let seen = || BTreeSet::from_iter([&a, &b].map(View::values).concat());
        until("everything is read", || seen() == all).await;
    });
}

#[tokio::test(start_paused = true)]
async fn leaving_member_is_replaced_at_once_and_reading_continues_at_its_commit() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    let group = group(&log, &store);
    append(&log, 0, 0..5).await;
    let mut a = join(&group, 1).await;
    assert!(matches!(next(&mut a).await, Event::Assigned(_)));
    let Event::Records(assignment, batch) = next(&mut a).await else { panic!("no records") };
    assert_eq!(batch.next, 5);
    let outcome = a.member.commit(&[Commit { assignment: assignment.clone(), offset: 3 }]).await;
    outcome.into_iter().for_each(|o| o.unwrap());
    a.member.leave().await.unwrap();
    assert!(timeout(PATIENCE, a.events.next()).await.unwrap().is_none(), "the stream ends");
    let late = a.member.commit(&[Commit { assignment, offset: 5 }]).await.remove(0).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotOwner);
    let begin = Instant::now();
    let mut b = join(&group, 2).await;
    assert!(matches!(next(&mut b).await, Event::Assigned(_)));
    assert!(begin.elapsed() < TIMEOUT / 2, "{:?}", begin.elapsed());
    let Event::Records(_, batch) = next(&mut b).await else { panic!("no records") };
    assert_eq!(batch.records[0].offset, 3);
}

#[tokio::test(start_paused = true)]
async fn wiped_store_does_not_restart_the_group_from_the_beginning() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    append(&log, 0, 0..5).await;
    let old = group(&log, &store);
    let a = View::watch(join(&old, 1).await);
    until("all is read", || a.values().len() == 5).await;
    sleep(Duration::from_millis(400)).await;
    old.close().await.unwrap();
    // A new store: nothing of the old one is left.
    let mut b = join(&group(&log, &MemoryStore::new()), 2).await;
    assert!(matches!(next(&mut b).await, Event::Assigned(_)));
    append(&log, 0, [5]).await;
    let Event::Records(_, batch) = next(&mut b).await else { panic!("no records") };
    assert_eq!(batch.records[0].offset, 5);
}

#[tokio::test(start_paused = true)]
async fn running_member_restores_its_state_in_a_wiped_store() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    append(&log, 0, 0..5).await;
    let a = View::watch(join(&group(&log, &store), 1).await);
    until("all is read", || a.values().len() == 5).await;
    let key = Key::partition("g", &Partition::new("t", 0));
    loop {
        let there = store.get(std::slice::from_ref(&key)).await.remove(0).unwrap();
        let gone = store.swap(&[Swap::new(key.clone(), there, None, None)]).await.remove(0).unwrap();
        if gone == kafkaq_core::Swapped::Done {
            break;
        }
    }
    sleep(TIMEOUT * 2).await;
    append(&log, 0, 5..7).await;
    until("reading continues", || a.values().len() == 7).await;
    let there = store.get(std::slice::from_ref(&key)).await.remove(0).unwrap();
    assert!(there.is_some());
}

#[tokio::test(start_paused = true)]
async fn recreated_topic_is_read_from_its_first_record() {
    let (old, store) = (memory_log(1).await, MemoryStore::new());
    append(&old, 0, 0..5).await;
    let first = group(&old, &store);
    let a = View::watch(join(&first, 1).await);
    until("all is read", || a.values().len() == 5).await;
    first.close().await.unwrap();
    let new = memory_log(1).await;
    append(&new, 0, 100..110).await;
    let b = View::watch(join(&group(&new, &store), 2).await);
    until("all of the new topic is read", || b.values().len() == 10).await;
}

#[tokio::test(start_paused = true)]
async fn paused_partition_returns_nothing_and_resumes_in_place() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    let mut a = join(&group(&log, &store), 1).await;
    let Event::Assigned(mine) = next(&mut a).await else { panic!("not assigned") };
    a.member.pause(&mine);
    append(&log, 0, 0..5).await;
    assert!(timeout(Duration::from_millis(300), a.events.next()).await.is_err());
    a.member.resume(&mine);
    let Event::Records(_, batch) = next(&mut a).await else { panic!("no records") };
    assert_eq!(batch.records[0].offset, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_no_more_records_than_asked_for() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    append(&log, 0, 0..10).await;
    let mut request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
    request.max_batch = 4;
    let mut a = group(&log, &store).join(request).await.unwrap();
    assert!(matches!(next(&mut a).await, Event::Assigned(_)));
    let mut told = Vec::new();
    while told.len() < 3 {
        let Event::Records(_, batch) = next(&mut a).await else { panic!("no records") };
        told.push((batch.records.len(), batch.next));
    }
    assert_eq!(told, [(4, 4), (4, 8), (2, 10)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_leaves() {
    let (log, store) = (memory_log(1).await, MemoryStore::new());
    let group = group(&log, &store);
    let mut a = join(&group, 1).await;
    assert!(matches!(next(&mut a).await, Event::Assigned(_)));
    drop(a);
    let begin = Instant::now();
    let mut b = join(&group, 2).await;
    assert!(matches!(next(&mut b).await, Event::Assigned(_)));
    assert!(begin.elapsed() < TIMEOUT / 2, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn queue_works_on_a_log_without_groups_and_across_a_restart() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = || Queue::builder("emails").log(log.clone()).store(store.clone()).partitions(3).build();
    let first = queue().await.unwrap();
    for n in 0..20 {
        first.publish(Task::new(n.to_string())).await.unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        let job = timeout(PATIENCE, first.get_job()).await.unwrap().unwrap();
        assert!(seen.insert(job.payload().to_vec()));
        job.done().await.unwrap();
    }
    first.shutdown(Duration::from_secs(5)).await.unwrap();
    let second = queue().await.unwrap();
    for _ in 0..10 {
        let job = timeout(PATIENCE, second.get_job()).await.unwrap().unwrap();
        assert!(seen.insert(job.payload().to_vec()), "a task was run twice");
        job.done().await.unwrap();
    }
    assert!(timeout(Duration::from_millis(300), second.get_job()).await.is_err());
    second.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_queue_on_a_log_without_groups_takes_virtual_time() {
    let minute = Duration::from_secs(60);
    let queue = Queue::builder("emails").log(MemoryLog::new()).store(MemoryStore::new()).partitions(1);
    let queue = queue.build().await.unwrap();
    let published = Instant::now();
    queue.publish(Task::new("in a minute").with_delay(minute)).await.unwrap();
    queue.get_job().await.unwrap().done().await.unwrap();
    let took = published.elapsed();
    assert!((minute..minute + Duration::from_secs(2)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_log_needs_a_store_and_no_broker() {
    let alone = Queue::builder("q").log(MemoryLog::new()).build().await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::Invalid);
    let both = Queue::builder("q").log(MemoryLog::new()).broker(MemoryLog::new()).store(MemoryStore::new());
    assert_eq!(both.build().await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn invalid_member_timeout_is_refused() {
    let queue = || Queue::builder("q").store(MemoryStore::new());
    let of = |e: kafkaq::Error| (e.kind(), e.to_string());
    let short = queue().log(MemoryLog::new()).member_timeout(Duration::from_millis(100)).build().await;
    let (kind, text) = of(short.unwrap_err());
    assert!(kind == ErrorKind::Invalid && text.contains("member_timeout 100ms"), "{text}");
    let group = LeasedGroup::new(MemoryLog::new(), MemoryStore::new()).with_member_timeout(Duration::ZERO);
    let refused = group.join(JoinRequest::new("g", vec!["t".into()], [1; 16])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

/// The dead process is a task whose runtime is gone; the other must take its partitions after exactly this timeout.
#[test]
fn the_member_timeout_of_a_queue_is_the_groups() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mine, theirs) = (runtime(), runtime());
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let build = |timeout: u64| {
        Queue::builder("emails")
            .log(log.clone())
            .store(store.clone())
            .partitions(2)
            .member_timeout(Duration::from_secs(timeout))
            .build()
    };
    let dead = theirs.block_on(build(4)).unwrap();
    theirs.block_on(dead.publish(Task::new("a"))).unwrap();
    theirs
        .block_on(async { timeout(PATIENCE, dead.get_job()).await.unwrap().unwrap().done().await.unwrap() });
    // Its last sign of life is only slightly older.
    let begin = Instant::now();
    theirs.shutdown_background();
    mine.block_on(async {
        let queue = build(4).await.unwrap();
        for n in 0..20 {
            queue.publish(Task::new(n.to_string())).await.unwrap();
        }
        for _ in 0..20 {
            timeout(PATIENCE, queue.get_job()).await.expect("no takeover").unwrap().done().await.unwrap();
        }
        assert!(begin.elapsed() > Duration::from_secs(1), "the dead one's partitions were taken too soon");
        queue.shutdown(Duration::from_secs(5)).await.unwrap();
    });
}
