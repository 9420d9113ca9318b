//! Tasks whose lease expired, and which of them may run together.

use super::*;
use crate::LeaseToken;

const LEASE: Duration = Duration::from_secs(60);
const WATCH: Duration = Duration::from_secs(5);

/// Returns a machine with these tasks, whose leases expired when the process that held them died.
fn rig(max_failures: u32, tasks: &[(&str, u32)]) -> Rig {
    let mut rig = Rig::new(|s| s.max_failures = max_failures);
    let keyspace = crate::Keyspace::new("q", "g", "q").unwrap();
    for (id, failures) in tasks {
        let token = LeaseToken { process: [9; 16], number: 1 };
        let live = Lease::new(LeaseState::Live, token, rig.now.wall, LEASE);
        let lease = Lease { attempt: failures + 1, failures: *failures, ..live };
        rig.store.insert(Key::task(&keyspace, &TaskId::new(*id).unwrap()), lease.encode());
    }
    rig.pass(2 * SEC);
    rig.publish(&tasks.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    rig
}

fn id(job: Option<Ready>) -> Option<String> {
    job.map(|job| job.content.id.to_string())
}

/// Returns the jobs that as many callers as there are tasks get at once.
fn get_jobs(rig: &mut Rig) -> Vec<Ready> {
    rig.demand = 9;
    rig.settle();
    rig.demand -= rig.ready.len();
    rig.settle();
    std::mem::take(&mut rig.ready).into()
}

#[test]
fn task_on_its_last_chance_is_started_in_isolation() {
    let mut rig = rig(3, &[("a", 1), ("b", 1), ("c", 1)]);
    for next in ["a", "b", "c"] {
        let jobs = get_jobs(&mut rig);
        assert_eq!(jobs.len(), 1, "one at a time, whoever waits");
        assert_eq!(jobs[0].content.id.as_str(), next);
        assert_eq!(jobs[0].failures, 2);
        rig.ask(&jobs[0], Command::Done);
    }
}

#[test]
fn long_running_suspect_holds_the_next_one_back_only_for_a_while() {
    let mut rig = rig(3, &[("a", 1), ("b", 1)]);
    assert_eq!(get_jobs(&mut rig).len(), 1);
    rig.pass(WATCH - SEC);
    assert!(rig.ready.is_empty());
    assert_eq!(rig.m.poll_timeout(), Some(rig.now.mono.plus(SEC)), "it wakes up to start the next one");
    rig.pass(SEC);
    assert_eq!(id(rig.ready.pop_front()).as_deref(), Some("b"));
}

#[test]
fn tasks_with_more_chances_start_together_but_not_beside_one_on_its_last() {
    let mut rig = rig(4, &[("a", 1), ("b", 1), ("last", 2), ("c", 1)]);
    let jobs = get_jobs(&mut rig);
    assert_eq!(jobs.len(), 2, "a and b");
    rig.ask(&jobs[0], Command::Done);
    assert!(rig.ready.is_empty(), "b still runs");
    rig.ask(&jobs[1], Command::Done);
    let last = rig.ready.pop_front();
    assert!(rig.ready.is_empty(), "c is not started at the same time as the last one");
    rig.ask(last.as_ref().unwrap(), Command::Done);
    assert_eq!(id(last).as_deref(), Some("last"));
    assert_eq!(id(rig.ready.pop_front()).as_deref(), Some("c"));
}

#[test]
fn other_tasks_pass_a_suspect_that_is_held_back() {
    let mut rig = rig(3, &[("a", 1), ("b", 1)]);
    assert_eq!(get_jobs(&mut rig).len(), 1);
    rig.publish(&["new"]);
    assert_eq!(id(rig.ready.pop_front()).as_deref(), Some("new"));
}

/// A task that was given back was not executed, so it isn't trusted any more than before.
#[test]
fn task_stays_a_suspect_when_it_is_released() {
    let mut rig = rig(3, &[("a", 1), ("b", 1)]);
    let first = get_jobs(&mut rig).remove(0);
    rig.ask(&first, Command::Release);
    let second = rig.ready.pop_front().unwrap();
    assert_eq!(second.content.id.as_str(), "b");
    assert!(rig.ready.is_empty());
    rig.ask(&second, Command::Done);
    rig.deliver_copies();
    assert_eq!(id(rig.ready.pop_front()).as_deref(), Some("a"));
}

/// Prefetched jobs would be handed out first.
#[test]
fn suspect_is_started_before_a_backlog() {
    let mut rig = rig(3, &[("a", 1), ("b", 1)]);
    let first = get_jobs(&mut rig).remove(0);
    rig.demand = 0;
    let many: Vec<String> = (0..50).map(|i| format!("t{i}")).collect();
    rig.publish(&many.iter().map(String::as_str).collect::<Vec<_>>());
    rig.ask(&first, Command::Done);
    let next: Vec<_> = (0..3).map(|_| id(rig.get_job()).unwrap()).collect();
    assert!(next.contains(&"b".to_owned()), "{next:?}");
}

#[test]
fn suspects_and_other_redeliveries_take_turns() {
    let mut rig = rig(9, &[("a", 1), ("b", 1), ("c", 1)]);
    for id in ["x", "y"] {
        rig.publish(&[id]);
        rig.demand = 0;
    }
    rig.settle();
    while let Some(job) = rig.ready.pop_front() {
        rig.ask(&job, Command::Release);
    }
    let order: Vec<_> = (0..4).map(|_| id(rig.get_job()).unwrap()).collect();
    assert_eq!(order.iter().filter(|id| ["x", "y"].contains(&id.as_str())).count(), 2, "{order:?}");
}
