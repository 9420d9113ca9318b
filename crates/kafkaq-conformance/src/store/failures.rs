//! What happens during and after an outage.

use super::{Cx, get, key, put, value};
use crate::check::{Checked, Failed, ensure, ensure_eq};
use futures_util::{
    future::{Either, select},
    poll,
};
use kafkaq_core::{Effect, Key, LeaseStore, Result, Swap, Swapped};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::sleep};

/// Creates one key after another until an error, and returns the outcome of each.
async fn create_until_an_error(
    store: Arc<dyn LeaseStore>,
    keys: Vec<Key>,
) -> Vec<(Key, Option<Result<Swapped>>)> {
    let mut told = Vec::new();
    for key in keys {
        let create = [Swap::new(key.clone(), None, value("there"), None)];
        let outcome = store.swap(&create).await.pop();
        let ended = !matches!(outcome, Some(Ok(_)));
        told.push((key, outcome));
        if ended {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    }
    told
}

pub(super) async fn an_effect_that_is_not_known_is_reported_as_unknown(cx: &Cx) -> Checked {
    const WRITERS: usize = 8;
    const EACH: usize = 10_000;
    const BATCH: usize = 1000;
    let (store, outage) = (cx.client().await?, cx.outage()?);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let keys = (0..EACH).map(|n| key(cx, format!("{writer}-{n}"))).collect::<Checked<_>>()?;
        writers.spawn(create_until_an_error(store.clone(), keys));
    }
    sleep(Duration::from_millis(300)).await;
    outage.cut().await?;
    let told = cx.in_time("swaps without a server", writers.join_all()).await?;
    outage.restore().await?;
    let none = key(cx, "none")?;
    cx.recovered(async || get(&*store, &none).await).await?;
    // Requests that were sent before the cut may still be executed after it.
    sleep(Duration::from_secs(1)).await;
    let mut cut_off = 0;
    let (keys, outcomes): (Vec<_>, Vec<_>) = told.into_iter().flatten().unzip();
    let mut values = Vec::with_capacity(keys.len());
    // A client of several servers reconnects to each of them separately.
    let first = keys.chunks(BATCH).next().unwrap_or_default();
    cx.recovered(async || Ok(store.get(first).await.into_iter().try_for_each(|value| value.map(drop))?))
        .await?;
    for some in keys.chunks(BATCH) {
        values.extend(store.get(some).await);
    }
    ensure_eq!(values.len(), keys.len(), "outcomes of batches of gets");
    for ((key, outcome), value) in keys.iter().zip(outcomes).zip(values) {
        let there = value?.is_some();
        match outcome {
            Some(Ok(Swapped::Done)) => ensure!(there, "the swap of {key} returned Done, but it is missing"),
            Some(Ok(Swapped::Conflict(seen))) => {
                // Only a client that resends by itself gets here, and then the effect is unknown.
                return Err(Failed(format!("{key} was new, but the swap returned a conflict with {seen:?}")));
            }
            Some(Err(error)) if error.effect() == Effect::NotApplied => {
                cut_off += 1;
                ensure!(!there, "{key} is there, although `{error}` says that it certainly isn't");
            }
            // Missing outcomes count as unknown.
            Some(Err(_)) | None => cut_off += 1,
        }
    }
    ensure!(cut_off > 0, "the server was cut off and no call noticed");
    Ok(())
}

pub(super) async fn without_a_server_every_call_ends_in_time(cx: &Cx) -> Checked {
    let (store, outage, key) = (cx.client().await?, cx.outage()?, key(cx, "a")?);
    put(&*store, &key, None, value(1), None).await?;
    outage.cut().await?;
    // Twice: the first call may use a connection that looks intact, the second must not.
    for _ in 0..2 {
        let keys = [key.clone(), key.clone()];
        let swap = [Swap::new(key.clone(), value(1), value(2), None)];
        let (values, swapped, checked) = tokio::join!(
            cx.in_time("a get without a server", store.get(&keys)),
            cx.in_time("a swap without a server", store.swap(&swap)),
            cx.in_time("a check without a server", store.check()),
        );
        let (values, swapped, checked) = (values?, swapped?, checked?);
        ensure!(values.iter().all(Result::is_err), "a get without a server answered {values:?}");
        ensure!(swapped.iter().all(Result::is_err), "a swap without a server answered {swapped:?}");
        ensure!(checked.is_err(), "a check without a server answered {checked:?}");
    }
    // Whether it succeeds is up to the backend.
    let _ = cx.in_time("a close without a server", store.close()).await?;
    Ok(())
}

pub(super) async fn it_reconnects_by_itself(cx: &Cx) -> Checked {
    let (store, outage, key) = (cx.client().await?, cx.outage()?, key(cx, "a")?);
    put(&*store, &key, None, value(1), None).await?;
    for _ in 0..2 {
        outage.cut().await?;
        cx.in_time("a get without a server", store.get(std::slice::from_ref(&key))).await?;
        outage.restore().await?;
        let there = cx.recovered(async || get(&*store, &key).await).await?;
        ensure_eq!(there, value(1), "what was there before the outage");
        put(&*store, &key, value(1), value(2), None).await?;
        put(&*store, &key, value(2), value(1), None).await?;
    }
    Ok(())
}

pub(super) async fn close_waits_for_calls_under_way(cx: &Cx) -> Checked {
    /// How many checks, a hundredth of a second apart, it takes at most to see that a call has ended. If the machine
    /// stalls, only one of them is lost.
    const LOOKS: usize = 50;
    let (store, outage, key) = (cx.client().await?, cx.outage()?, key(cx, "a")?);
    put(&*store, &key, None, value(1), None).await?;
    outage.cut().await?;
    let swap = [Swap::new(key, value(1), value(2), None)];
    let mut call = pin!(store.swap(&swap));
    if poll!(call.as_mut()).is_ready() {
        // If a call without a server fails at once, nothing is in flight.
        return Ok(());
    }
    let close = pin!(store.close());
    match cx.in_time("a close while a call is under way", select(call, close)).await? {
        Either::Left((_ended, close)) => {
            let _ = cx.in_time("a close after the last call has ended", close).await?;
        }
        Either::Right((_closed, mut call)) => {
            for _ in 0..LOOKS {
                if tokio::time::timeout(Duration::from_millis(10), call.as_mut()).await.is_ok() {
                    return Ok(());
                }
            }
            return Err(Failed("close returned while a swap was still waiting for its response".into()));
        }
    }
    Ok(())
}
