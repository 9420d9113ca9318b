//! Topics: make what is missing, tell what is there, return when an append works.

use crate::{error, log::Trouble, settings, settings::Settings};
use kafkaq_core::{Error, ErrorKind, Result, TopicInfo, TopicSpec};
use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    config::FromClientConfig,
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

const OP: &str = "ensure topics";
/// A new topic's leaders are there after some of these.
const LOOK_AGAIN: Duration = Duration::from_millis(30);

/// The client's metadata calls block, so all of it runs on a thread for that.
pub(crate) async fn ensure(
    settings: Arc<Settings>,
    trouble: Arc<Trouble>,
    specs: Vec<TopicSpec>,
) -> Result<Vec<TopicInfo>> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || Admin::open(settings, trouble, runtime)?.ensure(&specs))
        .await
        .unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, OP).with_source(e)))
}

/// Looks, and creates nothing.
pub(crate) async fn describe(
    settings: Arc<Settings>,
    trouble: Arc<Trouble>,
    names: Vec<Arc<str>>,
) -> Result<Vec<Option<TopicInfo>>> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || Admin::open(settings, trouble, runtime)?.look_at(&names))
        .await
        .unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, OP).with_source(e)))
}

struct Admin {
    settings: Arc<Settings>,
    /// The producer's: an admin client has no queue that its own troubles would come by.
    trouble: Arc<Trouble>,
    client: AdminClient<DefaultClientContext>,
    runtime: Handle,
    deadline: Instant,
}

/// What the metadata says of a topic.
enum Seen {
    Missing,
    /// It is being made, or has lost a leader.
    NotReady,
    Ready {
        partitions: i32,
    },
}

impl Admin {
    fn open(settings: Arc<Settings>, trouble: Arc<Trouble>, runtime: Handle) -> Result<Self> {
        let client = AdminClient::from_config(&settings.admin()).map_err(|e| settings::broken(&e))?;
        let deadline = Instant::now() + settings.request_timeout();
        Ok(Admin { settings, trouble, client, runtime, deadline })
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

    /// A topic that takes larger records than the producer lets pass would promise too much.
    fn check(&self, spec: &TopicSpec) -> Result<()> {
        let limit = self.settings.max_record_bytes();
        match spec.max_record_bytes {
            Some(needs) if needs > limit => {
                Err(Error::not_applied(ErrorKind::Invalid, OP).on(&spec.name).with_advice(format!(
                    "Its records may have {needs} bytes, and this client sends {limit} at most: lower max_task_bytes, \
                     or the max.message.bytes of the topics, or set `message.max.bytes` of the client to {needs}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn look(&self, topic: &str) -> Result<Seen> {
        let metadata = self
            .client
            .inner()
            .fetch_metadata(Some(topic), self.left())
            .map_err(|e| self.failed(error::code_of(&e), topic))?;
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
                return Err(Error::unknown(ErrorKind::Timeout, OP)
                    .on(topic)
                    .with_advice("The topic is there, but not each of its partitions has a leader yet"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The names of those that this call made. Another process may make the same at once: that is as good.
    fn create<'a>(&self, specs: &[&'a TopicSpec]) -> Result<Vec<&'a str>> {
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
        let results = self.wait(self.client.create_topics(&topics, &self.options()), "")?;
        let mut created = Vec::new();
        for (spec, result) in specs.iter().zip(results) {
            match result {
                Ok(_) => created.push(&*spec.name),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(self.failed(code, &spec.name)),
            }
        }
        Ok(created)
    }

    /// Fills in what the server tells. Not every user may ask, and not every server answers: then it stays open.
    fn describe(&self, infos: &mut [TopicInfo]) {
        let names: Vec<_> = infos.iter().map(|i| i.name.clone()).collect();
        let topics: Vec<_> = names.iter().map(|n| ResourceSpecifier::Topic(n)).collect();
        match self.wait(self.client.describe_configs(&topics, &self.options()), "") {
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

    fn wait<T>(&self, call: impl Future<Output = Result<T, KafkaError>>, topic: &str) -> Result<T> {
        // The client answers within its own timeout; ours is the second lock on the door.
        let limit = self.left() + Duration::from_millis(500);
        match self.runtime.block_on(async { tokio::time::timeout(limit, call).await }) {
            Ok(answer) => answer.map_err(|e| self.failed(error::code_of(&e), topic)),
            Err(_) => Err(self.failed(Code::OperationTimedOut, topic)),
        }
    }

    fn options(&self) -> AdminOptions {
        let left = self.left().max(Duration::from_millis(1));
        AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn failed(&self, code: Code, topic: &str) -> Error {
        let bootstrap = self.settings.bootstrap();
        let e = match error::kind(code) {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Other => {
                let e = error::uncertain(code, OP, bootstrap);
                match self.trouble.within(self.settings.request_timeout()) {
                    Some(reason) => e.with_source(reason),
                    None => e,
                }
            }
            ErrorKind::Denied
                if matches!(code, Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) =>
            {
                error::rejected(code, OP, bootstrap).with_advice(
                    "Allow this user Create and Describe on the topic, or have someone make it beforehand",
                )
            }
            _ => error::rejected(code, OP, bootstrap),
        };
        if topic.is_empty() { e } else { e.on(topic) }
    }
}

fn fill_in(info: &mut TopicInfo, found: &ConfigResource) {
    for entry in &found.entries {
        if let Some(value) = entry.value.as_deref() {
            info.learn(&entry.name, value);
        }
    }
}
