//! One client of the cluster for all calls, and the attempts of a call.
//!
//! The client library neither limits the time of a request nor, by default, the number of its attempts, and may stay
//! with a leader that is none any more. So it gets one attempt, within a limit; whatever did not end in an answer
//! costs the connection and the client they were made by, and the next attempt begins with new ones. A client has an
//! epoch, so that many calls that fail together replace it once.

use crate::{
    admin::Admin,
    failure::{Failure, Op, Place},
    locked,
    pool::{Connection, Pool},
};
use kafkaq_core::{Error, ErrorKind, Partition};
use rskafka::{
    BackoffConfig,
    client::{
        Client, ClientBuilder, SaslConfig,
        error::Result as ClientResult,
        partition::{PartitionClient, UnknownTopicHandling},
    },
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{RwLock, RwLockReadGuard, watch},
    time::{Instant, sleep, timeout_at},
};

/// Connecting may take this part of the request timeout: with several addresses, one that swallows packets must
/// leave time for the others.
const CONNECT_SHARE: u32 = 3;
/// Between attempts: doubled each time. The first is short, since a connection that the server has closed while it
/// was idle shows only when it is used.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A topic that was just made may be unknown for so long to the node that is asked.
const SETTLING: Duration = Duration::from_millis(500);

pub(crate) struct Settings {
    /// For errors.
    pub(crate) bootstrap: String,
    pub(crate) addresses: Vec<String>,
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
            |address: &String| ["127.", "localhost:", "[::1]:"].iter().any(|l| address.starts_with(l));
        self.addresses.iter().all(local)
    }

    fn client(&self) -> ClientBuilder {
        let once = BackoffConfig { deadline: Some(Duration::ZERO), ..BackoffConfig::default() };
        let mut builder = ClientBuilder::new(self.addresses.clone())
            .client_id(self.client_id.as_str())
            .max_message_size(self.max_message_bytes)
            .backoff_config(once);
        if let Some(sasl) = &self.sasl {
            builder = builder.sasl_config(sasl.clone());
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(tls.clone());
        }
        builder
    }
}

/// The client library's client, and what it has told of the cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    epoch: u64,
    /// How many partitions each topic has.
    topics: Mutex<HashMap<String, i32>>,
}

impl Cluster {
    /// Asks anew which topics there are.
    pub(crate) async fn topics(&self) -> Result<HashMap<String, i32>, Failure> {
        let count = |partitions: usize| i32::try_from(partitions).unwrap_or(i32::MAX);
        let listed = self.client.list_topics().await.map_err(Failure::connecting)?;
        let topics: HashMap<_, _> = listed.into_iter().map(|t| (t.name, count(t.partitions.len()))).collect();
        locked(&self.topics).clone_from(&topics);
        Ok(topics)
    }

    fn has(&self, partition: &Partition) -> bool {
        let topics = locked(&self.topics);
        topics.get(&*partition.topic).is_some_and(|n| (0..*n).contains(&partition.index))
    }

    /// Connects to the partition's leader.
    async fn leader(&self, of: &Partition) -> Result<Connection, Failure> {
        // Asked here because the library, asking for a topic by its name, allows the server to make it.
        if !self.has(of) {
            self.topics().await?;
        }
        if !self.has(of) {
            return Err(Failure::not_found());
        }
        let client = self
            .client
            .partition_client(&*of.topic, of.index, UnknownTopicHandling::Error)
            .await
            .map_err(Failure::connecting)?;
        Ok(Connection { client: Arc::new(client), epoch: self.epoch })
    }
}

/// How long a call may go on.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) deadline: Instant,
    /// Until then, a topic that is not found may only be new.
    settled: Instant,
}

pub(crate) struct Link {
    pub(crate) settings: Settings,
    /// Locked while somebody connects: the others wait for that.
    cluster: tokio::sync::Mutex<Option<Arc<Cluster>>>,
    epochs: AtomicU64,
    /// Clients up to this epoch have failed somebody.
    distrusted: AtomicU64,
    pool: Pool,
    closed: watch::Sender<bool>,
    /// Read by every call that is under way, written by who closes.
    calls: RwLock<()>,
}

impl Link {
    pub(crate) fn new(settings: Settings) -> Self {
        Link {
            settings,
            cluster: Default::default(),
            epochs: AtomicU64::new(0),
            distrusted: AtomicU64::new(0),
            pool: Pool::default(),
            closed: watch::Sender::new(false),
            calls: RwLock::default(),
        }
    }

    pub(crate) fn error(&self, op: Op, on: Option<&Partition>, failure: Failure) -> Error {
        let Settings { bootstrap, request_timeout, .. } = &self.settings;
        failure.error(op, &Place { bootstrap, partition: on, limit: *request_timeout })
    }

