//! The requests that the client library has no words for: to make a topic with settings, and to read them.
//!
//! They go in one version each, which every Kafka from 2.4 on knows and no later one has dropped, on a connection
//! that lives for one question: topics are looked after when a process starts.

mod connection;
mod sasl;
#[cfg(test)]
mod tests;
mod wire;

use crate::{failure::Failure, link::Settings};
use connection::{Api, Connection};
use kafkaq_core::{ErrorKind, TopicSpec};
use rskafka::client::error::ProtocolError;
use std::time::Duration;
use tokio::time::timeout;
use wire::Writer;

const METADATA: Api = Api { key: 3, version: 1, name: "Metadata" };
const CREATE_TOPICS: Api = Api { key: 19, version: 4, name: "CreateTopics" };
const DESCRIBE_CONFIGS: Api = Api { key: 32, version: 1, name: "DescribeConfigs" };

/// For the server's own number of partitions or replicas.
const DEFAULT: i16 = -1;
/// The kind of thing that has settings.
const TOPIC: i8 = 2;

pub(crate) struct Admin<'a> {
    settings: &'a Settings,
    connection: Connection,
}

impl<'a> Admin<'a> {
    /// Connects to the first address that answers within its part of the `limit`.
    pub(crate) async fn connect(settings: &'a Settings, limit: Duration) -> Result<Self, Failure> {
        let addresses = &settings.addresses;
        let each = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = Failure::not_connected();
        for address in addresses {
            match timeout(each, Connection::open(settings, address)).await {
                Ok(Ok(connection)) => return Ok(Admin { settings, connection }),
                Ok(Err(failure)) if failure.answered => return Err(failure.unsent()),
                Ok(Err(failure)) => last = failure.unsent(),
                Err(_) => last = Failure::not_connected(),
            }
        }
        Err(last)
    }

    /// Makes a topic, waits for up to `wait` until every node knows of it, and answers whether this call has made
    /// it: it may be there already.
    pub(crate) async fn create(mut self, spec: &TopicSpec, wait: Duration) -> Result<bool, Failure> {
        let made = match self.create_here(spec, wait).await {
            // Only a cluster with ZooKeeper says so; others pass it on themselves.
            Err(failure) if failure.code == Some(ProtocolError::NotController) => {
                let controller = self.controller().await?;
                let connected = Connection::open(self.settings, &controller).await;
                self.connection = connected.map_err(Failure::unsent)?;
                self.create_here(spec, wait).await
            }
            made => made,
        };
        match made {
            Ok(()) => Ok(true),
            // Somebody else was as fast.
            Err(failure) if failure.code == Some(ProtocolError::TopicAlreadyExists) => Ok(false),
            Err(failure) if failure.kind == ErrorKind::Denied => {
                let topic = &spec.name;
                let advice = format!("Allow this user Create on the topic {topic}, or make it beforehand");
                Err(failure.advise(advice))
            }
            // The cluster is what it is.
            Err(failure) if failure.kind == ErrorKind::Invalid => Err(failure.for_good()),
            Err(failure) => Err(failure),
        }
    }

    async fn create_here(&mut self, spec: &TopicSpec, wait: Duration) -> Result<(), Failure> {
        let mut body = Writer::default();
        body.count(1)?;
        body.string(&spec.name)?;
        body.int32(spec.partitions.unwrap_or(DEFAULT.into()));
        body.int16(spec.replication.unwrap_or(DEFAULT));
        // No partition is given to certain nodes.
        body.count(0)?;
        let settings = spec.settings();
        body.count(settings.len())?;
        for (name, value) in settings {
            body.string(name)?;
            body.string(&value)?;
        }
        body.int32(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX));
        // Not only to see whether it could be made.
        body.int8(0);
        let mut answer = self.connection.ask(&CREATE_TOPICS, body).await?;
        let _throttled = answer.int32()?;
        let outcomes = answer.list(|topic| Ok((topic.string()?, topic.int16()?, topic.string()?)))?;
        let of_it = outcomes.into_iter().find(|(name, ..)| name.as_deref() == Some(&*spec.name));
        let (_, code, message) = of_it.ok_or_else(|| Failure::unreadable("no word of the topic"))?;
        Failure::of_code(code, || format!("{}: {}", spec.name, message.unwrap_or_default()))
    }

    /// The settings of a topic, by name and value.
    pub(crate) async fn settings(mut self, topic: &str) -> Result<Vec<(String, String)>, Failure> {
        let mut body = Writer::default();
        body.count(1)?;
        body.int8(TOPIC);
        body.string(topic)?;
        // No list of names is all of them.
        body.int32(-1);
        // Without where each value comes from.
        body.int8(0);
        let mut answer = self.connection.ask(&DESCRIBE_CONFIGS, body).await?;
        let _throttled = answer.int32()?;
        let outcomes = answer.list(|topic| {
            let (code, message, _kind, _name) =
                (topic.int16()?, topic.string()?, topic.int8()?, topic.string()?);
            let settings = topic.list(|setting| {
                let named = (setting.string()?, setting.string()?);
                let (_read_only, _source, _is_secret) = (setting.int8()?, setting.int8()?, setting.int8()?);
                setting.list(|same| Ok((same.string()?, same.string()?, same.int8()?)))?;
                Ok(named)
            })?;
            Ok((code, message, settings))
        })?;
        let of_it = outcomes.into_iter().next();
        let (code, message, settings) = of_it.ok_or_else(|| Failure::unreadable("no word of the topic"))?;
        Failure::of_code(code, || format!("{topic}: {}", message.unwrap_or_default()))?;
        Ok(settings.into_iter().filter_map(|(name, value)| Some((name?, value?))).collect())
    }

    /// The address of the node that makes topics.
    async fn controller(&mut self) -> Result<String, Failure> {
        let mut body = Writer::default();
        // Of no topic.
        body.count(0)?;
        let mut answer = self.connection.ask(&METADATA, body).await?;
        let nodes = answer.list(|node| {
            let (id, host, port, _rack) = (node.int32()?, node.string()?, node.int32()?, node.string()?);
            Ok((id, host.unwrap_or_default(), port))
        })?;
        let controller = answer.int32()?;
        match nodes.into_iter().find(|(id, ..)| *id == controller) {
            Some((_, host, port)) if host.contains(':') => Ok(format!("[{host}]:{port}")),
            Some((_, host, port)) => Ok(format!("{host}:{port}")),
            // It is being chosen.
            None => Err(Failure::not_connected()),
        }
    }
}
