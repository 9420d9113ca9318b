//! What can be done about tasks that were given up, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use async_trait::async_trait;
use common::{LEASE, ms, next, none_within, quick, records, soon, wall_now};
use kafkaq::{
    DeadLetters, Error, ErrorKind, Headers, JobStatus, Queue, Result, Task, TaskId,
    backend::{
        Batch, FetchLimit, ID_HEADER, Log, NewRecord, Offsets, Partition, PartitionLog, Position, TopicInfo,
        TopicSpec,
    },
    dead_letters::{Filter, Fingerprint, Handled, Place, RedriveState},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

const DEAD: &str = "emails.kafkaq.dead";

struct Rig {
    log: MemoryLog,
    store: MemoryStore,
    queue: Queue,
    dead: DeadLetters,
}

impl Rig {
    async fn new() -> Rig {
        let (log, store) = (MemoryLog::new(), MemoryStore::new());
        let queue = quick(&log, &store).build().await.unwrap();
        let dead = open(&log, &store).await;
        Rig { log, store, queue, dead }
    }

    /// Publishes a task and rejects it.
    async fn kill(&self, task: Task, reason: &str) -> TaskId {
        let id = self.queue.publish(task).await.unwrap();
        let job = next(&self.queue).await;
        assert_eq!(job.id(), &id);
        soon(job.reject(reason)).await.unwrap();
        id
    }

    async fn kill_many(&self, n: usize) {
        for i in 0..n {
            self.kill(task(i), &format!("user {i} not found")).await;
        }
    }

    /// Ends all jobs that there are, and returns their payloads.
    async fn run_all(&self) -> Vec<String> {
        let mut payloads = Vec::new();
        while let Ok(job) = tokio::time::timeout(2 * LEASE, self.queue.get_job()).await {
            let job = job.unwrap();
            payloads.push(String::from_utf8(job.payload().to_vec()).unwrap());
            soon(job.done()).await.unwrap();
        }
        payloads.sort();
        payloads
    }

    async fn places(&self, filter: Filter) -> Vec<Place> {
        let mut letters = self.dead.letters(filter).await.unwrap();
        letters.next_page(1000).await.unwrap().into_iter().map(|letter| letter.place).collect()
    }
}

async fn open(log: &MemoryLog, store: &MemoryStore) -> DeadLetters {
    quick(log, store).build_dead_letters(log.clone()).await.unwrap()
}

fn task(i: usize) -> Task {
    Task::new(format!("{i:03}")).with_header("task-kind", if i.is_multiple_of(2) { "even" } else { "odd" })
}

fn payloads(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{i:03}")).collect()
}

async fn append(log: &MemoryLog, topic: &str, record: NewRecord) {
    log.append(&Partition::new(topic, 0), &[record]).await.remove(0).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_letter_says_everything_about_its_task() -> Result<()> {
    let rig = Rig::new().await;
    let before = wall_now();
    let sent = task(2).with_key("customer-17").with_header("trace", "abc").with_id(TaskId::new("two")?);
    rig.queue.publish(sent.clone()).await?;
    soon(next(&rig.queue).await.retry(ms(50), "not now")).await.unwrap();
    soon(next(&rig.queue).await.reject("never")).await.unwrap();

    let letter = rig.dead.get(Place { partition: 0, offset: 0 }).await?.unwrap();
    assert_eq!(letter.id, Some(TaskId::new("two")?));
    assert_eq!((letter.kind.as_deref(), letter.reason.as_deref()), (Some("even"), Some("never")));
    assert_eq!((letter.attempts, letter.redrives, letter.handled), (Some(2), 0, None));
    assert_eq!(letter.history[0].reason, "not now");
    assert_eq!((letter.key.as_ref(), letter.payload.as_ref()), (sent.key(), Some(sent.payload())));
    assert_eq!(&letter.headers, sent.headers());
    let origin = letter.origin.unwrap();
    assert_eq!((&*origin.partition.topic, origin.offset), ("emails", 0));
    let (published, died) = (letter.published.unwrap(), letter.died.unwrap());
    assert!(published + ms(1000) >= before && died > published, "{published:?} {died:?}");
    assert_eq!(rig.dead.get(Place { partition: 0, offset: 1 }).await?, None);
    assert_eq!(rig.dead.get(Place { partition: 7, offset: 0 }).await?, None);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn letters_that_cannot_be_read_are_shown_and_redriven_only_on_request() -> Result<()> {
    let rig = Rig::new().await;
    // A record that workers can't read, and one that no worker has written.
    let bad_id = Headers::from_iter([(ID_HEADER.into(), Some(vec![0xff].into()))]);
    append(&rig.log, "emails", NewRecord::new(None, Some("bad id".into()), bad_id)).await;
    none_within(&rig.queue, 2 * LEASE).await;
    append(&rig.log, DEAD, NewRecord::new(None, Some("stray".into()), Headers::new())).await;

    let letters = rig.dead.letters(Filter::new()).await?.next_page(10).await?;
    assert_eq!(letters.len(), 2);
    assert!(letters[0].reason.as_ref().unwrap().contains("kafkaq-id"), "{letters:?}");
    assert_eq!((&letters[1].id, &letters[1].reason, letters[1].attempts), (&None, &None, None));
    assert_eq!(letters[1].payload, Some("stray".into()));

    let report = rig.dead.redrive(Filter::new()).run().await?;
    assert_eq!((report.redriven, report.unreadable), (0, 2));
    let report = rig.dead.redrive(Filter::new()).include_unreadable().run().await?;
    assert_eq!((report.redriven, report.unreadable), (2, 0));
    assert_eq!(rig.run_all().await, ["bad id", "stray"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn each_condition_of_a_filter_selects() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(4).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let later = wall_now() - Duration::from_secs(1);
    let last = rig.kill(Task::new("004"), "no route to 10.0.0.1:25").await;

    let cases = [
        (Filter::new(), vec![0, 1, 2, 3, 4]),
        (Filter::new().kind("odd"), vec![1, 3]),
        (Filter::new().kind("none"), vec![]),
        (Filter::new().fingerprint(Fingerprint::new("user 99 not found")), vec![0, 1, 2, 3]),
        (Filter::new().reason_contains("route"), vec![4]),
        (Filter::new().reason_contains("user 2"), vec![2]),
        (Filter::new().since(later), vec![4]),
        (Filter::new().before(later), vec![0, 1, 2, 3]),
        (Filter::new().ids([last]), vec![4]),
        (Filter::new().places([1, 3].map(|offset| Place { partition: 0, offset })), vec![1, 3]),
        (Filter::new().after(Place { partition: 0, offset: 2 }), vec![3, 4]),
        (Filter::new().after(Place { partition: 1, offset: 0 }), vec![]),
        (Filter::new().kind("even").after("0/0".parse()?), vec![2]),
    ];
    for (filter, offsets) in cases {
        let found: Vec<_> = rig.places(filter.clone()).await.iter().map(|place| place.offset).collect();
        assert_eq!(found, offsets, "{filter:?}");
        assert_eq!(rig.dead.count(filter).await?, offsets.len() as u64);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn groups_are_by_kind_and_fingerprint_the_largest_first() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(5).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    rig.kill(task(6), "user 6 not found").await;
    rig.kill(task(7), "no route").await;
    let groups = rig.dead.groups(Filter::new()).await?;
    let seen: Vec<_> =
        groups.groups.iter().map(|g| (g.kind.as_deref(), g.fingerprint.as_str(), g.count)).collect();
    let odd = Some("odd");
    assert_eq!(
        seen,
        [(Some("even"), "user # not found", 4), (odd, "user # not found", 2), (odd, "no route", 1)]
    );
    let largest = &groups.groups[0];
    assert_eq!((largest.example.as_deref(), largest.place.offset), (Some("user 0 not found"), 0));
    let span = largest.last.unwrap().duration_since(largest.first.unwrap()).unwrap();
    assert!(span >= Duration::from_secs(60), "{span:?}");
    assert_eq!(groups.ungrouped, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_number_of_groups_is_bounded() -> Result<()> {
    let rig = Rig::new().await;
    for n in 0..1010_u32 {
        // Digits would be one group.
        let reason: String = n.to_string().bytes().map(|b| char::from(b - b'0' + b'a')).collect();
        let headers = Headers::from_iter([("kafkaq-reason".into(), Some(reason.into()))]);
        append(&rig.log, DEAD, NewRecord::new(None, None, headers)).await;
    }
    let groups = rig.dead.groups(Filter::new()).await?;
    assert_eq!((groups.groups.len(), groups.ungrouped), (1000, 10));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_redriven_task_runs_once_as_a_new_one_and_its_letter_is_marked() -> Result<()> {
    let rig = Rig::new().await;
    let id = rig.kill(task(0).with_key("k").with_header("trace", "abc"), "no").await;
    let report = rig.dead.redrive(Filter::new()).run().await?;
    assert_eq!((report.state, report.redriven), (RedriveState::Complete, 1));

    let letter = rig.dead.get(Place { partition: 0, offset: 0 }).await?.unwrap();
    assert_eq!(letter.handled, Some(Handled::Redriven));
    let job = next(&rig.queue).await;
    assert_eq!((job.attempt(), job.failures(), job.history().len()), (1, 0, 0));
    assert_eq!(job.id(), &letter.redrive_id());
    assert!(job.id().as_str().starts_with(id.as_str()), "{}", job.id());
    assert_eq!((&job.payload()[..], job.key().map(|k| &k[..])), (&b"000"[..], Some(&b"k"[..])));
    let headers: Vec<_> =
        job.headers().iter().map(|(name, value)| (name.clone(), value.cloned().unwrap())).collect();
    assert_eq!(
        headers,
        [("task-kind", "even"), ("trace", "abc"), ("task-redrives", "1")].map(|(n, v)| (n.into(), v.into()))
    );
    soon(job.done()).await.unwrap();

    assert_eq!(rig.dead.count(Filter::new()).await?, 0);
    assert_eq!(rig.dead.redrive(Filter::new()).run().await?.redriven, 0);
    // By a handle that was opened later, as by another process.
    let other = open(&rig.log, &rig.store).await;
    assert_eq!(other.count(Filter::new()).await?, 0);
    assert_eq!(other.count(Filter::new().include_handled()).await?, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn redriving_everything_twice_runs_each_once_even_without_marks() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(5).await;
    rig.dead.redrive(Filter::new()).run().await?;
    assert_eq!(rig.run_all().await, payloads(0..5));
    // As if the process had ended between the publication and the marks.
    rig.log.delete_topic(&format!("{DEAD}.handled"))?;
    let again = open(&rig.log, &rig.store).await;
    assert_eq!(again.redrive(Filter::new()).run().await?.redriven, 5);
    assert_eq!(rig.run_all().await, [""; 0]);
    assert_eq!(again.redrive(Filter::new().include_handled()).run().await?.redriven, 5);
    assert_eq!(rig.run_all().await, [""; 0]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn two_letters_of_one_task_are_redriven_as_one() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill(task(0), "no").await;
    // A worker appends a letter again if it doesn't know whether the first append took effect.
    let letter = records(&rig.log, DEAD, 1).await.remove(0);
    append(&rig.log, DEAD, NewRecord::new(letter.key, letter.value, letter.headers)).await;
    assert_eq!(rig.dead.redrive(Filter::new()).run().await?.redriven, 2);
    assert_eq!(rig.run_all().await, payloads(0..1));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_used_again_is_redriven_again() -> Result<()> {
    let rig = Rig::new().await;
    let task = task(0).with_id(TaskId::new("report")?);
    rig.kill(task.clone(), "no").await;
    rig.dead.redrive(Filter::new()).run().await?;
    assert_eq!(rig.run_all().await.len(), 1);
    // Another store has forgotten the id, as the first one does in time; the redriven task it might still know.
    let first = rig.dead.get(Place { partition: 0, offset: 0 }).await?.unwrap();
    tokio::time::advance(Duration::from_secs(3 * 3600)).await;
    rig.kill(task, "no").await;
    let second = rig.dead.get(Place { partition: 0, offset: 1 }).await?.unwrap();
    assert_ne!(first.redrive_id(), second.redrive_id());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_redrive_goes_on_and_each_task_runs_once() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(12).await;
    let mut redrive = rig.dead.redrive(Filter::new()).rate(20);
    for _ in 0..3 {
        tokio::time::timeout(ms(120), redrive.run()).await.unwrap_err();
    }
    let done = redrive.report().redriven;
    assert!((2..12).contains(&done), "{done}");
    assert_eq!(redrive.report().state, RedriveState::Running);
    // Another process takes over, and the first one goes on too.
    let other = open(&rig.log, &rig.store).await.redrive(Filter::new()).run().await?;
    assert!(other.redriven <= 12 - done + 2, "{other:?} after {done}");
    assert_eq!(redrive.run().await?.state, RedriveState::Complete);
    assert_eq!(redrive.report().redriven, 12);
    assert_eq!(rig.run_all().await, payloads(0..12));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_and_changes_nothing() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(3).await;
    let report = rig.dead.redrive(Filter::new().kind("even")).dry_run().canary(1).run().await?;
    assert_eq!((report.redriven, report.state), (2, RedriveState::Complete));
    assert_eq!(rig.dead.count(Filter::new()).await?, 3);
    assert_eq!(rig.log.describe_topics(&[format!("{DEAD}.handled").into()]).await?, [None]);
    none_within(&rig.queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_canary_goes_first_and_the_rest_when_it_is_called_again() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(25).await;
    let mut redrive = rig.dead.redrive(Filter::new()).canary(7).limit(22);
    let report = redrive.run().await?;
    assert_eq!((report.state, report.redriven), (RedriveState::Canary, 7));
    assert_eq!(rig.run_all().await, payloads(0..7));
    let ids: BTreeSet<_> = redrive.canary_ids().iter().cloned().collect();
    assert_eq!(ids.len(), 7);
    for id in &ids {
        assert_eq!(rig.queue.jobs().get(id).await?.status, JobStatus::Done);
    }
    let report = redrive.run().await?;
    assert_eq!((report.state, report.redriven), (RedriveState::Limit, 22));
    assert_eq!(rig.run_all().await, payloads(7..22));
    assert_eq!(redrive.canary_ids().len(), 7);
    assert_eq!(rig.dead.count(Filter::new()).await?, 3);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_redrive_keeps_to_its_rate() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(30).await;
    let began = Instant::now();
    let mut redrive = rig.dead.redrive(Filter::new()).rate(10);
    assert_eq!(redrive.run().await?.redriven, 30);
    let took = began.elapsed();
    assert!(took >= ms(2900) && took < ms(3500), "{took:?}");
    assert_eq!(rig.dead.redrive(Filter::new()).rate(0).run().await.unwrap_err().kind(), ErrorKind::Invalid);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_dies_again_and_again_is_skipped() -> Result<()> {
    let rig = Rig::new().await;
    let id = rig.kill(task(0), "no").await;
    let mut ids = BTreeSet::from([id]);
    for n in 1..=2 {
        let report = rig.dead.redrive(Filter::new()).max_redrives(2).run().await?;
        assert_eq!((report.redriven, report.looping), (1, 0));
        let job = next(&rig.queue).await;
        assert_eq!(job.headers().iter().filter(|(name, _)| *name == "task-redrives").count(), 1);
        assert!(job.id().as_str().len() <= 36 + 17, "ids don't grow: {}", job.id());
        assert!(ids.insert(job.id().clone()));
        soon(job.reject("no")).await.unwrap();
        let letter = rig.dead.letters(Filter::new()).await?.next().await?.unwrap();
        assert_eq!(letter.redrives, n);
    }
    let report = rig.dead.redrive(Filter::new()).max_redrives(2).run().await?;
    assert_eq!((report.redriven, report.looping), (0, 1));
    none_within(&rig.queue, 2 * LEASE).await;
    assert_eq!(rig.dead.redrive(Filter::new()).run().await?.redriven, 1, "the default is 3");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_largest_task_can_be_redriven() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).max_task_bytes(1000).build().await?;
    queue.publish(Task::new(vec![b'x'; 1000])).await?;
    soon(next(&queue).await.reject("no")).await.unwrap();
    let dead = quick(&log, &store).max_task_bytes(1000).build_dead_letters(log.clone()).await?;
    assert_eq!(dead.redrive(Filter::new()).run().await?.redriven, 1);
    assert_eq!(next(&queue).await.payload().len(), 1000);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_discarded_is_neither_shown_nor_redriven_unless_it_is_asked_for() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(4).await;
    assert_eq!(rig.dead.discard(Filter::new().kind("even")).await?, 2);
    assert_eq!(rig.dead.discard(Filter::new().kind("even")).await?, 0);
    let other = open(&rig.log, &rig.store).await;
    assert_eq!(other.count(Filter::new()).await?, 2);
    let letter = other.get(Place { partition: 0, offset: 0 }).await?.unwrap();
    assert_eq!((letter.handled, letter.payload), (Some(Handled::Discarded), Some("000".into())));
    assert_eq!(other.redrive(Filter::new()).run().await?.redriven, 2);
    assert_eq!(rig.run_all().await, ["001", "003"]);
    assert_eq!(other.redrive(Filter::new().kind("even").include_handled()).run().await?.redriven, 2);
    assert_eq!(rig.run_all().await, ["000", "002"]);
    assert_eq!(
        other.get(letter.place).await?.unwrap().handled,
        Some(Handled::Redriven),
        "the last mark counts"
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn marks_of_an_earlier_topic_hide_no_letter_of_a_later_one() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(2).await;
    rig.dead.discard(Filter::new()).await?;
    rig.log.delete_topic(DEAD)?;
    let mut spec = TopicSpec::new(DEAD);
    spec.partitions = Some(1);
    spec.max_record_bytes = Some(2 << 20);
    rig.log.ensure_topics(&[spec]).await?;
    rig.kill(task(0), "user 0 not found").await;
    assert_eq!(rig.places(Filter::new()).await, [Place { partition: 0, offset: 0 }]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn browsing_ends_where_the_topic_ended_and_skips_what_was_deleted() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(3).await;
    let mut letters = rig.dead.letters(Filter::new()).await?;
    rig.kill_many(1).await;
    // One log reads below its first record, the other refuses to.
    let (_, strict) = faulty(&rig).await;
    let mut others = strict.letters(Filter::new()).await?;
    rig.log.delete_records(&Partition::new(DEAD, 0), 2)?;
    for (letters, offsets) in [(&mut letters, vec![2]), (&mut others, vec![2, 3])] {
        let page = letters.next_page(10).await?;
        assert_eq!(page.iter().map(|letter| letter.place.offset).collect::<Vec<_>>(), offsets);
        assert_eq!(letters.next().await?, None);
    }
    assert_eq!(rig.dead.count(Filter::new()).await?, 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn several_partitions_are_browsed_in_order() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let mut spec = TopicSpec::new(DEAD);
    spec.partitions = Some(3);
    spec.max_record_bytes = Some(2 << 20);
    log.ensure_topics(&[spec]).await?;
    let queue = quick(&log, &store).build().await?;
    let rig = Rig { dead: open(&log, &store).await, log, store, queue };
    rig.kill_many(20).await;
    let all = rig.places(Filter::new()).await;
    assert_eq!(all.len(), 20);
    assert!(all.is_sorted(), "{all:?}");
    assert!(all.iter().map(|place| place.partition).collect::<BTreeSet<_>>().len() > 1, "{all:?}");
    for (n, place) in all.iter().enumerate() {
        assert_eq!(rig.places(Filter::new().after(*place)).await, all[n + 1..]);
        assert_eq!(rig.places(Filter::new().places([*place])).await, [*place]);
    }
    rig.dead.redrive(Filter::new()).run().await?;
    assert_eq!(rig.run_all().await, payloads(0..20));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_not_there_is_not_created() -> Result<()> {
    let log = Arc::new(MemoryLog::new());
    let e = Queue::builder("emials").build_dead_letters(log.clone()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains("emials.kafkaq.dead"), "{e}");
    assert_eq!(log.describe_topics(&["emials".into()]).await?, [None]);
    let e = Queue::builder("q").dead_topic("d".repeat(249)).build_dead_letters(log).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    Ok(())
}

/// What fails next: an append to a topic, of a payload, or a fetch.
type Fails = fn(&str, Option<&[u8]>) -> Option<Error>;

/// A log that fails as a test says, before it takes effect. It refuses to read below its first record.
#[derive(Debug)]
struct Faulty {
    log: MemoryLog,
    fails: Mutex<Fails>,
}

impl Faulty {
    fn outcome(&self, topic: &str, payload: Option<&[u8]>) -> Result<()> {
        (self.fails.lock().unwrap())(topic, payload).map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Log for Faulty {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.log.ensure_topics(topics).await
    }
    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.log.describe_topics(names).await
    }
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let mut outcomes = Vec::new();
        for record in records {
            outcomes.push(match self.outcome(&to.topic, record.value.as_deref()) {
                Ok(()) => self.log.append(to, std::slice::from_ref(record)).await.remove(0),
                Err(e) => Err(e),
            });
        }
        outcomes
    }
    async fn close(&self) -> Result<()> {
        self.log.close().await
    }
}

#[async_trait]
impl PartitionLog for Faulty {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        self.outcome("fetch", None)?;
        let first = self.log.offsets(std::slice::from_ref(&from.partition)).await.remove(0)?.first;
        if from.offset < first {
            return Err(Error::not_applied(ErrorKind::Invalid, "fetch"));
        }
        self.log.fetch(from, limit).await
    }
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        self.log.offsets(of).await
    }
}

async fn faulty(rig: &Rig) -> (Arc<Faulty>, DeadLetters) {
    let faulty = Arc::new(Faulty { log: rig.log.clone(), fails: Mutex::new(|_, _| None) });
    let builder = quick(&rig.log, &rig.store).publish_timeout(ms(500));
    let dead = builder.build_dead_letters(faulty.clone()).await.unwrap();
    (faulty, dead)
}

#[tokio::test(start_paused = true)]
async fn what_was_not_published_is_not_marked_and_the_next_run_redrives_it() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(6).await;
    let (log, dead) = faulty(&rig).await;
    *log.fails.lock().unwrap() = |topic, payload| {
        let fails = topic == "emails" && payload.is_some_and(|p| p >= &b"003"[..]);
        fails.then(|| Error::not_applied(ErrorKind::Denied, "append"))
    };
    let mut redrive = dead.redrive(Filter::new());
    assert_eq!(redrive.run().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!((redrive.report().redriven, redrive.report().state), (3, RedriveState::Running));
    assert_eq!(rig.dead.count(Filter::new()).await?, 3);
    assert_eq!(rig.run_all().await, payloads(0..3));
    *log.fails.lock().unwrap() = |_, _| None;
    let report = redrive.run().await?;
    assert_eq!((report.redriven, report.state), (6, RedriveState::Complete));
    assert_eq!(rig.run_all().await, payloads(3..6));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_was_published_and_could_not_be_marked_is_redriven_again_and_runs_once() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(3).await;
    let (log, dead) = faulty(&rig).await;
    *log.fails.lock().unwrap() =
        |topic, _| topic.ends_with(".handled").then(|| Error::not_applied(ErrorKind::Denied, "append"));
    let mut redrive = dead.redrive(Filter::new());
    assert_eq!(redrive.run().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(redrive.report().redriven, 0);
    assert_eq!(dead.discard(Filter::new()).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(rig.run_all().await, payloads(0..3));
    *log.fails.lock().unwrap() = |_, _| None;
    assert_eq!(redrive.run().await?.redriven, 3);
    assert_eq!(rig.run_all().await, [""; 0]);
    assert_eq!(rig.dead.count(Filter::new()).await?, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_the_log_never_takes_does_not_stop_the_others() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(3).await;
    let (log, dead) = faulty(&rig).await;
    *log.fails.lock().unwrap() = |topic, payload| {
        let fails = topic == "emails" && payload == Some(b"001");
        fails.then(|| Error::not_applied(ErrorKind::TooLarge, "append"))
    };
    let report = dead.redrive(Filter::new()).run().await?;
    assert_eq!((report.redriven, report.refused, report.state), (2, 1, RedriveState::Complete));
    assert_eq!(rig.run_all().await, ["000", "002"]);
    assert_eq!(rig.dead.count(Filter::new()).await?, 1, "it is still there");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn browsing_goes_on_after_an_error() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(3).await;
    let (log, dead) = faulty(&rig).await;
    let mut letters = dead.letters(Filter::new()).await?;
    *log.fails.lock().unwrap() =
        |op, _| (op == "fetch").then(|| Error::not_applied(ErrorKind::Timeout, "fetch"));
    let e = letters.next().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(e.to_string().contains(DEAD), "{e}");
    *log.fails.lock().unwrap() = |_, _| None;
    assert_eq!(letters.next_page(10).await?.len(), 3);
    Ok(())
}
