//! Delays: the lanes of the wait topic, and how far they are read.

use super::*;

/// Returns records as they are in a lane, each of which leaves it after the given time from now.
fn delayed(rig: &Rig, first: i64, stays: &[Duration]) -> Batch {
    let record = |(offset, stay): (i64, &Duration)| {
        let due = rig.now.wall.plus(*stay);
        let id = TaskId::new(format!("t{offset}")).unwrap();
        let origin = Some(Position { partition: Partition::new("q", 0), offset });
        let envelope =
            Envelope { due, ahead: *stay, lane_due: due, origin, ..Envelope::new(id, rig.now.wall) };
        let headers = Headers::from_iter([(Bytes::from(HEADER), Some(envelope.encode()))]);
        Record::new(offset, 0, None, None, headers)
    };
    Batch::new((first..).zip(stays).map(record).collect(), first + stays.len() as i64, None)
}

#[test]
fn delay_of_three_hours_takes_few_hops_and_ends_to_the_millisecond() {
    let mut rig = Rig::new(|_| {});
    let start = rig.now;
    rig.publish_delayed("a", 3 * 3600 * SEC);
    let mut hops = rig.wait.len();
    rig.deliver_copies();
    while rig.now.mono < start.mono.plus(3 * 3600 * SEC) {
        assert!(rig.get_job().is_none());
        let wake = rig.m.poll_timeout().expect("somebody has to wake it");
        rig.pass(Duration::from_nanos(wake.0 - rig.now.mono.0));
        hops += rig.wait.len();
        rig.deliver_copies();
        if hops == 1 {
            let lease = rig.lease("a").unwrap();
            assert_eq!((lease.state, lease.attempt), (LeaseState::Idle, 0), "visible after the first hop");
        }
    }
    assert_eq!(rig.now.mono, start.mono.plus(3 * 3600 * SEC));
    assert_eq!(rig.get_job().unwrap().attempt, 1);
    assert!((2..12).contains(&hops), "{hops} hops");
}

#[test]
fn blocking_head_of_a_full_lane_moves_to_its_tail() {
    let mut rig = Rig::new(|s| s.lane_window = 8);
    // One lane: the first stays for fifteen seconds more than the others do.
    let lane =
        rig.m.config.ladder.place(rig.now.wall, rig.now.wall.plus(16 * SEC), &TaskId::new("x").unwrap()).0;
    let stays: Vec<_> = (0..8).map(|i| if i == 0 { 16 * SEC } else { SEC }).collect();
    let batch = delayed(&rig, 0, &stays);
    rig.m.handle_event(rig.now, Event::Records(assignment("w", lane), batch));
    assert_eq!(rig.m.poll_flow(), Some((assignment("w", lane), FlowControl::Pause)));
    rig.pass(SEC);
    for _ in 1..8 {
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Done);
    }
    assert_eq!(rig.wait.len(), 1, "the head was copied, fifteen seconds before its time");
    assert_eq!(rig.m.poll_flow(), Some((assignment("w", lane), FlowControl::Resume)));
}

#[test]
fn short_delay_does_not_wait_behind_thousands_of_longer_ones() {
    let mut rig = Rig::new(|_| {});
    let lane = assignment("w", 0);
    let (mut next, mut paused) = (0, false);
    // What arrives in a lane in four seconds if 8,000 tasks per second are due, and behind it one that is due soon.
    for _ in 0..32 {
        let batch = delayed(&rig, next, &[4 * SEC; 1000]);
        next += 1000;
        rig.m.handle_event(rig.now, Event::Records(lane.clone(), batch));
        rig.settle();
        paused |= rig.m.poll_flow().is_some();
    }
    assert!(!paused, "reading continues");
    let batch = delayed(&rig, next, &[SEC]);
    rig.m.handle_event(rig.now, Event::Records(lane, batch));
    rig.pass(SEC);
    assert_eq!(rig.get_job().map(|job| job.content.id.to_string()), Some(format!("t{next}")));
}

#[test]
fn full_lane_resumes_once_an_eighth_has_left() {
    let mut rig = Rig::new(|s| s.lane_window = 800);
    let stays: Vec<_> = (0..800).map(|i| if i < 200 { SEC } else { 4 * SEC }).collect();
    let lane = assignment("w", 0);
    let batch = delayed(&rig, 0, &stays);
    rig.m.handle_event(rig.now, Event::Records(lane.clone(), batch));
    assert_eq!(rig.m.poll_flow(), Some((lane.clone(), FlowControl::Pause)));
    rig.pass(SEC);
    for _ in 0..200 {
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Done);
    }
    assert_eq!(rig.m.poll_flow(), Some((lane, FlowControl::Resume)));
}

#[test]
fn lane_pauses_beyond_what_may_be_due_soon() {
    let mut rig = Rig::new(|s| s.window = 100);
    let stay = 18 * SEC;
    let lane = assignment(
        "w",
        rig.m.config.ladder.place(rig.now.wall, rig.now.wall.plus(stay), &TaskId::new("x").unwrap()).0,
    );
    let batch = delayed(&rig, 0, &[stay; 99]);
    rig.m.handle_event(rig.now, Event::Records(lane.clone(), batch));
    rig.settle();
    assert_eq!(rig.m.poll_flow(), None);
    let batch = delayed(&rig, 99, &[stay; 50]);
    rig.m.handle_event(rig.now, Event::Records(lane.clone(), batch));
    rig.settle();
    assert_eq!(rig.m.poll_flow(), Some((lane.clone(), FlowControl::Pause)));
    rig.pass(10 * SEC);
    assert_eq!(rig.m.poll_flow(), None, "none behind them is due within five seconds");
    for _ in 0..2 {
        rig.pass(SEC);
    }
    assert_eq!(rig.m.poll_flow(), Some((lane, FlowControl::Resume)));
}

#[test]
fn redeliveries_that_wait_for_a_caller_are_bounded() {
    let mut rig = Rig::new(|_| {});
    let all = intake::MAX_ON_DEMAND + 50;
    let batch = delayed(&rig, 0, &vec![SEC; all]);
    rig.m.handle_event(rig.now, Event::Records(assignment("w", 0), batch));
    rig.pass(SEC);
    assert_eq!(rig.m.dispatch.waiting_on_demand(), intake::MAX_ON_DEMAND);
    for served in 0..all {
        let job = rig.get_job().unwrap_or_else(|| panic!("after {served}"));
        rig.ask(&job, Command::Done);
    }
}
