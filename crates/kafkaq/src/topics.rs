//! The three topics of a queue: how they are made, and whether what is there keeps the promise.

use crate::config::{Config, HEADROOM};
use kafkaq_core::{Error, ErrorKind, Log, Result, TopicInfo, TopicSpec, machine::Ladder};
use std::{sync::Arc, time::Duration};

/// A queue's topics, as they are.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    pub(crate) task: Arc<str>,
    pub(crate) task_partitions: i32,
    pub(crate) wait: Arc<str>,
    pub(crate) wait_partitions: i32,
    pub(crate) dead: Arc<str>,
    pub(crate) dead_partitions: i32,
}

/// Makes what is missing and judges what is there.
///
/// # Errors
/// The log's own, and `Misconfigured` for a topic that would lose tasks or let them wait too long.
pub(crate) async fn ensure(log: &dyn Log, config: &Config) -> Result<Topics> {
    // The task topic first: the others have to take larger records than it does.
    let task = one(log.ensure_topics(&[task_spec(config)]).await?)?;
    let record = task.max_record_bytes.unwrap_or_default().max(config.max_task_bytes + HEADROOM);
    let mut others =
        log.ensure_topics(&[wait_spec(config, record), dead_spec(config, record)]).await?.into_iter();
    let (wait, dead) = match (others.next(), others.next()) {
        (Some(wait), Some(dead)) => (wait, dead),
        _ => return Err(unanswered()),
    };
    judge(config, &task, &wait, &dead)?;
    Ok(Topics {
        task: task.name,
        task_partitions: task.partitions,
        wait: wait.name,
        wait_partitions: wait.partitions,
        dead: dead.name,
        dead_partitions: dead.partitions,
    })
}

fn one(infos: Vec<TopicInfo>) -> Result<TopicInfo> {
    infos.into_iter().next().ok_or_else(unanswered)
}

fn unanswered() -> Error {
    Error::unknown(ErrorKind::Other, "make the topics")
        .with_advice("The backend gave fewer answers than topics")
}

fn task_spec(config: &Config) -> TopicSpec {
    let mut spec = TopicSpec::new(config.task_topic());
    spec.partitions = Some(config.partitions);
    spec.replication = config.replication;
    spec.max_record_bytes = Some(config.max_task_bytes + HEADROOM);
    spec
}

/// `record` is the largest record of the task topic. A copy is larger by its headers (hole 10). Retention must not
/// delete what waits, by time or by size, and a copy counts from when it was made (hole 11).
fn wait_spec(config: &Config, record: usize) -> TopicSpec {
    let lanes = Ladder::lanes(config.max_delay);
    let mut spec = TopicSpec::new(config.wait_topic());
    spec.partitions = Some(lanes);
    spec.replication = config.replication;
    spec.retention = Some(config.wait_retention(longest_stay(config, lanes)));
    spec.unlimited_bytes = true;
    spec.append_time = true;
    spec.max_record_bytes = Some(record + HEADROOM);
    spec
}

fn dead_spec(config: &Config, record: usize) -> TopicSpec {
    let mut spec = TopicSpec::new(config.dead_topic());
    spec.partitions = Some(1);
    spec.replication = config.replication;
    spec.max_record_bytes = Some(record + HEADROOM);
    spec
}

fn longest_stay(config: &Config, partitions: i32) -> Duration {
    let ladder = config.ladder(partitions);
    (0..partitions).map(|p| ladder.longest_stay(p)).max().unwrap_or_default()
}

fn judge(config: &Config, task: &TopicInfo, wait: &TopicInfo, dead: &TopicInfo) -> Result<()> {
    for topic in [task, wait, dead] {
        if topic.compacted == Some(true) {
            return wrong(topic, "is compacted, which deletes tasks", "cleanup.policy=delete");
        }
        if topic.partitions < 1 {
            return wrong(topic, "has no partitions", "");
        }
    }
    let lanes = Ladder::lanes(config.max_delay);
    if wait.partitions < lanes {
        return Err(misconfigured(wait, &format!("has {} partitions", wait.partitions)).with_advice(format!(
            "A max_delay of {:?} needs {lanes} or more: kafka-topics.sh --alter --topic {} --partitions {lanes}, or \
             set a shorter max_delay",
            config.max_delay, wait.name
        )));
    }
    if let Some(limit) = task.max_record_bytes {
        let needs = config.max_task_bytes + HEADROOM;
        if limit < needs {
            return Err(misconfigured(task, &format!("takes records of {limit} bytes at most")).with_advice(
                format!(
                    "Set max.message.bytes={needs} or more ({}), or a max_task_bytes of {} or less",
                    alter(task, &format!("max.message.bytes={needs}")),
                    limit.saturating_sub(HEADROOM)
                ),
            ));
        }
        for copies in [wait, dead] {
            if copies.max_record_bytes.is_some_and(|l| l < limit) {
                let what =
                    "takes smaller records than the task topic, so that a large task can't be copied to it";
                return wrong(copies, what, &format!("max.message.bytes={}", limit + HEADROOM));
            }
        }
    }
    let longest = longest_stay(config, wait.partitions);
    if let Some(retention) = wait.retention
        && retention < longest + config.max_overdue
    {
        let what = format!("keeps records for {retention:?}, but tasks wait in it for up to {longest:?}");
        let mend = format!("retention.ms={}", config.wait_retention(longest).as_millis());
        return wrong(wait, &what, &mend);
    }
    if wait.retention_bytes.is_some_and(|bytes| bytes >= 0) {
        return wrong(wait, "is limited by size, which deletes tasks that wait", "retention.bytes=-1");
    }
    if wait.append_time == Some(false) {
        tracing::warn!(
            target: "kafkaq",
            topic = &*wait.name,
            "the wait topic takes its records' time from clients, so a client's wrong clock can have them deleted early; \
             set message.timestamp.type=LogAppendTime"
        );
    }
    Ok(())
}

