//! Appends through rskafka.
//!
//! The library needs one connection per partition, so they are limited. Appends that get none use the connections that
//! all calls share.
//!
//! The library doesn't limit the duration of a request nor, by default, the number of attempts, and may stay with a
//! stale leader. So it gets one attempt, within a time limit; after a failure, the connection and its client are
//! dropped. A client has an epoch, so that many calls that fail together replace it once.

use crate::{
    failure::Failure,
    home::Lifetime,
    link::{Limits, Link, Settings},
};
use kafkaq_core::{Partition, lock};
use rskafka::{
    BackoffConfig,
    client::{
        Client, ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record,
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
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// To how many partitions the library is connected at a time.
const MAX_CONNECTIONS: usize = 8;
/// A connection that was idle for this long makes room for another partition.
const MAX_IDLE: Duration = Duration::from_secs(5);

pub(crate) struct Producers {
    /// Locked while somebody connects: others wait for that.
    client: tokio::sync::Mutex<Option<(u64, Arc<Client>)>>,
    epochs: AtomicU64,
    /// Clients up to this epoch have failed.
    distrusted: AtomicU64,
    idle: Mutex<HashMap<Partition, Vec<(Instant, Connection)>>>,
    room: Arc<Semaphore>,
}

/// A connection to a partition's leader, and the epoch of the client that made it.
struct Connection {
    client: PartitionClient,
    epoch: u64,
    /// The library reads responses in a task. When that is dropped with its runtime, the library doesn't notice.
    reads: Lifetime,
    /// Room for one connection.
    _permit: OwnedSemaphorePermit,
}

impl Default for Producers {
    fn default() -> Self {
        Producers {
            client: Default::default(),
            epochs: AtomicU64::new(0),
            distrusted: AtomicU64::new(0),
            idle: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }
}

impl Producers {
    /// Appends records in one request. Returns their offsets; `None` if all connections are in use.
    pub(crate) async fn append(
        &self,
        link: &Link,
        to: &Partition,
        records: impl FnOnce() -> Vec<Record>,
        limits: Limits,
    ) -> Result<Option<Vec<i64>>, Failure> {
        let mut connection = match self.take(to) {
            Some(connection) => connection,
            None => match self.room.clone().try_acquire_owned() {
                Ok(permit) => self.connect(link, to, permit, limits).await?,
                Err(_) => return Ok(None),
            },
        };
        let produced = connection.client.produce(records(), Compression::NoCompression);
        let produced = tokio::select! {
            biased;
            produced = timeout_at(limits.deadline, produced) => produced.map(|produced| produced.map_err(Failure::of)),
            () = connection.reads.ended() => Ok(Err(Failure::abandoned().half_done())),
        };
        let failure = match produced {
            Ok(Ok(offsets)) => {
                self.put_back(to, connection);
                return Ok(Some(offsets));
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::silence(),
        };
        // Never reused: to look up the leader again, the library would let the server create the topic.
        if !failure.answered {
            self.distrusted.fetch_max(connection.epoch, Relaxed);
            lock(&self.idle).remove(to);
        }
        Err(failure)
    }

    async fn connect(
        &self,
        link: &Link,
        to: &Partition,
        permit: OwnedSemaphorePermit,
        limits: Limits,
    ) -> Result<Connection, Failure> {
        // The library looks up a leader in a way that lets the server create the topic. So we look it up first, and
        // only use the library if there is one.
        let leader = link.cluster.look_up(&link.connections, to, limits.deadline).await?;
        let settings = &link.connections.settings;
        let connecting = async {
            let (epoch, client) = self.client(settings, &leader.address).await?;
            let leader = client.partition_client(&*to.topic, to.index, UnknownTopicHandling::Error).await;
            let client = leader.map_err(Failure::connecting).inspect_err(|_| {
                // The partition exists, as was just seen. The library permanently caches the partitions of a topic at
                // its first lookup, so for an earlier client an added partition never exists.
                self.distrusted.fetch_max(epoch, Relaxed);
            })?;
            Ok(Connection { client, epoch, reads: Lifetime::begin(), _permit: permit })
        };
        let share = Instant::now() + settings.request_timeout / crate::wire::CONNECT_SHARE;
        match timeout_at(share.min(limits.deadline), connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                self.distrusted.fetch_max(self.epochs.load(Relaxed), Relaxed);
                Err(Failure::not_connected())
            }
        }
    }

    async fn client(&self, settings: &Settings, address: &str) -> Result<(u64, Arc<Client>), Failure> {
        let mut slot = self.client.lock().await;
        if let Some((epoch, client)) = &*slot
            && *epoch > self.distrusted.load(Relaxed)
        {
            return Ok((*epoch, client.clone()));
        }
        *slot = None;
        let once = BackoffConfig { deadline: Some(Duration::ZERO), ..BackoffConfig::default() };
        let mut builder = ClientBuilder::new(vec![address.into()])
            .client_id(settings.client_id.as_str())
            .max_message_size(settings.max_message_bytes)
            .backoff_config(once);
        if let Some(sasl) = &settings.sasl {
            builder = builder.sasl_config(sasl.clone());
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &settings.tls {
            builder = builder.tls_config(tls.clone());
        }
        let client = Arc::new(builder.build().await.map_err(Failure::connecting)?);
        let epoch = self.epochs.fetch_add(1, Relaxed) + 1;
        *slot = Some((epoch, client.clone()));
        Ok((epoch, client))
    }

    fn take(&self, partition: &Partition) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        close_old(&mut idle);
        idle.get_mut(partition)?.pop().map(|(_, connection)| connection)
    }

    fn put_back(&self, partition: &Partition, connection: Connection) {
        let mut idle = lock(&self.idle);
        idle.entry(partition.clone()).or_default().push((Instant::now(), connection));
    }

    pub(crate) fn close_idle(&self) {
        close_old(&mut lock(&self.idle));
    }

    pub(crate) async fn close(&self) {
        lock(&self.idle).clear();
        *self.client.lock().await = None;
    }
}

fn close_old(idle: &mut HashMap<Partition, Vec<(Instant, Connection)>>) {
    idle.retain(|_, of_one| {
        of_one.retain(|(since, _)| since.elapsed() < MAX_IDLE);
        !of_one.is_empty()
    });
}
