//! What a member reads, and when it does not.

use super::{Cx, Reader, settle, stage};
use crate::check::{Checked, Failed, ensure, ensure_eq};
use kafkaq_core::{Assignment, Event, Partition};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Long enough for a batch that shouldn't come.
const A_WHILE: Duration = Duration::from_millis(1500);

/// The records "0" to the last, each once and in order.
fn in_order(read: &[(i64, usize)], what: &Partition) -> Checked {
    let values: Vec<_> = read.iter().map(|(_, value)| *value).collect();
    ensure_eq!(values, (0..values.len()).collect::<Vec<_>>(), "the records that were read of {what}");
    ensure!(read.is_sorted_by(|a, b| a.0 < b.0), "the offsets of {what} don't ascend: {read:?}");
    Ok(())
}

pub(super) async fn a_group_starts_at_the_first_record(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 10).await?;
    let mut reader = stage.join("g").await?;
    reader.assigned(cx).await?;
    for index in 0..2 {
        let of = stage.partition(index);
        let first = reader.read(cx, &of, 1).await?[0];
        ensure_eq!(first.1, 0, "the first record of {of} for a new group");
    }
    Ok(())
}

pub(super) async fn batches_keep_their_size_and_order(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 100).await?;
    let mut reader = stage.join_with("g", |request| request.max_batch = 7).await?;
    let mut batches = Vec::new();
    while batches.iter().map(|(_, _, count)| count).sum::<usize>() < 100 {
        let batch = reader
            .until(cx, "a batch", |event| match event {
                Event::Records(_, batch) => {
                    let (first, last) = (batch.records.first()?.offset, batch.records.last()?.offset);
                    Some(Some((first, batch.next, last, batch.records.len())))
                }
                Event::Lost(_) => Some(None),
                _ => None,
            })
            .await?;
        let Some((first, next, last, count)) = batch else {
            batches.clear();
            continue;
        };
        ensure!(count <= 7, "a batch of {count} records although 7 were requested");
        ensure!(next > last, "a batch ends with {last} and says that reading continues at {next}");
        batches.push((first, next, count));
    }
    ensure!(batches.is_sorted_by(|a, b| a.1 <= b.0), "batches (first, next, count) overlap: {batches:?}");
    in_order(&reader.read[&stage.partition(0)], &stage.partition(0))
}

pub(super) async fn no_event_is_lost_beside_a_tick(cx: &Cx) -> Checked {
    const RECORDS: usize = 600;
    let stage = stage(cx, 1, 0).await?;
    let of = stage.partition(0);
    let mut reader = stage.join_with("g", |request| request.max_batch = 3).await?;
    let write = async {
        for start in (0..RECORDS).step_by(6) {
            stage.append(0, start..start + 6).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok::<_, Failed>(())
    };
    let read = async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while reader.count(&of) < RECORDS {
            tokio::select! {
                _ = tick.tick() => {}
                event = reader.next() => match event? {
                    Some(_) => {}
                    None => return Err(Failed("the stream has ended".into())),
                },
            }
        }
        Ok(())
    };
    let both = cx.in_time("all records next to a ticking timer", async { tokio::join!(write, read) }).await?;
    both.0.and(both.1)?;
    in_order(&reader.read[&of], &of)
}

pub(super) async fn after_pause_comes_at_most_one_more_batch(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 200).await?;
    let (paused, other) = (stage.partition(0), stage.partition(1));
    let mut reader = stage.join_with("g", |request| request.max_batch = 5).await?;
    loop {
        reader.read(cx, &paused, 1).await?;
        let before = reader.count(&paused);
        let mine = reader.mine[&paused].clone();
        reader.consumer.member.pause(std::slice::from_ref(&mine));
        // The other partition is not paused.
        reader.read(cx, &other, 200).await?;
        reader.during(A_WHILE).await?;
        // A pause ends with its assignment.
        if reader.mine.get(&paused) == Some(&mine) {
            let more = reader.count(&paused) - before;
            ensure!(more <= 5, "{more} records arrived after a pause, in batches of 5");
            return Ok(());
        }
    }
}

pub(super) async fn resume_brings_all_the_rest(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 200).await?;
    let of = stage.partition(0);
    let mut reader = stage.join_with("g", |request| request.max_batch = 5).await?;
    for step in [1, 50, 120] {
        reader.read(cx, &of, step).await?;
        let mine = [reader.mine[&of].clone()];
        reader.consumer.member.pause(&mine);
        reader.during(Duration::from_millis(200)).await?;
        reader.consumer.member.resume(&mine);
    }
    let read = reader.read(cx, &of, 200).await?;
    in_order(read, &of)
}

pub(super) async fn an_old_assignment_pauses_nothing(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 5).await?;
    let of = stage.partition(0);
    let mut reader = stage.join("g").await?;
    reader.read(cx, &of, 5).await?;
    let mine = reader.mine[&of].clone();
    let old = Assignment { epoch: mine.epoch.wrapping_sub(1), ..mine };
    let unknown = Assignment { partition: Partition::new("missing", 0), epoch: 1 };
    reader.consumer.member.pause(&[old, unknown]);
    stage.append(0, 5..10).await?;
    reader.read(cx, &of, 10).await?;
    Ok(())
}

pub(super) async fn two_members_share_and_read_everything(cx: &Cx) -> Checked {
    const PARTITIONS: i32 = 4;
    let stage = stage(cx, PARTITIONS, 20).await?;
    let mut one = stage.join("g").await?;
    one.assigned(cx).await?;
    let mut readers = [one, stage.join("g").await?];
    let share = |readers: &[Reader]| {
        let owned: usize = readers.iter().map(|reader| reader.mine.len()).sum();
        readers.iter().all(|reader| !reader.mine.is_empty()) && owned == stage.partitions as usize
    };
    settle(cx, "every partition has a member, and each member one", &mut readers, share).await?;
    for index in 0..PARTITIONS {
        stage.append(index, 20..40).await?;
    }
    let everything = |readers: &[Reader]| all_read(readers).values().all(|read| read.len() == 40);
    let complete = |readers: &[Reader]| all_read(readers).len() == PARTITIONS as usize && everything(readers);
    settle(cx, "every record is read", &mut readers, complete).await?;
    let [one, two] = &readers;
    let both: Vec<_> = one.mine.keys().filter(|partition| two.mine.contains_key(partition)).collect();
    ensure!(both.is_empty(), "both members have {both:?}");
    Ok(())
}

/// What the members have read together.
fn all_read(readers: &[Reader]) -> BTreeMap<&Partition, BTreeSet<usize>> {
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (partition, read) in readers.iter().flat_map(|reader| &reader.read) {
        all.entry(partition).or_default().extend(read.iter().map(|(_, value)| *value));
    }
    all
}
