//! First attempts that get a lease only if they take long.

use super::*;
use crate::LeaseToken;

const SPAN: i64 = 4;
const AFTER: Duration = Duration::from_secs(2);

fn numbered(n: u128) -> String {
    TaskId::numbered(Wall(1_000_000), n).to_string()
}

/// A machine whose first tasks are done and committed, so that it is beyond what an earlier owner may have begun.
fn rig() -> Rig {
    let mut rig = Rig::new(|s| (s.track_after, s.unleased_span) = (Some(AFTER), SPAN));
    rig.publish(&["1", "2", "3", "4"]);
    for _ in 0..SPAN {
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Done);
    }
    rig.pass(SEC);
    assert_eq!(rig.committed(), Some(SPAN));
    rig.store.clear();
    rig
}

fn job(rig: &mut Rig, n: u128) -> Ready {
    rig.publish(&[&numbered(n)]);
    rig.get_job().unwrap()
}

#[test]
fn quick_job_writes_nothing_to_the_store() {
    let mut rig = rig();
    let job = job(&mut rig, 1);
    assert_eq!((job.attempt, job.failures, job.deadline), (1, 0, rig.now.wall.plus(60 * SEC)));
    assert!(rig.store.is_empty());
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    rig.pass(SEC);
    assert!(rig.store.is_empty() && rig.wait.is_empty() && rig.m.items.are_all_forgotten());
    assert_eq!(rig.committed(), Some(SPAN + 1));
}

#[test]
fn job_that_takes_long_gets_the_lease_that_it_was_promised() {
    let mut rig = rig();
    let job = job(&mut rig, 1);
    rig.pass(AFTER - SEC);
    assert!(rig.store.is_empty());
    rig.pass(2 * SEC);
    let lease = rig.lease(&numbered(1)).unwrap();
    assert_eq!((lease.state, lease.token, lease.deadline), (LeaseState::Live, job.token, job.deadline));
    rig.pass(10 * SEC);
    assert_eq!((rig.wait.len(), rig.committed()), (1, Some(SPAN + 1)), "it is parked like any other");
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    assert_eq!(rig.lease(&numbered(1)).unwrap().state, LeaseState::Done);
}

#[test]
fn what_an_earlier_owner_may_have_begun_gets_a_lease_at_once() {
    let mut rig = Rig::new(|s| (s.track_after, s.unleased_span) = (Some(AFTER), SPAN));
    for n in 0..SPAN {
        let job = job(&mut rig, n as u128);
        assert!(rig.lease(&numbered(n as u128)).is_some());
        rig.ask(&job, Command::Done);
    }
    rig.pass(SEC);
    job(&mut rig, 9);
    assert!(rig.lease(&numbered(9)).is_none());
}

#[test]
fn what_lies_too_far_beyond_the_committed_offset_gets_a_lease_at_once() {
    let mut rig = rig();
    let _open = job(&mut rig, 0);
    for n in 1..SPAN {
        let job = job(&mut rig, n as u128);
        assert!(rig.lease(&numbered(n as u128)).is_none());
        rig.ask(&job, Command::Done);
    }
    job(&mut rig, 9);
    assert!(rig.lease(&numbered(9)).is_some(), "the next owner would assume that nobody has started it");
}

#[test]
fn existing_lease_is_honored() {
    let mut rig = rig();
    for (n, state) in [LeaseState::Cancelled, LeaseState::Done].into_iter().enumerate() {
        let token = LeaseToken { process: [9; 16], number: 1 };
        let keyspace = crate::Keyspace::new("q", "g", "q").unwrap();
        let key = Key::task(&keyspace, &TaskId::numbered(Wall(1_000_000), n as u128));
        rig.store.insert(key, Lease::new(state, token, rig.now.wall, SEC).encode());
        rig.publish(&[&numbered(n as u128)]);
        assert!(rig.get_job().is_none());
    }
    rig.pass(SEC);
    assert_eq!(rig.committed(), Some(SPAN + 2));
}

#[test]
fn chosen_id_gets_a_lease_at_once() {
    let mut rig = rig();
    rig.publish(&["chosen"]);
    rig.get_job().unwrap();
    assert!(rig.lease("chosen").is_some());
}

#[test]
fn retry_and_reject_tell_the_store() {
    let mut rig = rig();
    let again = job(&mut rig, 1);
    assert!(matches!(rig.ask(&again, Command::Retry(SEC, "no".into())), Some(Answer::Ok)));
    let lease = rig.lease(&numbered(1)).unwrap();
    assert_eq!((lease.state, lease.failures, rig.wait.len()), (LeaseState::Idle, 1, 1));
    let never = job(&mut rig, 2);
    assert!(matches!(rig.ask(&never, Command::Reject("no".into())), Some(Answer::Ok)));
    assert_eq!((rig.lease(&numbered(2)).unwrap().state, rig.dead.len()), (LeaseState::Dead, 1));
}

