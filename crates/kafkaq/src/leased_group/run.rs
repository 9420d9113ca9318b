//! The loop of a member: the only place where the group's machine meets the traits. Nothing in it waits for a call;
//! each runs as a task, a bounded number at a time, and what gathers meanwhile is the next batch.

use super::{caught::caught, locate, member::Shared, reader::Reader};
use crate::{driver::every_answer, sync::lock};
use bytes::Bytes;
use kafkaq_core::{
    Assignment, Cursor, Error, ErrorKind, Partition, PartitionLog, Result, Retry, Swapped, TopicInfo,
    TopicSpec,
    group::{Change, ReadToken, SwapToken},
    machine::Mono,
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

/// Calls under way at a time, of all kinds together.
const MAX_CALLS: usize = 16;
const MAX_ITEMS: usize = 1000;
/// How often the topics are asked for partitions that were added.
const REFRESH: Duration = Duration::from_secs(30);
/// How long a leaving member tries to clear its name.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// A backend answers within its own limits. These are for one that doesn't: nothing waits for ever, and a log that
/// hangs doesn't keep a member from leaving.
const LOCATE_LIMIT: Duration = Duration::from_secs(60);
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3);

enum Done {
    Read(ReadToken, Vec<Result<Option<Bytes>>>),
    Swapped(Vec<SwapToken>, Vec<Result<Swapped>>),
    Located(Assignment, Result<Cursor>),
    Checkpointed(Assignment, Cursor, Result<()>),
    Partitions(Result<Vec<Partition>>),
}

/// The partitions of the topics. Makes what is missing, the topic for the checkpoints too.
pub(super) async fn partitions(
    log: &dyn PartitionLog,
    topics: &[Arc<str>],
    checkpoints: &TopicSpec,
) -> Result<Vec<Partition>> {
    let mut specs: Vec<_> = topics.iter().map(|topic| TopicSpec::new(topic.clone())).collect();
    specs.push(checkpoints.clone());
    let infos = log.ensure_topics(&specs).await?;
    let of = |info: &TopicInfo| {
        let name = info.name.clone();
        (0..info.partitions).map(move |index| Partition::new(name.clone(), index))
    };
    Ok(infos.iter().take(topics.len()).flat_map(of).collect())
}

/// Runs until the member has left.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut end = End { shared: shared.clone(), clean: false };
    let (mut calls, mut readers) = (JoinSet::new(), JoinSet::new());
    let mut leaving = shared.leaving.subscribe();
    let mut leave_by = None;
    let mut refresh_at = Some(Instant::now() + REFRESH);
    loop {
        let now = shared.clock.mono();
        if *leaving.borrow_and_update() && leave_by.is_none() {
            leave_by = Some(Instant::now() + LEAVE_LIMIT);
            lock(&shared.group).handle_leave();
        }
        start_calls(&shared, &mut calls, now);
        if refresh_at.is_some_and(|at| Instant::now() >= at) {
            refresh_at = None;
            spawn(&mut calls, &shared, |s| async move {
                let found = partitions(&*s.log, &s.topics, &s.checkpoint_topic);
                let found = guarded("look for partitions", REFRESH, found).await;
                Done::Partitions(found)
            });
        }
        tell(&shared, &mut readers);
        end.clean = lock(&shared.group).has_left();
        if end.clean || leave_by.is_some_and(|by| Instant::now() >= by) {
            break;
        }
        let next = lock(&shared.group).next_time(now);
        // A machine that wants to be asked at once has been asked just now.
        let soon = Instant::now() + Duration::from_millis(1);
        let next = next.map(|at| shared.clock.at(at).max(soon));
        let next = [next, refresh_at, leave_by].into_iter().flatten().min();
        tokio::select! {
            Some(done) = calls.join_next() => if let Ok(done) = done {
                if matches!(done, Done::Partitions(_)) {
                    refresh_at = Some(Instant::now() + REFRESH);
                }
                finish(&shared, done);
            },
            Some(_) = readers.join_next() => {}
            () = shared.wake.notified() => {}
            _ = leaving.changed() => {}
            () = async { if let Some(at) = next { sleep_until(at).await } }, if next.is_some() => {}
        }
    }
}

