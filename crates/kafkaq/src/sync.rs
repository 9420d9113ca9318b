//! Locking, yielding, waiting for changes, and catching panics.

pub(crate) use kafkaq_core::lock;

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};
use tokio::sync::Notify;

/// Yields to whatever else is ready on this thread. It works outside of any runtime, polls no driver, and allows
/// another thread to take the task.
pub(crate) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until `look` returns something. Every change of what it reads must notify all waiters. Cancel-safe.
pub(crate) async fn until<T>(news: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut told = pin!(news.notified());
        // Registers before it checks, so that no notification is missed in between.
        told.as_mut().enable();
        if let Some(found) = look() {
            return found;
        }
        told.await;
    }
}

/// Returns the outcome of a call, or the payload of its panic, after which it must not be polled again.
pub(crate) async fn caught<T>(call: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut call = pin!(call);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// The message of a panic, if it has one.
pub(crate) fn panic_message(panicked: &(dyn Any + Send)) -> Option<&str> {
    let message = panicked.downcast_ref::<&str>().copied();
    message.or_else(|| panicked.downcast_ref::<String>().map(String::as_str))
}
