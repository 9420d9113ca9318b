//! Scenarios of one machine with a store and a log that answer at once. The simulation covers the rest.

use super::*;
use crate::{
    Assignment, Batch, Commit, Envelope, Event, HEADER, Headers, Key, Lease, LeaseState, LostReason,
    Partition, Position, Record, Swapped, TaskId, Wall,
};
use bytes::Bytes;
use slab::{Ref, Slab};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

const SEC: Duration = Duration::from_secs(1);

struct Rig {
    m: Machine,
    now: Now,
    store: BTreeMap<Key, Bytes>,
    wait: Vec<(i32, Record)>,
    dead: Vec<Record>,
    ready: VecDeque<Ready>,
    answers: Vec<Answer>,
    lost: Vec<LostReason>,
    commits: Vec<Commit>,
    released: Vec<Assignment>,
    demand: usize,
    next_offset: i64,
    /// Topics that refuse every record.
    refusing: &'static [&'static str],
    /// Topics that never answer.
    hanging: &'static [&'static str],
    /// The store answers this instead, one by one.
    store_errors: VecDeque<crate::Error>,
    reassigned: Vec<Assignment>,
    alarms: usize,
    dead_reasons: Vec<DeadReason>,
}

fn assignment(topic: &str, index: i32) -> Assignment {
    Assignment { partition: Partition::new(topic, index), epoch: 1 }
}

/// Returns the record of a task that is published now.
fn task_record(id: &str, offset: i64, now: Wall) -> Record {
    let envelope = Envelope::new(TaskId::new(id).unwrap(), now);
    let headers = Headers::from_iter([(Bytes::from(HEADER), Some(envelope.encode()))]);
    Record::new(offset, 0, Some("key".into()), Some("payload".into()), headers)
}

impl Rig {
    fn new(change: impl FnOnce(&mut Settings)) -> Rig {
        let mut settings = Settings { process: [1; 16], prefetch: 4, ..Settings::default() };
        change(&mut settings);
        let layout = Layout {
            keyspace: crate::Keyspace::new("q", "g", "q").unwrap(),
            task: "q".into(),
            wait: "w".into(),
            wait_partitions: 11,
            dead: "d".into(),
            dead_partitions: 1,
        };
        let now = Now { mono: Mono(0), wall: Wall(1_000_000) };
        let mut rig = Rig {
            m: Machine::new(settings, layout, now),
            now,
            store: BTreeMap::new(),
            wait: vec![],
            dead: vec![],
            ready: VecDeque::new(),
            answers: vec![],
            lost: vec![],
            commits: vec![],
            released: vec![],
            demand: 0,
            next_offset: 0,
            refusing: &[],
            hanging: &[],
            store_errors: VecDeque::new(),
            reassigned: vec![],
            alarms: 0,
            dead_reasons: vec![],
        };
        let all = (0..11).map(|i| assignment("w", i)).chain([assignment("q", 0)]).collect();
        rig.m.handle_event(now, Event::Assigned(all));
        rig
    }

    fn publish(&mut self, ids: &[&str]) {
        self.record(ids);
        self.settle();
    }

    /// Records of the task topic arrive.
    fn record(&mut self, ids: &[&str]) {
        let records = ids.iter().map(|id| {
            self.next_offset += 1;
            task_record(id, self.next_offset - 1, self.now.wall)
        });
        let records: Vec<_> = records.collect();
        let next = self.next_offset;
        self.m.handle_event(self.now, Event::Records(assignment("q", 0), Batch::new(records, next, None)));
    }

