//! Many keys in one call.

use super::{Cx, Value, get, key, keys, put, value};
use crate::check::{Checked, ensure_eq};
use kafkaq_core::{Key, LeaseStore, Swap, Swapped};

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

/// Creates all keys at once over what was planted; every outcome and every value must be its own key's.
async fn create_all(store: &dyn LeaseStore, keys: &[Key]) -> Checked {
    let swaps: Vec<_> =
        keys.iter().enumerate().map(|(n, key)| Swap::new(key.clone(), None, value(n), None)).collect();
    let outcomes = store.swap(&swaps).await;
    ensure_eq!(outcomes.len(), keys.len(), "outcomes of a batch of swaps");
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let expected = seed(n).map_or(Swapped::Done, |old| Swapped::Conflict(Some(old)));
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
    let (store, keys) = (cx.client().await?, keys(cx, 10)?);
    plant(&*store, &keys).await?;
    create_all(&*store, &keys).await?;
    // All kinds of swaps in one batch: create, replace, delete, and one that must fail.
    let there = |n: usize| seed(n).or_else(|| value(n));
    let swaps = [
        Swap::new(keys[3].clone(), value("stale"), value("x"), None),
        Swap::new(keys[0].clone(), there(0), None, None),
        Swap::new(key(cx, "new")?, None, value("new"), None),
        Swap::new(keys[2].clone(), there(2), value("replaced"), None),
        Swap::new(keys[1].clone(), None, value("x"), None),
    ];
    let outcomes = store.swap(&swaps).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let expected = [
        Swapped::Conflict(there(3)),
        Swapped::Done,
        Swapped::Done,
        Swapped::Done,
        Swapped::Conflict(there(1)),
    ];
    ensure_eq!(outcomes[..], expected[..], "outcomes of a mixed batch");
    Ok(())
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
    create_all(&*store, &keys).await?;
    read_all(&*store, &keys, |n| seed(n).or_else(|| value(n))).await
}
