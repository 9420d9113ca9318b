//! What becomes of unclaimed work when the process leaves or a partition moves.

use super::*;
use crate::{Error, ErrorKind};

fn unavailable() -> Result<i64, Error> {
    Err(Error::not_applied(ErrorKind::Unavailable, "append"))
}

fn lost() -> Error {
    Error::unknown(ErrorKind::Timeout, "swap")
}

/// The task `a` is taken, but the machine doesn't know yet.
fn taken_unknown(rig: &mut Rig) -> OpId {
    rig.record(&["a"]);
    rig.m.handle_demand(rig.now, 1, 0);
    let mut swaps = vec![];
    rig.m.poll_swaps(1, &mut swaps);
    let (op, take) = swaps.remove(0);
    rig.store.insert(take.key, take.new.unwrap());
    op
}

/// The partition of the wait topic has no leader. The job is done, so its copy is useless.
#[test]
fn shutdown_does_not_wait_for_a_copy_that_nobody_needs() {
    let mut rig = Rig::new(|_| {});
    rig.hanging = &["w"];
    rig.publish(&["a", "b"]);
    let (done, parked) = (rig.get_job().unwrap(), rig.get_job().unwrap());
    rig.now = Now { mono: rig.now.mono.plus(30 * SEC), wall: rig.now.wall.plus(30 * SEC) };
    rig.m.handle_timeout(rig.now);
    let mut copies = vec![];
    while rig.m.poll_appends(100, &mut copies).is_some() {}
    assert_eq!(copies.len(), 2);
    for (op, _) in &copies {
        rig.m.handle_appended(rig.now, *op, unavailable());
    }
    for job in [done, parked] {
        assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    }
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    assert!(rig.m.is_drained());
}

/// The log doesn't take its dead letter.
#[test]
fn shutdown_leaves_an_unreadable_record_to_the_next_owner() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["d"];
    rig.publish_record(Headers::from_iter([(crate::ID_HEADER.into(), Some(vec![0xff].into()))]));
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    assert!(!rig.m.is_drained(), "it may yet be taken");
    rig.m.handle_left(rig.now);
    rig.settle();
    assert!(rig.m.is_drained());
    assert_eq!(rig.committed(), None);
}

/// Its lease would expire, and count as a failure of a job that nobody had.
#[test]
fn take_of_unknown_effect_is_given_back_when_its_partition_goes() {
    for (is_shutdown, is_sent) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = Rig::new(|s| s.max_failures = 1);
        let op = taken_unknown(&mut rig);
        let go = |rig: &mut Rig| {
            if is_shutdown {
                rig.m.handle_shutdown(rig.now);
            } else {
                rig.m.handle_event(rig.now, Event::Revoking(vec![assignment("q", 0)]));
            }
        };
        if is_sent {
            go(&mut rig);
        }
        rig.m.handle_swapped(rig.now, op, Err(lost()));
        if !is_sent {
            go(&mut rig);
        }
        rig.pass(SEC);
        let lease = rig.lease("a").unwrap();
        assert_eq!((lease.state, lease.attempt), (LeaseState::Idle, 0), "{is_shutdown} {is_sent}");
        assert!(!is_shutdown || rig.m.is_drained());
    }
}

/// The store never comes back.
#[test]
fn take_of_unknown_effect_delays_a_shutdown_by_at_most_one_lease() {
    let mut rig = Rig::new(|_| {});
    rig.store_errors.extend((0..999).map(|_| lost()));
    rig.demand = 1;
    rig.publish(&["a"]);
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    assert!(!rig.m.is_drained());
    for _ in 0..61 {
        rig.pass(SEC);
    }
    assert!(rig.m.is_drained());
}

/// Nobody here asks for a job any more, and another process may.
#[test]
fn own_take_of_unknown_effect_is_not_mistaken_for_another_process_on_hand_over() {
    let mut rig = Rig::new(|s| s.prefetch = 0);
    rig.m.handle_event(rig.now, Event::Lost(vec![assignment("w", 0)]));
    let op = taken_unknown(&mut rig);
    rig.m.handle_swapped(rig.now, op, Err(lost()));
    for _ in 0..10 {
        rig.pass(SEC);
    }
    let lease = rig.lease("a").unwrap();
    assert_eq!((lease.state, lease.attempt), (LeaseState::Idle, 0));
}

/// A long lane that is full may not be read for days.
#[test]
fn handed_over_task_goes_to_a_partition_that_is_read_within_a_minute() {
    let mut rig = Rig::new(|_| {});
    // Of eleven lanes this process has the first six; 10 is the one that is always read.
    rig.m.handle_event(rig.now, Event::Lost((6..11).map(|index| assignment("w", index)).collect()));
    let elsewhere = |rig: &Rig, cover| rig.m.partition_elsewhere(Some((&TaskId::new("a").unwrap(), cover)));
    for cover in 0..20 {
        assert_eq!(elsewhere(&rig, cover), Some(10), "{cover}");
    }
    rig.m.handle_event(rig.now, Event::Lost((1..6).map(|index| assignment("w", index)).collect()));
    let all: std::collections::BTreeSet<_> = (0..40).filter_map(|cover| elsewhere(&rig, cover)).collect();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [1, 2, 3, 10]);
}

/// Otherwise a copy would find no lease, and the task would be executed again.
#[test]
fn copy_of_a_job_is_considered_before_its_end_is_forgotten() {
    for retention in [Duration::ZERO, 3600 * SEC] {
        let mut rig = Rig::new(|s| (s.done_retention, s.max_overdue) = (retention, Duration::ZERO));
        rig.publish(&["a"]);
        let job = rig.get_job().unwrap();
        assert!(matches!(rig.ask(&job, Command::Extend(12 * 3600 * SEC)), Some(Answer::Extended(_))));
        rig.pass(30 * SEC);
        let (_, copy) = rig.wait.pop().unwrap();
        let due = Envelope::decode(copy.headers.get(HEADER).unwrap()).unwrap().due;
        rig.m.handle_command(rig.now, job.job, CommandId(9), Command::Done);
        let mut swaps = vec![];
        rig.m.poll_swaps(1, &mut swaps);
        let remembered = swaps[0].1.ttl.unwrap();
        assert!(due.since(rig.now.wall) <= remembered, "{due:?}, remembered for {remembered:?}");
    }
}
