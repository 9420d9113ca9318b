//! The topics of a queue: creates missing ones, and checks that existing ones don't lose tasks.

use crate::config::{Config, HEADROOM};
use kafkaq_core::{Error, ErrorKind, Log, Result, TopicInfo, TopicSpec, machine::Ladder};
use std::{sync::Arc, time::Duration};

/// Kafka's `max.message.bytes` has four bytes.
const MAX_RECORD_BYTES: usize = i32::MAX as usize;

/// The topic that tasks are published to, as it exists.
#[derive(Clone, Debug)]
pub(crate) struct TaskTopic {
    pub(crate) name: Arc<str>,
    pub(crate) partitions: i32,
}

/// The topics of a group, as they exist.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    pub(crate) task: TaskTopic,
    pub(crate) wait: Arc<str>,
    pub(crate) wait_partitions: i32,
    pub(crate) dead: Arc<str>,
    pub(crate) dead_partitions: i32,
}

/// Creates the task topic if it is missing, and checks it. A publisher needs no other: waiting tasks and dead letters
/// belong to a group.
///
/// # Errors
/// The log's own, and `Misconfigured` for a topic that would lose tasks.
pub(crate) async fn ensure_task(log: &dyn Log, config: &Config) -> Result<TaskTopic> {
    let task = task(log, config).await?;
    Ok(TaskTopic { name: task.name, partitions: task.partitions })
}

/// Creates missing topics of a group, and checks all of them.
///
/// # Errors
/// The log's own, and `Misconfigured` for a topic that would lose tasks or let them wait too long.
pub(crate) async fn ensure(log: &dyn Log, config: &Config) -> Result<Topics> {
    // The task topic first: the others have to accept larger records than it does.
    let task = task(log, config).await?;
    let record = task.max_record_bytes.unwrap_or_default().max(config.max_task_bytes + HEADROOM);
    let mut others =
        log.ensure_topics(&[wait_spec(config, record), dead_spec(config, record)]).await?.into_iter();
    let (wait, dead) = match (others.next(), others.next()) {
        (Some(wait), Some(dead)) => (wait, dead),
        _ => return Err(unanswered()),
    };
    for copies in [&wait, &dead] {
        judge_any(copies)?;
        judge_size_of_copies(&task, copies)?;
    }
    report(&judge_wait(config, &wait)?);
    report(&judge_dead(config, &dead));
    Ok(Topics {
        task: TaskTopic { name: task.name, partitions: task.partitions },
        wait: wait.name,
        wait_partitions: wait.partitions,
        dead: dead.name,
        dead_partitions: dead.partitions,
    })
}

/// Creates the topic of marks if it is missing, and checks it.
///
/// # Errors
/// The log's own, and `Misconfigured` for a topic that would lose marks.
pub(crate) async fn ensure_marks(log: &dyn Log, spec: &TopicSpec) -> Result<()> {
    let made = log.ensure_topics(std::slice::from_ref(spec)).await?;
    let marks = made.into_iter().next().ok_or_else(unanswered)?;
    judge_any(&marks)?;
    report(&judge_marks(&marks));
    Ok(())
}

async fn task(log: &dyn Log, config: &Config) -> Result<TopicInfo> {
    let made = log.ensure_topics(&[task_spec(config)]).await?;
    let task = made.into_iter().next().ok_or_else(unanswered)?;
    judge_any(&task)?;
    report(&judge_task(config, &task)?);
    Ok(task)
}

fn report(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(target: "kafkaq", "{warning}");
    }
}

fn unanswered() -> Error {
    Error::unknown(ErrorKind::Other, "create the topics")
        .with_advice("The backend described fewer topics than requested")
}

fn task_spec(config: &Config) -> TopicSpec {
    let record = config.max_task_bytes + HEADROOM;
    spec(config, config.task_topic(), config.partitions, config.task_retention(), record)
}

