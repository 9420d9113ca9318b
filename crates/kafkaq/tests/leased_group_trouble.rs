//! A consumer group over a log without one, when its backends fail, forget, panic and hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod leased;

use futures_util::StreamExt;
use kafkaq_core::{Commit, Consumer, ErrorKind, Event, Key, LeaseStore, Log, Swap};
use leased::*;
use std::{sync::atomic::Ordering::SeqCst, time::Duration};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn store_outage_of_half_a_minute_stops_the_group_and_loses_nothing() {
    let (log, store) = (Faulty::new(memory_log(2).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    append(&log, 0, 0..5).await;
    within(SEC, "it reads", || view.values().len() == 5).await;
    sleep(SEC * 5).await;
    store.set_away(true);
    let begin = Instant::now();
    // Its lease is still live, so it continues.
    append(&log, 0, [5]).await;
    within(SEC, "it continues", || view.has(5)).await;
    within(TIMEOUT, "it stops by its own clock", || view.held() == 0).await;
    let stopped = view.last("lost").unwrap() - begin;
    assert!(stopped > TIMEOUT / 2 && stopped < TIMEOUT, "{stopped:?}");
    append(&log, 1, [6]).await;
    sleep(SEC * 30 - begin.elapsed()).await;
    assert!(!view.has(6), "nothing is handed out without a lease");
    store.set_away(false);
    within(SEC * 5, "it comes back by itself", || view.held() == 2 && view.has(6)).await;
    // What it could not commit is read again; what it had committed is not.
    assert_eq!(view.values()[..6], [0, 1, 2, 3, 4, 5]);
    assert!(view.values()[6..].iter().all(|v| *v >= 5), "{:?}", view.values());
}

#[tokio::test(start_paused = true)]
async fn search_for_the_start_is_retried_until_it_succeeds() {
    for trouble in TROUBLES {
        for op in ["offsets", "fetch"] {
            let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
            append(&log, 0, 0..3).await;
            let first = group(&log, &store);
            let view = View::watch(join(&first, 1).await);
            within(SEC, "it reads", || view.values().len() == 3).await;
            sleep(SEC).await;
            first.close().await.unwrap();
            append(&log, 0, 3..5).await;
            log.next_calls(op, trouble, 3);
            let view = View::watch(join(&group(&log, &store), 2).await);
            within(SEC * 400, &format!("{op} {trouble:?}"), || view.values() == [3, 4]).await;
            assert!(log.is_over());
            assert!(view.errors() > 0, "the operator is alerted");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_or_fails_costs_a_moment_and_no_record() {
    for trouble in [Trouble::Fails, Trouble::Panics] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..3).await;
        within(SEC, "it reads", || view.values().len() == 3).await;
        log.next_calls("fetch", trouble, 3);
        within(SEC * 5, "it goes wrong", || log.is_over()).await;
        append(&log, 0, 3..6).await;
        within(SEC * 5, &format!("{trouble:?}"), || (0..6).all(|n| view.has(n))).await;
        assert_eq!(view.values().len(), 6, "{:?}", view.values());
        assert!(view.errors() > 0, "the operator is alerted");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_checkpoint_is_written_later() {
    for trouble in TROUBLES {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        append(&log, 0, 0..3).await;
        log.next_calls("append", trouble, 2);
        let view = View::watch(join(&group(&log, &store), 1).await);
        within(SEC, "it reads", || view.values().len() == 3).await;
        sleep(SEC * 25).await;
        assert!(log.is_over());
        assert_eq!(kept(&log).await, Some(3), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn added_partitions_are_read_despite_single_failures() {
    for trouble in TROUBLES {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..3).await;
        within(SEC, "it reads", || view.values().len() == 3).await;
        let larger = memory_log(3).await;
        append(&larger, 0, 0..3).await;
        append(&larger, 2, [7]).await;
        log.replace(larger);
        log.next_calls("describe_topics", trouble, 1);
        within(SEC * 55, &format!("{trouble:?}"), || view.held() == 3 && view.has(7)).await;
        assert_eq!(view.values(), [0, 1, 2, 7], "nothing is read twice");
    }
}

/// Shorter than the old one, as long, and longer: then no fetch fails.
#[tokio::test(start_paused = true)]
async fn topic_recreated_under_a_reader_is_read_from_its_first_record() {
    for length in [2, 5, 9] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..5).await;
        within(SEC, "it reads", || view.values().len() == 5).await;
        sleep(SEC * 3).await;
        // While a topic is being deleted, fetches fail.
        log.next_calls("fetch", Trouble::Fails, 1);
        within(SEC, "a fetch fails", || log.is_over()).await;
        let anew = memory_log(1).await;
        append(&anew, 0, 100..100 + length).await;
        log.replace(anew);
        within(SEC * 15, &format!("{length} records"), || (100..100 + length).all(|n| view.has(n))).await;
        sleep(SEC * 30).await;
        assert_eq!(view.values().len() as u64, 5 + length, "each once: {:?}", view.values());
    }
}

/// The worst case: nothing fails, and the new topic has exactly as many records.
#[tokio::test(start_paused = true)]
async fn topic_that_was_replaced_unnoticed_is_detected_within_seconds() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    append(&log, 0, 0..5).await;
    within(SEC, "it reads", || view.values().len() == 5).await;
    sleep(SEC * 3).await;
    let anew = memory_log(1).await;
    append(&anew, 0, 100..105).await;
    log.replace(anew);
    within(SEC * 11, "all of the new topic", || (100..105).all(|n| view.has(n))).await;
}

#[tokio::test(start_paused = true)]
async fn leaving_member_checkpoints_its_commit_before_one_is_due() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC, "it reads", || view.values().len() == 5).await;
    first.close().await.unwrap();
    assert_eq!(kept(&log).await, Some(5));
    store.inner.clear();
    append(&log, 0, [5]).await;
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(SEC, "the next member continues", || view.has(5)).await;
    assert_eq!(view.values(), [5]);
}

#[tokio::test(start_paused = true)]
async fn leaving_member_does_not_wait_for_a_hanging_log() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC, "it reads", || view.values().len() == 5).await;
    log.next_calls("append", Trouble::Hangs, u32::MAX);
    let begin = Instant::now();
    first.close().await.unwrap();
    assert!(begin.elapsed() < SEC * 4, "{:?}", begin.elapsed());
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(SEC, "the partition is free", || view.held() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn rolled_back_store_does_not_roll_back_the_group() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    append(&log, 0, 0..2).await;
    within(SEC, "it reads", || view.values().len() == 2).await;
    sleep(SEC).await;
    let key = Key::partition("g", &partition(0));
    let old = store.inner.get(std::slice::from_ref(&key)).await.remove(0).unwrap();
    append(&log, 0, 2..50).await;
    within(SEC, "it reads", || view.values().len() == 50).await;
    first.close().await.unwrap();
    store.inner.clear();
    store.inner.swap(&[Swap::new(key, None, old, None)]).await.remove(0).unwrap();
    append(&log, 0, [50]).await;
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(TIMEOUT + SEC, "the next member continues", || view.has(50)).await;
    assert_eq!(view.values(), [50], "the log's checkpoint counts");
}

/// The group "g" with a cursor at 3 and a record beyond it, of a member that has left.
async fn three_committed() -> (Faulty, Store) {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..3).await;
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC, "it reads", || view.values().len() == 3).await;
    first.close().await.unwrap();
    append(&log, 0, [3]).await;
    (log, store)
}

