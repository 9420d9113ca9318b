//! Brokers, topics and leaders. It never makes the server create a topic.

use crate::{
    failure::Failure,
    wire::{
        Api, Request,
        format::{Reader, TopicId, Writer},
    },
};
use std::sync::Arc;

/// The first version with usable topic ids, and the one for servers that have none.
const VERSIONS: [Api; 2] = [Api::flexible(3, 12, "Metadata"), Api::new(3, 7, "Metadata")];

/// The topics to query; an empty list queries only the brokers.
pub(crate) struct Metadata {
    pub(crate) topics: Vec<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Described {
    /// Id and address.
    pub(crate) brokers: Vec<(i32, Arc<str>)>,
    pub(crate) controller: i32,
    pub(crate) topics: Vec<DescribedTopic>,
}

#[derive(Clone, Debug)]
pub(crate) struct DescribedTopic {
    pub(crate) code: i16,
    pub(crate) name: String,
    pub(crate) id: Option<TopicId>,
    pub(crate) partitions: Vec<DescribedPartition>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DescribedPartition {
    pub(crate) index: i32,
    /// Negative while there is none.
    pub(crate) leader: i32,
    /// The number of that leadership, which grows; negative if the server has none.
    pub(crate) epoch: i32,
}

impl Request for Metadata {
    type Response = Described;

    fn versions(&self) -> &'static [Api] {
        &VERSIONS
    }

    fn encode(&self, api: &Api, body: &mut Writer) -> Result<(), Failure> {
        body.array(self.topics.len())?;
        for topic in &self.topics {
            if api.version >= 10 {
                body.topic_id(None);
            }
            body.string(topic)?;
            body.end();
        }
        // Don't create missing topics.
        body.bool(false);
        if api.version < 11 {
            // Don't include permissions on the cluster.
            body.bool(false);
        }
        // Nor permissions on the topics.
        body.bool(false);
        body.end();
        Ok(())
    }

    fn decode(&self, api: &Api, body: &mut Reader) -> Result<Described, Failure> {
        let _throttled = body.int32()?;
        let brokers = body.array(|broker| {
            let (id, host, port, _rack) =
                (broker.int32()?, broker.string()?, broker.int32()?, broker.string()?);
            broker.end()?;
            Ok((id, address(&host.unwrap_or_default(), port)))
        })?;
        let (_cluster, controller) = (body.string()?, body.int32()?);
        let topics = body.array(|topic| {
            let (code, name) = (topic.int16()?, topic.string()?.unwrap_or_default());
            let id = if api.version >= 10 { topic.topic_id()? } else { None };
            let _internal = topic.int8()?;
            let partitions = topic.array(|partition| {
                let (_code, index, leader, epoch) =
                    (partition.int16()?, partition.int32()?, partition.int32()?, partition.int32()?);
                for _replicas_in_sync_offline in 0..3 {
                    partition.array(Reader::int32)?;
                }
                partition.end()?;
                Ok(DescribedPartition { index, leader, epoch })
            })?;
            if api.version >= 8 {
                let _permissions = topic.int32()?;
            }
            topic.end()?;
            Ok(DescribedTopic { code, name, id, partitions })
        })?;
        Ok(Described { brokers, controller, topics })
    }
}

fn address(host: &str, port: i32) -> Arc<str> {
    match host.contains(':') {
        true => format!("[{host}]:{port}").into(),
        false => format!("{host}:{port}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_address_gets_brackets() {
        assert_eq!(&*address("::1", 9092), "[::1]:9092");
        assert_eq!(&*address("kafka-1", 9092), "kafka-1:9092");
    }

    #[test]
    fn no_version_lets_the_server_create_topics() {
        for api in &VERSIONS {
            let mut body = Writer::new(api.flexible);
            Metadata { topics: vec!["t".into()] }.encode(api, &mut body).unwrap();
            let mut sent = Reader::new(body.bytes.into(), api.flexible);
            sent.array(|topic| {
                if api.version >= 10 {
                    topic.topic_id()?;
                }
                topic.string()?;
                topic.end()
            })
            .unwrap();
            assert_eq!(sent.int8().unwrap(), 0, "version {}", api.version);
        }
    }
}
