//! Properties of the machine that hold whatever happens: a few members and a store that is a map, driven by a random
//! script of steps, delays, failed calls and losses of data. A failing script shrinks to a short one.

use super::{tests::*, *};
use crate::{Error, ErrorKind, Swap, Swapped};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

const PARTITIONS: i32 = 3;
const MEMBERS: u8 = 3;

/// One step of a script.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes for all members, in tenths of a second.
    Wait(u64),
    /// A member runs; its swaps have this outcome.
    Run(u8, Fate),
    /// A member finishes this many more records of a partition, and commits.
    Commit(u8, i32, i64),
    Leave(u8),
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    /// It took effect, but there was no response.
    Silent,
    /// It had no effect.
    Failed,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::Silent), 1 => Just(Fate::Failed)];
    prop_oneof![
        3 => (1_u64..30).prop_map(Step::Wait),
        8 => (0..MEMBERS, fate).prop_map(|(m, fate)| Step::Run(m, fate)),
        4 => (0..MEMBERS, 0..PARTITIONS, 1_i64..5).prop_map(|(m, p, n)| Step::Commit(m, p, n)),
        1 => (0..MEMBERS).prop_map(Step::Leave),
    ]
}

/// The members, the store, and what the store has ever held.
struct World {
    now: u64,
    store: Store,
    members: Vec<Group>,
    held: Vec<BTreeMap<i32, (Assignment, i64)>>,
    /// Who took a partition under an epoch.
    takers: HashMap<(Key, u64), MemberId>,
    commits: HashMap<u64, (Key, i64)>,
}

impl World {
    fn new() -> Self {
        World {
            now: 0,
            store: Store::default(),
            members: (1..=MEMBERS).map(|n| member(n, PARTITIONS)).collect(),
            held: vec![BTreeMap::new(); usize::from(MEMBERS)],
            takers: HashMap::new(),
            commits: HashMap::new(),
        }
    }

    fn now(&self) -> Mono {
        Mono(self.now * SEC / 10)
    }

