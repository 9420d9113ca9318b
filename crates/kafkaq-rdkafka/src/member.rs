//! A member's two halves as the driver sees them: the handle and the event stream. Both communicate with the poll
//! thread (see `poller`) through shared state. Only a commit and the leave wait, and neither for the other.

use crate::{commit::FailedCommits, past_positions::PastPositions, settings::Settings, slot::Slot};
use async_trait::async_trait;
use futures_core::Stream;
use kafkaq_core::{Assignment, Commit, Error, ErrorKind, Event, Member, Partition, Result, lock};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    thread::Thread,
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Shared by the handle, the stream and the poll thread.
pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    /// Our partitions. The poll thread adds and removes them; a commit is checked against them under the lock.
    pub(crate) owned: Mutex<HashMap<Partition, Arc<Slot>>>,
    pub(crate) past_positions: PastPositions,
    pub(crate) failed_commits: FailedCommits,
    epochs: AtomicU64,
    poll_thread: OnceLock<Thread>,
    pub(crate) leaving: watch::Sender<bool>,
    left: watch::Receiver<bool>,
}

impl Shared {
    /// Also has the sender whose end shows that the poll thread is gone.
    pub(crate) fn new(settings: Arc<Settings>) -> (Arc<Self>, watch::Sender<bool>) {
        let (tx, left) = watch::channel(false);
        let shared = Shared {
            settings,
            owned: Mutex::default(),
            past_positions: PastPositions::default(),
            failed_commits: FailedCommits::default(),
            epochs: AtomicU64::new(0),
            poll_thread: OnceLock::new(),
            leaving: watch::Sender::new(false),
            left,
        };
        (Arc::new(shared), tx)
    }

    /// Called once, by the poll thread, before its first iteration.
    pub(crate) fn polled_here(&self) {
        let _ = self.poll_thread.set(std::thread::current());
    }

    /// Wakes the poll thread. It is called with librdkafka's locks held, so it must do nothing else.
    pub(crate) fn ring(&self) {
        if let Some(thread) = self.poll_thread.get() {
            thread.unpark();
        }
    }

    pub(crate) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn was_assigned(&self) -> bool {
        self.epochs.load(SeqCst) > 0
    }

    pub(crate) fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    pub(crate) fn ask_to_leave(&self) {
        self.leaving.send_replace(true);
        self.ring();
    }

    /// Waits until the poll thread is gone.
    pub(crate) async fn left(&self, limit: Duration) -> Result<()> {
        let mut left = self.left.clone();
        match tokio::time::timeout(limit, left.wait_for(|gone| *gone)).await {
            // The sender is dropped with its thread.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unknown(ErrorKind::Timeout, "leave").with_advice(
                "The group was not notified in time; it will notice after the session timeout. Leaving \
                 continues in the background",
            )),
        }
    }

    fn with(&self, assignments: &[Assignment], change: impl Fn(&Slot)) {
        let owned = lock(&self.owned);
        for a in assignments {
            if let Some(slot) = owned.get(&a.partition)
                && slot.assignment.epoch == a.epoch
            {
                change(slot);
            }
        }
        drop(owned);
        self.ring();
    }
}

/// The handle.
pub(crate) struct Handle(pub(crate) Arc<Shared>);

#[async_trait]
impl Member for Handle {
    async fn commit(&self, commits: &[Commit]) -> Vec<Result<()>> {
        self.0.commit(commits).await
    }

    fn pause(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.paused.store(true, SeqCst));
    }

    fn resume(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.paused.store(false, SeqCst));
    }

    fn release(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.released.store(true, SeqCst));
    }

    fn reassign(&self, assignments: &[Assignment]) {
        self.0.with(assignments, |slot| slot.doubted.store(true, SeqCst));
    }

    async fn leave(&self) -> Result<()> {
        self.0.ask_to_leave();
        self.0.left(self.0.settings.request_timeout()).await
    }
}

/// An event for the driver, with the slot of its records.
pub(crate) type Item = (Result<Event>, Option<Arc<Slot>>);

/// The stream. Its state is the channel, so a dropped `next()` loses nothing.
pub(crate) struct Events {
    pub(crate) items: mpsc::Receiver<Item>,
    pub(crate) shared: Arc<Shared>,
}

impl Stream for Events {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.shared.is_leaving() {
            // Events that are still waiting are no longer ours.
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.items.poll_recv(cx));
        Poll::Ready(item.map(|(event, slot)| {
            if let Some(slot) = slot {
                slot.queued.store(false, SeqCst);
            }
            self.shared.ring();
            event
        }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.ask_to_leave();
    }
}
