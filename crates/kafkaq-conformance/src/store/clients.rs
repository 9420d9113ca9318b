//! Several callers and several clients; check and close.

use super::{Cx, get, key, only, put, swap, value};
use crate::{
    case::give_up,
    check::{Checked, Failed, ensure, ensure_eq},
};
use kafkaq_core::{Effect, ErrorKind, Swap, Swapped};
use tokio::task::JoinSet;

pub(super) async fn another_client_sees_an_answered_swap_at_once(cx: &Cx) -> Checked {
    let (one, two, key) = (cx.client().await?, cx.client().await?, key(cx, "a")?);
    let mut there = None;
    for n in 0..100 {
        // Each reads for a while without writing, so that a cache in the client would be noticed.
        let (writer, reader) = if n / 5 % 2 == 0 { (&one, &two) } else { (&two, &one) };
        put(&**writer, &key, there, value(n), None).await?;
        ensure_eq!(get(&**reader, &key).await?, value(n), "what the other client has just written");
        there = value(n);
        if n % 5 == 4 {
            let stale = swap(&**reader, &key, None, value("wrong")).await?;
            ensure_eq!(stale, Swapped::Conflict(value(n)), "a swap after the other client's");
        }
    }
    Ok(())
}

pub(super) async fn concurrent_calls_get_their_own_answers(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    let mut calls = JoinSet::new();
    for caller in 0..64 {
        let (store, key) = (store.clone(), key(cx, caller)?);
        calls.spawn(async move {
            let mut there = None;
            for n in 0..10 {
                let next = value(format!("{caller}: {n}"));
                put(&*store, &key, there, next.clone(), None).await?;
                ensure_eq!(get(&*store, &key).await?, next, "the value of caller {caller}");
                there = next;
            }
            Ok::<_, Failed>(())
        });
    }
    calls.join_all().await.into_iter().collect()
}

pub(super) async fn a_dropped_call_leaves_the_others_right(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    let bystander = key(cx, "bystander")?;
    put(&*store, &bystander, None, value(0), None).await?;
    for n in 0..60 {
        let dropped = key(cx, n)?;
        let create = [Swap::new(dropped.clone(), None, value(n), None)];
        give_up(store.swap(&create), n).await;
        put(&*store, &bystander, value(n), value(n + 1), None).await?;
        ensure_eq!(get(&*store, &bystander).await?, value(n + 1), "a bystander after a dropped call");
        let mut seen = get(&*store, &dropped).await?;
        ensure!(seen.is_none() || seen == value(n), "a dropped swap left {seen:?}");
        // It may still take effect: then there is a conflict, and the next attempt overwrites it.
        for _ in 0..2 {
            match swap(&*store, &dropped, seen, value("next")).await? {
                Swapped::Done => break,
                Swapped::Conflict(now) => seen = now,
            }
        }
        ensure_eq!(get(&*store, &dropped).await?, value("next"), "the key of a dropped swap can be swapped");
    }
    Ok(())
}

pub(super) async fn check_answers(cx: &Cx) -> Checked {
    let warnings = cx.client().await?.check().await?;
    ensure!(warnings.iter().all(|warning| !warning.trim().is_empty()), "an empty warning in {warnings:?}");
    Ok(())
}

pub(super) async fn clients_may_check_at_once(cx: &Cx) -> Checked {
    let mut checks = JoinSet::new();
    for _ in 0..16 {
        let store = cx.client().await?;
        checks.spawn(async move { store.check().await.map(drop) });
    }
    for outcome in checks.join_all().await {
        outcome?;
    }
    Ok(())
}

pub(super) async fn close_is_idempotent_and_final(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    put(&*store, &key, None, value(1), None).await?;
    store.close().await?;
    store.close().await?;
    let keys = [key.clone(), key.clone()];
    let mut errors: Vec<_> = store.get(&keys).await.into_iter().map(Result::err).collect();
    ensure_eq!(errors.len(), 2, "outcomes of two gets after close");
    let swaps = store.swap(&[Swap::new(key, value(1), value(2), None)]).await;
    ensure_eq!(swaps.len(), 1, "outcomes of a swap after close");
    errors.extend(swaps.into_iter().map(Result::err));
    errors.push(store.check().await.err());
    for error in errors {
        let Some(error) = error else { return Err(Failed("a closed store kept working".into())) };
        ensure_eq!(error.kind(), ErrorKind::Closed, "the kind of `{error}`");
        ensure_eq!(error.effect(), Effect::NotApplied, "the effect of `{error}`");
    }
    Ok(())
}

pub(super) async fn close_ends_this_client_alone(cx: &Cx) -> Checked {
    let (one, two, key) = (cx.client().await?, cx.client().await?, key(cx, "a")?);
    put(&*one, &key, None, value(1), None).await?;
    one.close().await?;
    ensure_eq!(get(&*two, &key).await?, value(1), "what a closed client has written, for another");
    put(&*two, &key, value(1), value(2), None).await?;
    ensure_eq!(only(two.get(&[key]).await)?, value(2), "another client after the close");
    Ok(())
}