    fn value(&self, key: &Key) -> Option<Value> {
        self.store.0.get(key).map(|raw| Value::decode(raw).unwrap())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Wait(tenths) => self.now += tenths,
            Step::Run(m, fate) => self.run(usize::from(*m), *fate)?,
            Step::Commit(m, p, n) => self.commit(usize::from(*m), *p, *n),
            Step::Leave(m) => self.members[usize::from(*m)].handle_leave(),
        }
        Ok(())
    }

    fn run(&mut self, m: usize, fate: Fate) -> Result<(), TestCaseError> {
        let now = self.now();
        if let Some((token, keys)) = self.members[m].poll_read(now, 100) {
            let found = keys.iter().map(|k| Ok(self.store.0.get(k).cloned())).collect();
            self.members[m].handle_read(token, found, now);
        }
        let mut swaps = Vec::new();
        self.members[m].poll_swaps(now, 100, &mut swaps);
        for (token, swap) in swaps {
            let outcome = match fate {
                Fate::Failed => Err(Error::not_applied(ErrorKind::Unavailable, "swap")),
                Fate::Silent => {
                    self.swap(m, &swap)?;
                    Err(Error::unknown(ErrorKind::Timeout, "swap"))
                }
                Fate::Answered => Ok(self.swap(m, &swap)?),
            };
            self.members[m].handle_swapped(token, outcome, now);
        }
        while let Some((a, stored)) = self.members[m].poll_locate(now) {
            let found = stored.unwrap_or(Cursor::new(0));
            self.members[m].handle_located(&a, Some(found), now);
        }
        self.told(m);
        self.answered(m)
    }

    fn swap(&mut self, m: usize, swap: &Swap) -> Result<Swapped, TestCaseError> {
        let before = self.value(&swap.key);
        let outcome = self.store.swap(swap);
        if outcome != Swapped::Done {
            return Ok(outcome);
        }
        let me = self.members[m].config.member;
        let after = self.value(&swap.key).unwrap();
        let cursor = |v: &Value| v.cursor.map_or(0, |c| c.offset);
        if let Some(before) = &before {
            prop_assert!(before.epoch <= after.epoch, "an epoch goes back");
            prop_assert!(cursor(before) <= cursor(&after), "a cursor goes back");
            let mine = before.owner.is_none_or(|o| o == me) || before.epoch < after.epoch;
            let asks = Value { wanted_by: before.wanted_by, ..after.clone() } == *before;
            prop_assert!(mine || asks, "another's value was changed under its epoch");
        }
        if after.owner == Some(me) {
            let taker = *self.takers.entry((swap.key.clone(), after.epoch)).or_insert(me);
            prop_assert_eq!(taker, me, "two members own a partition under one epoch");
        }
        Ok(outcome)
    }

    fn told(&mut self, m: usize) {
        while let Some(change) = self.members[m].poll_change() {
            match change {
                Change::Assigned(a, from) => {
                    self.held[m].insert(a.partition.index, (a, from.offset));
                }
                Change::Revoking(a) => {
                    self.held[m].remove(&a.partition.index);
                    self.members[m].handle_release(&a);
                }
                Change::Lost(a) => drop(self.held[m].remove(&a.partition.index)),
            }
        }
    }

    fn commit(&mut self, m: usize, p: i32, n: i64) {
        let now = self.now();
        let Some((assignment, at)) = self.held[m].get_mut(&p) else { return };
        *at += n;
        let id = self.commits.len() as u64;
        self.commits.insert(id, (Key::partition("g", &partition(p)), *at));
        self.members[m].handle_commit(id, assignment, cursor(*at), now);
    }

    fn answered(&mut self, m: usize) -> Result<(), TestCaseError> {
        for (id, outcome) in self.members[m].poll_answers() {
            let (key, offset) = &self.commits[&id];
            if outcome == CommitOutcome::Done {
                let stored = self.value(key).and_then(|v| v.cursor).map_or(0, |c| c.offset);
                prop_assert!(*offset <= stored, "a commit was confirmed that the store doesn't have");
            }
        }
        Ok(())
    }

    /// No running member holds a partition that another may have taken.
    fn check_shared(&mut self) -> Result<(), TestCaseError> {
        let now = self.now();
        for m in 0..self.members.len() {
            self.members[m].handle_time(now);
            self.told(m);
        }
        for p in 0..PARTITIONS {
            let leaving = |m: &usize| self.members[*m].leaving;
            let holders = (0..self.members.len()).filter(|m| !leaving(m) && self.held[*m].contains_key(&p));
            prop_assert!(holders.count() <= 1, "two members hold partition {}", p);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// One owner per epoch; epochs and cursors only grow; a commit is confirmed only by the store; and a member that
    /// could not renew gives its partition up before another takes it.
    #[test]
    fn store_without_data_loss_keeps_one_owner_and_the_highest_commit(
        script in proptest::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new();
        for step in &script {
            world.step(step)?;
            world.check_shared()?;
        }
    }
}

proptest! {
    // Each case simulates a minute or more of a group.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each topic is balanced, and so are all topics together; no partition is left without an owner; and then nothing
    /// moves any more.
    #[test]
    fn joining_members_balance_and_converge(
        topics in proptest::collection::vec(1_i32..9, 1..4),
        members in 1_u8..6,
        late in 0_u64..20,
    ) {
        let partitions: Vec<Partition> = (0..).zip(&topics).flat_map(|(t, n)| {
            (0..*n).map(move |p| Partition::new(format!("t{t}"), p))
        }).collect();
        let (mut store, mut group) = (Store::default(), Vec::new());
        let mut moves = 0;
        for tenth in 0..1_000 {
            let now = Mono(tenth * SEC / 10);
            if group.len() < usize::from(members) && tenth >= group.len() as u64 * late {
                let mut new = member(group.len() as u8 + 1, 0);
                new.handle_partitions(partitions.iter().cloned());
                group.push(new);
            }
            for member in &mut group {
                let changes = round(member, &mut store, now);
                let taken = changes.iter().filter(|c| matches!(c, Change::Assigned(..))).count();
                moves += taken;
                prop_assert!(tenth < 600 || changes.is_empty(), "partitions keep moving: {:?}", changes);
            }
        }
        let loads = |of: &dyn Fn(&PartitionView) -> bool| -> Vec<usize> {
            group.iter().map(|g| g.views.iter().filter(|s| s.own.is_some() && of(s)).count()).collect()
        };
        let spread = |loads: &[usize]| loads.iter().max().unwrap() - loads.iter().min().unwrap();
        let all = loads(&|_| true);
        prop_assert_eq!(all.iter().sum::<usize>(), partitions.len());
        prop_assert!(spread(&all) <= 1, "{:?}", all);
        for t in 0..topics.len() {
            let of_topic = loads(&|s| *s.partition.topic == *format!("t{t}"));
            prop_assert!(spread(&of_topic) <= 1, "topic {}: {:?}", t, of_topic);
        }
        // Each is won once, and each member that comes asks for its share.
        prop_assert!(moves <= partitions.len() * 3, "{} moves of {} partitions", moves, partitions.len());
    }

    /// Whichever member dies, and whenever: others hold its partitions within the member timeout plus one second.
    #[test]
    fn a_dead_member_is_replaced_within_the_timeout_and_a_second(
        partitions in 2_i32..9,
        members in 2_u8..5,
        dies_at in 300_u64..400,
        victim in 0_usize..2,
    ) {
        let (mut store, mut group) = (Store::default(), Vec::new());
        group.extend((1..=members).map(|n| member(n, partitions)));
        let tenths = |group: &mut Vec<Group>, store: &mut Store, from, to| {
            let mut taken = Vec::new();
            for tenth in from..to {
                let now = Mono(tenth * SEC / 10);
                taken.extend(group.iter_mut().flat_map(|m| round(m, store, now)).filter_map(|c| match c {
                    Change::Assigned(a, _) => Some(a.partition),
                    _ => None,
                }));
            }
            taken
        };
        tenths(&mut group, &mut store, 0, dies_at);
        let dead = group.remove(victim);
        let orphans = dead.views.iter().filter(|s| s.own.is_some()).map(|s| &s.partition);
        let taken = tenths(&mut group, &mut store, dies_at, dies_at + 110);
        for orphan in orphans {
            prop_assert!(taken.contains(orphan), "{} is not taken over", orphan);
        }
    }
}

/// Only one partition is requested at a time, and only from a member that has more.
#[test]
fn only_members_with_a_surplus_are_asked() {
    let (mut store, mut members) = (Store::default(), vec![member(1, 4), member(2, 4)]);
    run(&mut members, &mut store, 0, 20);
    assert_eq!(members.iter().map(owned).collect::<Vec<_>>(), [2, 2]);
    let mut third = member(3, 4);
    round(&mut third, &mut store, Mono(20 * SEC));
    let asked: Vec<Bytes> = store.0.values().cloned().collect();
    let asked: Vec<_> =
        asked.iter().map(|v| Value::decode(v).unwrap()).filter(|v| v.wanted_by.is_some()).collect();
    assert_eq!(asked.len(), 1, "one at a time");
    run(&mut members, &mut store, 20, 23);
    members.push(third);
    run(&mut members, &mut store, 23, 40);
    let mut loads: Vec<_> = members.iter().map(owned).collect();
    loads.sort_unstable();
    assert_eq!(loads, [1, 1, 2]);
}
