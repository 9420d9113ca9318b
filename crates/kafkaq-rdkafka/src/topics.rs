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
        let configs: Vec<_> = specs.iter().map(|s| config(s)).collect();
        let topics: Vec<_> = specs
            .iter()
            .zip(&configs)
            .map(|(spec, config)| {
                let replication = TopicReplication::Fixed(spec.replication.map_or(-1, i32::from));
                let new = NewTopic::new(&spec.name, spec.partitions.unwrap_or(-1), replication);
                config.iter().fold(new, |new, (name, value)| new.set(name, value))
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

/// The settings a topic is made with.
fn config(spec: &TopicSpec) -> Vec<(&'static str, String)> {
    let mut config = Vec::new();
    if let Some(retention) = spec.retention {
        config.push(("retention.ms", millis(retention).to_string()));
    }
    if spec.unlimited_bytes {
        config.push(("retention.bytes", "-1".into()));
    }
    if let Some(max) = spec.max_record_bytes {
        config.push(("max.message.bytes", max.to_string()));
    }
    if spec.append_time {
        config.push(("message.timestamp.type", "LogAppendTime".into()));
    }
    if spec.compacted {
        config.push(("cleanup.policy", "compact".into()));
    }
    config
}

/// Kafka's form of a duration: -1 is for ever.
fn millis(duration: Duration) -> i64 {
    if duration == Duration::MAX { -1 } else { i64::try_from(duration.as_millis()).unwrap_or(-1) }
}

fn fill_in(info: &mut TopicInfo, found: &ConfigResource) {
    for entry in &found.entries {
        let Some(value) = entry.value.as_deref() else { continue };
        match entry.name.as_str() {
            "cleanup.policy" => info.compacted = Some(value.split(',').any(|p| p.trim() == "compact")),
            "retention.ms" => {
                info.retention = value
                    .parse::<i64>()
                    .ok()
                    .map(|ms| u64::try_from(ms).map_or(Duration::MAX, Duration::from_millis));
            }
            "retention.bytes" => info.retention_bytes = value.parse().ok(),
            "max.message.bytes" => info.max_record_bytes = value.parse().ok(),
            "message.timestamp.type" => info.append_time = Some(value == "LogAppendTime"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_becomes_the_settings_that_the_design_names_and_nothing_else() {
        assert_eq!(config(&TopicSpec::new("t")), []);
        let mut spec = TopicSpec::new("t");
        spec.retention = Some(Duration::MAX);
        spec.unlimited_bytes = true;
        spec.max_record_bytes = Some(2_000_000);
        spec.append_time = true;
        spec.compacted = true;
        let found = config(&spec);
        let expected = [
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", "2000000"),
            ("message.timestamp.type", "LogAppendTime"),
            ("cleanup.policy", "compact"),
        ];
        assert_eq!(found.iter().map(|(k, v)| (*k, v.as_str())).collect::<Vec<_>>(), expected);
        spec.retention = Some(Duration::from_secs(7));
        assert_eq!(config(&spec)[0].1, "7000");
    }
}