    /// Held by a call from its begin to its end.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>, Failure> {
        match self.calls.try_read() {
            Ok(entered) if !self.is_closed() => Ok(entered),
            _ => Err(Failure::closed()),
        }
    }

    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns when [`close`](Self::close) is called.
    pub(crate) async fn closing(&self) {
        // An error would mean that the sender is gone, and that is here.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Lets nobody in, waits until everybody is out, and drops every connection.
    pub(crate) async fn close(&self) {
        self.closed.send_replace(true);
        let _everybody_is_out = self.calls.write().await;
        self.pool.clear();
        *self.cluster.lock().await = None;
    }

    /// The limits of a call that begins now and may take `extra` beyond the request timeout.
    pub(crate) fn limits(&self, extra: Duration) -> Limits {
        let now = Instant::now();
        let deadline = now + self.settings.request_timeout + extra;
        Limits { deadline, settled: deadline.min(now + SETTLING) }
    }

    /// As long as a topic that has just been made may take to be known everywhere.
    pub(crate) fn patient(&self) -> Limits {
        let limits = self.limits(Duration::ZERO);
        Limits { settled: limits.deadline, ..limits }
    }

    /// Sends a request to the partition's leader, and again as long as that may help.
    pub(crate) async fn ask<T, F, Fut>(
        &self,
        of: &Partition,
        limits: Limits,
        request: F,
    ) -> Result<T, Failure>
    where
        F: Fn(Arc<PartitionClient>) -> Fut,
        Fut: Future<Output = ClientResult<T>>,
    {
        self.repeat(limits, || self.ask_once(of, limits, &request)).await
    }

    async fn ask_once<T, F, Fut>(&self, of: &Partition, limits: Limits, request: &F) -> Result<T, Failure>
    where
        F: Fn(Arc<PartitionClient>) -> Fut,
        Fut: Future<Output = ClientResult<T>>,
    {
        let connection = self.connection(of, limits).await?;
        let failure = match timeout_at(limits.deadline, request(connection.client.clone())).await {
            Ok(Ok(answer)) => {
                self.pool.put(of, connection);
                return Ok(answer);
            }
            Ok(Err(e)) => Failure::of(e),
            Err(_) => Failure::silence(),
        };
        match failure.answered {
            true => self.pool.put(of, connection),
            false => {
                self.distrust(connection.epoch);
                self.pool.forget(of);
            }
        }
        Err(failure)
    }

    /// The same for what is asked of the cluster and not of a leader.
    pub(crate) async fn ask_cluster<T, F, Fut>(&self, limits: Limits, request: F) -> Result<T, Failure>
    where
        F: Fn(Arc<Cluster>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        self.repeat(limits, || self.ask_cluster_once(limits, &request)).await
    }

    async fn ask_cluster_once<T, F, Fut>(&self, limits: Limits, request: &F) -> Result<T, Failure>
    where
        F: Fn(Arc<Cluster>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let cluster = self.connecting(limits, self.connect()).await?;
        let epoch = cluster.epoch;
        let answer = timeout_at(limits.deadline, request(cluster)).await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::silence()));
        if answer.as_ref().is_err_and(|failure| !failure.answered) {
            self.distrust(epoch);
        }
        answer
    }

    /// The same for what the client library has no words for.
    pub(crate) async fn administer<'a, T, F, Fut>(&'a self, limits: Limits, request: F) -> Result<T, Failure>
    where
        F: Fn(Admin<'a>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let request = &request;
        let once = || async move {
            let share = self.settings.request_timeout / CONNECT_SHARE;
            let admin = self.connecting(limits, Admin::connect(&self.settings, share)).await?;
            let answer = timeout_at(limits.deadline, request(admin)).await;
            answer.unwrap_or_else(|_| Err(Failure::silence()))
        };
        self.repeat(limits, once).await
    }

    async fn repeat<T, Fut>(&self, limits: Limits, once: impl Fn() -> Fut) -> Result<T, Failure>
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

    /// A connection for one request. Dropping it closes it.
    async fn connection(&self, to: &Partition, limits: Limits) -> Result<Connection, Failure> {
        if let Some(idle) = self.pool.take(to) {
            return Ok(idle);
        }
        self.connecting(limits, async {
            let cluster = self.connect().await?;
            let connection = cluster.leader(to).await;
            if connection.as_ref().is_err_and(|failure| !failure.answered) {
                self.distrust(cluster.epoch);
            }
            connection
        })
        .await
    }

    async fn connecting<T>(
        &self,
        limits: Limits,
        connect: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let share = Instant::now() + self.settings.request_timeout / CONNECT_SHARE;
        match timeout_at(share.min(limits.deadline), connect).await {
            Ok(connected) => connected,
            Err(_) => {
                self.distrust(self.epochs.load(Relaxed));
                Err(Failure::not_connected())
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Cluster>, Failure> {
        let mut slot = self.cluster.lock().await;
        if let Some(cluster) = &*slot
            && cluster.epoch > self.distrusted.load(Relaxed)
        {
            return Ok(cluster.clone());
        }
        *slot = None;
        let client = self.settings.client().build().await.map_err(Failure::connecting)?;
        let epoch = self.epochs.fetch_add(1, Relaxed) + 1;
        let cluster = Arc::new(Cluster { client, epoch, topics: Mutex::default() });
        *slot = Some(cluster.clone());
        Ok(cluster)
    }

    fn distrust(&self, epoch: u64) {
        self.distrusted.fetch_max(epoch, Relaxed);
    }
}

/// The attempts of one call.
struct Attempts {
    pause: Duration,
    /// What one of them may have done stays possible, however the last one ends.
    sent: bool,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts { pause: PAUSE, sent: false }
    }
}

impl Attempts {
    /// Returns when it is time for another attempt; with the call's failure if there is to be none.
    async fn another(&mut self, link: &Link, limits: Limits, mut failure: Failure) -> Result<(), Failure> {
        self.sent |= failure.sent;
        failure.sent = self.sent;
        let until = match failure.kind {
            ErrorKind::NotFound => limits.settled,
            _ => limits.deadline,
        };
        if !failure.again || Instant::now() + self.pause >= until || link.is_closed() {
            return Err(failure);
        }
        tracing::debug!(target: "kafkaq", ?failure, pause = ?self.pause, "trying again");
        sleep(self.pause).await;
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        Ok(())
    }
}
