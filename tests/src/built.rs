//! Queues on servers that are busy, or have just started: such a server may take longer than a client waits.

use crate::PATIENCE;
use kafkaq::{Error, Publisher, Queue, QueueBuilder, Retry};
use std::time::Instant;

/// Builds what a test needs, retrying transient errors.
pub trait Built: Sized {
    /// The queue.
    fn built(self) -> impl Future<Output = Queue> + Send;
    /// A publisher of the queue.
    fn built_publisher(self) -> impl Future<Output = Publisher> + Send;
}

impl Built for QueueBuilder {
    async fn built(self) -> Queue {
        let begun = Instant::now();
        loop {
            match self.clone().build().await {
                Ok(queue) => return queue,
                Err(e) => wait_out(&e, begun),
            }
        }
    }

    async fn built_publisher(self) -> Publisher {
        let begun = Instant::now();
        loop {
            match self.clone().build_publisher().await {
                Ok(publisher) => return publisher,
                Err(e) => wait_out(&e, begun),
            }
        }
    }
}

fn wait_out(e: &Error, begun: Instant) {
    assert!(e.retry() != Retry::No && begun.elapsed() < PATIENCE, "{e}");
}
