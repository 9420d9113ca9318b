//! The loop of a member: the only place where the group's machine meets the traits. It never waits for a call: calls
//! run as tasks, a bounded number at a time, and what accumulates meanwhile is the next batch.

use super::{
    caught::{caught, within},
    locate,
    locate::Start,
    member::Shared,
    reader::Reader,
    topics::Topics,
};
use crate::{driver::every_answer, sync::lock};
use bytes::Bytes;
use kafkaq_core::{
    Assignment, Cursor, Error, ErrorKind, PartitionLog, Result, Retry, Swapped, TopicInfo, TopicSpec,
    group::{Change, ReadToken, SwapToken, Trail},
    machine::Mono,
};
use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// The name of the operation in reports of an outage of the log.
const LOOK: &str = "look for partitions";
const CHECKPOINT: &str = "append checkpoints";
/// The maximum number of calls in flight, of all kinds together.
const MAX_CALLS: usize = 16;
const MAX_ITEMS: usize = 1000;
/// How many of them may find out where to start, and how many may write checkpoints to the log as well: the rest is for
/// the store.
const MAX_LOCATES: usize = 8;
const MAX_LOG_CALLS: usize = 12;
/// How often the topics are checked for added partitions and deleted topics; and how often while one is missing.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a leaving member tries to release its partitions.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// Backends return within their own limits. These are for one that doesn't: nothing waits forever, and a hanging log
/// doesn't keep a member from leaving.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3);

enum Done {
    Read(ReadToken, Vec<Result<Option<Bytes>>>),
    Swapped(Vec<SwapToken>, Vec<Result<Swapped>>),
    Located(Assignment, Result<Start>),
    Checkpointed(Vec<(Assignment, Cursor)>, Vec<Result<()>>),
    Looked(Result<Vec<Option<TopicInfo>>>),
}

/// One `TopicInfo` per topic, or `None` for a missing one.
async fn look(log: &dyn PartitionLog, topics: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
    let infos = log.describe_topics(topics).await?;
    if infos.len() == topics.len() {
        return Ok(infos);
    }
    Err(Error::not_applied(ErrorKind::Other, "describe topics").on(format_args!(
        "{} topics of which the log has described {}",
        topics.len(),
        infos.len()
    )))
}

/// The same for all topics that a member needs. Creates the checkpoint topic if it is missing, and no other. One that is
/// there may have no leader at the moment, and nobody waits for that.
pub(super) async fn look_at_all(
    log: &dyn PartitionLog,
    topics: &[Arc<str>],
    checkpoint_topic: &TopicSpec,
) -> Result<Vec<Option<TopicInfo>>> {
    let names: Vec<_> = topics.iter().chain([&checkpoint_topic.name]).cloned().collect();
    let mut infos = look(log, &names).await?;
    if infos.pop().flatten().is_none() {
        log.ensure_topics(std::slice::from_ref(checkpoint_topic)).await?;
    }
    Ok(infos)
}

