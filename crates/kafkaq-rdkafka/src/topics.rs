//! Topics: creates missing ones, describes existing ones, and waits until appends work.

use crate::{
    error,
    reader::{Active, Client, Reader},
    settings,
    settings::Settings,
};
use kafkaq_core::{Error, ErrorKind, Result, TopicInfo, TopicSpec};
use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    config::FromClientConfig,
    consumer::Consumer as _,
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

const ENSURE: &str = "ensure topics";
const DESCRIBE: &str = "describe topics";
/// A new topic has leaders after a few of these.
const LOOK_AGAIN: Duration = Duration::from_millis(30);

/// The client's metadata calls block, so all of it runs on a thread for blocking work.
pub(crate) async fn ensure(reader: Arc<Reader>, specs: Vec<TopicSpec>) -> Result<Vec<TopicInfo>> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || Admin::open(ENSURE, &reader, runtime)?.ensure(&specs))
        .await
        .unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, ENSURE).with_source(e)))
}

/// Describes topics, without creating any.
pub(crate) async fn describe(reader: Arc<Reader>, names: Vec<Arc<str>>) -> Result<Vec<Option<TopicInfo>>> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || Admin::open(DESCRIBE, &reader, runtime)?.look_at(&names))
        .await
        .unwrap_or_else(|e| Err(Error::not_applied(ErrorKind::Other, DESCRIBE).with_source(e)))
}

struct Admin<'a> {
    op: &'static str,
    settings: &'a Settings,
    /// For queries that need no admin rights.
    client: Arc<Client>,
    _active: Active,
    runtime: Handle,
    deadline: Instant,
}

/// A topic's state in the metadata.
enum Seen {
    Missing,
    /// It is being created, or has lost a leader.
    NotReady,
    Ready {
        partitions: i32,
    },
}

impl<'a> Admin<'a> {
    fn open(op: &'static str, reader: &'a Reader, runtime: Handle) -> Result<Self> {
        let (client, active) = reader.client(op)?;
        let deadline = Instant::now() + reader.settings.request_timeout();
        Ok(Admin { op, settings: &reader.settings, client, _active: active, runtime, deadline })
    }

    fn ensure(&self, specs: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        specs.iter().try_for_each(|spec| self.check(spec))?;
        let mut missing = Vec::new();
        for spec in specs {
            if matches!(self.look(&spec.name)?, Seen::Missing) {
                missing.push(spec);
            }
        }
        let created = self.create(&missing)?;
        let mut infos = Vec::with_capacity(specs.len());
        for spec in specs {
            let mut info = TopicInfo::new(spec.name.clone(), self.wait_until_ready(&spec.name)?);
            info.created = created.contains(&&*spec.name);
            infos.push(info);
        }
        self.describe(&mut infos);
        Ok(infos)
    }

    fn look_at(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        let mut found = Vec::new();
        for name in names {
            if !matches!(self.look(name)?, Seen::Missing) {
                found.push(TopicInfo::new(name.clone(), self.wait_until_ready(name)?));
            }
        }
        self.describe(&mut found);
        let of = |name: &Arc<str>| found.iter().find(|info| info.name == *name).cloned();
        Ok(names.iter().map(of).collect())
    }

    /// Refuses a topic that would accept larger records than the producer can send.
    fn check(&self, spec: &TopicSpec) -> Result<()> {
        let limit = self.settings.max_record_bytes();
        let Some(needs) = spec.max_record_bytes.filter(|needs| *needs > limit) else { return Ok(()) };
        let client = if needs > settings::MOST_MESSAGE_BYTES {
            format!(". librdkafka's own limit is {}", settings::MOST_MESSAGE_BYTES)
        } else {
            format!(", or set `message.max.bytes` of the client to {needs}")
        };
        Err(Error::not_applied(ErrorKind::Invalid, self.op).on(&spec.name).with_advice(format!(
            "Its records may have {needs} bytes, and this client sends at most {limit}: lower \
             max_task_bytes, or the max.message.bytes of the topics{client}"
        )))
    }

