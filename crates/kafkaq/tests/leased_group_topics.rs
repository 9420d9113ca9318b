//! A consumer group over a log without one, when topics are deleted, recreated, truncated, and lose their beginning.
//! Everything in the current log is read, and the operator is alerted once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod leased;

use futures_util::StreamExt;
use kafkaq::{LeasedGroup, Queue, memory::MemoryLog};
use kafkaq_core::{Broker, Commit, ErrorKind, Event, JoinRequest, Log, Partition, Retry, TopicSpec};
use leased::*;
use std::{sync::atomic::Ordering::SeqCst, time::Duration};
use tokio::time::{Instant, sleep};

const CHECK: Duration = Duration::from_secs(11);

async fn create(log: &MemoryLog, partitions: i32) {
    let mut topic = TopicSpec::new("t");
    topic.partitions = Some(partitions);
    log.ensure_topics(&[topic]).await.unwrap();
}

/// A member that has read and committed five records.
async fn five_read() -> (Faulty, Store, LeasedGroup, View) {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    append(&log, 0, 0..5).await;
    within(SEC, "it reads", || view.values().len() == 5).await;
    (log, store, first, view)
}

/// Returns how often the next member reports this, and what it reads.
async fn read_by_the_next(log: &Faulty, store: &Store, told: &str) -> (usize, Vec<u64>) {
    let next = group(log, store);
    let view = View::watch(join(&next, 2).await);
    within(SEC * 3, "it starts", || view.held() == 1).await;
    sleep(SEC).await;
    next.close().await.unwrap();
    (view.told(told), view.values())
}

#[tokio::test(start_paused = true)]
async fn a_recreated_topic_is_read_whole_whatever_its_length_and_however_long_it_was_gone() {
    for gone in [0, 1, 5, 15] {
        for length in [1, 5, 40] {
            let (log, _store, _group, view) = five_read().await;
            sleep(SEC * 3).await;
            log.now().delete_topic("t").unwrap();
            sleep(SEC * gone).await;
            create(&log.now(), 1).await;
            append(&log, 0, 100..100 + length).await;
            let what = format!("gone for {gone} s, {length} records");
            within(CHECK, &what, || (100..100 + length).all(|n| view.has(n))).await;
            sleep(SEC * 30).await;
            append(&log, 0, [200]).await;
            within(SEC, &what, || view.has(200)).await;
            // A reader that could not notice the deletion reads some records twice.
            let twice = if gone == 0 { length.saturating_sub(5) } else { 0 };
            assert_eq!(view.values().len() as u64, 5 + length + twice + 1, "{what}: {:?}", view.values());
            assert_eq!(view.told("recreated or truncated"), 1, "{what}: {:?}", view.0.lock().unwrap().errors);
        }
    }
}

/// Nothing fails and nothing pauses: the reader continues in the new topic at the old position, until the next check.
#[tokio::test(start_paused = true)]
async fn a_recreated_topic_that_outruns_the_check_is_read_whole_after_it() {
    for checked in [false, true] {
        let (log, _store, _group, view) = five_read().await;
        if checked {
            sleep(CHECK).await;
        }
        let anew = memory_log(1).await;
        append(&anew, 0, 100..120).await;
        log.replace(anew);
        within(SEC, "it reads on", || view.has(119)).await;
        assert!(!view.has(100), "it doesn't know yet");
        within(CHECK, "all of the new topic", || (100..120).all(|n| view.has(n))).await;
        assert_eq!(view.told("recreated or truncated"), 1, "{:?}", view.0.lock().unwrap().errors);
    }
}