/// Runs until the member has left.
pub(super) async fn run(shared: Arc<Shared>, mut topics: Topics) {
    let mut end = End { shared: shared.clone(), clean: false };
    let (mut calls, mut readers) = (JoinSet::new(), JoinSet::new());
    let mut leaving = shared.leaving.subscribe();
    let mut leave_by = None;
    let (mut looked_at, mut look_at) = (Instant::now(), Some(Instant::now() + LOOK_EVERY));
    loop {
        let now = shared.clock.mono();
        if *leaving.borrow_and_update() && leave_by.is_none() {
            leave_by = Some(Instant::now() + LEAVE_LIMIT);
            lock(&shared.group).handle_leave();
        }
        start_calls(&shared, &mut calls, now);
        if look_at.is_some_and(|at| Instant::now() >= at) {
            look_at = None;
            spawn(&mut calls, &shared, |s| async move {
                let look = look_at_all(&*s.log, &s.topics, &s.checkpoint_topic);
                Done::Looked(guarded("look for partitions", LOOK_LIMIT, look).await)
            });
        }
        tell(&shared, &mut readers);
        end.clean = lock(&shared.group).has_left();
        if end.clean || leave_by.is_some_and(|by| Instant::now() >= by) {
            break;
        }
        let next = lock(&shared.group).next_time(now);
        // A machine that wants to be called immediately has just been called.
        let soon = Instant::now() + Duration::from_millis(1);
        let next = next.map(|at| shared.clock.at(at).max(soon));
        let next = [next, look_at, leave_by].into_iter().flatten().min();
        tokio::select! {
            Some(done) = calls.join_next() => match done {
                Ok(Done::Looked(found)) => {
                    looked(&shared, &mut topics, found);
                    looked_at = Instant::now();
                    let pause = if topics.is_incomplete() { LOOK_AGAIN } else { LOOK_EVERY };
                    look_at = Some(looked_at + pause);
                }
                Ok(done) => finish(&shared, done),
                Err(_) => {}
            },
            Some(_) = readers.join_next() => {}
            () = shared.wake.notified() => {}
            () = shared.look.notified() => look_at = look_at.map(|at| at.min(looked_at + LOOK_AGAIN)),
            _ = leaving.changed() => {}
            () = async { if let Some(at) = next { sleep_until(at).await } }, if next.is_some() => {}
        }
    }
}

fn looked(shared: &Shared, topics: &mut Topics, found: Result<Vec<Option<TopicInfo>>>) {
    match found {
        Ok(found) => {
            shared.outages.succeeded(LOOK);
            for (of, alarm) in topics.observe(&found, Instant::now()) {
                lock(&shared.outbox).alarm(of, alarm);
            }
            lock(&shared.group).handle_partitions(topics.partitions());
        }
        Err(error) => shared.outages.failed(LOOK, &error),
    }
}

/// Ends the stream and notifies all waiting callers, also if the loop panics or is aborted.
struct End {
    shared: Arc<Shared>,
    clean: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.shared.outbox).end();
        // Under the lock, so that no commit starts to wait after the last one was notified.
        let mut waiting = lock(&self.shared.waiting);
        self.shared.ended.send_replace(Some(self.clean));
        waiting.by_id.clear();
    }
}

fn start_calls(shared: &Arc<Shared>, calls: &mut JoinSet<Done>, now: Mono) {
    let mut group = lock(&shared.group);
    group.handle_time(now);
    // Swaps first: commits and renewals never wait for a scan.
    let mut swaps = Vec::new();
    if calls.len() < MAX_CALLS {
        group.poll_swaps(now, MAX_ITEMS, &mut swaps);
    }
    if !swaps.is_empty() {
        let n = swaps.len();
        let (tokens, swaps): (Vec<_>, Vec<_>) = swaps.into_iter().unzip();
        spawn(calls, shared, |s| async move {
            Done::Swapped(tokens, every(tokio::spawn(async move { s.store.swap(&swaps).await }), n).await)
        });
    }
    if calls.len() < MAX_CALLS
        && let Some((token, keys)) = group.poll_read(now, MAX_ITEMS)
    {
        let n = keys.len();
        spawn(calls, shared, |s| async move {
            Done::Read(token, every(tokio::spawn(async move { s.store.get(&keys).await }), n).await)
        });
    }
    let mut checkpoints = Vec::new();
    if calls.len() < MAX_LOG_CALLS {
        group.poll_checkpoints(now, MAX_ITEMS, &mut checkpoints);
    }
    if !checkpoints.is_empty() {
        spawn(calls, shared, |s| async move {
            let cursors: Vec<_> = checkpoints.iter().map(|(a, at)| (a.partition.clone(), *at)).collect();
            let kept = async { Ok(s.checkpoints.append(&*s.log, &cursors).await) };
            let kept = guarded("append checkpoints", CHECKPOINT_LIMIT, kept).await;
            let kept = kept.unwrap_or_else(|error| vec![Err(error); checkpoints.len()]);
            Done::Checkpointed(checkpoints, kept)
        });
    }
    while calls.len() < MAX_LOCATES
        && let Some((assignment, stored)) = group.poll_locate(now)
    {
        spawn(calls, shared, |s| async move {
            let of = &assignment.partition;
            let start = locate::locate(&*s.log, &s.checkpoints, of, stored, s.locate_patience);
            let start = caught("find out where to start", start).await.flatten();
            Done::Located(assignment, start)
        });
    }
}

