//! Topics: missing ones are created, existing ones are left alone.

use super::{AnyLog, append, made, record, topic};
use crate::{
    case::Context,
    check::{Checked, Failed, ensure, ensure_eq},
};
use kafkaq_core::{Effect, ErrorKind, Partition, TopicSpec};
use std::{sync::Arc, time::Duration};

fn specs(space: &str, partitions: &[i32]) -> (Vec<TopicSpec>, Vec<(String, i32)>) {
    let named: Vec<_> = partitions.iter().map(|count| (format!("{space}.{count}"), *count)).collect();
    let spec = |(name, count): &(String, i32)| {
        let mut spec = TopicSpec::new(name.as_str());
        spec.partitions = Some(*count);
        spec
    };
    (named.iter().map(spec).collect(), named)
}

fn borrowed(named: &[(String, i32)]) -> Vec<(&str, i32)> {
    named.iter().map(|(name, count)| (name.as_str(), *count)).collect()
}

pub(super) async fn ensure_topics_answers_in_order<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let (specs, named) = specs(cx.space(), &[3, 1, 5, 2]);
    // One of them already exists, so that created and existing topics mix.
    log.ensure_topics(&specs[1..2]).await?;
    let infos = made(log.ensure_topics(&specs).await?, &borrowed(&named))?;
    let created: Vec<_> = infos.iter().map(|info| info.created).collect();
    ensure_eq!(created, [true, false, true, true], "which topics this call has created");
    Ok(())
}

pub(super) async fn ensure_topics_leaves_a_topic_that_exists_alone<L: AnyLog + ?Sized>(
    cx: &Context<L>,
) -> Checked {
    let log = cx.client().await?;
    let name = topic(cx, &*log, 3).await?;
    let at = Partition::new(name.clone(), 2);
    append(&*log, &at, &[record("kept")]).await?;
    for partitions in [Some(3), None, Some(1), Some(7)] {
        let mut again = TopicSpec::new(name.clone());
        again.partitions = partitions;
        let infos = made(log.ensure_topics(&[again]).await?, &[(&name, 3)])?;
        ensure!(!infos[0].created, "a topic that exists was created");
    }
    ensure_eq!(super::text(&log.read(&at, 1, cx.answers_within()).await?[0]), "kept", "the earlier record");
    Ok(())
}

pub(super) async fn a_topic_tells_the_settings_it_was_made_with<L: AnyLog + ?Sized>(
    cx: &Context<L>,
) -> Checked {
    let log = cx.client().await?;
    let mut spec = TopicSpec::new(cx.space());
    spec.partitions = Some(1);
    spec.retention = Some(Duration::from_secs(40 * 24 * 3600));
    spec.unlimited_bytes = true;
    spec.max_record_bytes = Some(1_500_000);
    spec.append_time = true;
    // When it is created, and when it exists.
    for _ in 0..2 {
        let infos = made(log.ensure_topics(std::slice::from_ref(&spec)).await?, &[(cx.space(), 1)])?;
        let info = &infos[0];
        // A log may not know it.
        ensure_eq!(info.retention.or(spec.retention), spec.retention, "how long records are kept");
        ensure_eq!(info.retention_bytes.unwrap_or(-1), -1, "the limit by size");
        ensure_eq!(
            info.max_record_bytes.or(spec.max_record_bytes),
            spec.max_record_bytes,
            "the largest record"
        );
        ensure!(info.append_time != Some(false), "records have the client's time");
        ensure!(info.compacted != Some(true), "the topic is compacted");
    }
    Ok(())
}

pub(super) async fn two_may_make_the_same_topics_at_once<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let one = cx.client().await?;
    let two = cx.other_client(&one).await?;
    for round in 0..5 {
        let (specs, named) = specs(&format!("{}.{round}", cx.space()), &[2, 3]);
        let (a, b) = tokio::join!(one.ensure_topics(&specs), two.ensure_topics(&specs));
        for infos in [a, b] {
            made(infos?, &borrowed(&named))?;
        }
    }
    Ok(())
}

pub(super) async fn describe_topics_answers_in_order_and_creates_nothing<L: AnyLog + ?Sized>(
    cx: &Context<L>,
) -> Checked {
    let log = cx.client().await?;
    let (specs, _) = specs(cx.space(), &[3, 1]);
    log.ensure_topics(&specs).await?;
    let missing: Arc<str> = format!("{}.missing", cx.space()).into();
    let names = [specs[1].name.clone(), missing, specs[0].name.clone()];
    // The first query must not create what the second finds.
    for _ in 0..2 {
        let infos = log.describe_topics(&names).await?;
        let found: Vec<_> =
            infos.iter().map(|i| i.as_ref().map(|i| (i.name.clone(), i.partitions))).collect();
        let wanted = [Some((names[0].clone(), 1)), None, Some((names[2].clone(), 3))];
        ensure_eq!(found, wanted, "two topics, and between them one that does not exist");
        ensure!(infos.iter().flatten().all(|info| !info.created), "a query has created a topic");
    }
    ensure!(log.describe_topics(&[]).await?.is_empty(), "a query for no topics has found some");
    Ok(())
}

pub(super) async fn a_new_topic_takes_records_at_once<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let name = topic(cx, &*log, 8).await?;
    for index in 0..8 {
        append(&*log, &Partition::new(name.clone(), index), &[record(index)]).await?;
    }
    Ok(())
}

pub(super) async fn an_unknown_topic_is_not_found<L: AnyLog + ?Sized>(cx: &Context<L>) -> Checked {
    let log = cx.client().await?;
    let name = topic(cx, &*log, 1).await?;
    for unknown in [Partition::new(format!("{name}.missing"), 0), Partition::new(name, 9)] {
        let outcomes = log.append(&unknown, &[record(1), record(2)]).await;
        ensure_eq!(outcomes.len(), 2, "outcomes of two records");
        for outcome in outcomes {
            let Err(error) = outcome else { return Err(Failed(format!("{unknown} accepted a record"))) };
            ensure_eq!(error.kind(), ErrorKind::NotFound, "the kind of `{error}`");
            ensure_eq!(error.effect(), Effect::NotApplied, "the effect of `{error}`");
            ensure!(error.advice().is_some(), "`{error}` does not say what to do");
        }
    }
    Ok(())
}
