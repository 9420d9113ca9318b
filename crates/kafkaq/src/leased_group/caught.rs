//! Turns panics and hangs of a backend into errors, so that nobody waits forever.

use crate::sync;
use kafkaq_core::{Error, ErrorKind, Result, Retry};
use std::time::Duration;
use tokio::time::timeout;

/// Backends return within their own limits. This is for one that doesn't.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Returns the outcome of `call`, within the limit of one call.
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

/// Returns the outcome of `call`; if it panics, an error of unknown effect, and it is not polled again.
pub(super) async fn caught<T>(op: &'static str, call: impl Future<Output = T>) -> Result<T> {
    let panicked = |_| {
        let e = Error::unknown(ErrorKind::Other, op).with_retry(Retry::Yes);
        e.with_source("the backend panicked")
    };
    sync::caught(call).await.map_err(panicked)
}