/// `record` is the largest record of the task topic. A copy is larger because of its headers, and its time counts from
/// when it was made.
fn wait_spec(config: &Config, record: usize) -> TopicSpec {
    let lanes = Ladder::lanes(config.max_delay);
    let retention = config.wait_retention(longest_stay(config, lanes));
    spec(config, config.wait_topic(), lanes, retention, copy_of(record))
}

fn dead_spec(config: &Config, record: usize) -> TopicSpec {
    spec(config, config.dead_topic(), 1, config.dead_retention, copy_of(record))
}

/// Marks are small, and a letter that outlives its mark is redriven again. Even with the same retention it may: Kafka
/// deletes a segment when its last record is old enough. They are kept forever, so whose clock they have doesn't matter.
pub(crate) fn marks_spec(config: &Config) -> TopicSpec {
    let mut spec = spec(config, config.marks_topic(), 1, Duration::MAX, HEADROOM);
    spec.append_time = false;
    spec
}

/// Retention must delete nothing early: not by size, and not by a client's clock, which may be behind.
fn spec(
    config: &Config,
    name: impl Into<Arc<str>>,
    partitions: i32,
    retention: Duration,
    max_record_bytes: usize,
) -> TopicSpec {
    let mut spec = TopicSpec::new(name);
    spec.partitions = Some(partitions);
    spec.replication = config.replication;
    spec.retention = Some(retention);
    spec.unlimited_bytes = true;
    spec.append_time = true;
    spec.max_record_bytes = Some(max_record_bytes);
    spec
}

/// The largest copy of a record, as far as a topic can be configured to accept it.
fn copy_of(record: usize) -> usize {
    record.saturating_add(HEADROOM).min(MAX_RECORD_BYTES)
}

fn longest_stay(config: &Config, partitions: i32) -> Duration {
    let ladder = config.ladder(partitions);
    (0..partitions).map(|p| ladder.longest_stay(p)).max().unwrap_or_default()
}

fn judge_any(topic: &TopicInfo) -> Result<()> {
    if topic.compacted == Some(true) {
        return wrong(topic, "is compacted, which deletes records", "cleanup.policy=delete");
    }
    if topic.partitions < 1 {
        return Err(misconfigured(topic, "has no partitions"));
    }
    Ok(())
}

/// An operator may want a bounded topic, so a short retention only causes a warning; but one that is shorter than
/// workers may be down can't be intended.
fn judge_task(config: &Config, task: &TopicInfo) -> Result<Vec<String>> {
    if let Some(limit) = task.max_record_bytes {
        let needs = config.max_task_bytes + HEADROOM;
        if limit < needs {
            return Err(misconfigured(task, &format!("accepts records of at most {limit} bytes"))
                .with_advice(format!(
                    "Set max.message.bytes={needs} or more ({}), or a max_task_bytes of {} or less",
                    alter(task, &format!("max.message.bytes={needs}")),
                    limit.saturating_sub(HEADROOM)
                )));
        }
    }
    let mut warnings = Vec::new();
    let wanted = config.task_retention();
    if let Some(retention) = task.retention.filter(|r| *r < wanted) {
        let setting = format!("retention.ms={}", millis(wanted));
        if retention < config.max_overdue {
            let what = format!(
                "deletes tasks after {retention:?}, even those that nobody has executed; by max_overdue, \
                 workers may be behind by {:?}",
                config.max_overdue
            );
            return Err(misconfigured(task, &what).with_advice(format!(
                "Set {setting} ({}), or a shorter max_overdue",
                alter(task, &setting)
            )));
        }
        warnings.push(format!(
            "topic {} deletes tasks after {retention:?}, even those that nobody has executed. Set {setting} \
             ({}), or accept this by setting task_retention",
            task.name,
            alter(task, &setting)
        ));
    }
    if let Some(bytes) = task.retention_bytes.filter(|bytes| *bytes >= 0) {
        warnings.push(format!(
            "topic {} keeps {bytes} bytes per partition and deletes what is older, even tasks that nobody \
             has executed. Set retention.bytes=-1: {}",
            task.name,
            alter(task, "retention.bytes=-1")
        ));
    }
    warnings.extend(judge_clock(task));
    Ok(warnings)
}

