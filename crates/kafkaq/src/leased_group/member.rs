//! The two halves of a member: its event stream and its handle.

use super::outbox::Outbox;
use crate::{driver::Clock, sync::lock};
use async_trait::async_trait;
use futures_core::Stream;
use kafkaq_core::{
    Assignment, Commit, Error, ErrorKind, Event, LeaseStore, Member, Partition, PartitionLog, Result,
    group::{CommitOutcome, Cursor, Group},
};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::sync::{Notify, oneshot, watch};

/// What the loop, the readers and both halves share.
pub(super) struct Shared {
    pub(super) log: Arc<dyn PartitionLog>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) clock: Clock,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) checkpoints: Partition,
    pub(super) max_batch: usize,
    pub(super) group: Mutex<Group>,
    pub(super) outbox: Mutex<Outbox>,
    pub(super) waiting: Mutex<Waiting>,
    /// Something was asked of the machine.
    pub(super) wake: Notify,
    pub(super) leaving: watch::Sender<bool>,
    /// How it ended: whether everything was let go of.
    pub(super) ended: watch::Sender<Option<bool>>,
}

/// Who waits for a commit. Once the loop has ended nobody may.
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
            .on(&self.checkpoints.topic)
            .with_advice("The store didn't answer; others take the partitions after the member timeout"))
    }

    fn commit(&self, commit: &Commit) -> oneshot::Receiver<CommitOutcome> {
        let (tell, told) = oneshot::channel();
        let mark = lock(&self.outbox).mark_below(&commit.assignment, commit.offset);
        let mut waiting = lock(&self.waiting);
        waiting.last += 1;
        let id = waiting.last;
        if self.ended.borrow().is_none() {
            waiting.by_id.insert(id, tell);
            drop(waiting);
            let cursor = Cursor { offset: commit.offset, mark };
            lock(&self.group).handle_commit(id, &commit.assignment, cursor, self.clock.mono());
            self.wake.notify_one();
        }
        told
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
        for (told, commit) in asked.into_iter().zip(offsets) {
            outcomes.push(match told.await {
                Ok(CommitOutcome::Done) => Ok(()),
                Ok(CommitOutcome::Unknown) => {
                    Err(Error::unknown(ErrorKind::Timeout, "commit").on(&commit.assignment))
                }
                Ok(CommitOutcome::NotOwner) | Err(_) => {
                    Err(Error::not_applied(ErrorKind::NotOwner, "commit").on(&commit.assignment))
                }
            });
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

    async fn leave(&self) -> Result<()> {
        self.0.left().await
    }
}
