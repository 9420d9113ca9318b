//! One swap of one key.

use super::{Cx, get, key, only, put, swap, value};
use crate::check::{Checked, ensure, ensure_eq};
use bytes::Bytes;
use kafkaq_core::{Key, LeaseStore, Swap, Swapped};
use std::{collections::HashSet, sync::Arc};
use tokio::task::JoinSet;

pub(super) async fn a_swap_that_was_answered_is_seen(cx: &Cx) -> Checked {
    let store = cx.client().await?;
    for n in 0..50 {
        let key = key(cx, n)?;
        put(&*store, &key, None, value(n), None).await?;
        ensure_eq!(get(&*store, &key).await?, value(n), "a created value is read back");
        put(&*store, &key, value(n), value(n + 1), None).await?;
        ensure_eq!(get(&*store, &key).await?, value(n + 1), "a replaced value is read back");
    }
    Ok(())
}

pub(super) async fn a_conflict_answers_what_is_there(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    for new in [value("y"), None] {
        let missing = swap(&*store, &key, value("x"), new).await?;
        ensure_eq!(missing, Swapped::Conflict(None), "nothing is there");
    }
    put(&*store, &key, None, value("1"), None).await?;
    for (expect, new) in [(None, value("2")), (None, None), (value("0"), value("2")), (value("0"), None)] {
        let outcome = swap(&*store, &key, expect.clone(), new).await?;
        ensure_eq!(outcome, Swapped::Conflict(value("1")), "1 is there instead of {expect:?}");
    }
    Ok(())
}

pub(super) async fn a_conflict_changes_nothing(cx: &Cx) -> Checked {
    let (store, key, other) = (cx.client().await?, key(cx, "a")?, key(cx, "missing")?);
    put(&*store, &key, None, value("1"), None).await?;
    for (expect, new) in [(None, value("2")), (value("0"), value("2")), (value("0"), None)] {
        swap(&*store, &key, expect.clone(), new.clone()).await?;
        ensure_eq!(get(&*store, &key).await?, value("1"), "after a swap of {expect:?} by {new:?}");
    }
    swap(&*store, &other, value("0"), value("1")).await?;
    ensure_eq!(get(&*store, &other).await?, None, "after a swap over nothing that expected something");
    Ok(())
}

pub(super) async fn expected_values_are_compared_byte_for_byte(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    let there = Bytes::from_static(b"lease\x00A\xff");
    put(&*store, &key, None, Some(there.clone()), None).await?;
    let alike: [&[u8]; 7] = [
        b"lease",
        b"lease\x00A",
        b"lease\x00A\xff\xff",
        b"lease\x00A\xfe",
        b"lease\x00a\xff",
        b"Lease\x00A\xff",
        b"ease\x00A\xff",
    ];
    for expect in alike {
        let expect = Some(Bytes::from_static(expect));
        let outcome = swap(&*store, &key, expect.clone(), value("wrong")).await?;
        ensure!(outcome != Swapped::Done, "{expect:?} was mistaken for {there:?}");
    }
    put(&*store, &key, Some(there), value("right"), None).await
}

pub(super) async fn an_empty_value_is_not_no_value(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    let over_nothing = swap(&*store, &key, value(""), value("x")).await?;
    ensure_eq!(over_nothing, Swapped::Conflict(None), "an empty value was expected and nothing is there");
    put(&*store, &key, None, value(""), None).await?;
    ensure_eq!(get(&*store, &key).await?, value(""), "an empty value is there");
    let over_empty = swap(&*store, &key, None, value("x")).await?;
    ensure_eq!(over_empty, Swapped::Conflict(value("")), "nothing was expected and an empty value is there");
    put(&*store, &key, value(""), value("x"), None).await
}

pub(super) async fn a_swap_to_nothing_deletes(cx: &Cx) -> Checked {
    let (store, key) = (cx.client().await?, key(cx, "a")?);
    put(&*store, &key, None, None, None).await?;
    ensure_eq!(get(&*store, &key).await?, None, "a swap from missing to missing leaves it missing");
    for round in 0..3 {
        put(&*store, &key, None, value(round), None).await?;
        put(&*store, &key, value(round), None, None).await?;
        ensure_eq!(get(&*store, &key).await?, None, "after a swap to nothing");
        let late = swap(&*store, &key, value(round), value("wrong")).await?;
        ensure_eq!(late, Swapped::Conflict(None), "the value that was deleted was expected");
    }
    // A store that compares versions, which start over after a delete, mistakes the old value for the new one.
    put(&*store, &key, None, value("second life"), None).await?;
    let outcome = swap(&*store, &key, value(0), value("wrong")).await?;
    ensure_eq!(
        outcome,
        Swapped::Conflict(value("second life")),
        "the value from before the delete was expected"
    );
    Ok(())
}

