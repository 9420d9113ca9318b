//! What happens when the log or the store refuses, doesn't respond, or returns another log; and what counts as a
//! failure.

use super::*;
use crate::{Effect, Error, ErrorKind};

fn history(ready: &Ready) -> Vec<(u32, String)> {
    ready.history.entries().into_iter().map(|f| (f.attempt, f.reason)).collect()
}

#[test]
fn abandoned_job_with_a_refused_copy_is_redelivered_from_its_record() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Abandoned);
    rig.pass(10 * SEC);
    assert_eq!((rig.alarms, rig.wait.len()), (1, 0));
    for _ in 0..52 {
        rig.pass(SEC);
    }
    assert_eq!(rig.get_job().map(|again| again.attempt), Some(2));
}

#[test]
fn job_running_beyond_its_lease_does_not_keep_a_record_whose_copy_was_refused() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    rig.publish(&["a"]);
    let hung = rig.get_job().unwrap();
    for _ in 0..62 {
        rig.pass(SEC);
    }
    let again = rig.get_job().unwrap();
    assert_eq!(again.attempt, 2);
    assert!(matches!(rig.ask(&hung, Command::Done), Some(Answer::Lost(LostReason::TakenOver))));
    assert!(matches!(rig.ask(&again, Command::Done), Some(Answer::Ok)));
    rig.pass(SEC);
    assert_eq!((rig.committed(), rig.m.items.is_empty()), (Some(1), true));
}

#[test]
fn done_queued_behind_an_extend_overwrites_a_lower_attempt() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    // The store goes back to before the job was taken, and another process has parked the task since.
    rig.change_lease("a", |lease| {
        (lease.state, lease.attempt, lease.token.number) = (LeaseState::Idle, 0, 99);
    });
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Extend(90 * SEC));
    rig.m.handle_command(rig.now, job.job, CommandId(2), Command::Done);
    rig.settle();
    assert!(
        matches!(rig.answers[..], [Answer::Lost(LostReason::TakenOver), Answer::Ok]),
        "{:?}",
        rig.answers
    );
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Done);
}

#[test]
fn lease_taken_while_the_clock_was_ahead_ends_after_its_length() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    rig.demand = 1;
    let (right, ahead) = (rig.now.wall, rig.now.wall.plus(3600 * SEC));
    rig.now.wall = ahead;
    rig.record(&["a"]);
    let mut swaps = vec![];
    rig.m.handle_demand(rig.now, 1, 0);
    rig.m.poll_swaps(100, &mut swaps);
    let (op, swap) = swaps.remove(0);
    rig.store.insert(swap.key, swap.new.unwrap());
    rig.now.wall = right;
    rig.m.handle_swapped(rig.now, op, Ok(Swapped::Done));
    rig.settle();
    let job = rig.ready.pop_front().unwrap();
    rig.demand = 0;
    rig.ask(&job, Command::Abandoned);
    // It is considered after its length, and again after that, since its deadline in the store was corrected.
    for _ in 0..125 {
        rig.pass(SEC);
    }
    assert_eq!(rig.get_job().unwrap().attempt, 2);
}

#[test]
fn retry_with_a_refused_copy_is_redelivered_after_its_delay() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    assert!(matches!(rig.ask(&job, Command::Retry(5 * SEC, "no".into())), Some(Answer::Ok)));
    rig.pass(4 * SEC);
    assert!(rig.get_job().is_none());
    rig.pass(SEC);
    rig.pass(SEC);
    let again = rig.get_job().unwrap();
    assert_eq!((again.attempt, again.failures, history(&again)), (2, 1, vec![(1, "no".into())]));
}

#[test]
fn record_under_a_foreign_lease_waits_here_if_its_copy_is_refused() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    let theirs = crate::LeaseToken { process: [9; 16], number: 1 };
    let lease = Lease::new(LeaseState::Live, theirs, rig.now.wall.plus(30 * SEC), 60 * SEC);
    let key = Key::task(&crate::Keyspace::new("q", "g", "q").unwrap(), &TaskId::new("a").unwrap());
    rig.store.insert(key, lease.encode());
    rig.publish(&["a"]);
    assert_eq!(rig.alarms, 1);
    rig.pass(30 * SEC);
    assert!(rig.get_job().is_none());
    rig.pass(2 * SEC);
    assert!(rig.get_job().is_some());
}

