//! The rules of the consumer groups of the log in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::{FutureExt, StreamExt};
use kafkaq::memory::MemoryLog;
use kafkaq_core::{
    Assignment, Batch, Broker, Commit, Consumer, Effect, ErrorKind, Event, Headers, JoinRequest, Log,
    NewRecord, Partition, TopicSpec,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, advance, timeout, timeout_at};

async fn topic(log: &MemoryLog, name: &str, partitions: i32) {
    let mut spec = TopicSpec::new(name);
    spec.partitions = Some(partitions);
    log.ensure_topics(&[spec]).await.unwrap();
}

async fn log(partitions: i32) -> MemoryLog {
    let log = MemoryLog::new();
    topic(&log, "t", partitions).await;
    log
}

async fn append(log: &MemoryLog, index: i32, count: usize) {
    let records = vec![NewRecord::new(None, Some("x".into()), Headers::new()); count];
    log.append(&Partition::new("t", index), &records)
        .await
        .into_iter()
        .for_each(|outcome| assert!(outcome.is_ok()));
}

async fn join_with(log: &MemoryLog, change: impl FnOnce(&mut JoinRequest)) -> Consumer {
    let mut request = JoinRequest::new("g", vec!["t".into()], [0; 16]);
    change(&mut request);
    log.join(request).await.unwrap()
}

async fn join(log: &MemoryLog) -> Consumer {
    join_with(log, |_| {}).await
}

/// Returns the member's next event if there is one now.
fn now(of: &mut Consumer) -> Option<Event> {
    of.events.next().now_or_never().map(|item| item.expect("the stream has ended").unwrap())
}

fn assigned(of: &mut Consumer) -> Vec<Assignment> {
    match now(of) {
        Some(Event::Assigned(mine)) => mine,
        other => panic!("{other:?}"),
    }
}

fn revoking(of: &mut Consumer) -> Vec<Assignment> {
    match now(of) {
        Some(Event::Revoking(mine)) => mine,
        other => panic!("{other:?}"),
    }
}

fn records(of: &mut Consumer) -> (Assignment, Batch) {
    match now(of) {
        Some(Event::Records(assignment, batch)) => (assignment, batch),
        other => panic!("{other:?}"),
    }
}

fn nothing(of: &mut Consumer) {
    if let Some(event) = now(of) {
        panic!("{event:?}");
    }
}

async fn commit(of: &Consumer, assignment: &Assignment, offset: i64) -> Result<(), ErrorKind> {
    let commit = Commit { assignment: assignment.clone(), offset };
    of.member.commit(&[commit]).await.remove(0).map_err(|e| {
        assert_eq!(e.effect(), Effect::NotApplied);
        e.kind()
    })
}

fn indexes(of: &[Assignment]) -> BTreeSet<i32> {
    of.iter().map(|a| a.partition.index).collect()
}

#[tokio::test]
async fn a_group_without_a_commit_starts_at_the_first_record_and_with_one_there() {
    let log = log(1).await;
    append(&log, 0, 5).await;
    let mut one = join(&log).await;
    let mine = assigned(&mut one);
    assert_eq!(records(&mut one).1.records[0].offset, 0);
    commit(&one, &mine[0], 3).await.unwrap();
    drop(one);
    let mut two = join(&log).await;
    assert!(assigned(&mut two)[0].epoch > mine[0].epoch);
    assert_eq!(records(&mut two).1.records[0].offset, 3);
    let mut other = join_with(&log, |r| r.group = "other".into()).await;
    assigned(&mut other);
    assert_eq!(records(&mut other).1.records[0].offset, 0, "another group knows nothing of it");
}

#[tokio::test]
async fn batches_follow_one_another_without_gaps_and_keep_to_their_size() {
    let log = log(1).await;
    append(&log, 0, 25).await;
    let mut one = join_with(&log, |r| r.max_batch = 10).await;
    assigned(&mut one);
    for (first, next) in [(0, 10), (10, 20), (20, 25)] {
        let (_, batch) = records(&mut one);
        let offsets: Vec<_> = batch.records.iter().map(|r| r.offset).collect();
        assert_eq!(offsets, (first..next).collect::<Vec<_>>());
        assert_eq!((batch.next, batch.end), (next, Some(25)));
    }
    nothing(&mut one);
}