    fn look(&self, topic: &str) -> Result<Seen> {
        let metadata = self.client.fetch_metadata(Some(topic), self.left());
        let metadata = metadata.map_err(|e| self.failed(error::code_of(&e), topic))?;
        self.settings.connection_errors().is_over();
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
            return Ok(Seen::Missing);
        };
        match found.error().map(Code::from) {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(Seen::Missing),
            Some(Code::LeaderNotAvailable) => return Ok(Seen::NotReady),
            Some(code) => return Err(self.failed(code, topic)),
            None => {}
        }
        let partitions = found.partitions();
        let led = partitions.iter().all(|p| p.leader() >= 0);
        Ok(match i32::try_from(partitions.len()) {
            Ok(partitions) if led && partitions > 0 => Seen::Ready { partitions },
            _ => Seen::NotReady,
        })
    }

    fn wait_until_ready(&self, topic: &str) -> Result<i32> {
        loop {
            if let Seen::Ready { partitions } = self.look(topic)? {
                return Ok(partitions);
            }
            if self.left().is_zero() {
                return Err(Error::not_applied(ErrorKind::Timeout, self.op)
                    .on(topic)
                    .with_advice("The topic exists, but not all of its partitions have a leader yet"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Returns the names of those that this call created. Another process may create the same concurrently: that is
    /// fine.
    fn create<'s>(&self, specs: &[&'s TopicSpec]) -> Result<Vec<&'s str>> {
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let settings: Vec<_> = specs.iter().map(|spec| spec.settings()).collect();
        let topics: Vec<_> = specs
            .iter()
            .zip(&settings)
            .map(|(spec, settings)| {
                let replication = TopicReplication::Fixed(spec.replication.map_or(-1, i32::from));
                let new = NewTopic::new(&spec.name, spec.partitions.unwrap_or(-1), replication);
                settings.iter().fold(new, |new, (name, value)| new.set(name, value))
            })
            .collect();
        let client = self.administer()?;
        let results = self.wait(client.create_topics(&topics, &self.options()));
        // It may have been in progress when the time was up.
        let results = results.map_err(|code| self.failed_with(code, Error::unknown))?;
        let mut created = Vec::new();
        for (spec, result) in specs.iter().zip(results) {
            match result {
                Ok(_) => created.push(&*spec.name),
                Err((_, Code::TopicAlreadyExists)) => {}
                // By the server's default, enough brokers should exist: some have not joined yet, or are down.
                Err((_, Code::InvalidReplicationFactor)) if spec.replication.is_none() => {
                    let error = Error::not_applied(ErrorKind::Unavailable, self.op).on(&spec.name);
                    return Err(error.with_advice(
                        "Fewer brokers are available than the server's default.replication.factor: wait for them, or \
                         set the replication factor of the queue",
                    ));
                }
                Err((_, code)) => return Err(self.failed(code, &spec.name)),
            }
        }
        Ok(created)
    }

    /// Fills in what the server reports. Not every user is allowed to query it, and not every server responds: then it
    /// stays unknown.
    fn describe(&self, infos: &mut [TopicInfo]) {
        let names: Vec<_> = infos.iter().map(|i| i.name.clone()).collect();
        let topics: Vec<_> = names.iter().map(|n| ResourceSpecifier::Topic(n)).collect();
        let asked = self.administer().and_then(|client| {
            let found = self.wait(client.describe_configs(&topics, &self.options()));
            found.map_err(|code| self.failed_with(code, Error::not_applied))
        });
        match asked {
            Ok(found) => {
                for (info, found) in infos.iter_mut().zip(found) {
                    match found {
                        Ok(found) => fill_in(info, &found),
                        Err(code) => tracing::warn!(topic = %info.name, %code, "can't read its settings"),
                    }
                }
            }
            Err(e) => tracing::warn!("can't read the settings of the topics: {e}"),
        }
    }

    fn administer(&self) -> Result<AdminClient<DefaultClientContext>> {
        AdminClient::from_config(&self.settings.admin()).map_err(|e| settings::broken(&e))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, KafkaError>>) -> Result<T, Code> {
        // The client returns within its own timeout; ours is a safeguard.
        let limit = self.left() + Duration::from_millis(500);
        match self.runtime.block_on(async { tokio::time::timeout(limit, call).await }) {
            Ok(answer) => answer.map_err(|e| error::code_of(&e)),
            Err(_) => Err(Code::OperationTimedOut),
        }
    }

    fn options(&self) -> AdminOptions {
        let left = self.left().max(Duration::from_millis(1));
        AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A query changes nothing, and neither does what the server refused.
    fn failed(&self, code: Code, topic: &str) -> Error {
        self.failed_with(code, Error::not_applied).on(topic)
    }

    fn failed_with(&self, code: Code, error: fn(ErrorKind, &'static str) -> Error) -> Error {
        let bootstrap = self.settings.bootstrap();
        match error::kind(code) {
            ErrorKind::Unavailable | ErrorKind::Timeout => {
                error::overdue(self.settings, "No response", |kind| error(kind, self.op))
            }
            ErrorKind::Other => error::dress(error(ErrorKind::Other, self.op), code, bootstrap),
            ErrorKind::Denied
                if matches!(code, Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) =>
            {
                error::rejected(code, self.op, bootstrap).with_advice(
                    "Allow this user Create and Describe on the topic, or have someone create it beforehand",
                )
            }
            _ => error::rejected(code, self.op, bootstrap),
        }
    }
}

fn fill_in(info: &mut TopicInfo, found: &ConfigResource) {
    for entry in &found.entries {
        if let Some(value) = entry.value.as_deref() {
            info.learn(&entry.name, value);
        }
    }
}
