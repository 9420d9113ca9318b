//! A limit on the bytes that are waiting or in flight.

use crate::runtime::Home;
use kafkaq_core::{Error, ErrorKind, Result};
use std::{sync::Arc, time::Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a record costs besides its own bytes, so that many small ones are limited too.
pub(crate) const OVERHEAD: usize = 256;

#[derive(Debug)]
pub(super) struct BufferSpace {
    bytes: Arc<Semaphore>,
    limit: u32,
}

impl BufferSpace {
    pub(super) fn new(bytes: usize) -> Self {
        let limit = u32::try_from(bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        BufferSpace { bytes: Arc::new(Semaphore::new(limit as usize)), limit }
    }

    /// A record larger than the buffer takes all of it.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit)
    }

    /// Acquires space if there is enough and nobody is waiting for it.
    pub(super) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.bytes.clone().try_acquire_many_owned(self.share(bytes)).ok()
    }

    /// Waits for space, in order.
    pub(super) async fn take(
        &self,
        bytes: usize,
        until: Instant,
        home: &Home,
    ) -> Result<OwnedSemaphorePermit> {
        let full = |kind| Error::not_applied(kind, "publish").on("a full buffer");
        if Instant::now() < until {
            let late = home.sleep_until(until);
            tokio::select! {
                biased;
                permit = self.bytes.clone().acquire_many_owned(self.share(bytes)) => {
                    return permit.map_err(|_| full(ErrorKind::Closed));
                }
                () = late => {}
            }
        }
        Err(full(ErrorKind::Timeout).with_advice(format!(
            "Tasks are published faster than the log accepts them: publish fewer at once, or raise \
             publish_buffer, which is {} bytes, or publish_timeout",
            self.limit
        )))
    }
}