/// Judging by the record before it, its commit belongs to the new topic. The anchor shows that it doesn't.
#[tokio::test(start_paused = true)]
async fn nothing_of_an_earlier_topic_counts_for_a_later_one_if_the_process_dies_before_its_check() {
    for checked in [false, true] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let (dying_log, dying_store) = (log.other(), store.other());
        let dying = group(&dying_log, &dying_store);
        let view = View::watch(join(&dying, 1).await);
        append(&log, 0, 0..5).await;
        within(SEC, "it reads", || view.values().len() == 5).await;
        if checked {
            sleep(CHECK).await;
        }
        let anew = memory_log(1).await;
        append(&anew, 0, 100..120).await;
        log.replace(anew);
        within(SEC, "it reads on", || view.has(119)).await;
        sleep(SEC).await;
        dying_store.set_away(true);
        dying_log.next_calls("fetch", Trouble::Hangs, u32::MAX);
        let view = View::watch(join(&group(&log, &store), 2).await);
        within(TIMEOUT + SEC * 5, "all is read", || (100..120).all(|n| view.has(n))).await;
        assert_eq!(view.values(), (100..120).collect::<Vec<_>>(), "checked: {checked}");
        assert_eq!(view.told("recreated or truncated"), 1);
    }
}

/// No record can show it, only where the log began.
#[tokio::test(start_paused = true)]
async fn a_topic_recreated_before_anything_of_it_was_read_is_read_whole() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    log.now().delete_records(&partition(0), 5).unwrap();
    let view = View::watch(join(&group(&log, &store), 1).await);
    within(SEC, "it starts", || view.held() == 1).await;
    sleep(SEC * 3).await;
    let anew = memory_log(1).await;
    append(&anew, 0, 100..120).await;
    log.replace(anew);
    within(CHECK, "all of the new topic", || (100..120).all(|n| view.has(n))).await;
    assert_eq!(view.values(), (100..120).collect::<Vec<_>>(), "nothing of it before that");
}

#[tokio::test(start_paused = true)]
async fn truncated_log_is_read_again_at_the_latest_from_the_truncation() {
    for (end, grown) in [(3, 0), (3, 1), (3, 20), (0, 2)] {
        let (log, _store, _group, view) = five_read().await;
        // Not below what was committed, so that it is the reader that has to notice.
        log.now().truncate(&partition(0), end).unwrap();
        append(&log, 0, 100..100 + grown).await;
        let all = || (100..100 + grown).all(|n| view.has(n));
        within(CHECK, &format!("cut at {end}, grown by {grown}"), || {
            all() && view.told("recreated or truncated") > 0
        })
        .await;
    }
}

/// A consumer that is slow or has paused gives its reader nothing to do for a while.
#[tokio::test(start_paused = true)]
async fn recreated_topic_is_noticed_while_the_stream_is_not_polled() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let mut request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
    request.max_batch = 2;
    let mut member = group(&log, &store).join(request).await.unwrap();
    let Some(Ok(Event::Assigned(mine))) = member.events.next().await else { panic!("not assigned") };
    member.member.pause(&mine);
    sleep(SEC * 2).await;
    let anew = memory_log(1).await;
    append(&anew, 0, 100..120).await;
    log.replace(anew);
    let begin = Instant::now();
    let alarm = member.events.next().await.unwrap().unwrap_err();
    assert!(begin.elapsed() < CHECK && alarm.to_string().contains("recreated or truncated"), "{alarm}");
    assert_eq!(alarm.retry(), Retry::Yes);
    assert!(matches!(member.events.next().await, Some(Ok(Event::Lost(of))) if of == mine));
    let late = Commit { assignment: mine[0].clone(), offset: 5 };
    let late = member.member.commit(&[late]).await.remove(0).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotOwner);
    let Some(Ok(Event::Assigned(again))) = member.events.next().await else { panic!("not assigned") };
    assert!(again[0].epoch > mine[0].epoch);
    let Some(Ok(Event::Records(_, batch))) = member.events.next().await else { panic!("no records") };
    assert_eq!(value(&batch.records[0]), 100);
}

