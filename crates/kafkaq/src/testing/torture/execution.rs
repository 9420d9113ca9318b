//! An execution that only advances when told to.

use crate::{
    sync::lock,
    worker::{Outcome, Stop, direct::Handling},
};
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};
use tokio::task::{Unconstrained, unconstrained};

thread_local! {
    /// Where an execution was suspended while it was polled.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// An execution is about to be suspended at this location.
pub(in crate::testing) fn suspended(place: String) {
    PLACE.set(Some(place));
}

pub(super) struct Execution {
    /// Without tokio's budget, whose exhaustion would look like an await point.
    handling: Unconstrained<Handling>,
    waking: Arc<Waking>,
    pub(super) stop: Stop,
    /// The await points that it has passed, with their locations if they are known.
    pub(super) points: Vec<Option<String>>,
    pub(super) outcome: Option<Outcome>,
}

/// Remembers whether an execution was woken, so that it is not polled, and no await point is counted, for another
/// reason.
struct Waking {
    woken: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, SeqCst);
        let waiting = lock(&self.waiting).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl Execution {
    pub(super) fn new((handling, stop): (Handling, Stop)) -> Self {
        let waking = Waking { woken: AtomicBool::new(true), waiting: Mutex::new(None) };
        Execution {
            handling: unconstrained(handling),
            waking: Arc::new(waking),
            stop,
            points: Vec::new(),
            outcome: None,
        }
    }

    /// Runs it to its next await point or its end, as soon as it is woken. Cancel-safe.
    pub(super) async fn step(&mut self) {
        poll_fn(|cx| {
            *lock(&self.waking.waiting) = Some(cx.waker().clone());
            if !self.waking.woken.swap(false, SeqCst) {
                return Poll::Pending;
            }
            PLACE.take();
            let waker = Waker::from(self.waking.clone());
            match Pin::new(&mut self.handling).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(outcome) => self.outcome = Some(outcome),
                Poll::Pending => self.points.push(PLACE.take()),
            }
            Poll::Ready(())
        })
        .await;
    }
}