    /// Answers everything until nothing is left to answer.
    fn settle(&mut self) {
        loop {
            let (mut swaps, mut gets, mut appends, mut commits) = (vec![], vec![], vec![], vec![]);
            self.m.handle_demand(self.now, self.demand, self.ready.len());
            self.m.poll_swaps(100, &mut swaps);
            self.m.poll_gets(100, &mut gets);
            let to = self.m.poll_appends(100, &mut appends);
            self.m.poll_commits(&mut commits);
            let mut ready = vec![];
            self.m.poll_ready(&mut ready);
            self.ready.extend(ready);
            let recall = self.m.poll_recall();
            if let Some(recall) = recall {
                for job in recall.take_back(&mut self.ready, self.now, |job| job) {
                    self.m.handle_untaken(self.now, job.job);
                }
            }
            self.m.poll_releases(&mut self.released);
            self.m.poll_reassigns(&mut self.reassigned);
            let mut noticed = false;
            while let Some(notice) = self.m.poll_notice() {
                noticed = true;
                match notice {
                    Notice::Answered(_, _, answer) => self.answers.push(answer),
                    Notice::LeaseLost(_, reason) => self.lost.push(reason),
                    Notice::DeadLettered(why) => self.dead_reasons.push(why),
                    Notice::Alarm(_) => self.alarms += 1,
                }
            }
            if swaps.is_empty()
                && gets.is_empty()
                && to.is_none()
                && commits.is_empty()
                && recall.is_none()
                && !noticed
            {
                return;
            }
            for (op, swap) in swaps {
                if let Some(error) = self.store_errors.pop_front() {
                    self.m.handle_swapped(self.now, op, Err(error));
                    continue;
                }
                let found = self.store.get(&swap.key).cloned();
                let outcome = if found == swap.expect {
                    self.store.insert(swap.key, swap.new.unwrap());
                    Swapped::Done
                } else {
                    Swapped::Conflict(found)
                };
                self.m.handle_swapped(self.now, op, Ok(outcome));
            }
            for (op, key) in gets {
                self.m.handle_got(self.now, op, Ok(self.store.get(&key).cloned()));
            }
            for (op, new) in appends {
                let to = to.as_ref().unwrap();
                if self.hanging.contains(&&*to.topic) {
                    continue;
                }
                if self.refusing.contains(&&*to.topic) {
                    let e = crate::Error::not_applied(crate::ErrorKind::TooLarge, "append");
                    self.m.handle_appended(self.now, op, Err(e));
                    continue;
                }
                self.next_offset += 1;
                let offset = self.next_offset;
                let record = Record::new(offset, 0, new.key, new.value, new.headers);
                if &*to.topic == "w" {
                    self.wait.push((to.index, record));
                } else {
                    self.dead.push(record);
                }
                self.m.handle_appended(self.now, op, Ok(offset));
            }
            for commit in commits {
                self.m.handle_committed(self.now, &commit, Ok(()));
                self.commits.push(commit);
            }
        }
    }

    fn pass(&mut self, d: Duration) {
        self.now = Now { mono: self.now.mono.plus(d), wall: self.now.wall.plus(d) };
        self.m.handle_timeout(self.now);
        self.settle();
    }

    /// Somebody asks for a job.
    fn get_job(&mut self) -> Option<Ready> {
        self.demand = 1;
        self.settle();
        self.demand = 0;
        let job = self.ready.pop_front();
        self.settle();
        job
    }

    fn ask(&mut self, job: &Ready, command: Command) -> Option<Answer> {
        self.m.handle_command(self.now, job.job, CommandId(1), command);
        self.settle();
        self.answers.pop()
    }

    /// Hands the copies of the wait topic back as the consumer would.
    fn deliver_copies(&mut self) {
        for (index, record) in std::mem::take(&mut self.wait) {
            let next = record.offset + 1;
            self.m.handle_event(
                self.now,
                Event::Records(assignment("w", index), Batch::new(vec![record], next, None)),
            );
        }
        self.settle();
    }

    /// A task with a delay: like any other it starts in the task topic.
    fn publish_delayed(&mut self, id: &str, delay: Duration) {
        let mut envelope = Envelope::new(TaskId::new(id).unwrap(), self.now.wall);
        (envelope.due, envelope.ahead) = (self.now.wall.plus(delay), delay);
        self.publish_record(Headers::from_iter([(Bytes::from(HEADER), Some(envelope.encode()))]));
    }

