//! The two halves of a member: its event stream and its handle.

use super::{checkpoints::Checkpoints, outbox::Outbox};
use crate::{clock::Clock, sync::lock};
use async_trait::async_trait;
use futures_core::Stream;
use kafkaq_core::{
    Assignment, Commit, Error, ErrorKind, Event, LeaseStore, Member, OutageLog, PartitionLog, Result,
    TopicSpec,
    group::{CommitOutcome, Group},
};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{Notify, oneshot, watch};

/// The maximum number of commits that wait for the store; more are refused.
const MAX_WAITING: usize = 10_000;

/// Shared by the loop, the readers and both halves.
pub(super) struct Shared {
    pub(super) log: Arc<dyn PartitionLog>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) clock: Clock,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) checkpoint_topic: TopicSpec,
    pub(super) checkpoints: Checkpoints,
    /// How long reading waits for checkpoints, if the store has a cursor.
    pub(super) locate_patience: Duration,
    pub(super) max_batch: usize,
    pub(super) group: Mutex<Group>,
    /// Outages of the log, as seen by the group's own calls.
    pub(super) outages: OutageLog,
    pub(super) outbox: Mutex<Outbox>,
    pub(super) waiting: Mutex<Waiting>,
    /// The machine has new input.
    pub(super) wake: Notify,
    /// A topic may be missing.
    pub(super) look: Notify,
    pub(super) leaving: watch::Sender<bool>,
    /// How it ended: whether everything was released.
    pub(super) ended: watch::Sender<Option<bool>>,
}

/// Callers that wait for a commit. Once the loop has ended, there are none.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) last: u64,
    pub(super) by_id: HashMap<u64, oneshot::Sender<CommitOutcome>>,
}

impl Shared {
    pub(super) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    pub(super) async fn left(&self) -> Result<()> {
        self.leave();
        let mut ended = self.ended.subscribe();
        let clean = ended.wait_for(Option::is_some).await.is_ok_and(|clean| *clean == Some(true));
        if clean {
            return Ok(());
        }
        Err(Error::unknown(ErrorKind::Timeout, "leave the group")
            .on(&self.checkpoint_topic.name)
            .with_advice("The store didn't respond; others take the partitions after the member timeout"))
    }

    fn commit(&self, commit: &Commit) -> Result<oneshot::Receiver<CommitOutcome>> {
        let (tell, told) = oneshot::channel();
        let cursor = lock(&self.outbox).below(&commit.assignment, commit.offset);
        let id = {
            let mut waiting = lock(&self.waiting);
            if self.ended.borrow().is_some() {
                return Err(Error::not_applied(ErrorKind::NotOwner, "commit"));
            }
            if waiting.by_id.len() >= MAX_WAITING {
                return Err(Error::not_applied(ErrorKind::Throttled, "commit")
                    .with_advice("Wait for the commits before, or commit less often"));
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.by_id.insert(id, tell);
            id
        };
        lock(&self.group).handle_commit(id, &commit.assignment, cursor, self.clock.mono());
        self.wake.notify_one();
        Ok(told)
    }
}

pub(super) struct Events(pub(super) Arc<Shared>);

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        lock(&self.0.outbox).poll(cx)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.leave();
    }
}

pub(super) struct Handle(pub(super) Arc<Shared>);

#[async_trait]
impl Member for Handle {
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>> {
        let asked: Vec<_> = offsets.iter().map(|commit| self.0.commit(commit)).collect();
        let mut outcomes = Vec::with_capacity(asked.len());
        for (asked, commit) in asked.into_iter().zip(offsets) {
            let outcome = match asked {
                Ok(told) => match told.await {
                    Ok(CommitOutcome::Done) => Ok(()),
                    Ok(CommitOutcome::Unknown) => Err(Error::unknown(ErrorKind::Timeout, "commit")),
                    Ok(CommitOutcome::NotOwner) => Err(Error::not_applied(ErrorKind::NotOwner, "commit")),
                    // The member has ended, and the swap may have been in flight.
                    Err(_) => Err(Error::unknown(ErrorKind::NotOwner, "commit")),
                },
                Err(refused) => Err(refused),
            };
            outcomes.push(outcome.map_err(|e| e.on(&commit.assignment)));
        }
        outcomes
    }

    fn pause(&self, assignments: &[Assignment]) {
        lock(&self.0.outbox).pause(assignments, true);
    }

    fn resume(&self, assignments: &[Assignment]) {
        lock(&self.0.outbox).pause(assignments, false);
    }

    fn release(&self, assignments: &[Assignment]) {
        assignments.iter().for_each(|a| lock(&self.0.group).handle_release(a));
        self.0.wake.notify_one();
    }

    fn reassign(&self, assignments: &[Assignment]) {
        let now = self.0.clock.mono();
        assignments.iter().for_each(|a| lock(&self.0.group).handle_broken(a, now));
        self.0.wake.notify_one();
    }

    async fn leave(&self) -> Result<()> {
        self.0.left().await
    }
}
