//! The rules of the machine, one test each; members share a store that is a map.

use super::*;
use crate::{Error, ErrorKind};
use std::collections::BTreeMap;

const SEC: u64 = 1_000_000_000;

#[derive(Default)]
struct Store(BTreeMap<Key, Bytes>);

impl Store {
    fn swap(&mut self, swap: &Swap) -> Swapped {
        let current = self.0.get(&swap.key).cloned();
        if current != swap.expect {
            return Swapped::Conflict(current);
        }
        match &swap.new {
            Some(new) => self.0.insert(swap.key.clone(), new.clone()),
            None => self.0.remove(&swap.key),
        };
        Swapped::Done
    }
}

fn partition(n: i32) -> Partition {
    Partition::new("t", n)
}

fn member(n: u8, partitions: i32) -> Group {
    let mut group = Group::new(GroupConfig {
        group: "g".into(),
        member: [n; 16],
        member_timeout: Duration::from_secs(10),
        release_limit: Duration::from_secs(5),
        checkpoint_every: Duration::from_secs(5),
    });
    group.handle_partitions((0..partitions).map(partition));
    group
}

/// One round of a member: reads, swaps, finds its starts, and releases at once what is revoked.
fn round(group: &mut Group, store: &mut Store, now: Mono) -> Vec<Change> {
    let mut all = Vec::new();
    if let Some((token, keys)) = group.poll_read(now, 100) {
        let found = keys.iter().map(|k| Ok(store.0.get(k).cloned())).collect();
        group.handle_read(token, found, now);
    }
    for _ in 0..3 {
        let mut swaps = Vec::new();
        group.poll_swaps(now, 100, &mut swaps);
        for (token, swap) in swaps {
            let outcome = store.swap(&swap);
            group.handle_swapped(token, Ok(outcome), now);
        }
        while let Some((assignment, cursor)) = group.poll_locate(now) {
            group.handle_located(&assignment, Some(cursor.unwrap_or(Cursor { offset: 0, mark: None })), now);
        }
        while let Some(change) = group.poll_change() {
            if let Change::Revoking(assignment) = &change {
                group.handle_release(assignment);
            }
            all.push(change);
        }
    }
    all
}

fn owned(group: &Group) -> usize {
    group.slots.iter().filter(|s| s.own.is_some()).count()
}

fn run(members: &mut [Group], store: &mut Store, from: u64, to: u64) {
    for tenth in from * 10..to * 10 {
        for member in members.iter_mut() {
            round(member, store, Mono(tenth * SEC / 10));
        }
    }
}

fn first(changes: Vec<Change>) -> Assignment {
    match changes.into_iter().next() {
        Some(Change::Assigned(assignment, _)) => assignment,
        other => panic!("{other:?}"),
    }
}

fn cursor(offset: i64) -> Cursor {
    Cursor { offset, mark: Some(Mark { offset: offset - 1, timestamp_ms: 1, hash: 2 }) }
}

#[test]
fn members_come_to_within_one_of_each_other() {
    for count in 1..=5 {
        let mut members: Vec<Group> = (0..count).map(|n| member(n, 12)).collect();
        run(&mut members, &mut Store::default(), 0, 60);
        let mut loads: Vec<usize> = members.iter().map(owned).collect();
        loads.sort_unstable();
        assert_eq!(loads.iter().sum::<usize>(), 12, "{loads:?}");
        assert!(loads[loads.len() - 1] - loads[0] <= 1, "{loads:?}");
    }
}

#[test]
fn a_dead_member_is_replaced_after_the_timeout_and_not_before() {
    let (mut store, mut members) = (Store::default(), vec![member(1, 4), member(2, 4)]);
    run(&mut members, &mut store, 0, 20);
    members.remove(0);
    run(&mut members, &mut store, 20, 28);
    assert_eq!(owned(&members[0]), 2);
    run(&mut members, &mut store, 28, 32);
    assert_eq!(owned(&members[0]), 4);
}

/// One round of a member while the store is away. What it sends takes effect if `heard`, but no answer comes.
fn round_without_answers(group: &mut Group, store: &mut Store, heard: bool, now: Mono) {
    let away = || Error::unknown(ErrorKind::Timeout, "test");
    if let Some((token, keys)) = group.poll_read(now, 100) {
        group.handle_read(token, keys.iter().map(|_| Err(away())).collect(), now);
    }
    let mut swaps = Vec::new();
    group.poll_swaps(now, 100, &mut swaps);
    for (token, swap) in swaps {
        if heard {
            store.swap(&swap);
        }
        group.handle_swapped(token, Err(away()), now);
    }
    while group.poll_change().is_some() {}
}

/// Two members of whom the second has just come; then the store is away for longer than anybody may be silent.
fn two_after_an_outage(heard: bool) -> (Store, [Group; 2]) {
    let (mut store, mut members) = (Store::default(), [member(1, 6), member(2, 6)]);
    run(&mut members[..1], &mut store, 0, 2);
    run(&mut members, &mut store, 2, 4);
    assert_eq!(members.each_ref().map(owned), [5, 1]);
    for tenth in 40..160 {
        let heard = heard && tenth < 55;
        members.iter_mut().for_each(|m| round_without_answers(m, &mut store, heard, Mono(tenth * SEC / 10)));
    }
    assert_eq!(members.each_ref().map(owned), [0, 0]);
    (store, members)
}

#[test]
fn after_an_outage_of_the_store_each_member_goes_on_at_once_with_what_it_had() {
    for heard in [false, true] {
        for first in [0, 1] {
            let (mut store, mut members) = two_after_an_outage(heard);
            // Silent or not, neither could hear the other.
            for n in [first, 1 - first] {
                round(&mut members[n], &mut store, Mono(16 * SEC + SEC / 2));
                round(&mut members[n], &mut store, Mono(16 * SEC + SEC * 3 / 4));
            }
            assert_eq!(members.each_ref().map(owned), [5, 1], "heard: {heard}, first: {first}");
        }
    }
}