    fn publish_record(&mut self, headers: Headers) {
        self.next_offset += 1;
        let record = Record::new(self.next_offset - 1, 0, None, Some("payload".into()), headers);
        let batch = Batch::new(vec![record], self.next_offset, None);
        self.m.handle_event(self.now, Event::Records(assignment("q", 0), batch));
        self.settle();
    }

    fn lease(&self, id: &str) -> Option<Lease> {
        let key = Key::task(&crate::Keyspace::new("q", "g", "q").unwrap(), &TaskId::new(id).unwrap());
        self.store.get(&key).map(|v| Lease::decode(v).unwrap())
    }

    fn change_lease(&mut self, id: &str, change: impl FnOnce(&mut Lease)) {
        let mut lease = self.lease(id).unwrap();
        change(&mut lease);
        let key = Key::task(&crate::Keyspace::new("q", "g", "q").unwrap(), &TaskId::new(id).unwrap());
        self.store.insert(key, lease.encode());
    }

    fn committed(&self) -> Option<i64> {
        self.commits.iter().rev().find(|c| &*c.assignment.partition.topic == "q").map(|c| c.offset)
    }
}

#[test]
fn completed_task_leaves_a_done_lease_no_copy_and_a_commit() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    assert_eq!((job.content.id.as_str(), job.attempt), ("a", 1));
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Live);
    assert_eq!(rig.committed(), None);
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Done);
    rig.pass(SEC);
    assert_eq!(rig.committed(), Some(1));
    assert!(rig.wait.is_empty() && rig.m.items.are_all_forgotten());
}

#[test]
fn slow_task_is_parked_once_and_does_not_hold_back_the_commit() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["slow", "quick"]);
    let (slow, quick) = (rig.get_job().unwrap(), rig.get_job().unwrap());
    rig.ask(&quick, Command::Done);
    rig.pass(SEC);
    assert_eq!(rig.committed(), None);
    rig.pass(9 * SEC);
    assert_eq!((rig.wait.len(), rig.lease("slow").unwrap().cover), (1, 1));
    rig.pass(SEC);
    assert_eq!(rig.committed(), Some(2));
    rig.pass(5 * SEC);
    assert_eq!(rig.wait.len(), 1);
    assert!(matches!(rig.ask(&slow, Command::Done), Some(Answer::Ok)));
    rig.pass(50 * SEC);
    rig.deliver_copies();
    assert!(rig.m.items.is_empty() && rig.get_job().is_none());
}

#[test]
fn abandoned_job_is_redelivered_after_its_lease() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Abandoned);
    rig.pass(10 * SEC);
    rig.deliver_copies();
    rig.pass(50 * SEC);
    assert!(rig.get_job().is_none());
    rig.pass(SEC);
    assert!(rig.ready.is_empty(), "a later attempt is not prefetched");
    let again = rig.get_job().unwrap();
    assert_eq!((again.content.id.as_str(), again.attempt), ("a", 2));
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Lost(_))));
    assert!(matches!(rig.ask(&again, Command::Done), Some(Answer::Ok)));
}

#[test]
fn retry_is_redelivered_after_its_delay() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    assert!(matches!(rig.ask(&job, Command::Retry(3 * SEC, "no".into())), Some(Answer::Ok)));
    let lease = rig.lease("a").unwrap();
    assert_eq!((lease.state, lease.cover), (LeaseState::Idle, 1));
    rig.deliver_copies();
    for _ in 0..2 {
        rig.pass(SEC);
        rig.deliver_copies();
        assert!(rig.get_job().is_none());
    }
    rig.pass(SEC);
    rig.deliver_copies();
    assert_eq!(rig.get_job().unwrap().attempt, 2);
}

