//! Topics: creates missing ones, describes existing ones.

use crate::{
    failure::Failure,
    fetch,
    link::{Limits, Link},
    protocol::{
        metadata::DescribedTopic,
        topics::{CreateTopic, DescribeConfigs},
    },
};
use kafkaq_core::{ErrorKind, Partition, TopicInfo, TopicSpec};
use rskafka::client::error::ProtocolError;
use std::{collections::BTreeSet, sync::Arc};

pub(crate) async fn ensure(link: &Link, specs: &[TopicSpec]) -> Result<Vec<TopicInfo>, Failure> {
    let limits = link.patient();
    let names: Vec<Arc<str>> = specs.iter().map(|spec| spec.name.clone()).collect();
    let there = link.repeat(limits, || partitions(link, &names, limits)).await?;
    let mut created = vec![false; specs.len()];
    let ensured = async {
        for ((spec, there), created) in specs.iter().zip(there).zip(&mut created) {
            *created = there.is_none() && create(link, spec, limits).await?;
        }
        settled(link, &names, limits).await.map_err(|failure| match failure.kind {
            // They exist: the broker that was asked doesn't know them yet.
            ErrorKind::NotFound => Failure::too_new(),
            _ => failure,
        })
    };
    let mut infos = match ensured.await {
        Ok(infos) => infos,
        // A topic that was created stays.
        Err(failure) if created.contains(&true) => return Err(failure.half_done()),
        Err(failure) => return Err(failure),
    };
    for (info, created) in infos.iter_mut().zip(created) {
        info.created = created;
    }
    Ok(infos)
}

/// Waits until all partitions of the topics are available.
async fn settled(link: &Link, names: &[Arc<str>], limits: Limits) -> Result<Vec<TopicInfo>, Failure> {
    let mut infos = link
        .repeat(limits, || async {
            let there = partitions(link, names, limits).await?;
            let there = names.iter().zip(there).map(|(name, there)| match there {
                Some(partitions) if partitions > 0 => Ok(TopicInfo::new(name.clone(), partitions)),
                _ => Err(Failure::not_found()),
            });
            there.collect::<Result<Vec<_>, _>>()
        })
        .await?;
    learn(link, infos.iter_mut().collect(), limits).await?;
    // A leader is elected first and available a moment later.
    let all = infos.iter().flat_map(|t| (0..t.partitions).map(|n| Partition::new(t.name.clone(), n)));
    let serves = fetch::offsets(link, &all.collect::<Vec<_>>(), limits).await;
    serves.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(infos)
}

pub(crate) async fn describe(link: &Link, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>, Failure> {
    let limits = link.patient();
    let there = link.repeat(limits, || partitions(link, names, limits)).await?;
    let info = |(name, there): (&Arc<str>, Option<i32>)| Some(TopicInfo::new(name.clone(), there?));
    let mut infos: Vec<_> = names.iter().zip(there).map(info).collect();
    learn(link, infos.iter_mut().flatten().collect(), limits).await?;
    Ok(infos)
}

/// How many partitions each topic has, if it exists.
async fn partitions(link: &Link, names: &[Arc<str>], limits: Limits) -> Result<Vec<Option<i32>>, Failure> {
    let found = link.cluster.topics(&link.connections, names, limits.deadline).await?;
    let count = |found: Result<DescribedTopic, Failure>| match found {
        Ok(topic) => Ok(Some(i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))),
        Err(Failure { kind: ErrorKind::NotFound, .. }) => Ok(None),
        // Its name is invalid, or it may not be described.
        Err(failure) => Err(failure),
    };
    found.into_iter().map(count).collect()
}

/// Creates a topic, waits until every node knows it, and returns whether this call has created it: it may already
/// exist.
async fn create(link: &Link, spec: &TopicSpec, limits: Limits) -> Result<bool, Failure> {
    let wait = link.connections.settings.request_timeout;
    let once = || async {
        let controller = link.cluster.controller(&link.connections, limits.deadline).await?;
        link.connections.send(&controller, &CreateTopic { spec, wait }, limits.deadline).await
    };
    // Invalid requests stay invalid; a broker that is no longer the controller redirects us to another one.
    let once = || async {
        once().await.map_err(|failure| match failure.kind {
            ErrorKind::Invalid => failure.for_good(),
            _ => failure,
        })
    };
    match link.repeat(limits, once).await {
        Ok(()) => Ok(true),
        // Another process has created it meanwhile.
        Err(failure) if failure.code == Some(ProtocolError::TopicAlreadyExists) => Ok(false),
        // By the server's default, enough brokers should exist: some have not joined yet, or are down.
        Err(failure)
            if failure.code == Some(ProtocolError::InvalidReplicationFactor)
                && spec.replication.is_none() =>
        {
            Err(failure.few_brokers())
        }
        Err(failure) if failure.kind == ErrorKind::Denied => {
            let topic = &spec.name;
            let advice = format!("Allow this user Create on the topic {topic}, or create it beforehand");
            Err(failure.advise(advice))
        }
        Err(failure) => Err(failure),
    }
}

/// Fills in the settings that topics have.
async fn learn(link: &Link, infos: Vec<&mut TopicInfo>, limits: Limits) -> Result<(), Failure> {
    if infos.is_empty() {
        return Ok(());
    }
    let topics: BTreeSet<Arc<str>> = infos.iter().map(|info| info.name.clone()).collect();
    let ask = || async {
        let request = DescribeConfigs { topics: &topics };
        link.cluster.ask_anybody(&link.connections, &request, limits.deadline).await
    };
    let described = match link.repeat(limits, ask).await {
        Ok(described) => described,
        Err(failure) if is_withheld(&failure) => {
            topics.iter().map(|name| (name.to_string(), Err(failure.clone()))).collect()
        }
        Err(failure) => return Err(failure),
    };
    for info in infos {
        let none = || Err(Failure::unreadable("the response lacks the topic").unsent());
        match described.get(&*info.name).cloned().unwrap_or_else(none) {
            Ok(configs) => configs.iter().for_each(|(name, value)| info.learn(name, value)),
            Err(failure) if is_withheld(&failure) => tracing::warn!(
                target: "kafkaq",
                topic = &*info.name,
                "its settings can't be read ({}), so its retention isn't checked; \
                 allow this user DescribeConfigs on it",
                failure.reason()
            ),
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Whether access to the settings is denied: an operator may have created the topics carefully and granted only what is
/// needed.
fn is_withheld(failure: &Failure) -> bool {
    matches!(failure.kind, ErrorKind::Denied | ErrorKind::Unsupported)
}