#[test]
fn unacknowledged_copy_does_not_keep_its_record_beyond_the_lease() {
    let mut rig = Rig::new(|_| {});
    rig.hanging = &["w"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Abandoned);
    rig.pass(10 * SEC);
    for _ in 0..52 {
        rig.pass(SEC);
    }
    assert_eq!(rig.get_job().map(|again| again.attempt), Some(2));
}

#[test]
fn every_command_is_answered_by_the_end_of_the_lease() {
    for (hangs, command, effect) in [
        (&["w"], Command::Retry(SEC, "no".into()), Effect::NotApplied),
        (&["w"], Command::Snooze(SEC), Effect::NotApplied),
        (&["w"], Command::Reject("no".into()), Effect::NotApplied),
        (&["d"], Command::Reject("no".into()), Effect::Unknown),
    ] {
        let mut rig = Rig::new(|_| {});
        rig.hanging = hangs;
        rig.publish(&["a"]);
        let job = rig.get_job().unwrap();
        rig.pass(10 * SEC);
        assert!(rig.ask(&job, command.clone()).is_none(), "the log is silent");
        for _ in 0..52 {
            rig.pass(SEC);
        }
        let Some(Answer::Failed(e)) = rig.answers.pop() else { panic!("{command:?} was not answered") };
        assert_eq!(e.effect(), effect, "{command:?}: {e}");
        assert!(e.to_string().contains("before the lease ended"), "{e}");
    }
}

#[test]
fn refused_dead_letter_fails_the_reject_with_the_cause() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["d"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    let Some(Answer::Failed(e)) = rig.ask(&job, Command::Reject("no".into())) else { panic!() };
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied));
}

/// A newer process writes a record that this one can't read; during an upgrade both run.
#[test]
fn record_of_a_later_version_does_not_hold_back_the_commit() {
    let mut rig = Rig::new(|_| {});
    let mut later = Envelope::new(TaskId::new("later").unwrap(), rig.now.wall).encode().to_vec();
    (later[3], later[4]) = (3, 3);
    rig.publish_record(Headers::from_iter([(Bytes::from(HEADER), Some(later.into()))]));
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    assert_eq!((job.content.id.as_str(), rig.alarms), ("a", 1));
    assert_eq!(rig.wait.len(), 1, "it waits elsewhere, as it is");
    rig.ask(&job, Command::Abandoned);
    rig.pass(10 * SEC);
    assert_eq!(rig.wait.len(), 2, "and so are the records behind it");
    rig.pass(SEC);
    assert!(rig.committed() >= Some(2), "and nothing holds back the commit");
    rig.deliver_copies();
    for _ in 0..120 {
        rig.pass(SEC);
    }
    assert_eq!(rig.wait.len(), 1, "it is tried again once per lease");
}

#[test]
fn foreign_header_with_our_name_is_a_user_header() {
    let mut rig = Rig::new(|_| {});
    rig.publish_record(Headers::from_iter([(Bytes::from(HEADER), Some(Bytes::from("garbage")))]));
    let job = rig.get_job().unwrap();
    assert_eq!(job.content.headers.get(HEADER).unwrap(), "garbage");
    rig.ask(&job, Command::Done);
    rig.pass(SEC);
    assert_eq!((rig.committed(), rig.alarms), (Some(1), 0));
}

/// No kafkaq gets that far, but anybody can write such a header.
#[test]
fn task_whose_copy_has_the_highest_cover_number_can_still_finish() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Retry(Duration::ZERO, "no".into()));
    let (_, record) = &mut rig.wait[0];
    let header = |(name, value): (&Bytes, Option<&Bytes>)| {
        let mut envelope = Envelope::decode(value?).ok()?;
        envelope.cover = u32::MAX;
        Some((name.clone(), Some(envelope.encode())))
    };
    let others = record.headers.iter().filter(|(name, _)| *name != HEADER);
    let changed = record.headers.iter().filter_map(header);
    record.headers = others.map(|(name, value)| (name.clone(), value.cloned())).chain(changed).collect();
    rig.deliver_copies();
    for attempt in 2..4 {
        let job = rig.get_job().unwrap();
        assert_eq!((job.attempt, rig.lease("a").unwrap().cover), (attempt, u32::MAX));
        if attempt == 2 {
            rig.ask(&job, Command::Retry(Duration::ZERO, "no".into()));
            rig.deliver_copies();
        }
    }
}

