//! Reading a log without groups.

use super::{append, record, records, text, topic};
use crate::{
    case::{Context, give_up},
    check::{Checked, Failed, ensure, ensure_eq},
};
use kafkaq_core::{Batch, ErrorKind, FetchLimit, Offsets, Partition, PartitionLog, Position};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

type Cx = Context<dyn PartitionLog>;

/// Far longer than a call may take that doesn't have to wait.
fn long_poll(cx: &Cx) -> Duration {
    2 * cx.answers_within()
}

/// A log with one topic of two partitions.
async fn stage(cx: &Cx) -> Checked<(Arc<dyn PartitionLog>, Partition, Partition)> {
    let log = cx.client().await?;
    let name = topic(cx, &*log, 2).await?;
    Ok((log, Partition::new(name.clone(), 0), Partition::new(name, 1)))
}

async fn fetch(
    log: &dyn PartitionLog,
    of: &Partition,
    offset: i64,
    wait: Duration,
    bytes: usize,
) -> Checked<Batch> {
    let from = Position { partition: of.clone(), offset };
    Ok(log.fetch(&from, FetchLimit::new(wait, bytes)).await?)
}

/// The first batch from there on that has a record.
async fn first(log: &dyn PartitionLog, of: &Partition, mut offset: i64, bytes: usize) -> Checked<Batch> {
    for _ in 0..20 {
        let batch = fetch(log, of, offset, Duration::from_secs(1), bytes).await?;
        if !batch.records.is_empty() {
            return Ok(batch);
        }
        offset = batch.next;
    }
    Err(Failed(format!("{of} has a record from {offset} on, but no fetch returned it")))
}

pub(super) async fn fetch_starts_at_any_offset(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let mut offsets = append(&*log, &of, &records(0..10)).await?;
    offsets.extend(append(&*log, &of, &records(10..20)).await?);
    for (n, offset) in offsets.into_iter().enumerate().rev() {
        let batch = first(&*log, &of, offset, 1 << 20).await?;
        let got = (batch.records[0].offset, text(&batch.records[0]));
        ensure_eq!(got, (offset, n.to_string()), "the first record of a fetch from {offset}");
    }
    Ok(())
}

pub(super) async fn batches_follow_one_another_without_gaps(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    for start in (0..300).step_by(30) {
        append(&*log, &of, &records(start..start + 30)).await?;
    }
    let (mut at, mut read) = (0, Vec::new());
    while read.len() < 300 {
        let batch = first(&*log, &of, at, 200).await?;
        let last = batch.records.last().map_or(-1, |r| r.offset);
        ensure!(batch.records[0].offset >= at, "a fetch from {at} returned {}", batch.records[0].offset);
        ensure!(batch.next > last, "next is {} and the last record {last}", batch.next);
        read.extend(batch.records.iter().map(text));
        at = batch.next;
    }
    ensure_eq!(read, (0..300).map(|n| n.to_string()).collect::<Vec<_>>(), "the records of all batches");
    Ok(())
}

pub(super) async fn at_the_end_a_fetch_answers_an_empty_batch(cx: &Cx) -> Checked {
    let (log, of, untouched) = stage(cx).await?;
    let end = append(&*log, &of, &records(0..3)).await?[2] + 1;
    for (partition, from) in [(&of, end), (&untouched, 0)] {
        let (asked, wait) = (Instant::now(), Duration::from_millis(300));
        let batch = fetch(&*log, partition, from, wait, 1 << 20).await?;
        ensure!(batch.records.is_empty(), "{} records beyond the end", batch.records.len());
        ensure_eq!(batch.next, from, "where reading continues");
        let took = asked.elapsed();
        ensure!(took < wait + cx.answers_within(), "it took {took:?} to wait {wait:?}");
    }
    Ok(())
}

pub(super) async fn a_fetch_of_what_is_not_there_fails(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let end = append(&*log, &of, &records(0..3)).await?[2] + 1;
    let missing = Partition::new(format!("{}.missing", cx.space()), 0);
    for (partition, offset, kind) in [(of, end + 10, ErrorKind::Invalid), (missing, 0, ErrorKind::NotFound)] {
        let from = Position { partition, offset };
        let what = format!("a fetch of {} from {offset}, where nothing is", from.partition);
        let limit = FetchLimit::new(Duration::from_millis(300), 1 << 20);
        let fetched = cx.in_time(&what, log.fetch(&from, limit)).await?;
        ensure_eq!(fetched.map_err(|error| error.kind()), Err(kind), "{what}");
    }
    Ok(())
}