#[tokio::test]
async fn a_full_partition_does_not_keep_the_others_waiting() {
    let log = log(3).await;
    for index in 0..3 {
        append(&log, index, 100).await;
    }
    let mut one = join_with(&log, |r| r.max_batch = 10).await;
    assigned(&mut one);
    for _ in 0..10 {
        let turn: BTreeSet<_> = (0..3).map(|_| records(&mut one).0.partition.index).collect();
        assert_eq!(turn.len(), 3, "{turn:?}");
    }
}

#[tokio::test]
async fn a_join_revokes_only_what_has_to_move_and_shares_evenly() {
    let log = log(6).await;
    let mut one = join(&log).await;
    assert_eq!(assigned(&mut one).len(), 6);
    let mut two = join(&log).await;
    let moves = revoking(&mut one);
    assert_eq!(moves.len(), 3);
    nothing(&mut one);
    nothing(&mut two);
    one.member.release(&moves[..1]);
    assert_eq!(indexes(&assigned(&mut two)), indexes(&moves[..1]), "each moves when it is released");
    one.member.release(&moves[1..]);
    assert_eq!(indexes(&assigned(&mut two)), indexes(&moves[1..]));

    let mut three = join(&log).await;
    let (from_one, from_two) = (revoking(&mut one), revoking(&mut two));
    assert_eq!((from_one.len(), from_two.len()), (1, 1));
    one.member.release(&from_one);
    two.member.release(&from_two);
    let mut got = assigned(&mut three);
    got.extend(from_one.iter().cloned());
    assert_eq!(indexes(&got), indexes(&[from_one, from_two].concat()));
    nothing(&mut one);
    nothing(&mut two);
}

#[tokio::test]
async fn revoking_is_two_phase_and_a_commit_within_it_counts() {
    let log = log(2).await;
    append(&log, 0, 10).await;
    append(&log, 1, 10).await;
    let mut one = join_with(&log, |r| r.max_batch = 4).await;
    assigned(&mut one);
    let mut two = join(&log).await;
    let moves = revoking(&mut one);
    for _ in 0..3 {
        assert!(!moves.contains(&records(&mut one).0), "no records of a revoked partition");
    }
    nothing(&mut one);
    nothing(&mut two);

    commit(&one, &moves[0], 7).await.unwrap();
    one.member.release(&moves);
    assert_eq!(commit(&one, &moves[0], 8).await, Err(ErrorKind::NotOwner));
    let theirs = assigned(&mut two);
    assert_eq!(indexes(&theirs), indexes(&moves));
    assert!(theirs[0].epoch > moves[0].epoch);
    assert_eq!(records(&mut two).1.records[0].offset, 7);
    assert_eq!(commit(&one, &theirs[0], 8).await, Err(ErrorKind::NotOwner), "another member's epoch");
    assert_eq!(commit(&two, &moves[0], 8).await, Err(ErrorKind::NotOwner), "an earlier epoch");
    commit(&two, &theirs[0], 8).await.unwrap();
}

#[tokio::test]
async fn only_what_was_revoked_can_be_released() {
    let log = log(2).await;
    let mut one = join(&log).await;
    let mine = assigned(&mut one);
    one.member.release(&mine);
    nothing(&mut one);
    commit(&one, &mine[0], 0).await.unwrap();
}

#[tokio::test]
async fn a_commit_outside_the_partition_is_refused() {
    let log = log(1).await;
    append(&log, 0, 5).await;
    let mut one = join(&log).await;
    let mine = assigned(&mut one);
    assert_eq!(commit(&one, &mine[0], 6).await, Err(ErrorKind::Invalid));
    assert_eq!(commit(&one, &mine[0], -1).await, Err(ErrorKind::Invalid));
    commit(&one, &mine[0], 5).await.unwrap();
    let unknown = Assignment { partition: Partition::new("u", 0), epoch: 1 };
    assert_eq!(commit(&one, &unknown, 0).await, Err(ErrorKind::NotOwner));
}