#[tokio::test(start_paused = true)]
async fn unreadable_checkpoints_do_not_prevent_joining_and_reading() {
    let (log, store) = three_committed().await;
    log.no_cursors.store(true, SeqCst);
    let begin = Instant::now();
    let view = View::watch(join(&group(&log, &store), 2).await);
    assert!(begin.elapsed() < SEC, "joining doesn't wait: {:?}", begin.elapsed());
    within(TIMEOUT * 2 / 3, "it reads", || view.has(3)).await;
    assert_eq!(view.values(), [3], "from the store's cursor");
    assert_eq!(view.told("start at the store's cursor"), 1, "{:?}", view.0.lock().unwrap().errors);
    log.no_cursors.store(false, SeqCst);
    sleep(SEC * 20).await;
    assert_eq!(kept(&log).await, Some(4));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_checkpoints_delays_many_partitions_as_little_as_one() {
    let (log, store) = (Faulty::new(memory_log(100).await), Store::default());
    for n in 0..100 {
        append(&log, n, [n as u64]).await;
    }
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC * 5, "it reads", || view.values().len() == 100).await;
    first.close().await.unwrap();
    log.no_cursors.store(true, SeqCst);
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(TIMEOUT, "it has all", || view.held() == 100).await;
    assert_eq!(view.told("start at the store's cursor"), 1, "not once per partition");
}