fn spawn<F: Future<Output = Done> + Send + 'static>(
    calls: &mut JoinSet<Done>,
    shared: &Arc<Shared>,
    call: impl FnOnce(Arc<Shared>) -> F,
) {
    calls.spawn(call(shared.clone()));
}

/// Returns an outcome in time, whatever the adapter does.
async fn guarded<T>(op: &'static str, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    within(limit, op, async { caught(op, call).await? }).await
}

/// Returns an outcome for each item, whatever the adapter does, even if it panics.
async fn every<T>(call: JoinHandle<Vec<Result<T>>>, n: usize) -> Vec<Result<T>> {
    every_answer(call.await).take(n).collect()
}

fn finish(shared: &Shared, done: Done) {
    let now = shared.clock.mono();
    let mut group = lock(&shared.group);
    match done {
        Done::Read(token, outcomes) => {
            if let Some(Err(error)) = outcomes.iter().find(|o| o.is_err()) {
                lock(&shared.outbox).failed(None, error.clone().with_retry(Retry::Yes));
            }
            group.handle_read(token, outcomes, now);
        }
        Done::Swapped(tokens, outcomes) => {
            for (token, outcome) in tokens.into_iter().zip(outcomes) {
                group.handle_swapped(token, outcome, now);
            }
        }
        Done::Located(assignment, start) => {
            let mut outbox = lock(&shared.outbox);
            let at = match start {
                Ok(start) => {
                    outbox.start_alarm(&assignment.partition, start.alarm);
                    if let Some(error) = start.unread {
                        let error = error.on(&shared.checkpoint_topic.name);
                        outbox.failed(Some(&assignment.partition), error);
                    }
                    Some(start.at)
                }
                Err(error) => {
                    let error = error.on(&assignment.partition).with_retry(Retry::Yes);
                    outbox.failed(Some(&assignment.partition), error);
                    None
                }
            };
            group.handle_located(&assignment, at, now);
        }
        Done::Checkpointed(checkpoints, kept) => {
            shared.outages.observe(CHECKPOINT, &kept);
            let mut kept = kept.into_iter();
            for (assignment, at) in checkpoints {
                let ok = kept.next().is_some_and(|kept| kept.is_ok());
                group.handle_checkpointed(&assignment, at, ok, now);
            }
        }
        // The loop's own.
        Done::Looked(_) => {}
    }
}

/// Passes on the machine's outputs.
fn tell(shared: &Arc<Shared>, readers: &mut JoinSet<()>) {
    loop {
        let change = lock(&shared.group).poll_change();
        let Some(change) = change else { break };
        let mut outbox = lock(&shared.outbox);
        match change {
            Change::Assigned(assignment, from) => {
                let (taken, trail) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Trail::new(from))));
                let reader = Reader::new(shared.clone(), assignment.clone(), trail.clone(), taken.clone());
                let task = readers.spawn(reader.run());
                outbox.assigned(assignment, trail, taken, task);
            }
            Change::Revoking(assignment) => outbox.revoking(assignment),
            Change::Lost(assignment) => outbox.lost(assignment),
        }
    }
    let answers = lock(&shared.group).poll_answers();
    let mut waiting = lock(&shared.waiting);
    for (id, outcome) in answers {
        if let Some(tell) = waiting.by_id.remove(&id) {
            // Nobody is listening if the caller's future was dropped.
            let _ = tell.send(outcome);
        }
    }
}
