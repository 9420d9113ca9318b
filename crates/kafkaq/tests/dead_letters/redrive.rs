//! Redriving and discarding.

use crate::{
    DEAD, Rig, append,
    common::{LEASE, ms, next, none_within, quick, records, soon},
    faulty::faulty,
    open, payloads, task,
};
use kafkaq::{
    Error, ErrorKind, Headers, JobStatus, Result, Task, TaskId,
    backend::{ID_HEADER, Log, NewRecord, TopicSpec},
    dead_letters::{Filter, Handled, Place, RedriveState},
    memory::{MemoryLog, MemoryStore},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

const MARKS: &str = "emails.kafkaq.dead.handled";

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
async fn interrupted_redrive_continues_and_each_task_runs_once() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(12).await;
    let mut redrive = rig.dead.redrive(Filter::new()).rate(20);
    for _ in 0..3 {
        tokio::time::timeout(ms(120), redrive.run()).await.unwrap_err();
    }
    let done = redrive.report().redriven;
    assert!((2..12).contains(&done), "{done}");
    assert_eq!(redrive.report().state, RedriveState::Running);
    // Another process takes over, and the first one continues, too.
    let other = open(&rig.log, &rig.store).await.redrive(Filter::new()).run().await?;
    assert!(other.redriven <= 12 - done + 2, "{other:?} after {done}");
    assert_eq!(redrive.run().await?.state, RedriveState::Complete);
    let all = redrive.report().redriven;
    assert!((done..=done + 2).contains(&all), "{all} after {done}: the other one did the rest");
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

/// The letters may be kept for longer than `dead_retention` says: their topic may be older than the setting.
#[tokio::test(start_paused = true)]
async fn marks_are_kept_forever_whatever_the_retention_of_letters() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(1).await;
    let builder = quick(&rig.log, &rig.store).dead_retention(Duration::from_secs(2 * 24 * 3600));
    let dead = builder.build_dead_letters(rig.log.clone()).await?;
    assert_eq!(dead.redrive(Filter::new()).run().await?.redriven, 1);
    let marks = rig.log.describe_topics(&[MARKS.into()]).await?.remove(0).unwrap();
    assert_eq!((marks.retention, marks.retention_bytes), (Some(Duration::MAX), Some(-1)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_compacted_topic_of_marks_is_refused_before_anything_is_done() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(1).await;
    let mut spec = TopicSpec::new(MARKS);
    (spec.partitions, spec.compacted) = (Some(1), true);
    rig.log.ensure_topics(&[spec]).await?;
    let redriven = rig.dead.redrive(Filter::new()).run().await.map(|report| report.redriven);
    for refused in [redriven, rig.dead.discard(Filter::new()).await] {
        let e = refused.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
        let mend = format!("--entity-name {MARKS} --add-config cleanup.policy=delete");
        assert!(e.to_string().contains(&mend), "{e}");
    }
    assert_eq!(rig.dead.count(Filter::new()).await?, 1);
    none_within(&rig.queue, 2 * LEASE).await;
    Ok(())
}

/// A keyed record without a value is a tombstone, which compaction deletes after a day.
#[tokio::test(start_paused = true)]
async fn a_mark_has_a_value_and_one_of_an_earlier_version_without_counts_too() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(2).await;
    rig.dead.redrive(Filter::new().kind("even")).run().await?;
    rig.dead.discard(Filter::new().kind("odd")).await?;
    let marks = records(&rig.log, MARKS, 2).await;
    let values: Vec<_> = marks.iter().map(|mark| mark.value.as_deref()).collect();
    assert_eq!(values, [Some(&b"redriven"[..]), Some(&b"discarded"[..])]);

    rig.log.delete_topic(MARKS)?;
    let mut spec = TopicSpec::new(MARKS);
    spec.partitions = Some(1);
    rig.log.ensure_topics(&[spec]).await?;
    for mark in marks {
        append(&rig.log, MARKS, NewRecord::new(mark.key, None, mark.headers)).await;
    }
    assert_eq!(rig.dead.count(Filter::new()).await?, 0);
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
async fn discarded_letters_are_neither_shown_nor_redriven_by_default() -> Result<()> {
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
async fn unpublished_letter_is_not_marked_and_redriven_by_the_next_run() -> Result<()> {
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
async fn published_but_unmarked_letter_is_redriven_again_and_runs_once() -> Result<()> {
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
async fn a_redriven_task_no_longer_expires() -> Result<()> {
    let rig = Rig::new().await;
    let expiring = task(0).with_header("task-expires-ms", "1000").with_header("task-when-expired", "dead");
    rig.kill(expiring, "no").await;
    assert_eq!(rig.dead.redrive(Filter::new()).run().await?.redriven, 1);
    let job = next(&rig.queue).await;
    let names: Vec<_> = job.headers().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["task-kind", "task-redrives"]);
    soon(job.done()).await.unwrap();
    Ok(())
}

/// An operator inspects the canary and discards hopeless letters before the rest is redriven.
#[tokio::test(start_paused = true)]
async fn what_was_handled_during_the_canary_is_not_redriven() -> Result<()> {
    let rig = Rig::new().await;
    rig.kill_many(5).await;
    let mut redrive = rig.dead.redrive(Filter::new()).canary(1);
    assert_eq!(redrive.run().await?.state, RedriveState::Canary);
    assert_eq!(rig.dead.discard(Filter::new().kind("odd")).await?, 2);
    let report = redrive.run().await?;
    assert_eq!((report.state, report.redriven), (RedriveState::Complete, 3));
    assert_eq!(rig.run_all().await, ["000", "002", "004"]);
    Ok(())
}