/// Clients that race: two of them if possible.
async fn racers(cx: &Cx) -> Checked<[Arc<dyn LeaseStore>; 2]> {
    let one = cx.client().await?;
    let two = cx.other_client(&one).await?;
    Ok([one, two])
}

pub(super) async fn of_concurrent_creates_one_wins(cx: &Cx) -> Checked {
    const ROUNDS: usize = 40;
    const RACERS: usize = 8;
    let clients = racers(cx).await?;
    for round in 0..ROUNDS {
        let key = key(cx, round)?;
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let (store, key) = (clients[racer % 2].clone(), key.clone());
            race.spawn(async move { (racer, swap(&*store, &key, None, value(racer)).await) });
        }
        let mut winners = Vec::new();
        let mut losers_saw = Vec::new();
        for (racer, outcome) in race.join_all().await {
            match outcome? {
                Swapped::Done => winners.push(racer),
                Swapped::Conflict(seen) => losers_saw.push(seen),
            }
        }
        ensure_eq!(winners.len(), 1, "winners among {RACERS} that create one key");
        let won = value(winners[0]);
        ensure_eq!(get(&*clients[0], &key).await?, won, "the winner's value is there");
        ensure!(
            losers_saw.iter().all(|seen| *seen == won),
            "losers saw {losers_saw:?}, the winner wrote {won:?}"
        );
    }
    Ok(())
}

pub(super) async fn swap_is_atomic_under_concurrency(cx: &Cx) -> Checked {
    const RACERS: usize = 8;
    const EACH: usize = 40;
    let (clients, key) = (racers(cx).await?, key(cx, "counter")?);
    put(&*clients[0], &key, None, value(0), None).await?;
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        race.spawn(count_up(clients[racer % 2].clone(), key.clone(), EACH));
    }
    for racer in race.join_all().await {
        racer?;
    }
    ensure_eq!(get(&*clients[0], &key).await?, value(RACERS * EACH), "{RACERS} counted to {EACH} each");
    Ok(())
}

/// Adds one, `times` times, using each conflict's value for the next attempt.
async fn count_up(store: Arc<dyn LeaseStore>, key: Key, times: usize) -> Checked {
    for _ in 0..times {
        let mut seen = get(&*store, &key).await?;
        loop {
            let text = seen.clone().unwrap_or_default();
            let number: usize = std::str::from_utf8(&text)?.parse()?;
            let add = Swap::new(key.clone(), seen, value(number + 1), None);
            match only(store.swap(&[add]).await)? {
                Swapped::Done => break,
                Swapped::Conflict(now) => seen = now,
            }
        }
    }
    Ok(())
}

/// A store that compares versions which start over after a delete mistakes a new value for one that was read earlier,
/// if both were changed equally often.
pub(super) async fn a_value_is_deleted_only_once_under_concurrency(cx: &Cx) -> Checked {
    const RACERS: usize = 8;
    const EACH: usize = 40;
    let (clients, key) = (racers(cx).await?, key(cx, "a")?);
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        race.spawn(create_and_delete(clients[racer % 2].clone(), key.clone(), racer, EACH));
    }
    let (mut created, mut deleted) = (HashSet::new(), Vec::new());
    for racer in race.join_all().await {
        let (created_by_it, deleted_by_it) = racer?;
        created.extend(created_by_it);
        deleted.extend(deleted_by_it);
    }
    for value in deleted {
        ensure!(created.remove(&value), "{value:?} was deleted more often than it was created");
    }
    let left: Vec<_> = created.into_iter().collect();
    let there: Vec<_> = get(&*clients[0], &key).await?.into_iter().collect();
    ensure_eq!(there, left, "what was created and not deleted is there");
    Ok(())
}

/// Creates a value of its own, and deletes that or the one that it finds, `times` times. Returns the created and the
/// deleted ones.
async fn create_and_delete(
    store: Arc<dyn LeaseStore>,
    key: Key,
    racer: usize,
    times: usize,
) -> Checked<(Vec<Bytes>, Vec<Bytes>)> {
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for n in 0..times {
        let mine = Bytes::from(format!("{racer}-{n}"));
        let there = match swap(&*store, &key, None, Some(mine.clone())).await? {
            Swapped::Done => {
                created.push(mine.clone());
                Some(mine)
            }
            Swapped::Conflict(there) => there,
        };
        if let Some(there) = there
            && swap(&*store, &key, Some(there.clone()), None).await? == Swapped::Done
        {
            deleted.push(there);
        }
    }
    Ok((created, deleted))
}