/// If it were appended first, the copy could be due while the lease is still live, and would wait for all of it.
#[test]
fn retry_appends_its_copy_only_after_its_swap() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.m.handle_command(rig.now, job.job, CommandId(1), Command::Retry(Duration::ZERO, "no".into()));
    let (mut swaps, mut appends) = (vec![], vec![]);
    rig.m.poll_swaps(10, &mut swaps);
    assert_eq!(rig.m.poll_appends(10, &mut appends), None);
    let (op, swap) = swaps.pop().unwrap();
    assert_eq!(Lease::decode(&swap.new.unwrap()).unwrap().state, LeaseState::Idle);
    rig.m.handle_swapped(rig.now, op, Ok(Swapped::Done));
    assert!(rig.m.poll_appends(10, &mut appends).is_some());
    assert_eq!(rig.committed(), None, "the record stays open until the log has acknowledged the copy");
}

#[test]
fn last_failure_is_dead_lettered_with_key_and_headers() {
    let mut rig = Rig::new(|s| s.max_failures = 1);
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    let answer = rig.ask(&job, Command::Retry(SEC, "no".into()));
    assert!(matches!(answer, Some(Answer::DeadLettered)), "it is not redelivered, and the answer says so");
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Dead);
    assert_eq!(rig.dead_reasons, [DeadReason::Failures]);
    let dead = &rig.dead[0];
    assert_eq!(dead.key.as_ref().unwrap(), "key");
    assert_eq!(dead.headers.get("kafkaq-task-id").unwrap(), "a");
    assert_eq!(dead.headers.get("kafkaq-reason").unwrap(), "failed 1 times, most recently: no");
    assert_eq!(dead.headers.get("kafkaq-history").unwrap(), "1000000 1 no");
    assert_eq!(dead.headers.get("kafkaq-attempts").unwrap(), "1");
    assert_eq!(dead.headers.get("kafkaq-origin").unwrap(), "q/0/0");
}

#[test]
fn lost_lease_sends_the_record_back_to_the_rule() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.change_lease("a", |l| l.token.process = [9; 16]);
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Lost(LostReason::TakenOver))));
    assert_eq!(rig.wait.len(), 1, "it is copied for when the other one's lease ends");
    rig.change_lease("a", |l| l.state = LeaseState::Cancelled);
    rig.deliver_copies();
    rig.pass(61 * SEC);
    assert!(rig.get_job().is_none() && rig.m.items.is_empty());
}

#[test]
fn done_over_a_wiped_store_restores_the_lease() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.store.clear();
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
    assert_eq!(rig.lease("a").unwrap().state, LeaseState::Done);
}

#[test]
fn extend_keeps_a_raised_cover_number() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.pass(10 * SEC);
    rig.change_lease("a", |l| l.cover = 7);
    assert!(matches!(rig.ask(&job, Command::Extend(90 * SEC)), Some(Answer::Extended(_))));
    let lease = rig.lease("a").unwrap();
    assert_eq!((lease.cover, lease.length), (7, 90 * SEC));
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
}

#[test]
fn shutdown_gives_back_ready_jobs_and_waits_for_running_ones() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a", "b"]);
    let running = rig.get_job().unwrap();
    rig.m.handle_shutdown(rig.now);
    rig.settle();
    let back = rig.lease("b").unwrap();
    assert_eq!((back.state, back.attempt, back.deadline), (LeaseState::Idle, 0, rig.now.wall));
    assert!(!rig.m.is_drained());
    rig.ask(&running, Command::Done);
    assert!(rig.m.is_drained());
    assert_eq!(rig.committed(), Some(1));
}

#[test]
fn revoked_partition_is_committed_and_given_back_before_its_release() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a", "b", "c"]);
    let (done, running) = (rig.get_job().unwrap(), rig.get_job().unwrap());
    rig.ask(&done, Command::Done);
    rig.m.handle_event(rig.now, Event::Revoking(vec![assignment("q", 0)]));
    rig.settle();
    assert_eq!(rig.released, [assignment("q", 0)]);
    assert_eq!(rig.committed(), Some(1));
    assert_eq!(rig.lease("c").unwrap().state, LeaseState::Idle);
    rig.pass(20 * SEC);
    assert!(rig.wait.is_empty(), "its timers are off");
    assert!(matches!(rig.ask(&running, Command::Done), Some(Answer::Ok)));
    assert!(rig.m.items.is_empty());
}

