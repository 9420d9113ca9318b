//! Creating a topic with settings, and reading settings.

use crate::{
    failure::Failure,
    wire::{
        Api, Request,
        format::{Reader, Writer},
    },
};
use kafkaq_core::TopicSpec;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

const CREATE_TOPICS: [Api; 1] = [Api::new(19, 4, "CreateTopics")];
const DESCRIBE_CONFIGS: [Api; 1] = [Api::new(32, 1, "DescribeConfigs")];

/// The server's default number of partitions or replicas.
const DEFAULT: i16 = -1;
/// The resource type of topics.
const TOPIC: i8 = 2;

pub(crate) struct CreateTopic<'a> {
    pub(crate) spec: &'a TopicSpec,
    /// How long the server may wait until every node knows of it.
    pub(crate) wait: Duration,
}

impl Request for CreateTopic<'_> {
    type Response = ();
    const CHANGES: bool = true;

    fn versions(&self) -> &'static [Api] {
        &CREATE_TOPICS
    }

    fn encode(&self, _: &Api, body: &mut Writer) -> Result<(), Failure> {
        let spec = self.spec;
        body.array(1)?;
        body.string(&spec.name)?;
        body.int32(spec.partitions.unwrap_or(DEFAULT.into()));
        body.int16(spec.replication.unwrap_or(DEFAULT));
        // No manual assignment of partitions to nodes.
        body.array(0)?;
        let settings = spec.settings();
        body.array(settings.len())?;
        for (name, value) in settings {
            body.string(name)?;
            body.string(&value)?;
        }
        body.int32(i32::try_from(self.wait.as_millis()).unwrap_or(i32::MAX));
        // Don't just validate the request.
        body.bool(false);
        Ok(())
    }

    fn decode(&self, _: &Api, body: &mut Reader) -> Result<(), Failure> {
        let name = &*self.spec.name;
        let _throttled = body.int32()?;
        let outcomes = body.array(|topic| Ok((topic.string()?, topic.int16()?, topic.string()?)))?;
        let of_it = outcomes.into_iter().find(|(of, ..)| of.as_deref() == Some(name));
        let (_, code, message) = of_it.ok_or_else(|| Failure::unreadable("the response lacks the topic"))?;
        Failure::of_code(code, || format!("{name}: {}", message.unwrap_or_default()))
    }
}

pub(crate) struct DescribeConfigs<'a> {
    pub(crate) topics: &'a BTreeSet<Arc<str>>,
}

/// Names and values.
pub(crate) type Configs = Vec<(String, String)>;

impl Request for DescribeConfigs<'_> {
    /// By the names of the topics.
    type Response = HashMap<String, Result<Configs, Failure>>;

    fn versions(&self) -> &'static [Api] {
        &DESCRIBE_CONFIGS
    }

    fn encode(&self, _: &Api, body: &mut Writer) -> Result<(), Failure> {
        body.array(self.topics.len())?;
        for topic in self.topics {
            body.int8(TOPIC);
            body.string(topic)?;
            // A null list of names requests all settings.
            body.no_array();
        }
        // Don't include the sources of values.
        body.bool(false);
        Ok(())
    }

    fn decode(&self, _: &Api, body: &mut Reader) -> Result<Self::Response, Failure> {
        let _throttled = body.int32()?;
        let described = body.array(|topic| {
            let (code, message, _kind, name) =
                (topic.int16()?, topic.string()?, topic.int8()?, topic.string()?.unwrap_or_default());
            let configs = topic.array(|config| {
                let named = (config.string()?, config.string()?);
                let (_read_only, _source, _is_secret) = (config.int8()?, config.int8()?, config.int8()?);
                config.array(|same| Ok((same.string()?, same.string()?, same.int8()?)))?;
                Ok(named)
            })?;
            let configs = configs.into_iter().filter_map(|(name, value)| Some((name?, value?))).collect();
            let outcome = Failure::of_code(code, || format!("{name}: {}", message.unwrap_or_default()));
            Ok((name, outcome.map_err(Failure::unsent).map(|()| configs)))
        })?;
        Ok(described.into_iter().collect())
    }
}