#[tokio::test(start_paused = true)]
async fn partition_that_is_not_released_in_time_goes_to_a_waiting_member() {
    let log = log(2).await;
    let mut one = join_with(&log, |r| r.release_limit = Duration::from_secs(3)).await;
    assigned(&mut one);
    let mut two = join(&log).await;
    let moves = revoking(&mut one);
    advance(Duration::from_millis(2900)).await;
    nothing(&mut two);
    commit(&one, &moves[0], 0).await.unwrap();

    // `one` doesn't poll any more; `two` is waiting, and nothing else happens.
    let start = Instant::now();
    let event = timeout(Duration::from_secs(60), two.events.next()).await.unwrap().unwrap().unwrap();
    let Event::Assigned(theirs) = event else { panic!("{event:?}") };
    assert_eq!(indexes(&theirs), indexes(&moves));
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());

    assert_eq!(commit(&one, &moves[0], 0).await, Err(ErrorKind::NotOwner));
    one.member.release(&moves);
    assert!(matches!(now(&mut one), Some(Event::Lost(lost)) if lost == moves));
    nothing(&mut one);
    commit(&two, &theirs[0], 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn late_commit_is_refused_even_without_other_calls_since() {
    let log = log(2).await;
    let mut one = join_with(&log, |r| r.release_limit = Duration::from_secs(3)).await;
    assigned(&mut one);
    let _two = join(&log).await;
    let moves = revoking(&mut one);
    advance(Duration::from_secs(4)).await;
    assert_eq!(commit(&one, &moves[0], 0).await, Err(ErrorKind::NotOwner));
}

#[tokio::test]
async fn a_partition_that_comes_back_has_a_higher_epoch() {
    let log = log(2).await;
    let mut one = join(&log).await;
    let before = assigned(&mut one);
    let mut two = join(&log).await;
    let moves = revoking(&mut one);
    one.member.release(&moves);
    assigned(&mut two);
    drop(two);
    let back = assigned(&mut one);
    assert_eq!(indexes(&back), indexes(&moves));
    assert!(before.iter().all(|a| back[0].epoch > a.epoch));
    assert_eq!(commit(&one, &moves[0], 0).await, Err(ErrorKind::NotOwner));
    commit(&one, &back[0], 0).await.unwrap();
}

#[tokio::test]
async fn a_member_that_leaves_or_is_dropped_hands_over_at_once() {
    for dropped in [false, true] {
        let log = log(4).await;
        let mut one = join(&log).await;
        assigned(&mut one);
        let mut two = join(&log).await;
        let moves = revoking(&mut one);
        nothing(&mut two);
        if dropped {
            drop(one);
        } else {
            one.member.leave().await.unwrap();
            one.member.leave().await.unwrap();
            assert!(one.events.next().await.is_none());
            assert!(one.events.next().await.is_none());
            assert_eq!(commit(&one, &moves[0], 0).await, Err(ErrorKind::NotOwner));
        }
        assert_eq!(assigned(&mut two).len(), 4);
    }
}

/// Returns what a member that waits in its own task gets once `act` is done: only its waker can wake it.
async fn roused_by(mut waiting: Consumer, act: impl Future) -> (Option<Event>, Consumer) {
    while now(&mut waiting).is_some() {}
    let task = tokio::spawn(async move { (waiting.events.next().await, waiting) });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!task.is_finished(), "there was nothing to do");
    act.await;
    let (event, waiting) = timeout(Duration::from_secs(10), task).await.expect("nothing woke it").unwrap();
    (event.map(Result::unwrap), waiting)
}

#[tokio::test(start_paused = true)]
async fn waiting_member_wakes_at_every_event_of_its_own() {
    let log = log(2).await;
    let mut one = join(&log).await;
    let mine = assigned(&mut one);
    let (event, one) = roused_by(one, append(&log, 0, 1)).await;
    assert!(matches!(event, Some(Event::Records(..))));

    one.member.pause(&mine);
    append(&log, 0, 1).await;
    let member = one.member.clone();
    let (event, one) = roused_by(one, async { member.resume(&mine) }).await;
    assert!(matches!(event, Some(Event::Records(..))));

    let mut two = None;
    let (event, one) = roused_by(one, async { two = Some(join(&log).await) }).await;
    let Some(Event::Revoking(moves)) = event else { panic!("{event:?}") };
    let (event, two) = roused_by(two.unwrap(), async { one.member.release(&moves) }).await;
    assert!(matches!(event, Some(Event::Assigned(of)) if of.len() == 1));

    let (event, two) = roused_by(two, async { drop(one) }).await;
    assert!(matches!(event, Some(Event::Assigned(of)) if of.len() == 1));
    let member = two.member.clone();
    let (event, two) = roused_by(two, async { member.leave().await.unwrap() }).await;
    assert!(event.is_none(), "{event:?}");
    drop(two);

    let three = join(&log).await;
    let (event, _) = roused_by(three, async { log.close().await.unwrap() }).await;
    assert!(event.is_none(), "{event:?}");
}

