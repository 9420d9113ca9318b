//! Ready jobs that nobody takes: their leases are renewed, and no failure is counted.

use super::*;

/// The caller is gone before the job is ready. The process is the only one, so it keeps the job.
#[test]
fn ready_job_that_nobody_takes_is_charged_no_failure() {
    for park_after in [10 * SEC, 3600 * SEC] {
        let mut rig = Rig::new(|s| (s.max_failures, s.park_after) = (1, park_after));
        rig.demand = 1;
        rig.publish(&["a"]);
        rig.demand = 0;
        for _ in 0..600 {
            rig.pass(SEC);
            rig.deliver_copies();
        }
        assert_eq!(rig.dead_reasons, []);
        let job = rig.get_job().unwrap();
        assert_eq!((job.attempt, job.failures), (1, 0));
        assert!(job.stale_at > rig.now.mono && job.deadline > rig.now.wall);
        assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    }
}

/// As many jobs as were requested by callers that are gone now.
#[test]
fn many_ready_jobs_are_renewed_in_time() {
    let mut rig = Rig::new(|s| (s.lease, s.park_after, s.max_failures) = (10 * SEC, SEC, 1));
    rig.demand = 1000;
    let many: Vec<String> = (0..1000).map(|i| format!("t{i}")).collect();
    rig.publish(&many.iter().map(String::as_str).collect::<Vec<_>>());
    rig.demand = 0;
    for _ in 0..30 {
        rig.pass(SEC);
        rig.deliver_copies();
    }
    assert_eq!((rig.dead_reasons.len(), rig.ready.len()), (0, 1000));
    assert!(rig.ready.iter().all(|job| (job.attempt, job.failures) == (1, 0)));
}

#[test]
fn redelivery_that_nobody_takes_is_charged_no_failure() {
    let mut rig = Rig::new(|s| s.max_failures = 2);
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Retry(Duration::ZERO, "no".into()));
    rig.demand = 1;
    rig.deliver_copies();
    rig.demand = 0;
    assert_eq!(rig.ready.len(), 1);
    for _ in 0..600 {
        rig.pass(SEC);
        rig.deliver_copies();
    }
    assert_eq!(rig.dead_reasons, []);
    let job = rig.get_job().unwrap();
    assert_eq!((job.attempt, job.failures), (2, 1));
}

/// The wall clock is set back: the lease seems longer than it is, and ends nevertheless.
#[test]
fn ready_job_is_renewed_in_time_however_the_wall_clock_is_set() {
    let mut rig = Rig::new(|s| s.max_failures = 1);
    rig.demand = 1;
    rig.publish(&["a"]);
    rig.demand = 0;
    rig.now.wall = Wall(rig.now.wall.0 - 900_000);
    for _ in 0..3600 {
        rig.pass(SEC);
        rig.deliver_copies();
        assert!(rig.ready.iter().all(|job| rig.now.mono < job.stale_at.plus(SEC)), "it was renewed before");
        assert!(rig.ready.iter().all(|job| job.stale_at < rig.now.mono.plus(60 * SEC)));
    }
    assert_eq!(rig.dead_reasons, []);
    let job = rig.get_job().unwrap();
    assert_eq!((job.attempt, job.failures), (1, 0));
}

/// The process crashes later: nobody has had the job.
#[test]
fn first_attempt_that_nobody_took_counts_as_prefetched_once_it_is_renewed() {
    let mut rig = Rig::new(|_| {});
    rig.demand = 1;
    rig.publish(&["a"]);
    assert!(!rig.lease("a").unwrap().prefetched);
    rig.demand = 0;
    for _ in 0..40 {
        rig.pass(SEC);
    }
    assert!(rig.lease("a").unwrap().prefetched);
}

#[test]
fn recall_takes_what_is_stale_and_of_what_is_to_be_renewed_the_half_that_is_handed_out_last() {
    let mut rig = Rig::new(|_| {});
    rig.demand = 8;
    rig.publish(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let ids = |jobs: &VecDeque<Ready>| jobs.iter().map(|job| job.content.id.to_string()).collect::<String>();
    let mut ready = rig.ready.clone();
    for (job, (renew_at, stale_at)) in ready.iter_mut().zip([(9, 20), (10, 20), (0, 10)].into_iter().cycle())
    {
        (job.renew_at, job.stale_at) = (Mono(renew_at), Mono(stale_at));
    }
    let mut recall = |recall: Recall, now| {
        let back = recall.take_back(&mut ready, Now { mono: Mono(now), ..rig.now }, |job| job);
        (ids(&back), ids(&ready))
    };
    let expected = |back: &str, stays: &str| (back.to_owned(), stays.to_owned());
    assert_eq!(recall(Recall::ToRenew, 7), expected("f", "abcdegh"), "c and f are to be renewed");
    assert_eq!(recall(Recall::ToRenew, 9), expected("dg", "abceh"), "and now a, d and g");
    assert_eq!(recall(Recall::ToRenew, 10), expected("ceh", "ab"), "c is stale");
    assert_eq!(recall(Recall::ToRenew, 10), expected("b", "a"));
    assert_eq!(recall(Recall::All, 10), expected("a", ""));
}

/// As after the system was suspended: the monotonic clock has stood still.
#[test]
fn ready_job_whose_lease_has_ended_by_the_wall_clock_is_not_handed_out() {
    let mut rig = Rig::new(|_| {});
    rig.demand = 1;
    rig.publish(&["a"]);
    let job = rig.ready[0].clone();
    assert!(job.is_fresh(rig.now));
    let woken = Now { wall: job.deadline, ..rig.now };
    assert!(!job.is_fresh(woken));
    assert_eq!(Recall::ToRenew.take_back(&mut rig.ready, woken, |job| job).len(), 1);
}
