//! The rules of a store, and helpers of their cases.

mod batches;
mod clients;
mod failures;
mod limits;
mod swaps;
mod ttl;

use crate::{
    case::{Case, Context, case},
    check::{Checked, Failed},
};
use bytes::Bytes;
use kafkaq_core::{Key, LeaseStore, Result, Swap, Swapped};
use std::time::Duration;

type Cx = Context<dyn LeaseStore>;
type Value = Option<Bytes>;

pub(crate) fn cases() -> Vec<Case<dyn LeaseStore>> {
    vec![
        case!(swaps::a_swap_that_was_answered_is_seen),
        case!(swaps::a_conflict_answers_what_is_there),
        case!(swaps::a_conflict_changes_nothing),
        case!(swaps::expected_values_are_compared_byte_for_byte),
        case!(swaps::an_empty_value_is_not_no_value),
        case!(swaps::a_swap_to_nothing_deletes),
        case!(swaps::of_concurrent_creates_one_wins),
        case!(swaps::swap_is_atomic_under_concurrency),
        case!(swaps::a_value_is_deleted_only_once_under_concurrency),
        case!(batches::outcomes_come_in_order_of_the_swaps),
        case!(batches::values_come_in_order_of_the_keys),
        case!(batches::a_batch_may_be_empty_or_have_one_item),
        case!(batches::a_batch_may_have_a_thousand_items),
        case!(batches::a_batch_is_cheaper_than_its_swaps_one_by_one),
        case!(ttl::no_ttl_is_cut_short),
        case!(ttl::a_swap_replaces_the_ttl),
        case!(ttl::a_refused_swap_leaves_the_ttl_alone),
        case!(ttl::without_a_ttl_a_value_stays),
        case!(ttl::a_ttl_may_be_very_long),
        case!(limits::keys_may_have_every_length_and_character),
        case!(limits::keys_that_look_alike_are_different),
        case!(limits::values_may_have_any_bytes),
        case!(limits::values_may_have_some_kilobytes),
        case!(clients::another_client_sees_an_answered_swap_at_once, SecondClient),
        case!(clients::concurrent_calls_get_their_own_answers),
        case!(clients::a_dropped_call_leaves_the_others_right),
        case!(clients::check_answers),
        case!(clients::clients_may_check_at_once, SecondClient),
        case!(clients::close_is_idempotent_and_final),
        case!(clients::close_ends_this_client_alone, SecondClient),
        case!(failures::an_effect_that_is_not_known_is_reported_as_unknown, Outage),
        case!(failures::without_a_server_every_call_ends_in_time, Outage),
        case!(failures::it_reconnects_by_itself, Outage),
        case!(failures::close_waits_for_calls_under_way, Outage),
    ]
}

/// Returns a key for this case only.
fn key(cx: &Cx, id: impl ToString) -> Checked<Key> {
    Ok(Key::of(&["t", cx.space(), "kit", &id.to_string()])?)
}

fn keys(cx: &Cx, count: usize) -> Checked<Vec<Key>> {
    keys_of(cx, "", count)
}

fn keys_of(cx: &Cx, kind: &str, count: usize) -> Checked<Vec<Key>> {
    (0..count).map(|n| key(cx, format!("{kind}{n}"))).collect()
}

fn value(text: impl ToString) -> Value {
    Some(Bytes::from(text.to_string()))
}

/// The only outcome of a call for one item.
fn only<T>(mut outcomes: Vec<Result<T>>) -> Checked<T> {
    match (outcomes.len(), outcomes.pop()) {
        (1, Some(outcome)) => Ok(outcome?),
        (count, _) => Err(Failed(format!("one item was requested, but {count} outcomes returned"))),
    }
}

async fn get(store: &dyn LeaseStore, key: &Key) -> Checked<Value> {
    only(store.get(std::slice::from_ref(key)).await)
}

async fn swap_for(
    store: &dyn LeaseStore,
    key: &Key,
    expect: Value,
    new: Value,
    ttl: Option<Duration>,
) -> Checked<Swapped> {
    only(store.swap(&[Swap::new(key.clone(), expect, new, ttl)]).await)
}

async fn swap(store: &dyn LeaseStore, key: &Key, expect: Value, new: Value) -> Checked<Swapped> {
    swap_for(store, key, expect, new, None).await
}

/// Sets up a value by a swap that has to succeed.
async fn put(store: &dyn LeaseStore, key: &Key, expect: Value, new: Value, ttl: Option<Duration>) -> Checked {
    match swap_for(store, key, expect.clone(), new.clone(), ttl).await? {
        Swapped::Done => Ok(()),
        other => Err(Failed(format!("a swap of {expect:?} for {new:?} returned {other:?}"))),
    }
}