#[test]
fn a_member_that_died_in_an_outage_of_the_store_is_replaced_a_timeout_after_it() {
    let (mut store, [mut a, _b]) = two_after_an_outage(true);
    run(std::slice::from_mut(&mut a), &mut store, 16, 25);
    assert_eq!(owned(&a), 5);
    run(std::slice::from_mut(&mut a), &mut store, 25, 28);
    assert_eq!(owned(&a), 6);
}

#[test]
fn a_member_stops_by_its_own_clock_before_another_may_take_over() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    let before = Mono(9 * SEC - 1);
    a.handle_time(before);
    assert_eq!(a.poll_change(), None);
    a.handle_time(Mono(9 * SEC));
    assert_eq!(a.poll_change(), Some(Change::Lost(held)));
}

#[test]
fn a_commit_of_an_earlier_epoch_or_after_a_takeover_is_refused() {
    let (mut store, mut a, mut b) = (Store::default(), member(1, 1), member(2, 1));
    let old = first(round(&mut a, &mut store, Mono(0)));
    for s in 0..12 {
        round(&mut b, &mut store, Mono(s * SEC));
    }
    assert_eq!(owned(&b), 1);
    // The zombie's clock stood still, so only the store can tell it.
    a.handle_commit(7, &old, cursor(5), Mono(SEC));
    assert_eq!(round(&mut a, &mut store, Mono(SEC)), [Change::Lost(old.clone())]);
    assert_eq!(a.poll_answers(), [(7, CommitOutcome::NotOwner)]);
    a.handle_commit(8, &old, cursor(5), Mono(SEC));
    assert_eq!(a.poll_answers(), [(8, CommitOutcome::NotOwner)]);
}

#[test]
fn a_commit_is_confirmed_by_the_store_and_never_goes_back() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    assert_eq!(a.poll_answers(), []);
    a.handle_commit(2, &held, cursor(3), Mono(1));
    round(&mut a, &mut store, Mono(1));
    assert_eq!(a.poll_answers(), [(1, CommitOutcome::Done), (2, CommitOutcome::Done)]);
    let stored = Value::decode(&store.0.values().next().unwrap().clone()).unwrap();
    assert_eq!(stored.cursor, Some(cursor(5)));
}

#[test]
fn an_answer_that_was_lost_is_recognised() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    let mut swaps = Vec::new();
    a.poll_swaps(Mono(1), 9, &mut swaps);
    store.swap(&swaps[0].1);
    a.handle_swapped(swaps[0].0, Err(Error::unknown(ErrorKind::Timeout, "swap")), Mono(1));
    assert_eq!(a.poll_answers(), []);
    assert_eq!(round(&mut a, &mut store, Mono(SEC)), []);
    assert_eq!((a.poll_answers(), owned(&a)), (vec![(1, CommitOutcome::Done)], 1));
}

#[test]
fn an_owner_writes_itself_into_a_store_that_was_wiped() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    round(&mut a, &mut store, Mono(1));
    store.0.clear();
    assert_eq!(round(&mut a, &mut store, Mono(2 * SEC)), []);
    let stored = Value::decode(&store.0.values().next().unwrap().clone()).unwrap();
    assert_eq!((stored.owner, stored.cursor), (Some([1; 16]), Some(cursor(5))));
}

#[test]
fn what_is_not_released_in_time_is_lost() {
    let (mut store, mut a, mut b) = (Store::default(), member(1, 2), member(2, 2));
    assert_eq!(round(&mut a, &mut store, Mono(0)).len(), 2);
    round(&mut b, &mut store, Mono(SEC));
    let mut swaps = Vec::new();
    let mut told = Vec::new();
    for tenth in 10..=80 {
        let now = Mono(tenth * SEC / 10);
        a.poll_swaps(now, 9, &mut swaps);
        for (token, swap) in swaps.drain(..) {
            let outcome = store.swap(&swap);
            a.handle_swapped(token, Ok(outcome), now);
        }
        told.extend(std::iter::from_fn(|| a.poll_change()));
    }
    assert!(matches!(&told[..], [Change::Revoking(x), Change::Lost(y)] if x == y), "{told:?}");
    assert_eq!(owned(&a), 1);
}

#[test]
fn who_leaves_is_replaced_at_the_next_look() {
    let (mut store, mut members) = (Store::default(), vec![member(1, 4), member(2, 4)]);
    run(&mut members, &mut store, 0, 20);
    members[0].handle_leave();
    round(&mut members[0], &mut store, Mono(20 * SEC));
    assert!(members[0].has_left());
    run(&mut members[1..], &mut store, 20, 23);
    assert_eq!(owned(&members[1]), 4);
}

#[test]
fn a_value_of_a_later_version_is_left_alone() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    store.0.insert(Key::partition("g", &partition(0)), Bytes::from_static(&[9]));
    for s in 0..60 {
        assert_eq!(round(&mut a, &mut store, Mono(s * SEC)), []);
    }
}

#[test]
fn a_cursor_goes_to_the_log_every_few_seconds_if_it_has_moved() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    round(&mut a, &mut store, Mono(1));
    assert_eq!(a.poll_checkpoint(Mono(SEC)), None);
    assert_eq!(a.poll_checkpoint(Mono(5 * SEC)), Some((held.clone(), cursor(5))));
    assert_eq!(a.poll_checkpoint(Mono(5 * SEC)), None);
    a.handle_checkpointed(&held, cursor(5), true, Mono(5 * SEC));
    assert_eq!(a.poll_checkpoint(Mono(50 * SEC)), None);
}
