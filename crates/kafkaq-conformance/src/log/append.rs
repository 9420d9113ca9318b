//! Appends: offsets, order, outcomes, and close.

use super::{AnyLog, append, record, records, text, topic};
use crate::{
    case::{Context, give_up},
    check::{Checked, Failed, ensure, ensure_eq},
};
use bytes::Bytes;
use kafkaq_core::{Effect, ErrorKind, Headers, NewRecord, Partition, TopicSpec};
use std::collections::BTreeSet;
use tokio::task::JoinSet;

async fn partition<L: AnyLog + ?Sized>(cx: &Context<L>, log: &L) -> Checked<Partition> {
    Ok(Partition::new(topic(cx, log, 1).await?, 0))
}

pub(super) async fn appended_offsets_ascend<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    let mut offsets = Vec::new();
    for batch in [1, 2, 7, 30] {
        offsets.extend(append(&*log, &to, &records(0..batch)).await?);
    }
    ensure!(offsets[0] >= 0 && offsets.is_sorted_by(|a, b| a < b), "the offsets are {offsets:?}");
    Ok(())
}

pub(super) async fn records_keep_their_order<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    for start in [0, 40, 80] {
        append(&*log, &to, &records(start..start + 40)).await?;
    }
    let read: Vec<_> = log.read(&to, 120, cx.answers_within()).await?.iter().map(text).collect();
    ensure_eq!(read, (0..120).map(|n| n.to_string()).collect::<Vec<_>>(), "the records as they were read");
    Ok(())
}

pub(super) async fn each_outcome_is_its_own_records<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    let offsets = append(&*log, &to, &records(0..20)).await?;
    for found in log.read(&to, 20, cx.answers_within()).await? {
        let n: usize = text(&found).parse()?;
        ensure_eq!(found.offset, offsets[n], "the offset of record {n}, compared with the outcome of append");
    }
    Ok(())
}

pub(super) async fn a_batch_may_be_empty_or_have_a_thousand_records<L: AnyLog + ?Sized>(
    cx: &Context<L>,
) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    append(&*log, &to, &[]).await?;
    append(&*log, &to, &records(0..1000)).await?;
    let read: BTreeSet<_> = log.read(&to, 1000, cx.answers_within()).await?.iter().map(text).collect();
    ensure_eq!(read.len(), 1000, "how many different records of a thousand are there");
    Ok(())
}

pub(super) async fn another_client_finds_what_was_appended<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    let offsets = append(&*log, &to, &records(0..10)).await?;
    // Nothing that is only in its buffers survives this.
    log.close().await?;
    let found = cx.client().await?.read(&to, 10, cx.answers_within()).await?;
    ensure_eq!(
        found.iter().map(|r| r.offset).collect::<Vec<_>>(),
        offsets,
        "the offsets that another client reads"
    );
    Ok(())
}

pub(super) async fn clients_append_behind_one_another<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let (one, two) = (cx.client().await?, cx.client().await?);
    let to = partition(cx, &*one).await?;
    let mut told = Vec::new();
    for n in 0..10 {
        let offsets = append(&**[&one, &two][n % 2], &to, &[record(n)]).await?;
        told.push((offsets[0], n.to_string()));
    }
    one.close().await?;
    // It starts from the current state, like a restarted process.
    let three = cx.client().await?;
    told.push((append(&*three, &to, &[record(10)]).await?[0], "10".into()));
    ensure!(told.is_sorted_by(|a, b| a.0 < b.0), "the offsets of three clients in turn are {told:?}");
    let read = three.read(&to, told.len(), cx.answers_within()).await?;
    let found: Vec<_> = read.iter().map(|r| (r.offset, text(r))).collect();
    ensure_eq!(found, told, "offset and value of what three clients have appended in turn");
    Ok(())
}

pub(super) async fn a_reader_beside_writers_misses_nothing<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    const WRITERS: usize = 4;
    const RECORDS: usize = 40;
    let one = cx.client().await?;
    let two = cx.other_client(&one).await?;
    let to = partition(cx, &*one).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (log, to) = ([&one, &two][writer % 2].clone(), to.clone());
        writers.spawn(async move {
            let mut told = Vec::new();
            for n in 0..RECORDS {
                let name = format!("{writer}-{n}");
                told.push((append(&*log, &to, &[record(&name)]).await?[0], name));
            }
            Ok::<_, Failed>(told)
        });
    }
    let read = one.read(&to, WRITERS * RECORDS, cx.answers_within());
    let (written, read) = tokio::join!(writers.join_all(), read);
    let mut told = BTreeSet::new();
    for writer in written {
        told.extend(writer?);
    }
    let read: Vec<_> = read?.iter().map(|r| (r.offset, text(r))).collect();
    ensure_eq!(
        read,
        Vec::from_iter(told),
        "what was read during the writes, compared with the outcomes of append"
    );
    Ok(())
}