/// Ends the stream and tells everybody who waits, also if the loop panics or is aborted.
struct End {
    shared: Arc<Shared>,
    clean: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.shared.outbox).end();
        // Under the lock, so that no commit begins to wait after the last was told.
        let mut waiting = lock(&self.shared.waiting);
        self.shared.ended.send_replace(Some(self.clean));
        waiting.by_id.clear();
    }
}

fn start_calls(shared: &Arc<Shared>, calls: &mut JoinSet<Done>, now: Mono) {
    let mut group = lock(&shared.group);
    group.handle_time(now);
    // Swaps first: a commit and a renewal are never kept waiting by a scan.
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
    // Half of the calls stay free for the store.
    while calls.len() < MAX_CALLS / 2
        && let Some((assignment, stored)) = group.poll_locate(now)
    {
        spawn(calls, shared, |s| async move {
            let found = locate::locate(&*s.log, &s.checkpoints, &assignment.partition, stored);
            let found = guarded("find out where to start", LOCATE_LIMIT, found).await;
            Done::Located(assignment, found)
        });
    }
    while calls.len() < MAX_CALLS / 2
        && let Some((assignment, at)) = group.poll_checkpoint(now)
    {
        spawn(calls, shared, |s| async move {
            let kept = locate::checkpoint(&*s.log, &s.checkpoints, &assignment.partition, at);
            let kept = guarded("append a checkpoint", CHECKPOINT_LIMIT, kept).await;
            Done::Checkpointed(assignment, at, kept)
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

/// An outcome in time, whatever the adapter does.
async fn guarded<T>(op: &'static str, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::unknown(ErrorKind::Timeout, op));
    timeout(limit, caught(op, call)).await.map_or_else(late, |ended| ended.and_then(|outcome| outcome))
}

/// An outcome for each item, whatever the adapter does, panic included.
async fn every<T>(call: JoinHandle<Vec<Result<T>>>, n: usize) -> Vec<Result<T>> {
    every_answer(call.await).take(n).collect()
}

fn finish(shared: &Shared, done: Done) {
    let now = shared.clock.mono();
    let mut group = lock(&shared.group);
    match done {
        Done::Read(token, outcomes) => {
            if let Some(Err(error)) = outcomes.iter().find(|o| o.is_err()) {
                lock(&shared.outbox).failed(error.clone().with_retry(Retry::Yes));
            }
            group.handle_read(token, outcomes, now);
        }
        Done::Swapped(tokens, outcomes) => {
            for (token, outcome) in tokens.into_iter().zip(outcomes) {
                group.handle_swapped(token, outcome, now);
            }
        }
        Done::Located(assignment, found) => {
            if let Err(error) = &found {
                let error = error.clone().on(&assignment.partition).with_retry(Retry::Yes);
                lock(&shared.outbox).failed(error);
            }
            group.handle_located(&assignment, found.ok(), now);
        }
        Done::Checkpointed(assignment, at, kept) => {
            if let Err(error) = &kept {
                tracing::warn!(target: "kafkaq", partition = %assignment.partition, "a checkpoint failed: {error}");
            }
            group.handle_checkpointed(&assignment, at, kept.is_ok(), now);
        }
        Done::Partitions(found) => match found {
            Ok(found) => group.handle_partitions(found),
            Err(error) => tracing::warn!(target: "kafkaq", "looking for new partitions failed: {error}"),
        },
    }
}

/// Passes on what the machine has to say.
fn tell(shared: &Arc<Shared>, readers: &mut JoinSet<()>) {
    loop {
        let change = lock(&shared.group).poll_change();
        let Some(change) = change else { break };
        let mut outbox = lock(&shared.outbox);
        match change {
            Change::Assigned(assignment, from) => {
                let taken = Arc::new(Notify::new());
                let reader = Reader::new(shared.clone(), assignment.clone(), from, taken.clone());
                let task = readers.spawn(reader.run());
                outbox.assigned(assignment, taken, task);
            }
            Change::Revoking(assignment) => outbox.revoking(assignment),
            Change::Lost(assignment) => outbox.lost(assignment),
        }
    }
    let answers = lock(&shared.group).poll_answers();
    let mut waiting = lock(&shared.waiting);
    for (id, outcome) in answers {
        if let Some(tell) = waiting.by_id.remove(&id) {
            // Nobody listens any more if the caller's future was dropped.
            let _ = tell.send(outcome);
        }
    }
}
