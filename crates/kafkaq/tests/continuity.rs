//! How a cursor relates to a log that was truncated, recreated, or has lost its beginning: on the log in memory,
//! including empty responses and changes between two reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use async_trait::async_trait;
use kafkaq::memory::MemoryLog;
use kafkaq_core::{
    Batch, Cursor, ErrorKind, FetchLimit, Headers, Log, Mark, NewRecord, Offsets, Partition, PartitionLog,
    Position, Result, Retry, Standing, TopicInfo, TopicSpec, group::Trail, standing,
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering::SeqCst},
};

type Event = Box<dyn FnMut(&MemoryLog) + Send>;

/// A log in memory that returns nothing for some fetches, and that changes after the first read of its ends.
struct Sly {
    inner: MemoryLog,
    empty: AtomicU32,
    after_offsets: Mutex<Option<Event>>,
}

impl std::fmt::Debug for Sly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sly")
    }
}

#[async_trait]
impl Log for Sly {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.inner.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.inner.describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        self.inner.append(to, records).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl PartitionLog for Sly {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        if self.empty.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Ok(Batch::new(Vec::new(), from.offset, None));
        }
        self.inner.fetch(from, limit).await
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let ends = self.inner.offsets(of).await;
        if let Some(mut event) = self.after_offsets.lock().unwrap().take() {
            event(&self.inner);
        }
        ends
    }
}

fn partition() -> Partition {
    Partition::new("t", 0)
}

async fn create(log: &MemoryLog) {
    let mut spec = TopicSpec::new("t");
    spec.partitions = Some(1);
    log.ensure_topics(&[spec]).await.unwrap();
}

async fn append(log: &dyn Log, value: &'static str, count: usize) {
    let record = NewRecord::new(None, Some(value.into()), Headers::new());
    log.append(&partition(), &vec![record; count]).await.into_iter().for_each(|o| assert!(o.is_ok()));
}

/// A log of that many records, all read by a trail.
async fn read_log(count: usize) -> (Sly, Trail) {
    let inner = MemoryLog::new();
    create(&inner).await;
    let log = Sly { inner, empty: AtomicU32::new(0), after_offsets: Mutex::default() };
    append(&log, "old", count).await;
    let mut trail = Trail::new(Cursor::new(0));
    read_on(&log, &mut trail).await;
    (log, trail)
}

async fn read_on(log: &Sly, trail: &mut Trail) {
    let from = Position { partition: partition(), offset: trail.position().offset };
    let batch = log.inner.fetch(&from, FetchLimit::new(std::time::Duration::ZERO, usize::MAX)).await.unwrap();
    assert!(trail.read(&batch));
}

async fn recreate(log: &Sly, count: usize) {
    log.inner.delete_topic("t").unwrap();
    create(&log.inner).await;
    append(log, "new", count).await;
}

async fn stands(log: &Sly, cursor: &Cursor) -> Standing {
    standing(log, &partition(), cursor, None).await.unwrap()
}

const REPLACED: Standing = Standing::Replaced { first: 0 };

#[tokio::test]
async fn a_log_that_only_grows_is_intact() {
    let (log, mut trail) = read_log(5).await;
    for _ in 0..3 {
        let position = trail.position();
        assert_eq!(stands(&log, &position).await, Standing::Intact);
        trail.confirm(&position);
        append(&log, "more", 3).await;
        read_on(&log, &mut trail).await;
        assert_eq!(trail.position().anchor, position.mark, "confirmed");
        let committed = trail.below(trail.position().offset - 1);
        assert!(committed.mark.unwrap().offset == committed.offset - 1 && committed.anchor.is_some());
        assert_eq!(stands(&log, &committed).await, Standing::Intact);
    }
}

#[tokio::test(start_paused = true)]
async fn empty_response_proves_nothing() {
    let (log, trail) = read_log(5).await;
    for empty in [1, 3, 9] {
        log.empty.store(empty, SeqCst);
        assert_eq!(stands(&log, &trail.position()).await, Standing::Intact, "after {empty}");
    }
    log.empty.store(u32::MAX, SeqCst);
    let error = standing(&log, &partition(), &trail.position(), None).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Yes));
}

#[tokio::test]
async fn truncation_is_noticed_whether_the_log_has_grown_again_or_not() {
    for grown in [0, 1, 2, 10] {
        let (log, trail) = read_log(5).await;
        log.inner.truncate(&partition(), 3).unwrap();
        append(&log, "new", grown).await;
        assert_eq!(stands(&log, &trail.position()).await, REPLACED, "grown by {grown}");
    }
}

#[tokio::test]
async fn truncation_above_what_was_read_changes_nothing() {
    let (log, trail) = read_log(5).await;
    append(&log, "unread", 5).await;
    log.inner.truncate(&partition(), 5).unwrap();
    append(&log, "new", 5).await;
    assert_eq!(stands(&log, &trail.position()).await, Standing::Intact);
}

#[tokio::test]
async fn a_recreated_topic_is_noticed_whatever_its_length() {
    for count in [0, 3, 5, 20] {
        let (log, mut trail) = read_log(5).await;
        recreate(&log, count).await;
        assert_eq!(stands(&log, &trail.position()).await, REPLACED, "{count} records");
        assert_eq!(stands(&log, &trail.below(3)).await, REPLACED, "a commit, {count} records");
    }
}

