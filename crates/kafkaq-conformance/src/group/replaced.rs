//! Partitions whose records don't fit what was read before, because the topic was recreated or because the member
//! reports it.

use super::{Cx, Reader, Stage, stage};
use crate::check::{Checked, Failed, ensure, ensure_eq};
use kafkaq_core::{Assignment, ErrorKind, Event, Partition, TopicSpec};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// Long enough for an event that shouldn't come.
const A_WHILE: Duration = Duration::from_millis(1500);

/// A broker may check the identity of a topic only every ten seconds.
fn noticed_within(cx: &Cx) -> Duration {
    Duration::from_secs(15) + cx.answers_within()
}

/// A member that has read ten records of one partition, and has had it reassigned after a commit of four.
async fn reassigned(cx: &Cx, stage: &Stage) -> Checked<(Reader, Assignment)> {
    let of = stage.partition(0);
    let mut reader = stage.join("g").await?;
    let fourth = reader.read(cx, &of, 10).await?[4].0;
    let old = reader.mine[&of].clone();
    reader.commit(&old, fourth).await?;
    reader.consumer.member.reassign(std::slice::from_ref(&old));
    let lost = |event: &Event| matches!(event, Event::Lost(lost) if lost.contains(&old)).then_some(());
    reader.until(cx, "the loss of what is reassigned", lost).await?;
    Ok((reader, old))
}

pub(super) async fn a_reassigned_partition_comes_back_at_its_commit_under_a_higher_epoch(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let (mut reader, old) = reassigned(cx, &stage).await?;
    let again = reader.assigned(cx).await?;
    ensure_eq!(again.len(), 1, "assignments after one was reassigned");
    ensure!(again[0].epoch > old.epoch, "{old} came back as {}", again[0]);
    let first = reader.read(cx, &old.partition, 1).await?[0].1;
    ensure_eq!(first, 4, "where reading continues after a commit of 4 and a reassignment");
    let late = reader.commit(&old, 10).await.map_err(|error| error.kind());
    ensure_eq!(late, Err(ErrorKind::NotOwner), "a commit of what was reassigned");
    Ok(())
}

pub(super) async fn an_old_assignment_is_not_reassigned(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let (mut reader, old) = reassigned(cx, &stage).await?;
    reader.read(cx, &old.partition, 6).await?;
    reader.consumer.member.reassign(&[old]);
    for event in reader.during(A_WHILE).await? {
        ensure!(!matches!(event, Event::Lost(_) | Event::Assigned(_)), "{event:?} after a late call");
    }
    Ok(())
}

/// Deletes the stage's topic and creates it again, with records of its own: from 100 on.
async fn recreate(cx: &Cx, stage: &Stage, records: usize) -> Checked {
    cx.delete_topic(&stage.topic).await?;
    let mut spec = TopicSpec::new(stage.topic.clone());
    spec.partitions = Some(stage.partitions);
    let limit = Instant::now() + noticed_within(cx);
    // A cluster may take a while to delete a topic everywhere.
    while let Err(error) = stage.broker.ensure_topics(std::slice::from_ref(&spec)).await {
        ensure!(Instant::now() < limit, "the topic can't be created again: {error}");
        sleep(Duration::from_millis(100)).await;
    }
    while let Err(Failed(why)) = stage.append(0, 100..101).await {
        ensure!(Instant::now() < limit, "the recreated topic takes no record: {why}");
        sleep(Duration::from_millis(100)).await;
    }
    stage.append(0, 101..100 + records).await
}

/// Reads until all records of the recreated topic were read, of whichever epoch.
async fn read_all(cx: &Cx, reader: &mut Reader, of: &Partition, records: usize) -> Checked {
    let limit = Instant::now() + noticed_within(cx);
    let wanted: BTreeSet<_> = (100..100 + records).collect();
    loop {
        let read: BTreeSet<_> = reader.read.get(of).into_iter().flatten().map(|(_, value)| *value).collect();
        let missing: Vec<_> = wanted.difference(&read).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let left = limit.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, reader.next()).await {
            Ok(event) => ensure!(event?.is_some(), "the stream has ended"),
            Err(_) => return Err(Failed(format!("{of} was recreated, and never read: {missing:?}"))),
        }
    }
}

pub(super) async fn a_recreated_topic_is_read_whole_under_a_higher_epoch(cx: &Cx) -> Checked {
    // Shorter than it was, as long, and longer: then no position lies beyond its end.
    for records in [3, 10, 30] {
        let stage = stage_of_its_own(cx, records).await?;
        let of = stage.partition(0);
        let mut reader = stage.join("g").await?;
        reader.read(cx, &of, 10).await?;
        let old = reader.mine[&of].clone();
        reader.commit(&old, reader.read[&of][9].0 + 1).await?;
        recreate(cx, &stage, records).await?;
        read_all(cx, &mut reader, &of, records).await?;
        let Some(new) = reader.mine.get(&of).cloned() else {
            return Err(Failed(format!("{of} was read and is not assigned")));
        };
        ensure!(new.epoch > old.epoch, "{old} continues as {new} in the recreated topic");
        let late = reader.commit(&old, 1).await.map_err(|error| error.kind());
        ensure_eq!(late, Err(ErrorKind::NotOwner), "a commit for the topic that was deleted");
        let of_this = reader.read[&of].iter().filter(|(_, value)| *value >= 100);
        reader.commit(&new, of_this.map(|(offset, _)| offset + 1).max().unwrap_or_default()).await?;
        reader.consumer.member.leave().await?;
    }
    Ok(())
}

/// A topic for one round of a case.
async fn stage_of_its_own(cx: &Cx, round: usize) -> Checked<Stage> {
    let mut stage = stage(cx, 1, 0).await?;
    stage.topic = format!("{}-{round}", stage.topic).into();
    let mut spec = TopicSpec::new(stage.topic.clone());
    spec.partitions = Some(1);
    stage.broker.ensure_topics(&[spec]).await?;
    stage.append(0, 0..10).await?;
    Ok(stage)
}

pub(super) async fn a_recreated_topic_is_reported(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let of = stage.partition(0);
    let mut reader = stage.join("g").await?;
    reader.read(cx, &of, 10).await?;
    reader.warnings.clear();
    recreate(cx, &stage, 5).await?;
    read_all(cx, &mut reader, &of, 5).await?;
    let told = |error: &&kafkaq_core::Error| error.to_string().contains(&*stage.topic);
    ensure!(
        reader.warnings.iter().any(|error| told(&error)),
        "a topic was recreated, and no non-fatal error names it: {:?}",
        reader.warnings
    );
    Ok(())
}

pub(super) async fn a_commit_of_a_deleted_topic_counts_for_nothing(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let of = stage.partition(0);
    let mut one = stage.join("g").await?;
    one.read(cx, &of, 10).await?;
    one.commit(&one.mine[&of], one.read[&of][9].0 + 1).await?;
    one.consumer.member.leave().await?;
    recreate(cx, &stage, 20).await?;
    let mut two = stage.join("g").await?;
    read_all(cx, &mut two, &of, 20).await
}