#[test]
fn stale_ready_job_is_renewed_before_hand_out() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let first = rig.ready[0].clone();
    rig.now = Now { mono: rig.now.mono.plus(41 * SEC), wall: rig.now.wall.plus(41 * SEC) };
    let stale = rig.ready.pop_front().unwrap();
    assert!(stale.stale_at <= rig.now.mono);
    rig.m.handle_untaken(rig.now, stale.job);
    let job = rig.get_job().unwrap();
    assert!(job.deadline > first.deadline && job.attempt == 1);
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
}

#[test]
fn redeliveries_are_not_starved_by_first_attempts() {
    let mut rig = Rig::new(|s| s.max_failures = 9);
    rig.publish(&["again"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Retry(Duration::ZERO, "no".into()));
    let many: Vec<String> = (0..100).map(|i| format!("t{i}")).collect();
    rig.publish(&many.iter().map(String::as_str).collect::<Vec<_>>());
    rig.deliver_copies();
    for served in 0.. {
        assert!(served < 12, "starved");
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Done);
        if job.attempt == 2 {
            break;
        }
    }
}

#[test]
fn full_window_pauses_and_its_slow_head_is_parked() {
    let mut rig = Rig::new(|s| (s.window, s.prefetch) = (10, 100));
    let many: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
    rig.publish(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(rig.m.poll_flow(), Some((assignment("q", 0), FlowControl::Pause)));
    let _slow = rig.get_job().unwrap();
    for _ in 1..10 {
        let job = rig.get_job().unwrap();
        rig.ask(&job, Command::Done);
    }
    assert_eq!(rig.wait.len(), 1, "the head was copied long before park_after");
    assert_eq!(rig.m.poll_flow(), Some((assignment("q", 0), FlowControl::Resume)));
    rig.pass(SEC);
    assert_eq!(rig.committed(), Some(10));
}

#[test]
fn deadline_from_a_wrong_clock_is_reset() {
    let mut rig = Rig::new(|_| {});
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.ask(&job, Command::Abandoned);
    rig.pass(10 * SEC);
    rig.change_lease("a", |l| l.deadline = l.deadline.plus(1_000_000 * SEC));
    rig.pass(60 * SEC);
    rig.deliver_copies();
    let lease = rig.lease("a").unwrap();
    assert_eq!(lease.deadline, rig.now.wall.plus(60 * SEC));
}

#[test]
fn refused_dead_letter_raises_an_alarm_and_the_task_is_redelivered() {
    let mut rig = Rig::new(|s| s.max_failures = 1);
    rig.refusing = &["d"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    assert!(matches!(rig.ask(&job, Command::Reject("no".into())), Some(Answer::Failed(_))));
    assert_eq!((rig.alarms, rig.lease("a").unwrap().state), (1, LeaseState::Idle));
    rig.refusing = &[];
    rig.deliver_copies();
    rig.pass(60 * SEC);
    rig.deliver_copies();
    rig.settle();
    assert_eq!((rig.dead.len(), rig.lease("a").unwrap().state), (1, LeaseState::Dead));
}

#[test]
fn refused_copy_keeps_its_record_open_and_is_retried() {
    let mut rig = Rig::new(|_| {});
    rig.refusing = &["w"];
    rig.publish(&["a"]);
    let job = rig.get_job().unwrap();
    rig.pass(10 * SEC);
    assert_eq!((rig.alarms, rig.committed()), (1, None));
    rig.refusing = &[];
    rig.pass(30 * SEC);
    rig.pass(SEC);
    assert_eq!((rig.wait.len(), rig.committed()), (1, Some(1)));
    assert!(matches!(rig.ask(&job, Command::Done), Some(Answer::Ok)));
}

mod lanes;
mod leaving;
mod partial;
mod polls;
mod ready;
mod refusals;
mod suspects;
mod turns;
mod unleased;
