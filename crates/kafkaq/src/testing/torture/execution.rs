//! An execution that goes on only when it is told to.

use crate::{
    sync::lock,
    worker::{Outcome, Stop, direct::Handling},
};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};
use tokio::task::{Unconstrained, unconstrained};

pub(super) struct Execution {
    /// Without tokio's budget, whose end would look like an await point.
    handling: Unconstrained<Handling>,
    waking: Arc<Waking>,
    pub(super) stop: Stop,
    /// How many times it was suspended.
    pub(super) points: usize,
    pub(super) outcome: Option<Outcome>,
}

/// Remembers whether an execution can go on, so that it is not polled, and no await point counted, for another reason.
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
            points: 0,
            outcome: None,
        }
    }

    /// Runs it to its next await point or its end, as soon as it can go on. Cancel-safe.
    pub(super) async fn step(&mut self) {
        poll_fn(|cx| {
            *lock(&self.waking.waiting) = Some(cx.waker().clone());
            if !self.waking.woken.swap(false, SeqCst) {
                return Poll::Pending;
            }
            let waker = Waker::from(self.waking.clone());
            match Pin::new(&mut self.handling).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(outcome) => self.outcome = Some(outcome),
                Poll::Pending => self.points += 1,
            }
            Poll::Ready(())
        })
        .await;
    }
}