/// Returns incompressible bytes.
pub fn noise(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

pub(super) async fn a_record_that_is_too_large_is_refused<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let mut spec = TopicSpec::new(cx.space());
    (spec.partitions, spec.max_record_bytes) = (Some(1), Some(100_000));
    log.ensure_topics(&[spec]).await?;
    let to = Partition::new(cx.space(), 0);
    let sized = |size| NewRecord::new(None, Some(noise(size)), Headers::new());
    append(&*log, &to, &[sized(90_000)]).await?;
    let outcomes = log.append(&to, &[record("before"), sized(200_000), record("after")]).await;
    ensure_eq!(outcomes.len(), 3, "outcomes of three records");
    let Err(error) = &outcomes[1] else { return Err(Failed("a record above the limit was accepted".into())) };
    ensure_eq!(error.kind(), ErrorKind::TooLarge, "the kind of `{error}`");
    ensure_eq!(error.effect(), Effect::NotApplied, "the effect of `{error}`");
    append(&*log, &to, &[record("last")]).await?;
    let neighbours = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let read = log.read(&to, 2 + neighbours, cx.answers_within()).await?;
    ensure!(read.iter().all(|r| r.size() < 100_000), "what was refused is in the log");
    ensure!(read.last().is_some_and(|r| text(r) == "last"), "the next record can't be read");
    Ok(())
}

pub(super) async fn concurrent_appends_get_their_own_answers<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let name = topic(cx, &*log, 4).await?;
    let mut calls = JoinSet::new();
    for caller in 0..32 {
        let (log, to) = (log.clone(), Partition::new(name.clone(), caller % 4));
        calls.spawn(async move {
            let batch: Vec<_> = (0..5).map(|n| record(format_args!("{caller}-{n}"))).collect();
            let offsets = append(&*log, &to, &batch).await?;
            ensure!(offsets.is_sorted_by(|a, b| a < b), "the offsets of one call are {offsets:?}");
            Ok::<_, Failed>(
                (0..5).map(|n| (caller % 4, offsets[n], format!("{caller}-{n}"))).collect::<Vec<_>>(),
            )
        });
    }
    let mut told = BTreeSet::new();
    for call in calls.join_all().await {
        told.extend(call?);
    }
    let mut found = BTreeSet::new();
    for index in 0..4 {
        let read = log.read(&Partition::new(name.clone(), index), 40, cx.answers_within()).await?;
        found.extend(read.iter().map(|r| (index, r.offset, text(r))));
    }
    ensure_eq!(
        found,
        told,
        "partition, offset and value of all records, compared with the outcomes of \
        append"
    );
    Ok(())
}

pub(super) async fn a_dropped_append_leaves_the_others_right<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    let mut told = Vec::new();
    for n in 0..40 {
        let dropped = [record("dropped")];
        give_up(log.append(&to, &dropped), n).await;
        told.extend(append(&*log, &to, &[record(n)]).await?);
    }
    // It is unknown how many of the dropped ones are there as well; the last one is at the end.
    let (mut read, mut wanted) = (Vec::new(), told.len());
    while read.len() < told.len() {
        read = log.read(&to, wanted, cx.answers_within()).await?;
        wanted = read.len() + 1;
        read.retain(|r| text(r) != "dropped");
    }
    let found: Vec<_> = read.iter().map(|r| (r.offset, text(r))).collect();
    let expected: Vec<_> = told.into_iter().enumerate().map(|(n, offset)| (offset, n.to_string())).collect();
    ensure_eq!(found, expected, "offset and value of the records that were answered");
    Ok(())
}

pub(super) async fn close_is_idempotent_and_final<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let to = partition(cx, &*log).await?;
    append(&*log, &to, &[record(1)]).await?;
    log.close().await?;
    log.close().await?;
    let outcomes = log.append(&to, &records(0..2)).await;
    ensure_eq!(outcomes.len(), 2, "outcomes of two records after close");
    let mut errors: Vec<_> = outcomes.into_iter().map(Result::err).collect();
    errors.push(log.ensure_topics(&[TopicSpec::new(cx.space())]).await.err());
    for error in errors {
        let Some(error) = error else { return Err(Failed("a closed log kept working".into())) };
        ensure_eq!(error.kind(), ErrorKind::Closed, "the kind of `{error}`");
        ensure_eq!(error.effect(), Effect::NotApplied, "the effect of `{error}`");
    }
    Ok(())
}