pub(super) async fn a_fetch_wakes_at_the_first_record(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let mut at = append(&*log, &of, &records(0..1)).await?[0] + 1;
    let wait = long_poll(cx);
    for round in 0..3 {
        let (reader, from) = (log.clone(), of.clone());
        let waiting = tokio::spawn(async move { fetch(&*reader, &from, at, wait, 1 << 20).await });
        sleep(Duration::from_millis(300)).await;
        let appended = Instant::now();
        append(&*log, &of, &[record(round)]).await?;
        let batch = waiting.await??;
        let took = appended.elapsed();
        ensure!(!batch.records.is_empty(), "a fetch that waited ended without the record that came");
        ensure!(took < cx.answers_within(), "a waiting fetch took {took:?} to see a new record");
        at = batch.next;
    }
    Ok(())
}

pub(super) async fn one_record_comes_even_if_it_is_larger_than_the_limit(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let large = "x".repeat(50_000);
    let offsets = append(&*log, &of, &[record(&large), record(&large)]).await?;
    for offset in offsets {
        let batch = fetch(&*log, &of, offset, cx.answers_within(), 100).await?;
        let got = batch.records.first().map(|r| (r.offset, r.size()));
        ensure_eq!(got, Some((offset, large.len())), "a fetch of at most 100 bytes");
    }
    Ok(())
}

pub(super) async fn a_dropped_fetch_loses_nothing(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let at = append(&*log, &of, &records(0..50)).await?;
    for (n, offset) in at.into_iter().enumerate() {
        give_up(fetch(&*log, &of, 0, long_poll(cx), 100), n as u64).await;
        let batch = first(&*log, &of, offset, 100).await?;
        ensure_eq!(batch.records[0].offset, offset, "a fetch after one that was dropped");
    }
    Ok(())
}

pub(super) async fn a_waiting_fetch_holds_up_nobody(cx: &Cx) -> Checked {
    let (log, quiet, busy) = stage(cx).await?;
    let (reader, wait) = (log.clone(), long_poll(cx));
    let waiting = tokio::spawn(async move { fetch(&*reader, &quiet, 0, wait, 1 << 20).await });
    sleep(Duration::from_millis(300)).await;
    let others = async {
        for n in 0..3 {
            let offset = append(&*log, &busy, &[record(n)]).await?[0];
            first(&*log, &busy, offset, 1 << 20).await?;
        }
        Ok::<_, Failed>(())
    };
    let done = cx.in_time("three appends and fetches during a waiting fetch", others).await?;
    waiting.abort();
    done
}

pub(super) async fn close_ends_a_waiting_fetch(cx: &Cx) -> Checked {
    let (log, of, _) = stage(cx).await?;
    let (reader, wait) = (log.clone(), long_poll(cx));
    let waiting = tokio::spawn(async move { fetch(&*reader, &of, 0, wait, 1 << 20).await.map(drop) });
    sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    log.close().await?;
    // Its result is up to the backend, as long as it has ended.
    let _ = cx.in_time("a fetch that waits while the log is closed", waiting).await?;
    let took = asked.elapsed();
    ensure!(took < cx.answers_within(), "it took {took:?} to close a log during a waiting fetch");
    Ok(())
}

pub(super) async fn offsets_tell_the_ends_in_order(cx: &Cx) -> Checked {
    let (log, of, untouched) = stage(cx).await?;
    let last = append(&*log, &of, &records(0..7)).await?[6];
    let missing = Partition::new(format!("{}.missing", cx.space()), 0);
    let outcomes = log.offsets(&[untouched, missing, of.clone()]).await;
    ensure_eq!(outcomes.len(), 3, "outcomes of three partitions");
    let [empty, unknown, full] = &outcomes[..] else { return Ok(()) };
    let ends =
        |outcome: &kafkaq_core::Result<Offsets>| outcome.as_ref().map_err(ToString::to_string).copied();
    ensure_eq!(ends(empty), Ok(Offsets { first: 0, next: 0 }), "the ends of an empty partition");
    ensure_eq!(ends(full), Ok(Offsets { first: 0, next: last + 1 }), "the ends of a partition");
    let kind = unknown.as_ref().err().map(kafkaq_core::Error::kind);
    ensure_eq!(kind, Some(ErrorKind::NotFound), "the error for a topic that is not there");
    ensure!(log.offsets(&[]).await.is_empty(), "offsets of no partitions");
    Ok(())
}
