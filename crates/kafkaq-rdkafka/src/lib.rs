#![doc = include_str!("../README.md")]

mod batch;
mod check;
mod commit;
mod doubt;
mod error;
mod fetch;
mod group;
mod heartbeat;
mod lane;
mod log;
mod lost_brokers;
mod member;
mod offsets;
mod past_positions;
mod plan;
mod polled;
mod poller;
mod producer;
mod reader;
mod session;
mod settings;
mod slot;
mod topics;

use async_trait::async_trait;
use kafkaq_core::{
    Batch, Broker, Consumer, FetchLimit, JoinRequest, Log, NewRecord, Offsets, Partition, PartitionLog,
    Position, Result, TopicInfo, TopicSpec, lock,
};
use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::Instant,
};

pub use settings::{Builder, GroupProtocol};

/// Kafka, or a compatible server, through librdkafka. Share it in an `Arc`: one producer serves the process, and each
/// [`join`](Broker::join) has its own consumer and thread.
pub struct RdKafka {
    settings: Arc<settings::Settings>,
    appender: Arc<producer::Appender>,
    reader: Arc<reader::Reader>,
    members: Mutex<Vec<Weak<member::Shared>>>,
}

impl RdKafka {
    /// Starts a builder. `bootstrap` is one or more addresses: `"host:port,host:port"`.
    pub fn builder(bootstrap: impl Into<String>) -> Builder {
        Builder::new(bootstrap.into())
    }

    fn open(settings: settings::Settings) -> Result<Self> {
        let settings = Arc::new(settings);
        let appender = Arc::new(producer::Appender::open(settings.clone())?);
        let reader = Arc::new(reader::Reader::new(settings.clone()));
        Ok(RdKafka { settings, appender, reader, members: Mutex::default() })
    }

    /// The same producer and reader for internal use: a member that checks its own topics.
    fn share(&self) -> RdKafka {
        let (appender, reader) = (self.appender.clone(), self.reader.clone());
        RdKafka { settings: self.settings.clone(), appender, reader, members: Mutex::default() }
    }
}

impl fmt::Debug for RdKafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdKafka").field("bootstrap", &self.settings.bootstrap()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Log for RdKafka {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.appender.check_open("ensure topics")?;
        topics::ensure(self.reader.clone(), topics.to_vec()).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.appender.check_open("describe topics")?;
        topics::describe(self.reader.clone(), names.to_vec()).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        self.appender.append(to, records).await
    }

    async fn close(&self) -> Result<()> {
        let members: Vec<_> = lock(&self.members).drain(..).filter_map(|m| m.upgrade()).collect();
        members.iter().for_each(|m| m.ask_to_leave());
        let (appended, read) = tokio::join!(self.appender.close(), self.reader.close());
        let mut closed = appended.and(read);
        let until = Instant::now() + self.settings.request_timeout();
        for member in members {
            closed = closed.and(member.left(until.saturating_duration_since(Instant::now())).await);
        }
        closed
    }
}

#[async_trait]
impl Broker for RdKafka {
    async fn join(&self, request: JoinRequest) -> Result<Consumer> {
        self.appender.check_open("join")?;
        let (consumer, shared) =
            poller::start(self.settings.clone(), Arc::new(self.share()), request).await?;
        let mut members = lock(&self.members);
        members.retain(|m| m.strong_count() > 0);
        members.push(Arc::downgrade(&shared));
        // A concurrent close has not seen it.
        self.appender.check_open("join").inspect_err(|_| shared.ask_to_leave())?;
        Ok(consumer)
    }
}

#[async_trait]
impl PartitionLog for RdKafka {
    /// An offset below the first record reads from the first; one beyond the end is `Invalid`.
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        self.reader.fetch(from, limit).await.map_err(|e| e.on(&from.partition))
    }

    /// While somebody's transaction is open, `next` is where that begins.
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        self.reader.offsets(of).await
    }
}

/// Drops a client in the background: it can take long, and librdkafka may never finish. If no thread can be started, it
/// happens here.
fn aside<T: Send + 'static>(client: T) -> Option<JoinHandle<()>> {
    thread::Builder::new().name("kafkaq-close".into()).spawn(move || drop(client)).ok()
}
