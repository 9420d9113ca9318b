//! Topics: what is missing is made, what is there is told.

use crate::{
    failure::Failure,
    fetch,
    link::{Limits, Link},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use kafkaq_core::{ErrorKind, Partition, TopicInfo, TopicSpec};
use std::sync::Arc;

/// Partitions looked at at once.
const AT_ONCE: usize = 8;

pub(crate) async fn ensure(link: &Link, specs: &[TopicSpec]) -> Result<Vec<TopicInfo>, Failure> {
    let (limits, wait) = (link.patient(), link.settings.request_timeout);
    let there = link.ask_cluster(limits, |cluster| async move { cluster.topics().await }).await?;
    let mut created = Vec::with_capacity(specs.len());
    for spec in specs {
        created.push(match there.get(&*spec.name) {
            Some(_) => false,
            None => link.administer(limits, |admin| admin.create(spec, wait)).await?,
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
    let mut infos = Vec::with_capacity(specs.len());
    for (spec, created) in specs.iter().zip(created) {
        let partitions = there.get(&*spec.name).copied().unwrap_or_default();
        let mut info = TopicInfo::new(spec.name.clone(), partitions);
        info.created = created;
        learn(link, &mut info, limits).await?;
        infos.push(info);
    }
    // A leader is chosen first and serves a moment later.
    let serves = |of: Partition| async move { fetch::offsets(link, &of, limits).await };
    let served = stream::iter(partitions_of(&infos)).map(serves).buffer_unordered(AT_ONCE);
    served.try_for_each(|_| async { Ok(()) }).await?;
    Ok(infos)
}

pub(crate) async fn describe(link: &Link, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>, Failure> {
    let limits = link.patient();
    let there = link.ask_cluster(limits, |cluster| async move { cluster.topics().await }).await?;
    let mut infos = Vec::with_capacity(names.len());
    for name in names {
        infos.push(match there.get(&**name) {
            Some(partitions) => {
                let mut info = TopicInfo::new(name.clone(), *partitions);
                learn(link, &mut info, limits).await?;
                Some(info)
            }
            None => None,
        });
    }
    Ok(infos)
}

fn partitions_of(topics: &[TopicInfo]) -> Vec<Partition> {
    topics.iter().flat_map(|t| (0..t.partitions).map(|n| Partition::new(t.name.clone(), n))).collect()
}

/// Fills in the settings that the topic has.
pub(crate) async fn learn(link: &Link, info: &mut TopicInfo, limits: Limits) -> Result<(), Failure> {
    let topic = &info.name.clone();
    match link.administer(limits, |admin| admin.settings(topic)).await {
        Ok(settings) => settings.iter().for_each(|(name, value)| info.learn(name, value)),
        // Whoever set up the cluster may have made the topics with care, and allowed no more than is needed.
        Err(failure) if matches!(failure.kind, ErrorKind::Denied | ErrorKind::Unsupported) => tracing::warn!(
            target: "kafkaq",
            topic = &*info.name,
            ?failure,
            "its settings can't be read, so nobody checks that it keeps records for as long as tasks wait; allow \
             this user DescribeConfigs on it"
        ),
        Err(failure) => return Err(failure),
    }
    Ok(())
}