fn wrong<T>(topic: &TopicInfo, what: &str, setting: &str) -> Result<T> {
    Err(misconfigured(topic, what).with_advice(format!("Set {setting}: {}", alter(topic, setting))))
}

fn misconfigured(topic: &TopicInfo, what: &str) -> Error {
    Error::not_applied(ErrorKind::Misconfigured, "check the topics")
        .on(format!("{}, which {what}", topic.name))
}

fn alter(topic: &TopicInfo, setting: &str) -> String {
    format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {} --add-config {setting}",
        topic.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use kafkaq_core::{NewRecord, Partition};

    /// Makes every topic exactly as specified, except for what the test changes.
    #[derive(Debug)]
    struct Fake(fn(&mut TopicInfo));

    #[async_trait]
    impl Log for Fake {
        async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
            let made = topics.iter().map(|spec| {
                let mut info = TopicInfo::new(spec.name.clone(), spec.partitions.unwrap_or(1));
                info.created = true;
                info.retention = spec.retention;
                info.retention_bytes = spec.unlimited_bytes.then_some(-1);
                info.compacted = Some(spec.compacted);
                info.max_record_bytes = spec.max_record_bytes;
                info.append_time = Some(spec.append_time);
                self.0(&mut info);
                info
            });
            Ok(made.collect())
        }
        async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
            Ok(vec![None; names.len()])
        }
        async fn append(&self, _: &Partition, _: &[NewRecord]) -> Vec<Result<i64>> {
            Vec::new()
        }
        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    async fn with(change: fn(&mut TopicInfo)) -> Result<Topics> {
        ensure(&Fake(change), &Config::new("q".into())).await
    }

    #[tokio::test]
    async fn topics_that_are_made_here_pass() {
        let topics = with(|_| {}).await.unwrap();
        assert_eq!((&*topics.task, topics.task_partitions), ("q", 6));
        assert_eq!(
            (&*topics.wait, topics.wait_partitions),
            ("q.kafkaq.wait", Ladder::lanes(Config::new("q".into()).max_delay))
        );
    }

    #[tokio::test]
    async fn a_large_record_of_an_existing_task_topic_fits_into_the_others() {
        with(|t| {
            if &*t.name == "q" {
                t.max_record_bytes = Some(50 << 20);
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn an_adapter_that_can_tell_only_partitions_is_believed() {
        with(|t| *t = TopicInfo::new(t.name.clone(), t.partitions)).await.unwrap();
    }

    #[tokio::test]
    async fn what_would_lose_a_task_is_refused_with_the_way_to_mend_it() {
        type Change = fn(&mut TopicInfo);
        fn wait(t: &TopicInfo) -> bool {
            t.name.ends_with(".wait")
        }
        let cases: [(&str, Change); 8] = [
            ("cleanup.policy=delete", |t| {
                if wait(t) {
                    t.compacted = Some(true);
                }
            }),
            ("cleanup.policy=delete", |t| {
                if &*t.name == "q" {
                    t.compacted = Some(true);
                }
            }),
            ("--partitions 11", |t| {
                if wait(t) {
                    t.partitions -= 1;
                }
            }),
            ("max.message.bytes", |t| {
                if wait(t) {
                    t.max_record_bytes = Some(1000);
                }
            }),
            ("max.message.bytes", |t| {
                if t.name.ends_with(".dead") {
                    t.max_record_bytes = Some(1000);
                }
            }),
            ("max_task_bytes of 34464", |t| {
                if &*t.name == "q" {
                    t.max_record_bytes = Some(100_000);
                }
            }),
            ("retention.ms", |t| {
                if wait(t) {
                    t.retention = Some(Duration::from_secs(60));
                }
            }),
            ("retention.bytes=-1", |t| {
                if wait(t) {
                    t.retention_bytes = Some(1 << 30);
                }
            }),
        ];
        for (mend, change) in cases {
            let e = with(change).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
            assert!(e.to_string().contains(mend), "{mend}: {e}");
        }
    }
}