/// Like the previous test, but the checkpoints can't be read when reading starts.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_was_not_read_is_not_overwritten_by_an_earlier_one() {
    let (log, store) = three_committed().await;
    let key = Key::partition("g", &partition(0));
    let old = store.inner.get(std::slice::from_ref(&key)).await.remove(0).unwrap();
    append(&log, 0, 4..50).await;
    let second = group(&log, &store);
    let view = View::watch(join(&second, 2).await);
    within(SEC, "it reads", || view.has(49)).await;
    second.close().await.unwrap();
    assert_eq!(kept(&log).await, Some(50));
    store.inner.clear();
    store.inner.swap(&[Swap::new(key, None, old, None)]).await.remove(0).unwrap();
    log.no_cursors.store(true, SeqCst);
    let third = group(&log, &store);
    let mut consumer = join(&third, 3).await;
    let Some(Ok(Event::Assigned(mine))) = next_without_errors(&mut consumer).await else { panic!() };
    log.no_cursors.store(false, SeqCst);
    let commit = |offset| Commit { assignment: mine[0].clone(), offset };
    let Some(Ok(Event::Records(_, batch))) = next_without_errors(&mut consumer).await else { panic!() };
    assert_eq!(batch.records[0].offset, 3, "the store's cursor");
    consumer.member.commit(&[commit(10)]).await.remove(0).unwrap();
    sleep(SEC * 20).await;
    assert_eq!(kept(&log).await, Some(50), "the further one stays");
    append(&log, 0, 50..60).await;
    while !matches!(next_without_errors(&mut consumer).await, Some(Ok(Event::Records(_, b))) if b.next == 60)
    {
    }
    consumer.member.commit(&[commit(55)]).await.remove(0).unwrap();
    sleep(SEC * 20).await;
    assert_eq!(kept(&log).await, Some(55));
}

async fn next_without_errors(of: &mut Consumer) -> Option<kafkaq_core::Result<Event>> {
    loop {
        match of.events.next().await {
            Some(Err(_)) => {}
            event => return event,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn commits_that_wait_for_the_store_have_a_limit() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let mut a = join(&group(&log, &store), 1).await;
    let Some(Ok(Event::Assigned(mine))) = a.events.next().await else { panic!("not assigned") };
    store.set_away(true);
    let commits = vec![Commit { assignment: mine[0].clone(), offset: 5 }; 10_001];
    let outcomes = a.member.commit(&commits).await;
    assert_eq!(outcomes.len(), 10_001);
    assert_eq!(outcomes[10_000].as_ref().unwrap_err().kind(), ErrorKind::Throttled);
    assert_eq!(outcomes[9_999].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
}

/// It waits for no timer: the long poll returns when the record is appended.
#[tokio::test(start_paused = true)]
async fn record_of_an_owned_partition_arrives_without_delay() {
    let (log, store) = (Faulty::new(memory_log(3).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    within(SEC, "it has all", || view.held() == 3).await;
    for n in 0..20 {
        // At every phase of a long poll.
        sleep(Duration::from_millis(100 + (n as u64 * 173) % 1_000)).await;
        let begin = Instant::now();
        append(&log, n % 3, [n as u64]).await;
        within(SEC, "it arrives", || view.has(n as u64)).await;
        let arrived = view.0.lock().unwrap().values.last().unwrap().1;
        assert_eq!(arrived - begin, Duration::ZERO, "record {n}");
    }
}

/// From the release to the next owner's first record it takes one read of the store, which happens twenty times per
/// timeout.
#[tokio::test(start_paused = true)]
async fn after_a_handover_reading_begins_at_once() {
    let (log, store) = (Faulty::new(memory_log(2).await), Store::default());
    let (one, two) = (group(&log, &store), group(&log, &store));
    let a = View::watch(join(&one, 1).await);
    within(SEC, "the first has all", || a.held() == 2).await;
    let b = View::watch(join(&two, 2).await);
    within(SEC * 3, "they share", || a.held() == 1 && b.held() == 1).await;
    sleep(SEC * 5).await;
    let begin = Instant::now();
    one.close().await.unwrap();
    append(&log, 0, [1]).await;
    append(&log, 1, [2]).await;
    within(SEC, "the other reads both", || b.has(1) && b.has(2)).await;
    assert!(begin.elapsed() <= TIMEOUT / 20 + Duration::from_millis(10), "{:?}", begin.elapsed());
    let (taken, seen) = (b.last("assigned").unwrap(), b.0.lock().unwrap().values.last().unwrap().1);
    assert_eq!(seen - taken, Duration::ZERO, "between the assignment and the first record");
}