#[test]
fn unknown_effect_of_one_try_outlasts_later_tries() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.store_errors.push_back(Error::unknown(ErrorKind::Timeout, "swap"));
    rig.store_errors.extend((0..200).map(|_| Error::not_applied(ErrorKind::Unavailable, "swap")));
    assert!(rig.ask(&job, Command::Done).is_none());
    for _ in 0..62 {
        rig.pass(SEC);
    }
    let Some(Answer::Failed(e)) = rig.answers.pop() else { panic!("not answered") };
    assert_eq!(
        (e.kind(), e.effect()),
        (ErrorKind::Unavailable, Effect::Unknown),
        "the first may have arrived"
    );
}

/// The dead letter is durable. The store refuses the swap that follows it until the lease has ended.
#[test]
fn reject_whose_dead_letter_is_in_the_log_is_in_doubt() {
    for end in [Command::Reject("no".into()), Command::Retry(SEC, "no".into())] {
        let mut rig = Rig::new(|s| s.max_failures = 1);
        rig.publish(&["a"]);
        let job = rig.get_job().unwrap();
        rig.m.handle_command(rig.now, job.job, CommandId(1), end);
        let (mut appends, mut swaps) = (vec![], vec![]);
        rig.m.poll_appends(1, &mut appends).unwrap();
        rig.m.handle_appended(rig.now, appends[0].0, Ok(0));
        rig.m.poll_swaps(1, &mut swaps);
        rig.now = Now { mono: rig.now.mono.plus(60 * SEC), wall: rig.now.wall.plus(60 * SEC) };
        rig.m.handle_swapped(rig.now, swaps[0].0, Err(Error::not_applied(ErrorKind::Unavailable, "swap")));
        rig.settle();
        let Some(Answer::Failed(e)) = rig.answers.pop() else { panic!("not answered so") };
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    }
}

/// The copy of a long-running job may have reached the log. That doesn't make the effect of the holder's command
/// unknown.
#[test]
fn copy_of_unknown_effect_does_not_put_a_command_in_doubt() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.now = Now { mono: rig.now.mono.plus(30 * SEC), wall: rig.now.wall.plus(30 * SEC) };
    let mut appends = vec![];
    rig.m.handle_timeout(rig.now);
    assert_eq!(&*rig.m.poll_appends(1, &mut appends).unwrap().topic, "w");
    rig.store_errors.extend((0..999).map(|_| Error::not_applied(ErrorKind::Unavailable, "swap")));
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Done);
    let mut swaps = vec![];
    rig.m.poll_swaps(1, &mut swaps);
    rig.m.handle_appended(rig.now, appends[0].0, Err(Error::unknown(ErrorKind::Timeout, "append")));
    rig.now = Now { mono: rig.now.mono.plus(30 * SEC), wall: rig.now.wall.plus(30 * SEC) };
    rig.m.handle_swapped(rig.now, swaps[0].0, Err(Error::not_applied(ErrorKind::Unavailable, "swap")));
    rig.settle();
    let Some(Answer::Failed(e)) = rig.answers.pop() else { panic!("not answered so: {:?}", rig.answers) };
    assert_eq!(e.effect(), Effect::NotApplied);
}

/// The first attempt may have reached the log, the second one is refused.
#[test]
fn refused_dead_letter_is_in_doubt_if_an_earlier_try_is() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Reject("no".into()));
    let mut appends = vec![];
    rig.m.poll_appends(1, &mut appends).unwrap();
    let lost = Error::unknown(ErrorKind::Timeout, "append");
    rig.m.handle_appended(rig.now, appends[0].0, Err(lost));
    rig.refusing = &["d"];
    rig.pass(SEC);
    rig.pass(10 * SEC);
    let Some(Answer::Failed(e)) = rig.answers.pop() else { panic!("not answered so: {:?}", rig.answers) };
    assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::Unknown));
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Idle, "it comes back");
}