#[test]
fn partition_moves_only_once_the_next_owner_can_know_of_running_jobs() {
    let mut rig = rig();
    let running = job(&mut rig, 1);
    rig.publish(&[&numbered(2)]);
    rig.m.handle_event(rig.now, Event::Revoking(vec![assignment("q", 0)]));
    rig.settle();
    assert_eq!(rig.released, [assignment("q", 0)]);
    assert_eq!(rig.lease(&numbered(1)).unwrap().token, running.token);
    let untaken = rig.lease(&numbered(2));
    assert!(untaken.is_none_or(|lease| lease.state == LeaseState::Idle), "it is free for the next owner");
    assert!(matches!(rig.ask(&running, Command::Done), Some(Answer::Ok)));
    assert_eq!(rig.lease(&numbered(1)).unwrap().state, LeaseState::Done);
    assert!(rig.m.items.is_empty());
}

/// I3: whoever has the task now finishes it.
#[test]
fn done_after_the_partition_was_lost_is_decided_by_the_store() {
    for taken in [false, true] {
        let mut rig = rig();
        let job = job(&mut rig, 1);
        rig.m.handle_event(rig.now, Event::Lost(vec![assignment("q", 0)]));
        if taken {
            let keyspace = crate::Keyspace::new("q", "g", "q").unwrap();
            let token = LeaseToken { process: [9; 16], number: 1 };
            let lease = Lease { attempt: 1, ..Lease::new(LeaseState::Live, token, job.deadline, 60 * SEC) };
            rig.store.insert(Key::task(&keyspace, &job.content.id), lease.encode());
        }
        let answer = rig.ask(&job, Command::Done);
        let (is_right, state) = match taken {
            true => (matches!(answer, Some(Answer::Lost(LostReason::TakenOver))), LeaseState::Live),
            false => (matches!(answer, Some(Answer::Ok)), LeaseState::Done),
        };
        assert!(is_right, "{answer:?}");
        assert_eq!(rig.lease(&numbered(1)).unwrap().state, state);
    }
}

/// Nothing in the store tells the next owner of what is done.
#[test]
fn what_is_done_behind_a_running_job_is_committed_before_the_partition_moves() {
    for is_shutdown in [false, true] {
        let mut rig = rig();
        let running = job(&mut rig, 1);
        for n in 2..4 {
            let job = job(&mut rig, n);
            rig.ask(&job, Command::Done);
        }
        assert_eq!(rig.committed(), Some(SPAN));
        match is_shutdown {
            true => rig.m.handle_shutdown(rig.now),
            false => rig.m.handle_event(rig.now, Event::Revoking(vec![assignment("q", 0)])),
        }
        rig.settle();
        assert_eq!((rig.wait.len(), rig.committed()), (1, Some(SPAN + 3)));
        assert_eq!(rig.released.len(), usize::from(!is_shutdown));
        assert!(matches!(rig.ask(&running, Command::Done), Some(Answer::Ok)));
        assert_eq!(rig.lease(&numbered(1)).unwrap().state, LeaseState::Done);
    }
}

/// The only operation left is the swap that follows the dead letter.
#[test]
fn dead_letter_under_way_when_the_partition_moves_needs_no_lease() {
    let mut rig = rig();
    rig.hanging = &["d"];
    let job = job(&mut rig, 1);
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Reject("no".into()));
    rig.pass(61 * SEC);
    rig.pass(SEC);
    rig.m.handle_event(rig.now, Event::Lost(vec![assignment("q", 0)]));
    rig.settle();
    assert_eq!(rig.lease(&numbered(1)), None);
}

#[test]
fn foreign_record_gets_a_lease_whatever_its_id() {
    let mut rig = rig();
    rig.publish_record(Headers::from_iter([(Bytes::from(crate::ID_HEADER), Some(numbered(1).into()))]));
    rig.get_job().unwrap();
    assert!(rig.lease(&numbered(1)).is_some());
}

#[test]
fn attempt_that_may_still_run_is_not_given_again() {
    let mut rig = rig();
    let _first = job(&mut rig, 1);
    let away = || crate::Error::not_applied(crate::ErrorKind::Unavailable, "swap");
    rig.store_errors = std::iter::repeat_with(away).take(200).collect();
    for _ in 0..62 {
        rig.pass(SEC);
    }
    rig.store_errors.clear();
    for _ in 0..3 {
        rig.pass(SEC);
    }
    assert_eq!(rig.get_job().unwrap().attempt, 2);
}

#[test]
fn shutdown_gives_back_untaken_jobs_and_leases_running_ones() {
    let mut rig = rig();
    rig.publish(&[&numbered(1), &numbered(2)]);
    let running = rig.get_job().unwrap();
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    assert_eq!(rig.lease(&numbered(1)).unwrap().state, LeaseState::Live);
    assert!(rig.lease(&numbered(2)).is_none_or(|lease| lease.state == LeaseState::Idle));
    assert!(!rig.m.is_drained());
    assert!(matches!(rig.ask(&running, Command::Done), Some(Answer::Ok)));
    assert!(rig.m.is_drained());
    assert_eq!(rig.committed(), Some(SPAN + 1));
}

#[test]
fn backlog_is_committed_often_enough_to_continue_without_leases() {
    let mut rig = rig();
    for n in 0..20 {
        let job = job(&mut rig, n);
        rig.ask(&job, Command::Done);
    }
    assert!(rig.store.is_empty(), "no time has passed, and most of it is committed");
    assert!(rig.committed().unwrap() >= 20);
}
