//! The cluster as calls see it: leaders, connections, and retries.

use crate::{
    cluster::Cluster,
    failure::{Failure, Place},
    outage::OncePerMinute,
    poll::LongPolls,
    producers::Producers,
    wire::Connections,
};
use kafkaq_core::{Error, ErrorKind, Operation, Partition};
use rskafka::client::SaslConfig;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{RwLock, RwLockReadGuard, watch},
    time::{Instant, sleep},
};

/// The pause between attempts; doubles each time.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a new topic may be unknown to a node.
const SETTLING: Duration = Duration::from_millis(500);

pub(crate) struct Settings {
    /// For errors.
    pub(crate) bootstrap: String,
    pub(crate) addresses: Vec<Arc<str>>,
    pub(crate) request_timeout: Duration,
    pub(crate) max_message_bytes: usize,
    pub(crate) client_id: String,
    pub(crate) sasl: Option<SaslConfig>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

impl Settings {
    /// Whether the server is on this machine, by its addresses.
    pub(crate) fn is_local(&self) -> bool {
        let local =
            |address: &Arc<str>| ["127.", "localhost:", "[::1]:"].iter().any(|l| address.starts_with(l));
        self.addresses.iter().all(local)
    }

    /// How many bytes a fetch may request: a response contains more than records.
    pub(crate) fn max_fetch_bytes(&self) -> usize {
        self.max_message_bytes - self.max_message_bytes / 8
    }
}

/// The time limits of a call.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) deadline: Instant,
    /// Until then, a topic that is not found may only be new.
    settled: Instant,
}

pub(crate) struct Link {
    pub(crate) connections: Arc<Connections>,
    pub(crate) cluster: Cluster,
    pub(crate) polls: LongPolls,
    pub(crate) producers: Producers,
    /// Partitions whose next batch can't be read.
    pub(crate) unreadable: OncePerMinute<Partition>,
    closed: watch::Sender<bool>,
    /// Read-locked by every call in flight, write-locked by close.
    calls: Arc<RwLock<()>>,
}

impl Link {
    pub(crate) fn new(settings: Settings) -> Self {
        let connections = Arc::new(Connections::new(settings));
        let (closed, calls) = (watch::Sender::new(false), Arc::<RwLock<()>>::default());
        Link {
            polls: LongPolls::new(connections.clone(), closed.subscribe(), calls.clone()),
            connections,
            cluster: Cluster::default(),
            producers: Producers::default(),
            unreadable: OncePerMinute::default(),
            closed,
            calls,
        }
    }

    pub(crate) fn error(&self, operation: Operation, on: Option<&Partition>, failure: Failure) -> Error {
        let Settings { bootstrap, request_timeout, .. } = &self.connections.settings;
        failure.error(operation, &Place { bootstrap, partition: on, limit: *request_timeout })
    }

    /// Held by a call from start to end.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>, Failure> {
        match self.calls.try_read() {
            Ok(entered) if !self.is_closed() => Ok(entered),
            _ => Err(Failure::closed()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns when [`close`](Self::close) is called.
    pub(crate) async fn closing(&self) {
        // An error would mean that the sender is gone, and that is here.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Refuses new calls, waits for those in flight, and drops every connection.
    pub(crate) async fn close(&self) {
        self.closed.send_replace(true);
        let _everybody_is_out = self.calls.write().await;
        self.connections.close_idle();
        self.producers.close().await;
    }

    /// The limits of a call that starts now and may take `extra` beyond the request timeout.
    pub(crate) fn limits(&self, extra: Duration) -> Limits {
        let now = Instant::now();
        let deadline = now + self.connections.settings.request_timeout + extra;
        Limits { deadline, settled: deadline.min(now + SETTLING) }
    }

    /// Returns limits that allow a new topic to become known everywhere.
    pub(crate) fn patient(&self) -> Limits {
        let limits = self.limits(Duration::ZERO);
        Limits { settled: limits.deadline, ..limits }
    }

    /// Retries until an attempt succeeds, or no further one can.
    pub(crate) async fn repeat<T, Fut>(&self, limits: Limits, once: impl Fn() -> Fut) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let mut attempts = Attempts::default();
        loop {
            match once().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.another(self, limits, failure).await?,
            }
        }
    }
}

/// The attempts of one call.
pub(crate) struct Attempts {
    pause: Duration,
    /// Whether one of them may have had an effect, however the last one ends.
    sent: bool,
    last: Option<Failure>,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts { pause: PAUSE, sent: false, last: None }
    }
}

impl Attempts {
    /// Returns when it is time for another attempt; with the call's failure if there won't be one.
    pub(crate) async fn another(
        &mut self,
        link: &Link,
        limits: Limits,
        failure: Failure,
    ) -> Result<(), Failure> {
        self.sent |= failure.sent;
        let mut failure = failure.after(self.last.take());
        failure.sent = self.sent;
        let until = match failure.kind {
            ErrorKind::NotFound => limits.settled,
            _ => limits.deadline,
        };
        if !failure.again || Instant::now() + self.pause >= until || link.is_closed() {
            return Err(failure);
        }
        tracing::debug!(target: "kafkaq", ?failure, pause = ?self.pause, "retrying");
        self.last = Some(failure);
        sleep(self.pause).await;
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        Ok(())
    }
}