/// Every record of the task topic must fit into the others, together with what a copy adds.
fn judge_size_of_copies(task: &TopicInfo, copies: &TopicInfo) -> Result<()> {
    let (Some(record), Some(limit)) = (task.max_record_bytes, copies.max_record_bytes) else { return Ok(()) };
    let needs = copy_of(record);
    if limit >= needs {
        return Ok(());
    }
    let what = format!(
        "accepts records of at most {limit} bytes, so not every task of {} can be copied to it",
        task.name
    );
    wrong(copies, &what, &format!("max.message.bytes={needs}"))
}

fn judge_wait(config: &Config, wait: &TopicInfo) -> Result<Vec<String>> {
    let lanes = Ladder::lanes(config.max_delay);
    if wait.partitions < lanes {
        return Err(misconfigured(wait, &format!("has {} partitions", wait.partitions)).with_advice(format!(
            "A max_delay of {:?} needs {lanes} or more: kafka-topics.sh --alter --topic {} --partitions {lanes}, or \
             set a shorter max_delay",
            config.max_delay, wait.name
        )));
    }
    let longest = longest_stay(config, wait.partitions);
    if let Some(retention) = wait.retention
        && retention < longest + config.max_overdue
    {
        let what = format!("keeps records for {retention:?}, but tasks wait in it for up to {longest:?}");
        let mend = format!("retention.ms={}", millis(config.wait_retention(longest)));
        return wrong(wait, &what, &mend);
    }
    if wait.retention_bytes.is_some_and(|bytes| bytes >= 0) {
        return wrong(wait, "is limited by size, which deletes waiting tasks", "retention.bytes=-1");
    }
    Ok(judge_clock(wait).into_iter().collect())
}

fn judge_dead(config: &Config, dead: &TopicInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut deletes = |what: String, setting: &str| {
        warnings.push(format!(
            "topic {} {what}, and dead letters with it. Set {setting}: {}",
            dead.name,
            alter(dead, setting)
        ));
    };
    if let Some(retention) = dead.retention.filter(|r| *r < config.dead_retention) {
        let wanted = millis(config.dead_retention);
        deletes(format!("deletes records after {retention:?}"), &format!("retention.ms={wanted}"));
    }
    if let Some(bytes) = dead.retention_bytes.filter(|bytes| *bytes >= 0) {
        deletes(format!("deletes what is beyond {bytes} bytes per partition"), "retention.bytes=-1");
    }
    warnings.extend(judge_clock(dead));
    warnings
}

/// Kafka's default. It is fine as long as all clocks are right, so it only causes a warning.
fn judge_clock(topic: &TopicInfo) -> Option<String> {
    let retention = topic.retention.filter(|r| *r < Duration::MAX)?;
    let setting = "message.timestamp.type=LogAppendTime";
    (topic.append_time == Some(false)).then(|| {
        format!(
            "topic {} uses the timestamps of clients and deletes records after {retention:?}: those of a \
             client whose clock is behind are deleted early. To use Kafka's own clock, set {setting}: {}",
            topic.name,
            alter(topic, setting)
        )
    })
}

fn judge_marks(marks: &TopicInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut forgets = |when: String, setting: &str| {
        warnings.push(format!(
            "topic {} forgets {when} which dead letters were redriven or discarded, and a later redrive may select them \
             again. Set {setting}: {}",
            marks.name,
            alter(marks, setting)
        ));
    };
    if let Some(retention) = marks.retention.filter(|r| *r < Duration::MAX) {
        forgets(format!("after {retention:?}"), "retention.ms=-1");
    }
    if let Some(bytes) = marks.retention_bytes.filter(|bytes| *bytes >= 0) {
        forgets(format!("beyond {bytes} bytes"), "retention.bytes=-1");
    }
    warnings
}