#[test]
fn snooze_and_release_cost_no_failure_and_release_appends_no_copy() {
    let mut rig = Rig::new(|s| s.max_failures = 1);
    rig.publish(&["a"]);
    for n in 1..20 {
        let job = rig.get_job().unwrap();
        assert_eq!((job.attempt, job.failures), (n, 0));
        assert!(matches!(rig.ask(&job, Command::Release), Some(Answer::Ok)));
    }
    assert!(rig.wait.is_empty(), "the record itself is here");
    let job = rig.get_job().unwrap();
    assert!(matches!(rig.ask(&job, Command::Snooze(5 * SEC)), Some(Answer::Ok)));
    assert_eq!(rig.wait.len(), 1);
    rig.deliver_copies();
    for _ in 0..7 {
        rig.pass(SEC);
        rig.deliver_copies();
    }
    let job = rig.get_job().unwrap();
    assert_eq!((job.attempt, job.failures), (21, 0));
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
}

#[test]
fn released_job_that_was_parked_is_redelivered_at_once() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.pass(10 * SEC);
    rig.deliver_copies();
    assert!(matches!(rig.ask(&job, Command::Release), Some(Answer::Ok)));
    rig.deliver_copies();
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.get_job().map(|again| (again.attempt, again.failures)), Some((2, 0)));
}

#[test]
fn max_handouts_bounds_hand_outs_that_cost_no_failure() {
    let mut rig = Rig::new(|s| s.max_handouts = 3);
    rig.publish(&["a"]);
    for _ in 0..3 {
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Release);
    }
    assert!(rig.get_job().is_none());
    assert_eq!(rig.dead_reasons, [DeadReason::Handouts]);
    assert_eq!(rig.dead[0].headers.get("kafkaq-reason").unwrap(), "handed out 3 times");
    assert_eq!(rig.dead[0].headers.get("kafkaq-attempts").unwrap(), "3");
}

#[test]
fn expired_lease_counts_as_a_failure_unless_it_was_prefetched() {
    let mut rig = Rig::new(|_| {});
    rig.demand = 1;
    rig.publish(&["asked for", "prefetched"]);
    rig.demand = 0;
    let jobs: Vec<_> = rig.ready.drain(..).collect();
    assert_eq!(jobs.len(), 2);
    for job in &jobs {
        rig.ask(job, Command::Abandoned);
    }
    rig.pass(10 * SEC);
    rig.deliver_copies();
    rig.pass(52 * SEC);
    let again = [rig.get_job().unwrap(), rig.get_job().unwrap()];
    let of = |id: &str| again.iter().find(|job| job.content.id.as_str() == id).unwrap();
    let ran_out = of("asked for");
    assert_eq!((ran_out.failures, history(ran_out)), (1, vec![(1, "its lease ran out".into())]));
    assert_eq!((of("prefetched").failures, of("prefetched").attempt), (0, 2));
}

#[test]
fn delayed_task_reserves_its_id_at_once() {
    let mut rig = Rig::new(|_| {});
    rig.publish_delayed("a", 3600 * SEC);
    assert_eq!(rig.wait.len(), 1);
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Idle, "visible, and it can be cancelled");
    rig.publish(&["a"]);
    assert!(rig.get_job().is_none(), "the first publication counts, and it is not due");
    rig.deliver_copies();
    rig.pass(SEC);
    assert!(rig.committed() >= Some(2));
}

#[test]
fn lower_offset_with_another_record_gives_up_the_assignment() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a", "b"]);
    let record = |offset, timestamp| {
        let envelope = Envelope::new(TaskId::new("b").unwrap(), Wall(1_000_000));
        let headers = Headers::from_iter([(Bytes::from(HEADER), Some(envelope.encode()))]);
        Record::new(offset, timestamp, Some("key".into()), Some("payload".into()), headers)
    };
    let repeated = record(1, 0);
    assert_eq!(repeated.size(), record(1, 0).size());
    rig.m.handle_event(rig.now, Event::Records(assignment("q", 0), Batch::new(vec![repeated], 2, None)));
    rig.settle();
    assert!(rig.reassigned.is_empty() && rig.alarms == 0);
    rig.m.handle_event(rig.now, Event::Records(assignment("q", 0), Batch::new(vec![record(0, 7)], 1, None)));
    rig.settle();
    assert_eq!((&rig.reassigned[..], rig.alarms), (&[assignment("q", 0)][..], 1));
    assert!(rig.ready.is_empty(), "what was read before is recalled");
    assert_eq!(rig.committed(), None, "and never committed for the log that is there now");
}

