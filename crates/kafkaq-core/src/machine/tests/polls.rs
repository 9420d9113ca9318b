//! The order in which outputs are polled.

use super::*;

/// A done swap is answered just when the hold of its revoked partition ends.
fn hold_ends_with_a_finished_record() -> Rig {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Done);
    let mut swaps = vec![];
    rig.m.poll_swaps(10, &mut swaps);
    rig.m.handle_event(rig.now, Event::Revoking(vec![assignment("q", 0)]));
    rig.m.poll_releases(&mut rig.released);
    assert!(rig.released.is_empty(), "its swap is under way");
    rig.now = Now { mono: rig.now.mono.plus(2 * SEC), wall: rig.now.wall.plus(2 * SEC) };
    rig.m.handle_swapped(rig.now, swaps[0].0, Ok(Swapped::Done));
    rig
}

#[test]
fn commits_polled_before_releases_keep_what_is_finished() {
    let mut rig = hold_ends_with_a_finished_record();
    let mut commits = vec![];
    rig.m.poll_commits(&mut commits);
    rig.m.poll_releases(&mut rig.released);
    assert_eq!((commits.len(), &rig.released[..]), (1, &[assignment("q", 0)][..]));

    let mut rig = hold_ends_with_a_finished_record();
    rig.m.poll_releases(&mut rig.released);
    rig.m.poll_commits(&mut commits);
    assert_eq!((commits.len(), rig.released.len()), (1, 1), "the other way round the commit is lost");
}

#[test]
fn timeout_after_an_input_is_due_at_once() {
    let mut rig = Rig::new(|_| {});
    rig.settle();
    assert_ne!(rig.m.poll_timeout(), Some(rig.now.mono));
    rig.m.handle_demand(rig.now, 1, 0);
    assert_eq!(rig.m.poll_timeout(), Some(rig.now.mono), "its consequences were not polled yet");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic = "poll the calls or the ready jobs first"]
fn notices_polled_right_after_an_input_are_refused() {
    let mut rig = Rig::new(|_| {});
    rig.m.handle_timeout(rig.now);
    rig.m.poll_notice();
}