#[tokio::test(start_paused = true)]
async fn empty_response_moves_nothing_and_is_not_a_replaced_topic() {
    for empty in [1, 2, 3, 5, 8] {
        let (log, store, first, view) = five_read().await;
        // While it reads, and at a check.
        log.empty.store(empty, SeqCst);
        append(&log, 0, 5..8).await;
        sleep(CHECK).await;
        log.empty.store(empty, SeqCst);
        sleep(CHECK).await;
        append(&log, 0, 8..10).await;
        sleep(SEC * 10).await;
        assert_eq!(view.values(), (0..10).collect::<Vec<_>>(), "{empty} empty answers");
        assert_eq!(view.errors(), 0, "{:?}", view.0.lock().unwrap().errors);
        first.close().await.unwrap();
        // Where it looks for its start, with and without what the store remembers.
        for wiped in [false, true] {
            append(&log, 0, [if wiped { 11 } else { 10 }]).await;
            if wiped {
                store.inner.clear();
            }
            log.empty.store(empty, SeqCst);
            let next = group(&log, &store);
            let view = View::watch(join(&next, 2).await);
            within(SEC * 30, "it reads", || !view.values().is_empty()).await;
            sleep(SEC).await;
            assert_eq!(view.values(), [if wiped { 11 } else { 10 }], "{empty} empty answers, wiped: {wiped}");
            next.close().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn records_deleted_unread_are_reported_with_their_number_and_reading_continues() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let (first, mut request) = (group(&log, &store), JoinRequest::new("g", vec!["t".into()], [1; 16]));
    request.max_batch = 1;
    let mut member = first.join(request).await.unwrap();
    append(&log, 0, 0..3).await;
    let Some(Ok(Event::Assigned(mine))) = member.events.next().await else { panic!("not assigned") };
    for n in 0..3 {
        let Some(Ok(Event::Records(_, batch))) = member.events.next().await else { panic!("no records") };
        assert_eq!(value(&batch.records[0]), n);
    }
    // One batch waits, and one is read ahead; the rest is gone before it is read.
    member.member.pause(&mine);
    append(&log, 0, [3]).await;
    sleep(SEC).await;
    append(&log, 0, [4]).await;
    sleep(SEC).await;
    append(&log, 0, 5..20).await;
    log.now().delete_records(&partition(0), 12).unwrap();
    member.member.resume(&mine);
    let mut values = Vec::new();
    let mut alarms = Vec::new();
    while values.last() != Some(&19) {
        match member.events.next().await.unwrap() {
            Ok(Event::Records(assignment, batch)) => {
                values.extend(batch.records.iter().map(value));
                let commit = Commit { assignment, offset: batch.next };
                member.member.commit(&[commit]).await.remove(0).unwrap();
            }
            Ok(other) => panic!("{other:?}"),
            Err(alarm) => alarms.push(alarm),
        }
    }
    assert_eq!(values, (3..5).chain(12..20).collect::<Vec<_>>());
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert!(alarms[0].to_string().contains("7 records were deleted unread"), "{}", alarms[0]);
    first.close().await.unwrap();

    append(&log, 0, 20..30).await;
    log.now().delete_records(&partition(0), 25).unwrap();
    let next = async || read_by_the_next(&log, &store, "5 records were deleted unread").await;
    assert_eq!(next().await, (1, (25..30).collect()));
    assert_eq!(next().await, (0, vec![]), "reported once");
}

#[tokio::test(start_paused = true)]
async fn records_deleted_unread_are_reported_once_even_if_nothing_is_left_to_read() {
    let (log, store, first, _view) = five_read().await;
    first.close().await.unwrap();
    append(&log, 0, 5..8).await;
    log.now().delete_records(&partition(0), 8).unwrap();
    let next = async || read_by_the_next(&log, &store, "3 records were deleted unread").await;
    assert_eq!(next().await, (1, vec![]));
    assert_eq!(next().await, (0, vec![]), "reported once");
}

#[tokio::test(start_paused = true)]
async fn deleted_topic_is_reported_not_recreated_and_read_when_it_returns() {
    let (log, _store, _group, view) = five_read().await;
    log.now().delete_topic("t").unwrap();
    within(SEC * 12, "its partitions are lost", || view.held() == 0).await;
    assert_eq!(view.told("The topic was deleted"), 1, "{:?}", view.0.lock().unwrap().errors);
    sleep(SEC * 121).await;
    assert_eq!(view.told("The topic was deleted"), 3, "once per minute");
    assert!(log.now().describe_topics(&["t".into()]).await.unwrap()[0].is_none(), "nobody has recreated it");
    assert!(log.made.lock().unwrap().iter().all(|topic| *topic.name == *"g.cursors"));
    create(&log.now(), 3).await;
    append(&log, 2, [100]).await;
    within(SEC * 3, "it is back", || view.held() == 3 && view.has(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_missing_at_first_is_told_and_read_when_it_is_there() {
    let (log, store) = (Faulty::new(MemoryLog::new()), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    within(SEC, "it is reported", || view.told("The topic was deleted") == 1).await;
    create(&log.now(), 2).await;
    append(&log, 1, [7]).await;
    within(SEC * 12, "it is read", || view.held() == 2 && view.has(7)).await;
}

/// A broker that has just started may not know all topics yet.
#[tokio::test(start_paused = true)]
async fn topic_that_is_missing_once_is_not_lost() {
    let (log, _store, _group, view) = five_read().await;
    log.forget_once.store(true, SeqCst);
    within(SEC * 12, "it is overlooked", || !log.forget_once.load(SeqCst)).await;
    sleep(SEC * 12).await;
    assert_eq!((view.held(), view.errors(), view.last("lost")), (1, 0, None));
}

#[tokio::test(start_paused = true)]
async fn the_topic_of_the_checkpoints_is_made_again_when_it_is_missing() {
    let (log, _store, _group, view) = five_read().await;
    log.now().delete_topic("g.cursors").unwrap();
    sleep(SEC * 12).await;
    append(&log, 0, [5]).await;
    within(SEC, "it reads on", || view.has(5)).await;
    sleep(SEC * 8).await;
    assert_eq!(kept(&log).await, Some(6));
    let made = log.made.lock().unwrap().clone();
    assert_eq!(made.len(), 2, "at join, and again: {made:?}");
}

#[tokio::test(start_paused = true)]
async fn all_topics_of_a_queue_are_created_with_its_replication() {
    let (log, store) = (Faulty::new(MemoryLog::new()), Store::default());
    let queue = Queue::builder("q").log(log.clone()).store(store).replication(3).build().await.unwrap();
    // It joins its group.
    assert!(queue.try_get_job().unwrap().is_none());
    let made = || log.made.lock().unwrap().iter().map(|t| t.name.to_string()).collect::<Vec<_>>();
    within(SEC, "it joins", || made().iter().any(|name| name.ends_with(".cursors"))).await;
    for topic in &*log.made.lock().unwrap() {
        assert_eq!(topic.replication, Some(3), "{topic:?}");
    }
    queue.shutdown(SEC).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn partitions_that_are_added_are_read_within_ten_seconds() {
    let (log, _store, _group, view) = five_read().await;
    for (n, partitions) in [2, 5].into_iter().enumerate() {
        sleep(Duration::from_millis(1234)).await;
        let larger = memory_log(partitions).await;
        append(&larger, 0, 0..5).await;
        append(&larger, partitions - 1, [10 + n as u64]).await;
        log.replace(larger);
        within(Duration::from_millis(10_100), "it is read", || view.has(10 + n as u64)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn reassigned_partition_is_lost_and_returns_at_its_commit_under_a_higher_epoch() {
    let (log, store) = (Faulty::new(memory_log(2).await), Store::default());
    append(&log, 0, 0..5).await;
    let mut member = join(&group(&log, &store), 1).await;
    let mut mine = Vec::new();
    while mine.len() < 2 {
        match member.events.next().await.unwrap().unwrap() {
            Event::Assigned(more) => mine.extend(more),
            other => panic!("{other:?}"),
        }
    }
    mine.sort_by_key(|a| a.partition.index);
    let Some(Ok(Event::Records(_, batch))) = member.events.next().await else { panic!("no records") };
    assert_eq!(batch.next, 5);
    let commit = |epoch, offset| {
        let assignment = kafkaq_core::Assignment { epoch, ..mine[0].clone() };
        let member = member.member.clone();
        async move { member.commit(&[Commit { assignment, offset }]).await.remove(0) }
    };
    commit(mine[0].epoch, 3).await.unwrap();
    member.member.reassign(&mine[..1]);
    assert!(matches!(member.events.next().await, Some(Ok(Event::Lost(of))) if of == mine[..1]));
    assert_eq!(commit(mine[0].epoch, 5).await.unwrap_err().kind(), ErrorKind::NotOwner);
    let Some(Ok(Event::Assigned(again))) = member.events.next().await else { panic!("not assigned") };
    assert_eq!(again.len(), 1);
    assert!(again[0].partition == mine[0].partition && again[0].epoch > mine[0].epoch);
    let Some(Ok(Event::Records(of, batch))) = member.events.next().await else { panic!("no records") };
    assert_eq!((of, value(&batch.records[0])), (again[0].clone(), 3));
    // A late call for the earlier assignment has no effect.
    member.member.reassign(&mine[..1]);
    member.member.pause(&mine[..1]);
    member.member.release(&mine[..1]);
    append(&log, 0, [5]).await;
    assert!(matches!(member.events.next().await, Some(Ok(Event::Records(of, _))) if of == again[0]));
    commit(again[0].epoch, 6).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_is_replaced_after_the_session_timeout_of_its_request() {
    for (set, expected) in [(None, 3), (Some(6), 6)] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let dying_store = store.other();
        let group = |store: &Store| {
            let group = LeasedGroup::new(log.clone(), store.clone());
            match set {
                Some(timeout) => group.with_member_timeout(SEC * timeout),
                None => group,
            }
        };
        let request = |member| {
            let mut request = JoinRequest::new("g", vec!["t".into()], [member; 16]);
            request.session_timeout = SEC * 3;
            request
        };
        let dead = View::watch(group(&dying_store).join(request(1)).await.unwrap());
        within(SEC, "it has all", || dead.held() == 1).await;
        let view = View::watch(group(&store).join(request(2)).await.unwrap());
        sleep(SEC * 5).await;
        dying_store.set_away(true);
        let begin = Instant::now();
        within(SEC * 20, "the other has all", || view.held() == 1).await;
        let (took, expected) = (begin.elapsed(), SEC * expected);
        assert!(took > expected / 10 * 8 && took < expected / 10 * 12, "{took:?} instead of {expected:?}");
    }
}

/// It doesn't wait for the next check: by then it could no longer be detected.
#[tokio::test(start_paused = true)]
async fn records_deleted_ahead_of_a_reader_that_keeps_up_are_reported() {
    let (log, _store, _group, view) = five_read().await;
    append(&log, 0, 5..20).await;
    log.now().delete_records(&partition(0), 12).unwrap();
    within(SEC, "the rest is read", || view.has(19)).await;
    assert_eq!(view.values(), (0..5).chain(12..20).collect::<Vec<_>>());
    assert_eq!(view.told("7 records were deleted unread"), 1, "{:?}", view.0.lock().unwrap().errors);
}

#[tokio::test(start_paused = true)]
async fn retention_that_follows_the_reader_is_no_alarm() {
    let (log, store, first, view) = five_read().await;
    for n in 1..20 {
        log.now().delete_records(&Partition::new("t", 0), n * 5).unwrap();
        sleep(SEC * 2).await;
        append(&log, 0, (n as u64 * 5)..(n as u64 * 5 + 5)).await;
        within(SEC, "it reads on", || view.has(n as u64 * 5 + 4)).await;
    }
    first.close().await.unwrap();
    log.now().delete_records(&Partition::new("t", 0), 100).unwrap();
    let view = View::watch(join(&group(&log, &store), 2).await);
    append(&log, 0, [100]).await;
    within(SEC, "it continues", || view.has(100)).await;
    assert_eq!((view.values(), view.errors()), (vec![100], 0));
}