#[test]
fn dead_letter_copied_back_is_a_new_task() {
    let mut rig = Rig::new(|s| s.max_failures = 1);
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Reject("no".into()));
    assert_eq!(rig.dead_reasons, [DeadReason::Rejected]);
    let dead = rig.dead.pop().unwrap();
    rig.publish_record(dead.headers);
    let again = rig.get_job().unwrap();
    assert_ne!(again.content.id.as_str(), "a");
    assert_eq!((again.attempt, again.failures, again.content.headers.len()), (1, 0, 0));
}

#[test]
fn store_that_takes_half_a_lease_to_answer_still_yields_jobs() {
    let mut rig = Rig::new(|s| s.prefetch = 0);
    rig.m.handle_demand(rig.now, 1, 0);
    let envelope = Envelope::new(TaskId::new("a").unwrap(), rig.now.wall);
    let headers = Headers::from_iter([(Bytes::from(HEADER), Some(envelope.encode()))]);
    let batch = Batch::new(vec![Record::new(0, 0, None, None, headers)], 1, None);
    rig.m.handle_event(rig.now, Event::Records(assignment("q", 0), batch));
    for answers in 1..5 {
        let mut swaps = vec![];
        rig.m.poll_swaps(10, &mut swaps);
        let (op, _) = swaps.pop().unwrap();
        rig.now = Now { mono: rig.now.mono.plus(32 * SEC), wall: rig.now.wall.plus(32 * SEC) };
        rig.m.handle_swapped(rig.now, op, Ok(Swapped::Done));
        let mut ready = vec![];
        rig.m.poll_ready(&mut ready);
        if let Some(job) = ready.pop() {
            assert!(answers <= 2 && job.stale_at > rig.now.mono, "and there is time to take it");
            return;
        }
    }
    panic!("it is renewed forever");
}

#[test]
fn expired_lease_makes_no_second_copy_while_one_is_under_way() {
    let mut rig = Rig::new(|_| {});
    rig.hanging = &["w"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.pass(10 * SEC);
    rig.store_errors.extend((0..200).map(|_| Error::not_applied(ErrorKind::Unavailable, "swap")));
    rig.ask(&job, Command::Done);
    for _ in 0..50 {
        rig.pass(SEC);
    }
    assert!(matches!(rig.answers.pop(), Some(Answer::Failed(_))));
    assert_eq!(rig.m.stats().appending, 1);
}

#[test]
fn failing_partitions_leave_append_calls_to_the_others() {
    let mut appends = Appends::default();
    let mut slab = Slab::default();
    let mut push = |appends: &mut Appends, n| appends.push(Partition::new("t", n), slab.insert(()));
    (0..20).for_each(|n| push(&mut appends, n));
    let next = |appends: &mut Appends, now| {
        let mut out = Vec::new();
        let to = appends.next(now, 9, &mut out, |_| Some(()))?;
        Some((to.index, Ref::from(out[0].0)))
    };
    let mut now = Mono(0);
    for _ in 0..20 {
        let (partition, r) = next(&mut appends, now).unwrap();
        appends.answered(r, now, partition >= 10);
    }
    (0..20).for_each(|n| push(&mut appends, n));
    now = now.plus(SEC);
    let called: Vec<_> =
        std::iter::from_fn(|| next(&mut appends, now)).map(|(partition, _)| partition).collect();
    assert_eq!(called.iter().filter(|index| **index < 10).count(), 4, "of those that have just failed");
    assert_eq!(called.iter().filter(|index| **index >= 10).count(), 10);
    push(&mut appends, 15);
    assert_eq!(next(&mut appends, now), None, "one call per partition");
}

#[test]
fn stats_count_finished_and_running_records() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a", "b"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Done);
    let stats = rig.m.stats();
    let of = stats.partitions.iter().find(|p| &*p.partition.topic == "q").unwrap();
    assert_eq!((of.finished_below, of.queued, of.in_flight, of.paused), (Some(1), 0, 1, false));
    assert_eq!(of.oldest_unfinished, Some(Wall(0)));
}

