//! Many keys in one call.

use super::{Cx, Value, get, key, keys, keys_of, put, value};
use crate::check::{Checked, ensure, ensure_eq};
use kafkaq_core::{Key, LeaseStore, Swap, Swapped};
use std::time::Duration;
use tokio::time::Instant;

/// Every third key of a batch has this already, so that outcomes differ along it.
fn seed(n: usize) -> Value {
    n.is_multiple_of(3).then(|| format!("old {n}").into())
}

async fn plant(store: &dyn LeaseStore, keys: &[Key]) -> Checked {
    let seeds = keys.iter().enumerate().filter(|(n, _)| seed(*n).is_some());
    let swaps: Vec<_> = seeds.map(|(n, key)| Swap::new(key.clone(), None, seed(n), None)).collect();
    for outcome in store.swap(&swaps).await {
        outcome?;
    }
    Ok(())
}

/// Swaps of all kinds in turn over the seeded values, each with its expected outcome and final value.
fn of_all_kinds(n: usize, key: &Key) -> (Swap, Swapped, Value) {
    let there = seed(n);
    let swap = |expect, new| Swap::new(key.clone(), expect, new, None);
    match (n % 4, &there) {
        // Replaces a value or creates one.
        (0, _) => (swap(there, value(n)), Swapped::Done, value(n)),
        // Deletes a value, or leaves a missing one missing.
        (1, _) => (swap(there, None), Swapped::Done, None),
        (2, _) => (swap(value("stale"), value("x")), Swapped::Conflict(there.clone()), there),
        (_, None) => (swap(None, value(n)), Swapped::Done, value(n)),
        (_, Some(_)) => (swap(None, value("x")), Swapped::Conflict(there.clone()), there),
    }
}

/// Sends swaps of all kinds at once; every outcome must be its own key's.
async fn swap_all(store: &dyn LeaseStore, keys: &[Key]) -> Checked {
    let (swaps, expected): (Vec<_>, Vec<_>) = keys
        .iter()
        .enumerate()
        .map(|(n, key)| of_all_kinds(n, key))
        .map(|(swap, outcome, _)| (swap, outcome))
        .unzip();
    let outcomes = store.swap(&swaps).await;
    ensure_eq!(outcomes.len(), keys.len(), "outcomes of a batch of swaps");
    for (n, (outcome, expected)) in outcomes.into_iter().zip(expected).enumerate() {
        ensure_eq!(outcome?, expected, "outcome {n} of {}", keys.len());
    }
    Ok(())
}

async fn read_all(store: &dyn LeaseStore, keys: &[Key], expected: impl Fn(usize) -> Value) -> Checked {
    let values = store.get(keys).await;
    ensure_eq!(values.len(), keys.len(), "outcomes of a batch of gets");
    for (n, got) in values.into_iter().enumerate() {
        ensure_eq!(got?, expected(n), "value {n} of {}", keys.len());
    }
    Ok(())
}

pub(super) async fn outcomes_come_in_order_of_the_swaps(cx: &Cx) -> Checked {
    let (store, keys) = (cx.client().await?, keys(cx, 24)?);
    plant(&*store, &keys).await?;
    swap_all(&*store, &keys).await
}

pub(super) async fn values_come_in_order_of_the_keys(cx: &Cx) -> Checked {
    let (store, mut keys) = (cx.client().await?, keys(cx, 12)?);
    plant(&*store, &keys).await?;
    read_all(&*store, &keys, seed).await?;
    keys.reverse();
    read_all(&*store, &keys, |n| seed(11 - n)).await
}

pub(super) async fn a_batch_may_be_empty_or_have_one_item(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    ensure_eq!(store.swap(&[]).await.len(), 0, "outcomes of no swaps");
    ensure_eq!(store.get(&[]).await.len(), 0, "outcomes of no gets");
    put(&*store, &key, None, value("1"), None).await?;
    ensure_eq!(get(&*store, &key).await?, value("1"), "the only value");
    Ok(())
}

pub(super) async fn a_batch_may_have_a_thousand_items(cx: &Cx) -> Checked {
    let (store, keys) = (cx.client().await?, keys(cx, 1000)?);
    plant(&*store, &keys).await?;
    swap_all(&*store, &keys).await?;
    read_all(&*store, &keys, |n| of_all_kinds(n, &keys[n]).2).await
}

/// With one request or transaction per swap, a batch costs as much as single calls; otherwise it costs far less. Half
/// of that is far from both, however busy the machine is, and a batch below the absolute limit is fast enough anyway.
pub(super) async fn a_batch_is_cheaper_than_its_swaps_one_by_one(cx: &Cx) -> Checked {
    const ROUNDS: usize = 3;
    const SINGLES: usize = 20;
    const BATCH: usize = 1000;
    const FAST: Duration = Duration::from_millis(200);
    let (store, keys, single_keys) = (cx.client().await?, keys(cx, BATCH)?, keys_of(cx, "single", SINGLES)?);
    let (mut singles, mut batches, mut there) = (Vec::new(), Vec::new(), None);
    for round in 0..=ROUNDS {
        // The last one leaves nothing behind.
        let next = if round < ROUNDS { value(round) } else { None };
        for key in &single_keys {
            let begin = Instant::now();
            put(&*store, key, there.clone(), next.clone(), None).await?;
            singles.push(begin.elapsed());
        }
        let swap = |key: &Key| Swap::new(key.clone(), there.clone(), next.clone(), None);
        let batch: Vec<_> = keys.iter().map(swap).collect();
        let begin = Instant::now();
        let outcomes = store.swap(&batch).await;
        batches.push(begin.elapsed());
        for outcome in outcomes {
            ensure_eq!(outcome?, Swapped::Done, "a swap of a batch that nobody else knows");
        }
        there = next;
    }
    singles.sort();
    let single = singles[singles.len() / 2];
    let batch = batches.into_iter().min().unwrap_or_default();
    let one_by_one = single * BATCH as u32;
    ensure!(
        batch <= FAST || batch <= one_by_one / 2,
        "a batch of {BATCH} swaps took {batch:?} and a single swap {single:?}: does each have a request or a \
         transaction of its own?"
    );
    Ok(())
}
