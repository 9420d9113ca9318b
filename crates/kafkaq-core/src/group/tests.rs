//! The rules of the machine, one test each; members share a store that is a map.

use super::*;
use crate::{Error, ErrorKind, Mark, Swap, Swapped};
use bytes::Bytes;
use std::collections::BTreeMap;

pub(super) const SEC: u64 = 1_000_000_000;

#[derive(Default)]
pub(super) struct Store(pub(super) BTreeMap<Key, Bytes>);

impl Store {
    pub(super) fn swap(&mut self, swap: &Swap) -> Swapped {
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

pub(super) fn partition(n: i32) -> Partition {
    Partition::new("t", n)
}

pub(super) fn member(n: u8, partitions: i32) -> Group {
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

/// One round of a member: reads, keeps checkpoints, swaps, finds its starts, and releases at once what is revoked.
pub(super) fn round(group: &mut Group, store: &mut Store, now: Mono) -> Vec<Change> {
    let mut all = Vec::new();
    reads(group, store, now);
    for _ in 0..3 {
        for (assignment, cursor) in checkpoints(group, now) {
            group.handle_checkpointed(&assignment, cursor, true, now);
        }
        swaps(group, store, now);
        while let Some((assignment, cursor)) = group.poll_locate(now) {
            group.handle_located(&assignment, Some(cursor.unwrap_or(Cursor::new(0))), now);
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

fn reads(group: &mut Group, store: &Store, now: Mono) {
    if let Some((token, keys)) = group.poll_read(now, 100) {
        let found = keys.iter().map(|k| Ok(store.0.get(k).cloned())).collect();
        group.handle_read(token, found, now);
    }
}

fn checkpoints(group: &mut Group, now: Mono) -> Vec<(Assignment, Cursor)> {
    let mut due = Vec::new();
    group.poll_checkpoints(now, 100, &mut due);
    due
}

pub(super) fn owned(group: &Group) -> usize {
    group.views.iter().filter(|s| s.own.is_some()).count()
}

pub(super) fn run(members: &mut [Group], store: &mut Store, from: u64, to: u64) {
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

pub(super) fn cursor(offset: i64) -> Cursor {
    Cursor { offset, mark: Some(Mark { offset: offset - 1, timestamp_ms: 1, hash: 2 }), anchor: None }
}

#[test]
fn members_balance_to_within_one_partition() {
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

/// Returns after how many tenths of a second since its last sign of life a dead member's partition is taken, if the
/// reads in `fails` fail, each after `takes` tenths.
fn taken_after(fails: impl Fn(u64) -> bool, takes: u64) -> u64 {
    let (mut store, mut members) = (Store::default(), [member(1, 1), member(2, 1)]);
    run(&mut members, &mut store, 0, 2);
    let [dead, mut b] = members;
    assert_eq!([owned(&dead), owned(&b)], [1, 0]);
    let (mut reads, mut failed) = (0, None);
    for tenth in 20..1000 {
        let now = Mono(tenth * SEC / 10);
        if let Some((token, keys)) = b.poll_read(now, 9) {
            reads += 1;
            if fails(reads) {
                failed = Some((tenth + takes, token));
            } else {
                let found = keys.iter().map(|k| Ok(store.0.get(k).cloned())).collect();
                b.handle_read(token, found, now);
            }
        }
        if let Some((_, token)) = failed.take_if(|(at, _)| tenth >= *at) {
            b.handle_read(token, vec![Err(Error::unknown(ErrorKind::Timeout, "test"))], now);
        }
        swaps(&mut b, &mut store, now);
        if owned(&b) == 1 {
            return tenth - 10;
        }
    }
    panic!("never")
}

#[test]
fn failed_read_does_not_restart_the_timeout_of_a_dead_member() {
    let tenth = |read: u64| read.is_multiple_of(10);
    assert!((100..=110).contains(&taken_after(|_| false, 0)), "{}", taken_after(|_| false, 0));
    assert!((100..=115).contains(&taken_after(tenth, 0)), "{}", taken_after(tenth, 0));
    // A read that hangs as long as one may: of each six seconds, three show nothing.
    let hang = taken_after(tenth, 33);
    assert!((100..=220).contains(&hang), "{hang}");
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
fn after_a_store_outage_each_member_resumes_its_partitions_at_once() {
    for heard in [false, true] {
        for first in [0, 1] {
            let (mut store, mut members) = two_after_an_outage(heard);
            // Whether its writes took effect or not, neither could read the other's.
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
    // The zombie's clock stood still, so only the store can reject it.
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
fn own_write_whose_response_was_lost_is_recognized() {
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
fn owner_restores_itself_in_a_wiped_store() {
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
fn partition_that_is_not_released_in_time_is_lost() {
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
fn leaving_member_is_replaced_at_the_next_read() {
    let (mut store, mut members) = (Store::default(), vec![member(1, 4), member(2, 4)]);
    run(&mut members, &mut store, 0, 20);
    members[0].handle_leave();
    round(&mut members[0], &mut store, Mono(20 * SEC));
    assert!(members[0].has_left());
    run(&mut members[1..], &mut store, 20, 23);
    assert_eq!(owned(&members[1]), 4);
}

#[test]
fn leaving_member_also_clears_its_name_from_a_lost_partition() {
    let (mut store, mut members) = (Store::default(), vec![member(1, 1), member(2, 1)]);
    let held = first(round(&mut members[0], &mut store, Mono(0)));
    members[0].handle_broken(&held, Mono(SEC));
    members[0].handle_leave();
    round(&mut members[0], &mut store, Mono(SEC));
    assert!(!members[0].has_left(), "not at once, as with what it would take again");
    assert_eq!(members[0].next_time(Mono(SEC)), Some(Mono(SEC).plus(RETRY)));
    round(&mut members[0], &mut store, Mono(SEC).plus(RETRY));
    assert!(members[0].has_left());
    run(&mut members[1..], &mut store, 2, 5);
    assert_eq!(owned(&members[1]), 1);
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
    assert_eq!(checkpoints(&mut a, Mono(SEC)), []);
    assert_eq!(checkpoints(&mut a, Mono(5 * SEC)), [(held.clone(), cursor(5))]);
    assert_eq!(checkpoints(&mut a, Mono(5 * SEC)), []);
    a.handle_checkpointed(&held, cursor(5), true, Mono(5 * SEC));
    assert_eq!(checkpoints(&mut a, Mono(50 * SEC)), []);
}

/// The store may have gone back in time: then the log's checkpoint is further.
#[test]
fn a_cursor_of_the_store_goes_to_the_log_only_once_the_start_is_found() {
    let (mut store, mut old) = (Store::default(), member(1, 1));
    let held = first(round(&mut old, &mut store, Mono(0)));
    old.handle_commit(1, &held, cursor(5), Mono(1));
    round(&mut old, &mut store, Mono(1));
    old.handle_leave();
    round(&mut old, &mut store, Mono(2));
    let (mut new, mut asked) = (member(2, 1), None);
    for s in 1..=8 {
        let now = Mono(s * SEC);
        reads(&mut new, &store, now);
        swaps(&mut new, &mut store, now);
        asked = asked.or(new.poll_locate(now));
        assert_eq!(checkpoints(&mut new, now), [], "after {s} s");
    }
    let (assignment, stored) = asked.unwrap();
    assert_eq!(stored, Some(cursor(5)));
    new.handle_located(&assignment, Some(cursor(8)), Mono(9 * SEC));
    swaps(&mut new, &mut store, Mono(9 * SEC));
    assert_eq!(checkpoints(&mut new, Mono(9 * SEC)), [(assignment, cursor(8))]);
}

/// The store holds a cursor of a topic that was deleted and recreated, and it is beyond the end of the current one.
#[test]
fn a_cursor_of_an_earlier_topic_confirms_no_commit() {
    let (mut store, mut old) = (Store::default(), member(1, 1));
    let held = first(round(&mut old, &mut store, Mono(0)));
    old.handle_commit(1, &held, cursor(50), Mono(1));
    round(&mut old, &mut store, Mono(1));
    old.handle_leave();
    round(&mut old, &mut store, Mono(2));
    let mut new = member(2, 1);
    let (token, keys) = new.poll_read(Mono(3), 9).unwrap();
    new.handle_read(token, keys.iter().map(|k| Ok(store.0.get(k).cloned())).collect(), Mono(3));
    swaps(&mut new, &mut store, Mono(3));
    let (assignment, stored) = new.poll_locate(Mono(3)).unwrap();
    assert_eq!(stored, Some(cursor(50)));
    let beginning = Cursor::new(0);
    new.handle_located(&assignment, Some(beginning), Mono(3));
    assert_eq!(new.poll_change(), Some(Change::Assigned(assignment.clone(), beginning)));
    new.handle_commit(2, &assignment, cursor(3), Mono(4));
    assert_eq!(new.poll_answers(), [], "50 is of another topic");
    swaps(&mut new, &mut store, Mono(5));
    assert_eq!(new.poll_answers(), [(2, CommitOutcome::Done)]);
    let stored = Value::decode(store.0.values().next().unwrap()).unwrap();
    assert_eq!(stored.cursor, Some(cursor(3)));
}

fn swaps(group: &mut Group, store: &mut Store, now: Mono) {
    let mut swaps = Vec::new();
    group.poll_swaps(now, 100, &mut swaps);
    for (token, swap) in swaps {
        let outcome = store.swap(&swap);
        group.handle_swapped(token, Ok(outcome), now);
    }
}

/// The first owner has committed this before the store was wiped; the second has taken the partition since, under a
/// lower epoch.
fn two_owners_after_a_wipe(committed: Cursor) -> (Store, [(Group, Assignment); 2]) {
    let (mut store, mut a, mut b) = (Store::default(), member(1, 1), member(2, 1));
    let mut before = member(3, 1);
    round(&mut before, &mut store, Mono(0));
    before.handle_leave();
    round(&mut before, &mut store, Mono(0));
    let old = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &old, committed, Mono(1));
    round(&mut a, &mut store, Mono(1));
    store.0.clear();
    let new = first(round(&mut b, &mut store, Mono(2)));
    (store, [(a, old), (b, new)])
}

/// After a loss of the store two members may hold a partition for a moment. The one that committed further keeps it,
/// whatever the epochs say: the store has lost those too.
#[test]
fn an_owner_does_not_write_over_what_was_committed_after_the_store_was_wiped() {
    let (mut store, [(mut a, old), (mut b, new)]) = two_owners_after_a_wipe(cursor(5));
    assert!(new.epoch < old.epoch);
    b.handle_commit(1, &new, cursor(8), Mono(3));
    round(&mut b, &mut store, Mono(3));
    assert_eq!(b.poll_answers(), [(1, CommitOutcome::Done)]);
    assert_eq!(round(&mut a, &mut store, Mono(2 * SEC)), [Change::Lost(old)]);
    let stored = Value::decode(store.0.values().next().unwrap()).unwrap();
    assert_eq!((stored.owner, stored.cursor), (Some([2; 16]), Some(cursor(8))));
}

/// The topic was recreated while the store was wiped, and its first commits are lower than the last ones before.
#[test]
fn an_owner_does_not_write_the_cursor_of_an_earlier_topic_over_one_of_this() {
    let (mut store, [(mut a, old), (mut b, new)]) = two_owners_after_a_wipe(cursor(50));
    let of_this =
        Cursor { offset: 3, mark: Some(Mark { offset: 2, timestamp_ms: 9, hash: 2 }), anchor: None };
    b.handle_commit(1, &new, of_this, Mono(3));
    round(&mut b, &mut store, Mono(3));
    assert_eq!(round(&mut a, &mut store, Mono(2 * SEC)), [Change::Lost(old)]);
    let stored = Value::decode(store.0.values().next().unwrap()).unwrap();
    assert_eq!((stored.owner, stored.cursor), (Some([2; 16]), Some(of_this)));
}

#[test]
fn leaving_member_checkpoints_its_cursor_before_releasing() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    a.handle_leave();
    assert_eq!(checkpoints(&mut a, Mono(2)), [(held.clone(), cursor(5))]);
    round(&mut a, &mut store, Mono(2));
    assert!(!a.has_left());
    // Also if that fails: it is not tried twice.
    a.handle_checkpointed(&held, cursor(5), false, Mono(3));
    assert_eq!(checkpoints(&mut a, Mono(3)), []);
    round(&mut a, &mut store, Mono(3));
    assert!(a.has_left());
}

#[test]
fn failed_search_for_the_start_is_retried_and_then_left_to_others() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let mut tries = 0;
    let mut let_go = None;
    for tenth in 0..200 {
        let now = Mono(tenth * SEC / 10);
        if let Some((token, keys)) = a.poll_read(now, 9) {
            a.handle_read(token, keys.iter().map(|k| Ok(store.0.get(k).cloned())).collect(), now);
        }
        swaps(&mut a, &mut store, now);
        while let Some((assignment, _)) = a.poll_locate(now) {
            tries += 1;
            a.handle_located(&assignment, None, now);
        }
        let owner = store.0.values().next().and_then(|v| Value::decode(v).unwrap().owner);
        if tries > 0 && owner.is_none() && let_go.is_none() {
            let_go = Some(tenth);
        }
    }
    assert!((8..30).contains(&tries), "{tries}");
    assert!(let_go.is_some_and(|tenth| (100..115).contains(&tenth)), "{let_go:?}");
    assert_eq!(a.poll_change(), None);
}

#[test]
fn more_partitions_than_one_read_can_take_are_all_read() {
    let mut a = member(1, 25);
    let (mut read, mut now) = (0, 0);
    while read < 25 {
        let (token, keys) = a.poll_read(Mono(now), 10).expect("the next part at once");
        read += keys.len();
        a.handle_read(token, vec![Ok(None); keys.len()], Mono(now));
        now += 1;
    }
    assert!(a.poll_read(Mono(now), 10).is_none());
    assert!(a.views.iter().all(|s| s.known));
}

#[test]
fn a_partition_that_is_gone_is_lost_and_one_that_is_added_is_taken() {
    let (mut store, mut a) = (Store::default(), member(1, 2));
    assert_eq!(round(&mut a, &mut store, Mono(0)).len(), 2);
    a.handle_partitions([partition(0)]);
    assert!(matches!(a.poll_change(), Some(Change::Lost(a)) if a.partition == partition(1)));
    for s in 1..30 {
        assert_eq!(round(&mut a, &mut store, Mono(s * SEC)), []);
    }
    a.handle_partitions((0..3).map(partition));
    assert_eq!(round(&mut a, &mut store, Mono(30 * SEC)).len(), 2);
}

/// Control batches have offsets, but no record that a mark could be made of.
#[test]
fn a_commit_without_a_mark_keeps_the_last_one() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    a.handle_commit(2, &held, Cursor::new(6), Mono(2));
    round(&mut a, &mut store, Mono(3));
    let stored = Value::decode(store.0.values().next().unwrap()).unwrap();
    assert_eq!(stored.cursor, Some(Cursor { offset: 6, mark: cursor(5).mark, anchor: None }));
}

/// One append takes all cursors that the log lacks, so that appends are few and large.
#[test]
fn missing_checkpoints_are_written_together() {
    let (mut store, mut a) = (Store::default(), member(1, 3));
    let held: Vec<_> = round(&mut a, &mut store, Mono(0))
        .into_iter()
        .map(|change| match change {
            Change::Assigned(assignment, _) => assignment,
            other => panic!("{other:?}"),
        })
        .collect();
    a.handle_commit(1, &held[0], cursor(5), Mono(1));
    round(&mut a, &mut store, Mono(1));
    for (assignment, cursor) in checkpoints(&mut a, Mono(5 * SEC)) {
        a.handle_checkpointed(&assignment, cursor, true, Mono(6 * SEC));
    }
    a.handle_commit(2, &held[0], cursor(6), Mono(7 * SEC));
    a.handle_commit(3, &held[2], cursor(7), Mono(7 * SEC));
    swaps(&mut a, &mut store, Mono(7 * SEC));
    let both = [(held[0].clone(), cursor(6)), (held[2].clone(), cursor(7))];
    let due = checkpoints(&mut a, Mono(8 * SEC));
    assert_eq!(due.len(), 2, "{due:?}");
    assert!(both.iter().all(|one| due.contains(one)));
}

#[test]
fn broken_partition_is_lost_and_retaken_later_under_a_higher_epoch() {
    let (mut store, mut a) = (Store::default(), member(1, 1));
    let held = first(round(&mut a, &mut store, Mono(0)));
    a.handle_commit(1, &held, cursor(5), Mono(1));
    round(&mut a, &mut store, Mono(1));
    a.handle_commit(2, &held, cursor(8), Mono(2));
    a.handle_broken(&held, Mono(SEC));
    assert_eq!(a.poll_answers(), [(1, CommitOutcome::Done), (2, CommitOutcome::Unknown)]);
    assert_eq!(round(&mut a, &mut store, Mono(SEC)), [Change::Lost(held.clone())]);
    let again = a.next_time(Mono(SEC)).unwrap();
    assert_eq!(again, Mono(SEC).plus(RETRY));
    let changes = round(&mut a, &mut store, again);
    let [Change::Assigned(new, from)] = &changes[..] else { panic!("{changes:?}") };
    assert!(new.epoch > held.epoch, "{new} after {held}");
    assert_eq!(*from, cursor(5), "where a new owner would start");
    a.handle_broken(&held, Mono(2 * SEC));
    a.handle_release(&held);
    assert_eq!(round(&mut a, &mut store, Mono(2 * SEC)), [], "a late call for the old one means nothing");
}
