//! Browsing, filters and groups.

use crate::{
    DEAD, Rig, append,
    common::{ms, next, quick, soon, wall_now},
    faulty::faulty,
    open, payloads, task,
};
use kafkaq::{
    Error, ErrorKind, Headers, Queue, Result, Task, TaskId,
    backend::{Log, NewRecord, Partition, TopicSpec},
    dead_letters::{Filter, Fingerprint, Place},
    memory::{MemoryLog, MemoryStore},
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

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
async fn missing_queue_is_not_created() -> Result<()> {
    let log = Arc::new(MemoryLog::new());
    let e = Queue::builder("emials").build_dead_letters(log.clone()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains("emials.kafkaq.dead"), "{e}");
    assert_eq!(log.describe_topics(&["emials".into()]).await?, [None]);
    let e = Queue::builder("q").dead_topic("d".repeat(249)).build_dead_letters(log).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn browsing_continues_after_an_error() -> Result<()> {
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
