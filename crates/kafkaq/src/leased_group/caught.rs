//! A backend that panics: an error like any other, and nobody waits for ever.

use kafkaq_core::{Error, ErrorKind, Result, Retry};
use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

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