#[tokio::test]
async fn after_pause_comes_at_most_one_more_batch_and_after_resume_all_the_rest() {
    let log = log(2).await;
    let mut one = join_with(&log, |r| r.max_batch = 5).await;
    let mine = assigned(&mut one);
    append(&log, 0, 20).await;
    records(&mut one);
    one.member.pause(&mine[..1]);
    let mut more = 0;
    while let Some(event) = now(&mut one) {
        assert!(matches!(event, Event::Records(..)));
        more += 1;
    }
    assert!(more <= 1, "{more} batches");
    append(&log, 1, 1).await;
    assert_eq!(records(&mut one).0, mine[1], "the other partition is not affected");
    // An old epoch resumes nothing.
    one.member.resume(&[Assignment { epoch: 0, ..mine[0].clone() }]);
    nothing(&mut one);

    one.member.resume(&mine);
    let (_, batch) = records(&mut one);
    assert_eq!(batch.records[0].offset, 5 * (1 + more));
    let mut next = batch.next;
    while next < 20 {
        let (_, batch) = records(&mut one);
        assert_eq!(batch.records[0].offset, next);
        next = batch.next;
    }
}

#[tokio::test]
async fn a_topic_that_is_made_later_is_read_from_its_first_record() {
    let log = MemoryLog::new();
    let mut one = join(&log).await;
    nothing(&mut one);
    topic(&log, "t", 2).await;
    append(&log, 1, 3).await;
    assert_eq!(assigned(&mut one).len(), 2);
    assert_eq!(records(&mut one).1.records[0].offset, 0);
}

#[tokio::test]
async fn a_member_that_could_never_read_is_refused() {
    let log = log(1).await;
    let no_topic = log.join(JoinRequest::new("g", vec![], [0; 16])).await.unwrap_err();
    let mut request = JoinRequest::new("g", vec!["t".into()], [0; 16]);
    request.max_batch = 0;
    let no_batch = log.join(request).await.unwrap_err();
    assert_eq!((no_topic.kind(), no_batch.kind()), (ErrorKind::Invalid, ErrorKind::Invalid));
}

