//! The in-memory log and its groups when a topic is deleted and recreated, truncated, or loses its beginning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::{FutureExt, StreamExt};
use kafkaq::memory::MemoryLog;
use kafkaq_core::{
    Assignment, Broker, Commit, Consumer, Error, ErrorKind, Event, FetchLimit, Headers, JoinRequest, Log,
    NewRecord, Offsets, Partition, PartitionLog, Position, Retry, TopicSpec,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

fn partition(index: i32) -> Partition {
    Partition::new("t", index)
}

async fn create(log: &MemoryLog, partitions: i32) {
    let mut spec = TopicSpec::new("t");
    spec.partitions = Some(partitions);
    log.ensure_topics(&[spec]).await.unwrap();
}

async fn log(records: usize) -> MemoryLog {
    let log = MemoryLog::new();
    create(&log, 1).await;
    append(&log, "old", records).await;
    log
}

async fn append(log: &MemoryLog, value: &'static str, count: usize) {
    let record = NewRecord::new(None, Some(value.into()), Headers::new());
    log.append(&partition(0), &vec![record; count]).await.into_iter().for_each(|o| assert!(o.is_ok()));
}

async fn join(log: &MemoryLog) -> Consumer {
    log.join(JoinRequest::new("g", vec!["t".into()], [0; 16])).await.unwrap()
}

/// Returns the member's next event if there is one now.
fn next(of: &mut Consumer) -> Option<Result<Event, Error>> {
    of.events.next().now_or_never().map(|item| item.expect("the stream has ended"))
}

fn assigned(of: &mut Consumer) -> Assignment {
    match next(of) {
        Some(Ok(Event::Assigned(mine))) if mine.len() == 1 => mine[0].clone(),
        other => panic!("{other:?}"),
    }
}

/// An error after which reading continues.
fn alarm(of: &mut Consumer) -> (ErrorKind, String) {
    match next(of) {
        Some(Err(alarm)) if alarm.retry() == Retry::Yes => (alarm.kind(), alarm.to_string()),
        other => panic!("{other:?}"),
    }
}

fn loss(of: &mut Consumer) -> String {
    let (kind, text) = alarm(of);
    assert_eq!(kind, ErrorKind::DataLoss, "{text}");
    text
}

fn lost(of: &mut Consumer, what: &Assignment) {
    match next(of) {
        Some(Ok(Event::Lost(lost))) if lost == [what.clone()] => {}
        other => panic!("{other:?}"),
    }
}

/// The first offset and the value of what is read next, and how many records there are.
fn read(of: &mut Consumer) -> (i64, String, usize) {
    match next(of) {
        Some(Ok(Event::Records(_, batch))) => {
            let value = batch.records[0].value.as_deref().unwrap();
            (batch.records[0].offset, String::from_utf8_lossy(value).into(), batch.records.len())
        }
        other => panic!("{other:?}"),
    }
}

async fn commit(of: &Consumer, assignment: &Assignment, offset: i64) -> Result<(), ErrorKind> {
    let commit = Commit { assignment: assignment.clone(), offset };
    of.member.commit(&[commit]).await.remove(0).map_err(|e| e.kind())
}

async fn fetch(log: &MemoryLog, offset: i64, wait: Duration) -> Result<usize, ErrorKind> {
    let from = Position { partition: partition(0), offset };
    let batch = log.fetch(&from, FetchLimit::new(wait, usize::MAX)).await;
    batch.map(|batch| batch.records.len()).map_err(|e| e.kind())
}

#[tokio::test]
async fn recreated_topic_is_a_new_topic_to_a_group() {
    for count in [2, 5, 9] {
        let log = log(5).await;
        let mut one = join(&log).await;
        let old = assigned(&mut one);
        assert_eq!(read(&mut one), (0, "old".into(), 5));
        commit(&one, &old, 5).await.unwrap();
        log.delete_topic("t").unwrap();
        assert!(alarm(&mut one).1.contains("The topic was deleted"));
        lost(&mut one, &old);
        assert!(next(&mut one).is_none());
        assert_eq!(commit(&one, &old, 5).await, Err(ErrorKind::NotOwner));
        create(&log, 1).await;
        append(&log, "new", count).await;
        let new = assigned(&mut one);
        assert!(new.epoch > old.epoch);
        assert_eq!(read(&mut one), (0, "new".into(), count));
        for late in [1, 5, 100] {
            assert_eq!(commit(&one, &old, late).await, Err(ErrorKind::NotOwner), "also beyond the end");
        }
        one.member.reassign(std::slice::from_ref(&old));
        one.member.pause(&[old]);
        assert!(next(&mut one).is_none());
        commit(&one, &new, count as i64).await.unwrap();
    }
}

#[tokio::test]
async fn commits_of_a_deleted_topic_are_forgotten() {
    let log = log(5).await;
    let mut one = join(&log).await;
    let old = assigned(&mut one);
    commit(&one, &old, 5).await.unwrap();
    drop(one);
    log.delete_topic("t").unwrap();
    create(&log, 1).await;
    append(&log, "new", 9).await;
    let mut two = join(&log).await;
    assigned(&mut two);
    assert_eq!(read(&mut two), (0, "new".into(), 9));
    assert!(next(&mut two).is_none(), "it had nothing to lose");
}

#[tokio::test]
async fn truncated_log_is_read_again_from_the_truncation() {
    let log = log(5).await;
    let mut one = join(&log).await;
    let old = assigned(&mut one);
    read(&mut one);
    commit(&one, &old, 4).await.unwrap();
    log.truncate(&partition(0), 3).unwrap();
    append(&log, "new", 9).await;
    assert!(loss(&mut one).contains("recreated or truncated"));
    lost(&mut one, &old);
    let new = assigned(&mut one);
    assert!(new.epoch > old.epoch);
    assert_eq!(read(&mut one), (3, "new".into(), 9));
    commit(&one, &new, 12).await.unwrap();
    // What nobody has read may go.
    append(&log, "more", 3).await;
    log.truncate(&partition(0), 12).unwrap();
    append(&log, "new", 1).await;
    assert_eq!(read(&mut one), (12, "new".into(), 1));
}

#[tokio::test]
async fn records_deleted_unread_are_reported_and_skipped() {
    let log = log(5).await;
    let mut one = join(&log).await;
    let mine = assigned(&mut one);
    read(&mut one);
    append(&log, "old", 5).await;
    log.delete_records(&partition(0), 8).unwrap();
    assert!(loss(&mut one).contains("3 records were deleted unread"));
    assert_eq!(read(&mut one), (8, "old".into(), 2));
    commit(&one, &mine, 10).await.unwrap();
    log.delete_records(&partition(0), 10).unwrap();
    append(&log, "old", 1).await;
    assert_eq!(read(&mut one).0, 10, "what was read may go");
    drop(one);

    log.delete_records(&partition(0), 11).unwrap();
    append(&log, "old", 2).await;
    let mut two = join(&log).await;
    assigned(&mut two);
    assert!(loss(&mut two).contains("1 records were deleted unread"), "since its group's commit");
    assert_eq!(read(&mut two).0, 11);
    let mut other = log.join(JoinRequest::new("new", vec!["t".into()], [0; 16])).await.unwrap();
    assigned(&mut other);
    assert_eq!(read(&mut other).0, 11, "a new group starts at what there is");
}

#[tokio::test]
async fn reassigned_partition_returns_at_its_commit_under_a_higher_epoch() {
    let log = log(5).await;
    let mut one = join(&log).await;
    let old = assigned(&mut one);
    read(&mut one);
    commit(&one, &old, 2).await.unwrap();
    one.member.reassign(std::slice::from_ref(&old));
    assert_eq!(commit(&one, &old, 5).await, Err(ErrorKind::NotOwner));
    lost(&mut one, &old);
    let new = assigned(&mut one);
    assert!(new.epoch > old.epoch);
    assert_eq!(read(&mut one), (2, "old".into(), 3));
    one.member.reassign(&[old]);
    assert!(next(&mut one).is_none(), "a late call");
}

#[tokio::test]
async fn member_that_never_polls_accumulates_nothing_when_topics_come_and_go() {
    let log = log(1).await;
    let mut one = join(&log).await;
    let first = assigned(&mut one);
    for _ in 0..1000 {
        log.delete_topic("t").unwrap();
        create(&log, 1).await;
    }
    alarm(&mut one);
    lost(&mut one, &first);
    assigned(&mut one);
    assert!(next(&mut one).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_waits_ends_when_its_topic_is_deleted_and_never_waits_for_another() {
    let log = log(5).await;
    assert_eq!(fetch(&log, 6, Duration::ZERO).await, Err(ErrorKind::Invalid));
    let begin = Instant::now();
    let (waiting, ()) = tokio::join!(fetch(&log, 5, Duration::from_secs(60)), async {
        log.delete_topic("t").unwrap();
    });
    assert_eq!(waiting, Err(ErrorKind::NotFound));
    create(&log, 1).await;
    assert_eq!(
        fetch(&log, 5, Duration::ZERO).await,
        Err(ErrorKind::Invalid),
        "beyond the end of the new one"
    );
    // Recreated before the waiting fetch could notice: it continues with the new topic, and is woken by its records.
    append(&log, "new", 5).await;
    let again = async {
        log.delete_topic("t").unwrap();
        create(&log, 1).await;
        append(&log, "new", 5).await;
        tokio::task::yield_now().await;
        append(&log, "new", 1).await;
    };
    let waiting = timeout(Duration::from_secs(20), fetch(&log, 5, Duration::from_secs(60)));
    let (waiting, ()) = tokio::join!(waiting, again);
    assert_eq!(waiting.expect("it waits for the deleted topic"), Ok(1));
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn missing_topics_and_records_can_not_be_deleted() {
    let log = log(5).await;
    let kinds = [
        log.delete_topic("u").map_err(|e| e.kind()),
        log.truncate(&partition(1), 0).map_err(|e| e.kind()),
        log.delete_records(&partition(1), 0).map_err(|e| e.kind()),
    ];
    assert_eq!(kinds, [Err(ErrorKind::NotFound); 3]);
    // Beyond the end there is nothing to delete, and below the beginning neither.
    log.truncate(&partition(0), 9).unwrap();
    log.delete_records(&partition(0), 2).unwrap();
    log.delete_records(&partition(0), 1).unwrap();
    let ends = log.offsets(&[partition(0)]).await.remove(0).unwrap();
    assert_eq!(ends, Offsets { first: 2, next: 5 });
    log.truncate(&partition(0), 0).unwrap();
    log.delete_records(&partition(0), 9).unwrap();
    let ends = log.offsets(&[partition(0)]).await.remove(0).unwrap();
    assert_eq!(ends, Offsets { first: 2, next: 2 });
    log.close().await.unwrap();
    assert_eq!(log.delete_topic("t").map_err(|e| e.kind()), Err(ErrorKind::Closed));
}
