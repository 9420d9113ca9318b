//! The loop of a member: the only place where the group's machine meets the traits. Nothing in it waits for a call;
//! each runs as a task, a bounded number at a time, and what gathers meanwhile is the next batch.

use super::{locate, member::Shared, reader};
use crate::{driver::every_answer, sync::lock};
use bytes::Bytes;
use kafkaq_core::{
    Assignment, Partition, Result, Swapped, TopicSpec,
    group::{Change, Cursor, ReadToken, SwapToken},
    machine::Mono,
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Calls under way at a time, of all kinds together.
const MAX_CALLS: usize = 16;
const MAX_ITEMS: usize = 1000;
/// How often the topics are asked for partitions that were added.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a leaving member tries to clear its name.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

enum Done {
    Read(ReadToken, Vec<Result<Option<Bytes>>>),
    Swapped(Vec<SwapToken>, Vec<Result<Swapped>>),
    Located(Assignment, Result<Cursor>),
    Checkpointed(Assignment, Cursor, Result<()>),
    Partitions(Result<Vec<Partition>>),
}

/// The partitions of the topics.
pub(super) async fn partitions(
    log: &dyn kafkaq_core::PartitionLog,
    topics: &[Arc<str>],
) -> Result<Vec<Partition>> {
    let specs: Vec<_> = topics.iter().map(|topic| TopicSpec::new(topic.clone())).collect();
    let infos = log.ensure_topics(&specs).await?;
    let of = |info: &kafkaq_core::TopicInfo| {
        let name = info.name.clone();
        (0..info.partitions).map(move |index| Partition::new(name.clone(), index))
    };
    Ok(infos.iter().flat_map(of).collect())
}

/// Runs until the member has left.
pub(super) async fn run(shared: Arc<Shared>) {
    let (mut calls, mut readers) = (JoinSet::new(), JoinSet::new());
    let mut leaving = shared.leaving.subscribe();
    let mut leave_by = None;
    let mut refresh_at = Instant::now() + REFRESH;
    let clean = loop {
        let now = shared.clock.mono();
        if *leaving.borrow_and_update() && leave_by.is_none() {
            leave_by = Some(Instant::now() + LEAVE_LIMIT);
            lock(&shared.group).handle_leave();
        }
        start_calls(&shared, &mut calls, now);
        if Instant::now() >= refresh_at {
            refresh_at = Instant::now() + REFRESH;
            let s = shared.clone();
            calls.spawn(async move { Done::Partitions(partitions(&*s.log, &s.topics).await) });
        }
        tell(&shared, &mut readers);
        let gone = lock(&shared.group).has_left();
        if gone || leave_by.is_some_and(|by| Instant::now() >= by) {
            break gone;
        }
        let next = lock(&shared.group).next_time(now);
        // A machine that wants to be asked at once has been asked just now.
        let soon = Instant::now() + Duration::from_millis(1);
        let next = next.map_or(refresh_at, |at| shared.clock.at(at).max(soon));
        let next = next.min(refresh_at).min(leave_by.unwrap_or(refresh_at));
        tokio::select! {
            Some(done) = calls.join_next() => if let Ok(done) = done { finish(&shared, done) },
            Some(_) = readers.join_next() => {}
            () = shared.wake.notified() => {}
            _ = leaving.changed() => {}
            () = sleep_until(next) => {}
        }
    };
    lock(&shared.outbox).end();
    // Under the lock, so that no commit begins to wait after the last was told.
    let mut waiting = lock(&shared.waiting);
    shared.ended.send_replace(Some(clean));
    waiting.by_id.clear();
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
            let found = locate::locate(&*s.log, &s.checkpoints, &assignment.partition, stored).await;
            Done::Located(assignment, found)
        });
    }
    while calls.len() < MAX_CALLS / 2
        && let Some((assignment, at)) = group.poll_checkpoint(now)
    {
        spawn(calls, shared, |s| async move {
            let kept = locate::checkpoint(&*s.log, &s.checkpoints, &assignment.partition, at).await;
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
                lock(&shared.outbox).failed(error.clone().with_retry(kafkaq_core::Retry::Yes));
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
                let error = error.clone().on(&assignment.partition).with_retry(kafkaq_core::Retry::Yes);
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
                let task =
                    readers.spawn(reader::read(shared.clone(), assignment.clone(), from, taken.clone()));
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