/// In Kafka's notation: -1 means forever.
fn millis(retention: Duration) -> i64 {
    if retention == Duration::MAX { -1 } else { i64::try_from(retention.as_millis()).unwrap_or(-1) }
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
    use crate::config::DAY;
    use async_trait::async_trait;
    use kafkaq_core::{NewRecord, Partition};

    /// Creates every topic exactly as specified, except for what the test changes.
    #[derive(Debug)]
    struct Fake(fn(&mut TopicInfo));

    #[async_trait]
    impl Log for Fake {
        async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
            let made = topics.iter().map(|spec| {
                assert!(spec.max_record_bytes.is_none_or(|limit| i32::try_from(limit).is_ok()), "{spec:?}");
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
        ensure(&Fake(change), &config()).await
    }

    fn config() -> Config {
        Config::new("q".into())
    }

    #[tokio::test]
    async fn topics_that_are_created_here_pass_without_a_warning() {
        let topics = with(|_| {}).await.unwrap();
        assert_eq!((&*topics.task.name, topics.task.partitions), ("q", 6));
        assert_eq!(
            (&*topics.wait, topics.wait_partitions),
            ("q.kafkaq.wait", Ladder::lanes(config().max_delay))
        );
        let log = Fake(|_| {});
        let specs = [task_spec(&config()), wait_spec(&config(), 1), dead_spec(&config(), 1)];
        let infos = log.ensure_topics(&specs).await.unwrap();
        let [task, wait, dead] = &infos[..] else { panic!("{infos:?}") };
        assert!(judge_task(&config(), task).unwrap().is_empty());
        assert!(judge_wait(&config(), wait).unwrap().is_empty());
        assert!(judge_dead(&config(), dead).is_empty());
        assert_eq!((dead.retention, dead.retention_bytes), (Some(Duration::MAX), Some(-1)), "kept forever");
        assert_eq!((task.retention, task.retention_bytes), (Some(7 * DAY), Some(-1)));
        assert!(infos.iter().all(|info| info.append_time == Some(true)), "by the log's clock");
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

    /// A copy of a record that large doesn't fit, but no setting would let it.
    #[tokio::test]
    async fn task_topic_with_the_largest_possible_size_limit_is_accepted() {
        fn unlimited(topic: &mut TopicInfo) {
            topic.max_record_bytes = Some(2_147_483_647);
        }
        with(unlimited).await.unwrap();
        let e = with(|t| {
            unlimited(t);
            if t.name.ends_with(".wait") {
                t.max_record_bytes = Some(1 << 20);
            }
        })
        .await
        .unwrap_err();
        assert!(e.to_string().contains("--add-config max.message.bytes=2147483647"), "{e}");
    }

    #[tokio::test]
    async fn adapter_that_reports_only_partitions_is_accepted() {
        with(|t| *t = TopicInfo::new(t.name.clone(), t.partitions)).await.unwrap();
    }

    #[tokio::test]
    async fn publisher_checks_only_the_task_topic() {
        let broken = Fake(|t| {
            if &*t.name != "q" {
                t.partitions = 0;
            }
        });
        ensure(&broken, &config()).await.unwrap_err();
        ensure_task(&broken, &config()).await.unwrap();
    }

    #[tokio::test]
    async fn settings_that_would_lose_tasks_are_refused_with_the_fix() {
        type Change = fn(&mut TopicInfo);
        fn of(kind: &str, t: &TopicInfo) -> bool {
            t.name.ends_with(kind)
        }
        let cases: [(&str, Change); 10] = [
            ("cleanup.policy=delete", |t| {
                if of(".wait", t) {
                    t.compacted = Some(true);
                }
            }),
            ("cleanup.policy=delete", |t| {
                if of("q", t) {
                    t.compacted = Some(true);
                }
            }),
            ("--partitions 11", |t| {
                if of(".wait", t) {
                    t.partitions -= 1;
                }
            }),
            // A copy is larger than its record, so the task topic's limit is not enough.
            ("max.message.bytes=1065536", |t| {
                if of(".wait", t) {
                    t.max_record_bytes = Some(1_000_000);
                }
            }),
            ("max.message.bytes=1065536", |t| {
                if of(".dead", t) {
                    t.max_record_bytes = Some(1_065_535);
                }
            }),
            ("max_task_bytes of 34464", |t| {
                if of("q", t) {
                    t.max_record_bytes = Some(100_000);
                }
            }),
            ("retention.ms=604800000", |t| {
                if of("q", t) {
                    t.retention = Some(Duration::from_secs(3));
                }
            }),
            ("retention.ms", |t| {
                if of(".wait", t) {
                    t.retention = Some(Duration::from_secs(60));
                }
            }),
            ("retention.bytes=-1", |t| {
                if of(".wait", t) {
                    t.retention_bytes = Some(1 << 30);
                }
            }),
            ("has no partitions", |t| {
                if of(".dead", t) {
                    t.partitions = 0;
                }
            }),
        ];
        for (mend, change) in cases {
            let e = with(change).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
            assert!(e.to_string().contains(mend), "{mend}: {e}");
        }
    }

    #[test]
    fn retention_by_client_timestamps_causes_a_warning() {
        let warnings = |topic: &TopicInfo| {
            let task = judge_task(&config(), topic).unwrap();
            [task, judge_wait(&config(), topic).unwrap(), judge_dead(&config(), topic)]
        };
        let mut topic = TopicInfo::new("t", Ladder::lanes(config().max_delay));
        let clock = "--entity-name t --add-config message.timestamp.type=LogAppendTime";
        for (retention, by_clients, warned) in [
            (Some(60 * DAY), Some(true), true),
            (Some(60 * DAY), Some(false), false),
            (Some(60 * DAY), None, false),
            // Nothing is deleted by time.
            (Some(Duration::MAX), Some(true), false),
            (None, Some(true), false),
        ] {
            (topic.retention, topic.append_time) = (retention, by_clients.map(|by_clients| !by_clients));
            for warnings in warnings(&topic) {
                let found = warnings.iter().filter(|warning| warning.contains(clock)).count();
                assert_eq!(found, usize::from(warned), "{retention:?} {by_clients:?}: {warnings:?}");
            }
        }
    }

    #[tokio::test]
    async fn short_retention_of_marks_causes_a_warning() {
        let spec = marks_spec(&config());
        let mut marks = Fake(|_| {}).ensure_topics(&[spec]).await.unwrap().remove(0);
        assert!(judge_marks(&marks).is_empty(), "as it is created");
        (marks.retention, marks.retention_bytes) = (Some(3650 * DAY), Some(1 << 30));
        let warnings = judge_marks(&marks);
        let [time, size] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(time.contains("--entity-name q.kafkaq.dead.handled --add-config retention.ms=-1"), "{time}");
        assert!(size.contains("retention.bytes=-1") && size.contains("1073741824"), "{size}");
    }

    #[test]
    fn bounded_task_topic_causes_a_warning() {
        let mut topic = TopicInfo::new("t", 1);
        topic.retention = Some(2 * DAY);
        topic.retention_bytes = Some(1 << 30);
        for warnings in [judge_task(&config(), &topic).unwrap(), judge_dead(&config(), &topic)] {
            let [time, size] = &warnings[..] else { panic!("{warnings:?}") };
            assert!(time.contains("retention.ms=") && time.contains("--entity-name t "), "{time}");
            assert!(size.contains("retention.bytes=-1") && size.contains("1073741824"), "{size}");
        }
        topic.retention_bytes = Some(-1);
        let mut accepting = config();
        (accepting.task_retention, accepting.dead_retention) = (Some(2 * DAY), 2 * DAY);
        assert!(judge_task(&accepting, &topic).unwrap().is_empty());
        assert!(judge_dead(&accepting, &topic).is_empty());
    }
}