/// The reader has outrun its check: the record below its position belongs to the new topic, although the records before
/// it are not those that were read.
#[tokio::test]
async fn recreated_topic_that_was_already_read_from_is_noticed_by_the_anchor() {
    for confirmed in [false, true] {
        let (log, mut trail) = read_log(5).await;
        if confirmed {
            trail.confirm(&trail.position());
        }
        recreate(&log, 20).await;
        read_on(&log, &mut trail).await;
        let committed = trail.below(20);
        assert_eq!(committed.mark.map(|m| m.offset), Some(19));
        for cursor in [trail.position(), committed, Cursor::committed(20, &committed.metadata())] {
            let alone = Cursor { anchor: None, ..cursor };
            assert_eq!(stands(&log, &alone).await, Standing::Intact, "the mark alone proves nothing");
            assert_eq!(stands(&log, &cursor).await, REPLACED, "confirmed: {confirmed}");
        }
    }
}

#[tokio::test]
async fn deleted_mark_proves_nothing_and_the_cursor_is_accepted() {
    let (log, trail) = read_log(5).await;
    append(&log, "unread", 5).await;
    for first in [1, 5] {
        log.inner.delete_records(&partition(), first).unwrap();
        assert_eq!(stands(&log, &trail.position()).await, Standing::Intact, "first {first}");
    }
    log.inner.delete_records(&partition(), 8).unwrap();
    let gone = stands(&log, &trail.position()).await;
    assert_eq!(gone, Standing::DeletedUnread { first: 8 });
    let alarm = gone.alarm(&partition(), &trail.position()).unwrap();
    assert_eq!(alarm.retry(), Retry::Yes);
    assert!(alarm.to_string().contains("3 records were deleted unread"), "{alarm}");
}

#[tokio::test]
async fn a_mark_that_retention_passes_between_two_looks_is_not_another_log() {
    let (log, trail) = read_log(5).await;
    append(&log, "unread", 5).await;
    *log.after_offsets.lock().unwrap() =
        Some(Box::new(|inner| inner.delete_records(&partition(), 5).unwrap()));
    assert_eq!(stands(&log, &trail.position()).await, Standing::Intact);
}

/// Otherwise reading would begin where the deleted topic began, and skip the records before that.
#[tokio::test]
async fn reported_beginning_is_that_of_the_current_log() {
    let (log, trail) = read_log(5).await;
    log.inner.delete_records(&partition(), 3).unwrap();
    let anew = MemoryLog::new();
    create(&anew).await;
    *log.after_offsets.lock().unwrap() = Some(Box::new(|inner| {
        inner.delete_topic("t").unwrap();
        futures_util::FutureExt::now_or_never(async {
            create(inner).await;
            append(inner, "new", 20).await;
        })
        .expect("memory doesn't wait");
    }));
    assert_eq!(stands(&log, &trail.position()).await, REPLACED);
}

/// Nothing was read yet, so no record can show it.
#[tokio::test]
async fn a_topic_that_is_recreated_before_anything_was_read_is_noticed_by_where_it_begins() {
    let (log, _) = read_log(5).await;
    log.inner.delete_records(&partition(), 5).unwrap();
    let trail = Trail::new(Cursor::new(5));
    assert_eq!(trail.floor(), Some(5));
    let position = trail.position();
    let now = async || standing(&log, &partition(), &position, trail.floor()).await.unwrap();
    assert_eq!(now().await, Standing::Intact);
    append(&log, "more", 2).await;
    log.inner.delete_records(&partition(), 6).unwrap();
    assert_eq!(now().await, Standing::DeletedUnread { first: 6 });
    recreate(&log, 20).await;
    assert_eq!(now().await, REPLACED);
    let from = Position { partition: partition(), offset: 5 };
    let batch = log.inner.fetch(&from, FetchLimit::new(std::time::Duration::ZERO, 1)).await.unwrap();
    assert!(trail.is_doubtful(&batch), "the first batch is not trusted unchecked");
}

#[tokio::test]
async fn batch_that_does_not_follow_is_not_added() {
    let (log, mut trail) = read_log(5).await;
    let before = trail.position();
    let from = Position { partition: partition(), offset: 2 };
    let repeat = log.inner.fetch(&from, FetchLimit::new(std::time::Duration::ZERO, 1)).await.unwrap();
    for batch in [repeat, Batch::new(Vec::new(), 4, None)] {
        assert!(!trail.read(&batch), "{batch:?}");
        assert_eq!(trail.position(), before);
    }
    assert!(!trail.is_doubtful(&Batch::new(Vec::new(), 5, None)));
    assert!(trail.is_doubtful(&Batch::new(Vec::new(), 6, None)), "a gap");
}

#[tokio::test]
async fn marks_have_a_limit_and_the_newest_stay() {
    let (log, _) = read_log(200_000).await;
    let mut trail = Trail::new(Cursor::new(0));
    for n in 0..10 {
        let from = Position { partition: partition(), offset: n * 20_000 };
        let mut batch =
            log.inner.fetch(&from, FetchLimit::new(std::time::Duration::ZERO, usize::MAX)).await.unwrap();
        batch.records.truncate(20_000);
        batch.next = (n + 1) * 20_000;
        assert!(trail.read(&batch));
    }
    let mark = |cursor: Cursor| cursor.mark.map(|m| m.offset);
    assert_eq!(mark(trail.below(10)), None, "forgotten");
    assert_eq!(mark(trail.below(199_000)), Some(198_999));
    assert_eq!(mark(trail.below(200_000)), Some(199_999));
    assert_eq!(mark(trail.below(200_000)), Some(199_999), "again");
}

#[test]
fn a_mark_does_not_depend_on_headers_that_not_every_client_reads() {
    let record = |headers| kafkaq_core::Record::new(1, 2, None, Some("x".into()), headers);
    let with = Headers::from_iter([("a".into(), Some("b".into()))]);
    assert_eq!(Mark::of(&record(with)), Mark::of(&record(Headers::new())));
}
