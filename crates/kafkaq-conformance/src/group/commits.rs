//! Commits: where they count and where they are refused.

use super::{Cx, Reader, Stage, settle, stage};
use crate::check::{Checked, Failed, ensure_eq};
use kafkaq_core::{Assignment, Commit, Effect, ErrorKind, Partition, Result};

/// The offset of a record that was read, by its value.
fn offset_of(reader: &Reader, of: &Partition, value: usize) -> Checked<i64> {
    let found = reader.read.get(of).and_then(|read| read.iter().find(|(_, v)| *v == value));
    found.map(|(offset, _)| *offset).ok_or_else(|| Failed(format!("record {value} of {of} was not read")))
}

/// The first record that a member reads of a partition.
async fn first(cx: &Cx, reader: &mut Reader, of: &Partition) -> Checked<usize> {
    Ok(reader.read(cx, of, 1).await?[0].1)
}

fn refused(outcome: &Result<()>, what: &str) -> Checked {
    let Err(error) = outcome else { return Err(Failed(format!("{what} was accepted"))) };
    ensure_eq!(error.kind(), ErrorKind::NotOwner, "{what}: the kind of `{error}`");
    ensure_eq!(error.effect(), Effect::NotApplied, "{what}: the effect of `{error}`");
    Ok(())
}

pub(super) async fn a_group_goes_on_at_its_commit(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let of = stage.partition(0);
    for (from, to) in [(0, 3), (3, 7)] {
        let mut reader = stage.join("g").await?;
        reader.read(cx, &of, 10 - from).await?;
        ensure_eq!(reader.read[&of][0].1, from, "where the group continues after a commit of {from}");
        reader.commit(&reader.mine[&of], offset_of(&reader, &of, to)?).await?;
        reader.consumer.member.leave().await?;
    }
    ensure_eq!(
        first(cx, &mut stage.join("g").await?, &of).await?,
        7,
        "where the group continues after a commit of 7"
    );
    Ok(())
}

pub(super) async fn groups_know_nothing_of_one_another(cx: &Cx) -> Checked {
    let stage = stage(cx, 1, 10).await?;
    let of = stage.partition(0);
    let mut one = stage.join("one").await?;
    one.read(cx, &of, 10).await?;
    one.commit(&one.mine[&of], offset_of(&one, &of, 5)?).await?;
    let mut two = stage.join("two").await?;
    ensure_eq!(first(cx, &mut two, &of).await?, 0, "where another group starts");
    Ok(())
}

pub(super) async fn commit_outcomes_come_in_order(cx: &Cx) -> Checked {
    let stage = stage(cx, 3, 10).await?;
    let mut reader = stage.join("g").await?;
    for index in 0..3 {
        reader.read(cx, &stage.partition(index), 10).await?;
    }
    let commit = |index: i32, epochs_off: u64| {
        let mine = &reader.mine[&stage.partition(index)];
        let assignment = Assignment { epoch: mine.epoch.wrapping_add(epochs_off), ..mine.clone() };
        Commit { assignment, offset: 5 }
    };
    for wrong in 0..3 {
        let commits: Vec<_> = (0..3).map(|index| commit(index, u64::from(index == wrong) * 1000)).collect();
        let outcomes = cx.in_time("three commits", reader.consumer.member.commit(&commits)).await?;
        ensure_eq!(outcomes.len(), 3, "outcomes of three commits");
        let failed: Vec<_> = outcomes.iter().map(Result::is_err).collect();
        let expected: Vec<_> = (0..3).map(|index| index == wrong).collect();
        ensure_eq!(
            failed,
            expected,
            "which of three commits failed, when that of another epoch is number {wrong}"
        );
    }
    ensure_eq!(reader.consumer.member.commit(&[]).await.len(), 0, "outcomes of no commits");
    Ok(())
}

/// A member that has read the ten records of both partitions, while another one joins. Returns what is revoked.
async fn contested(cx: &Cx, stage: &Stage) -> Checked<(Reader, Reader, Vec<Assignment>)> {
    let mut one = stage.join_with("g", |request| request.release_limit = cx.answers_within()).await?;
    for index in 0..2 {
        one.read(cx, &stage.partition(index), 10).await?;
    }
    let two = stage.join("g").await?;
    let asked = one.revoking(cx).await?;
    Ok((one, two, asked))
}

/// Two members, and what the first has released to the second.
async fn handed_over(cx: &Cx, stage: &Stage) -> Checked<(Reader, Reader, Assignment)> {
    let (mut one, two, asked) = contested(cx, stage).await?;
    one.release(&asked);
    let mut readers = [one, two];
    let taken = |readers: &[Reader]| asked.iter().any(|a| readers[1].mine.contains_key(&a.partition));
    settle(cx, "the other member gets a partition", &mut readers, taken).await?;
    let [one, two] = readers;
    let gone = asked.into_iter().find(|a| two.mine.contains_key(&a.partition));
    Ok((one, two, gone.ok_or_else(|| Failed("no partition has moved".into()))?))
}

pub(super) async fn a_commit_while_revoking_counts(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 10).await?;
    let (mut one, two, asked) = contested(cx, &stage).await?;
    for mine in &asked {
        one.commit(mine, offset_of(&one, &mine.partition, 6)?).await?;
    }
    one.release(&asked);
    one.read.clear();
    let mut readers = [one, two];
    let has_read = |readers: &[Reader]| readers[1].read.values().any(|read| !read.is_empty());
    settle(cx, "the other member reads", &mut readers, has_read).await?;
    for (of, read) in &readers[1].read {
        ensure_eq!(read[0].1, 6, "where the next owner of {of} starts after a commit while revoking");
    }
    Ok(())
}

pub(super) async fn a_commit_after_the_release_is_refused(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 10).await?;
    let (one, _two, gone) = handed_over(cx, &stage).await?;
    refused(&one.commit(&gone, offset_of(&one, &gone.partition, 6)?).await, "a commit after the release")
}

pub(super) async fn a_commit_of_an_older_epoch_is_refused(cx: &Cx) -> Checked {
    let stage = stage(cx, 2, 10).await?;
    let (one, two, gone) = handed_over(cx, &stage).await?;
    two.consumer.member.leave().await?;
    drop(two);
    let mut readers = [one];
    readers[0].read.remove(&gone.partition);
    // Read again, too: a member commits what it has read under that epoch.
    let back = |readers: &[Reader]| {
        let read = readers[0].read.get(&gone.partition);
        readers[0].mine.contains_key(&gone.partition) && read.is_some_and(|r| r.iter().any(|(_, v)| *v == 8))
    };
    settle(cx, "the partition comes back", &mut readers, back).await?;
    let [one] = &readers;
    let of = &gone.partition;
    one.commit(&one.mine[of], offset_of(one, of, 8)?).await?;
    refused(&one.commit(&gone, offset_of(one, of, 2)?).await, "a commit of an older epoch")?;
    one.consumer.member.leave().await?;
    let mut next = stage.join("g").await?;
    ensure_eq!(
        first(cx, &mut next, of).await?,
        8,
        "where the group continues after a late commit of an older epoch"
    );
    Ok(())
}
