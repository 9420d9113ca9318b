//! The log during and after an outage.

use super::{AnyLog, append, record, text, topic};
use crate::{
    case::Context,
    check::{Checked, ensure, ensure_eq},
};
use kafkaq_core::{Effect, Partition, Result, TopicSpec};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::sleep};

/// Appends numbered records until the log returns an error, and returns the outcome of each.
async fn append_until_an_error<L: AnyLog + ?Sized>(
    log: Arc<L>,
    to: Partition,
    writer: usize,
) -> Vec<(String, Option<Result<i64>>)> {
    const MOST: usize = 10_000;
    let mut told = Vec::new();
    for n in 0..MOST {
        let name = format!("{writer}-{n}");
        let outcome = log.append(&to, &[record(&name)]).await.pop();
        let ended = !matches!(outcome, Some(Ok(_)));
        told.push((name, outcome));
        if ended {
            break;
        }
        sleep(Duration::from_millis(2)).await;
    }
    told
}

/// Everything in the partition up to the first record of that value.
async fn read_up_to<L: AnyLog + ?Sized>(
    log: &L,
    of: &Partition,
    last: &str,
    patience: Duration,
) -> Checked<BTreeMap<String, i64>> {
    let mut count = 1;
    loop {
        let read = log.read(of, count, patience).await?;
        count = read.len() + 1;
        if read.iter().any(|r| text(r) == last) {
            return Ok(read.iter().map(|r| (text(r), r.offset)).collect());
        }
    }
}

pub(super) async fn an_append_of_unknown_effect_is_reported_as_unknown<L: AnyLog + ?Sized>(
    cx: &Context<L>,
) -> Checked {
    const WRITERS: usize = 8;
    let (log, outage) = (cx.client().await?, cx.outage()?);
    let to = Partition::new(topic(cx, &*log, 1).await?, 0);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(append_until_an_error(log.clone(), to.clone(), writer));
    }
    sleep(Duration::from_millis(500)).await;
    outage.cut().await?;
    let told = cx.in_time("appends without a server", writers.join_all()).await?;
    outage.restore().await?;
    cx.recovered(async || append(&*log, &to, &[record("back")]).await).await?;
    // Requests that were sent before the cut may still be executed after it.
    sleep(Duration::from_secs(1)).await;
    cx.recovered(async || append(&*log, &to, &[record("last")]).await).await?;
    let there = read_up_to(&*log, &to, "last", cx.answers_within()).await?;
    let mut cut_off = 0;
    for (name, outcome) in told.into_iter().flatten() {
        match outcome {
            Some(Ok(offset)) => {
                ensure_eq!(there.get(&name), Some(&offset), "the offset of {name}, which was answered");
            }
            Some(Err(error)) if error.effect() == Effect::NotApplied => {
                cut_off += 1;
                ensure!(!there.contains_key(&name), "{name} is there, although `{error}` says that it isn't");
            }
            Some(Err(_)) | None => cut_off += 1,
        }
    }
    ensure!(cut_off > 0, "the server was cut off and no call noticed");
    Ok(())
}

pub(super) async fn without_a_server_every_call_ends_in_time<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let (log, outage) = (cx.client().await?, cx.outage()?);
    let to = Partition::new(topic(cx, &*log, 1).await?, 0);
    append(&*log, &to, &[record(1)]).await?;
    outage.cut().await?;
    // Twice: the first call may use a connection that looks intact, the second must not.
    for _ in 0..2 {
        let appended = cx.in_time("an append without a server", log.append(&to, &[record(2)])).await?;
        ensure!(appended.iter().all(Result::is_err), "an append without a server answered {appended:?}");
        let new = [TopicSpec::new(format!("{}.new", cx.space()))];
        let made = cx.in_time("ensure_topics without a server", log.ensure_topics(&new)).await?;
        ensure!(made.is_err(), "ensure_topics without a server answered {made:?}");
    }
    // Whether it succeeds is up to the backend.
    let _ = cx.in_time("a close without a server", log.close()).await?;
    Ok(())
}

pub(super) async fn it_reconnects_by_itself<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let (log, outage) = (cx.client().await?, cx.outage()?);
    let to = Partition::new(topic(cx, &*log, 1).await?, 0);
    append(&*log, &to, &[record("before")]).await?;
    for _ in 0..2 {
        outage.cut().await?;
        cx.in_time("an append without a server", log.append(&to, &[record("during")])).await?;
        outage.restore().await?;
        cx.recovered(async || append(&*log, &to, &[record("after")]).await).await?;
    }
    let there = read_up_to(&*log, &to, "after", cx.answers_within()).await?;
    ensure!(there.contains_key("before"), "what was there before the outage is gone");
    Ok(())
}