/// How many partitions of each topic each member has, once all have released what they had to.
fn settle(members: &mut [(Consumer, BTreeSet<Partition>)]) {
    loop {
        let mut quiet = true;
        for (consumer, mine) in &mut *members {
            while let Some(event) = now(consumer) {
                quiet = false;
                match event {
                    Event::Assigned(of) => mine.extend(of.into_iter().map(|a| a.partition)),
                    Event::Revoking(of) => {
                        of.iter().for_each(|a| assert!(mine.remove(&a.partition)));
                        consumer.member.release(&of);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        if quiet {
            return;
        }
    }
}

#[tokio::test]
async fn each_topic_is_shared_evenly_and_so_are_all_together() {
    let log = MemoryLog::new();
    for (name, partitions) in [("t", 6), ("wait", 9), ("one", 1), ("two", 1)] {
        topic(&log, name, partitions).await;
    }
    let topics = ["t", "wait", "one", "two"];
    let mut members = Vec::new();
    for joined in [1, 2, 3, 4, 5, 6, 5, 4, 2, 1] {
        members.truncate(joined);
        while members.len() < joined {
            let consumer = join_with(&log, |r| r.topics = topics.iter().map(|t| (*t).into()).collect()).await;
            members.push((consumer, BTreeSet::new()));
        }
        settle(&mut members);
        let spread = |count: &dyn Fn(&Partition) -> bool| {
            let counts: Vec<_> =
                members.iter().map(|(_, mine)| mine.iter().filter(|p| count(p)).count()).collect();
            (counts.iter().max().unwrap() - counts.iter().min().unwrap(), counts.iter().sum::<usize>())
        };
        for (name, partitions) in [("t", 6), ("wait", 9), ("one", 1), ("two", 1)] {
            let (uneven, sum) = spread(&|p| &*p.topic == name);
            assert!(uneven <= 1 && sum == partitions, "{name} with {joined}: {uneven}, {sum}");
        }
        let (uneven, sum) = spread(&|_| true);
        assert!(uneven <= 1 && sum == 17, "{joined}: {uneven}, {sum}");
    }
}

#[tokio::test]
async fn a_member_gets_only_what_it_reads() {
    let log = log(4).await;
    topic(&log, "u", 4).await;
    let mut members = vec![];
    for topics in [&["t"][..], &["t", "u"], &["v"]] {
        let consumer = join_with(&log, |r| r.topics = topics.iter().map(|t| (*t).into()).collect()).await;
        members.push((consumer, BTreeSet::new()));
    }
    settle(&mut members);
    let of = |member: usize, topic: &str| members[member].1.iter().filter(|p| &*p.topic == topic).count();
    assert_eq!((of(0, "t"), of(0, "u"), of(1, "t"), of(1, "u")), (2, 0, 2, 4));
    assert!(members[2].1.is_empty());
}

#[tokio::test]
async fn member_that_never_polls_holds_back_nothing_and_accumulates_nothing() {
    let log = log(4).await;
    let mut idle = join(&log).await;
    for _ in 0..1000 {
        let mut other = join(&log).await;
        assert_eq!(assigned(&mut other).len(), 2, "what was never announced needs no release");
    }
    let all = assigned(&mut idle);
    assert_eq!(indexes(&all), (0..4).collect());
    nothing(&mut idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_when_a_poll_is_given_up_every_millisecond() {
    let log = log(3).await;
    let mut one = join_with(&log, |r| r.max_batch = 3).await;
    let writer = tokio::spawn(async move {
        for n in 0..1000 {
            append(&log, n % 3, 1).await;
            if n % 4 == 0 {
                tokio::time::sleep(Duration::from_micros(700)).await;
            }
        }
        log
    });
    let (mut next, mut ticks) = (HashMap::new(), 0);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while next.values().sum::<i64>() < 1000 {
        tokio::select! {
            _ = tick.tick() => ticks += 1,
            event = timeout(Duration::from_secs(60), one.events.next()) => {
                if let Event::Records(of, batch) = event.unwrap().unwrap().unwrap() {
                    let next = next.entry(of.partition).or_insert(0);
                    assert_eq!(batch.records[0].offset, *next);
                    *next = batch.next;
                }
            }
        }
    }
    assert!(ticks > 50, "{ticks} ticks interrupted too little to show anything");
    writer.await.unwrap();
}

/// By partition: the epoch and the offset of the last commit.
type Commits = Arc<Mutex<BTreeMap<Partition, (u64, i64)>>>;

/// Reads for a while and commits what it has read at once. Forgets to release now and then, and may leave or be
/// dropped at the end.
async fn read_for(time_ms: u64, mut consumer: Consumer, commits: Commits, seed: u64) {
    let end = Instant::now() + Duration::from_millis(time_ms);
    let mut moves = seed;
    while let Ok(Some(event)) = timeout_at(end, consumer.events.next()).await {
        match event.unwrap() {
            Event::Records(mine, batch) => {
                // Locked around the commit, so that the notes come in the order of the commits.
                let mut commits = commits.lock().unwrap();
                if commit(&consumer, &mine, batch.next).now_or_never().unwrap().is_ok() {
                    let last = commits.entry(mine.partition.clone()).or_default();
                    let next = (mine.epoch, batch.next);
                    assert!(last.0 <= next.0 && last.1 == batch.records[0].offset, "{next:?} after {last:?}");
                    *last = next;
                }
            }
            Event::Revoking(of) => {
                moves += 1;
                if !moves.is_multiple_of(3) {
                    consumer.member.release(&of);
                }
            }
            _ => {}
        }
    }
    if seed.is_multiple_of(2) {
        consumer.member.leave().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_members_coming_and_going_every_record_is_committed_once_and_no_commit_goes_back() {
    const PARTITIONS: i32 = 5;
    const EACH: i64 = 4000;
    let log = log(PARTITIONS).await;
    let commits = Commits::default();
    let mut tasks = tokio::task::JoinSet::new();
    let writer = log.clone();
    tasks.spawn(async move {
        for n in 0..EACH / 10 * i64::from(PARTITIONS) {
            append(&writer, n as i32 % PARTITIONS, 10).await;
            if n % 5 == 0 {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
    });
    for visitor in 0..4 {
        let (log, commits) = (log.clone(), commits.clone());
        tasks.spawn(async move {
            for seed in visitor..visitor + 20 {
                let ask = |r: &mut JoinRequest| {
                    r.release_limit = Duration::from_millis(seed % 4);
                    r.max_batch = 7;
                };
                read_for(3 + seed % 20, join_with(&log, ask).await, commits.clone(), seed).await;
            }
        });
    }
    tasks.join_all().await;
    let ends = || commits.lock().unwrap().values().map(|(_, offset)| *offset).collect::<Vec<_>>();
    let limit = Instant::now() + Duration::from_secs(90);
    while ends() != [EACH; PARTITIONS as usize] {
        assert!(Instant::now() < limit, "{:?}", ends());
        read_for(100, join(&log).await, commits.clone(), 0).await;
    }
}
