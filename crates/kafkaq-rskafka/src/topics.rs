//! Topics: what is missing is made, as far as rskafka can.

use crate::{
    failure::Failure,
    fetch,
    link::{Cluster, Limits, Link},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use kafkaq_core::{ErrorKind, Partition, TopicInfo, TopicSpec};
use rskafka::client::error::ProtocolError;
use std::{sync::Arc, time::Duration};

/// The server's default. From Kafka 2.4 on.
const DEFAULT: i32 = -1;
/// Partitions looked at at once.
const AT_ONCE: usize = 8;

pub(crate) async fn ensure(link: &Link, specs: &[TopicSpec]) -> Result<Vec<TopicInfo>, Failure> {
    let limits = link.patient();
    let there = link.ask_cluster(limits, |cluster| async move { cluster.topics().await }).await?;
    let mut created = Vec::with_capacity(specs.len());
    for spec in specs {
        created.push(match there.get(&*spec.name) {
            Some(_) => false,
            None => create(link, spec, limits).await?,
        });
    }
    let seen = link.ask_cluster(limits, |cluster| async move {
        let there = cluster.topics().await?;
        match specs.iter().all(|spec| there.get(&*spec.name).is_some_and(|n| *n > 0)) {
            true => Ok(there),
            false => Err(Failure::not_found()),
        }
    });
    let there = seen.await?;
    let infos: Vec<TopicInfo> = specs
        .iter()
        .zip(created)
        .map(|(spec, created)| {
            let partitions = there.get(&*spec.name).copied().unwrap_or_default();
            let mut info = TopicInfo::new(spec.name.clone(), partitions);
            info.created = created;
            info
        })
        .collect();
    // A leader is chosen first and serves a moment later.
    let serves = |of: Partition| async move { fetch::offsets(link, &of, limits).await };
    let served = stream::iter(partitions_of(&infos)).map(serves).buffer_unordered(AT_ONCE);
    served.try_for_each(|_| async { Ok(()) }).await?;
    Ok(infos)
}

fn partitions_of(topics: &[TopicInfo]) -> Vec<Partition> {
    topics.iter().flat_map(|t| (0..t.partitions).map(|n| Partition::new(t.name.clone(), n))).collect()
}

/// Answers whether this call made it: somebody else may be as fast.
async fn create(link: &Link, spec: &TopicSpec, limits: Limits) -> Result<bool, Failure> {
    let (partitions, replicas) =
        (spec.partitions.unwrap_or(DEFAULT), spec.replication.unwrap_or(DEFAULT as i16));
    let wait_ms = i32::try_from(link.settings.request_timeout.as_millis()).unwrap_or(i32::MAX);
    let make = |cluster: Arc<Cluster>| async move {
        let controller = cluster.client.controller_client().map_err(Failure::connecting)?;
        let made = controller.create_topic(&*spec.name, partitions, replicas, wait_ms).await;
        match made.map_err(Failure::of) {
            Err(failure) if failure.code == Some(ProtocolError::TopicAlreadyExists) => Ok(false),
            // The cluster is what it is.
            Err(failure) if failure.kind == ErrorKind::Invalid => Err(failure.for_good()),
            made => made.map(|()| true),
        }
    };
    let made = link.ask_cluster(limits, make).await?;
    if made && let Some(settings) = left_out(spec) {
        tracing::warn!(
            target: "kafkaq",
            "rskafka makes topics with the server's settings; now run: kafka-configs.sh --alter --entity-type topics \
             --entity-name {} --add-config {settings}",
            spec.name
        );
    }
    Ok(made)
}

/// The settings that were asked for and can't be given.
fn left_out(spec: &TopicSpec) -> Option<String> {
    let retention = spec.retention.map(|r| match r {
        Duration::MAX => "retention.ms=-1".into(),
        r => format!("retention.ms={}", r.as_millis()),
    });
    let settings = [
        retention,
        spec.unlimited_bytes.then(|| "retention.bytes=-1".into()),
        spec.max_record_bytes.map(|n| format!("max.message.bytes={n}")),
        spec.append_time.then(|| "message.timestamp.type=LogAppendTime".into()),
        spec.compacted.then(|| "cleanup.policy=compact".into()),
    ];
    let settings: Vec<String> = settings.into_iter().flatten().collect();
    (!settings.is_empty()).then(|| settings.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_given_are_named_as_kafkas_tools_take_them() {
        assert_eq!(left_out(&TopicSpec::new("t")), None);
        let mut spec = TopicSpec::new("t");
        spec.retention = Some(Duration::from_secs(60));
        spec.unlimited_bytes = true;
        spec.append_time = true;
        let expected = "retention.ms=60000,retention.bytes=-1,message.timestamp.type=LogAppendTime";
        assert_eq!(left_out(&spec).unwrap(), expected);
    }
}
