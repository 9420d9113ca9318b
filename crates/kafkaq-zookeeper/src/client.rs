//! The client library's handle of one session, which counts its requests.
//!
//! The client library numbers the requests of a session with 32 bits and lets them overflow. It mistakes a response
//! with number -1 for an event and one with -2 for a ping; from then on each request would get the response to another
//! one. So a session is replaced long before that.

use crate::builder::Settings;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};
use zookeeper_async::ZooKeeper;

/// Numbers up to here are positive, and so are those of the calls that are still in flight.
pub(crate) const MAX_REQUESTS: u32 = 1 << 30;

pub(crate) struct Client {
    zk: ZooKeeper,
    pub(crate) settings: Arc<Settings>,
    requests: AtomicU32,
}

impl Client {
    pub(crate) fn new(zk: ZooKeeper, settings: Arc<Settings>) -> Self {
        Client { zk, settings, requests: AtomicU32::new(0) }
    }

    /// Returns the handle for one request, and counts it.
    pub(crate) fn request(&self) -> &ZooKeeper {
        self.requests.fetch_add(1, Relaxed);
        &self.zk
    }

    /// Returns whether it must not carry further calls.
    pub(crate) fn is_used_up(&self) -> bool {
        self.requests.load(Relaxed) >= self.settings.max_requests
    }
}
