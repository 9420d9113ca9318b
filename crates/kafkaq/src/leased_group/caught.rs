//! A backend that panics or never answers: an error like any other, and nobody waits for ever.

use kafkaq_core::{Error, ErrorKind, Result, Retry};
use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};
use tokio::time::timeout;

/// A backend answers within its own limits. This is for one that doesn't.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// What `call` comes to, within the limit of one call.
pub(super) async fn in_time<T>(op: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    within(CALL_LIMIT, op, call).await
}

pub(super) async fn within<T>(
    limit: Duration,
    op: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = |_| Err(Error::unknown(ErrorKind::Timeout, op));
    timeout(limit, call).await.unwrap_or_else(late)
}

/// What `call` comes to; if it panics, an error of unknown effect. It is not polled again then.
pub(super) async fn caught<T>(op: &'static str, call: impl Future<Output = T>) -> Result<T> {
    let mut call = pin!(call);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Error::unknown(ErrorKind::Other, op)
            .with_retry(Retry::Yes)
            .with_source("the backend panicked"))),
    })
    .await
}