fn partitions_of_another(rig: &mut Rig) {
    let others: Vec<_> = (6..11).map(|index| assignment("w", index)).collect();
    rig.m.handle_event(rig.now, Event::Lost(others));
    rig.settle();
}

#[test]
fn unclaimed_tasks_are_copied_to_partitions_of_another_process() {
    let mut rig = Rig::new(|_| {});
    partitions_of_another(&mut rig);
    rig.publish(&["a", "b", "c", "d", "e", "f"]);
    let busy = rig.get_job().unwrap();
    for _ in 0..6 {
        rig.pass(SEC);
    }
    assert_eq!(rig.wait.len(), 5, "prefetched or not, all but the one that runs");
    assert!(rig.wait.iter().all(|(index, _)| *index >= 6), "and nothing to itself");
    assert!(rig.ready.is_empty());
    let idle = rig.lease("b").unwrap();
    assert_eq!((idle.state, idle.attempt, idle.failures), (LeaseState::Idle, 0, 0), "free of charge");
    rig.ask(&busy, Command::Done);
    rig.pass(SEC);
    assert!(rig.committed() >= Some(6));
    // The other process has a caller, and takes them at once.
    rig.m.handle_event(rig.now, Event::Assigned((6..11).map(|index| assignment("w", index)).collect()));
    rig.deliver_copies();
    let taken: Vec<_> = std::iter::from_fn(|| rig.get_job()).collect();
    assert_eq!(taken.len(), 5);
    assert!(taken.iter().all(|job| (job.attempt, job.failures) == (1, 0)));
}

#[test]
fn sole_process_keeps_unclaimed_tasks() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a", "b", "c"]);
    for _ in 0..5 {
        rig.pass(SEC);
    }
    assert_eq!((rig.wait.len(), rig.ready.len()), (0, 3));
}

#[test]
fn command_after_the_end_of_the_lease_has_time_to_be_confirmed() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.pass(10 * SEC);
    rig.pass(51 * SEC);
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Done);
    let mut swaps = vec![];
    rig.m.poll_swaps(10, &mut swaps);
    let (op, _) = swaps.pop().unwrap();
    // The store takes longer than the interval between sweeps.
    rig.now = Now { mono: rig.now.mono.plus(2 * SEC), wall: rig.now.wall.plus(2 * SEC) };
    rig.m.handle_timeout(rig.now);
    rig.m.poll_swaps(10, &mut swaps);
    assert!(rig.m.poll_notice().is_none(), "not unconfirmed at once");
    rig.m.handle_swapped(rig.now, op, Ok(Swapped::Done));
    rig.settle();
    assert!(matches!(rig.answers.pop(), Some(Answer::Ok)));
}

#[test]
fn parked_ready_job_that_is_given_back_gets_a_copy_due_at_once() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    rig.pass(10 * SEC);
    assert_eq!((rig.wait.len(), rig.ready.len()), (1, 1), "parked, though nobody has asked for it yet");
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    assert_eq!(rig.wait.len(), 2, "due when the lease would have ended, and now");
    let lease = rig.lease("a").unwrap();
    assert_eq!((lease.state, lease.attempt, lease.cover), (LeaseState::Idle, 0, 2));
    assert!(rig.m.is_drained());
}

#[test]
fn copy_given_up_before_it_was_sent_is_not_sent() {
    let mut rig = Rig::new(|_| {});
    rig.hanging = &["w", "d"];
    rig.publish(&["a"]);
    let under_way = rig.get_job().unwrap();
    rig.pass(SEC);
    rig.publish(&["b"]);
    let waiting = rig.get_job().unwrap();
    for _ in 0..62 {
        rig.pass(SEC);
    }
    assert!(rig.ask(&waiting, Command::Reject("no".into())).is_none());
    let op = OpId::from(Ref::from(under_way.job));
    rig.m.handle_appended(rig.now, op, Ok(0));
    assert_eq!(rig.m.poll_appends(9, &mut vec![]), None, "a dead letter doesn't belong in the wait topic");
}
