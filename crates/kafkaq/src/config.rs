//! Everything that can be set on a queue, and whether it makes sense together.

use kafkaq_core::{Error, ErrorKind, Keyspace, Result, machine};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};

/// Bytes that kafkaq may add to a task in its own headers, over all of a task's life.
pub(crate) const HEADROOM: usize = 64 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MEMBER_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) queue: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) task_topic: Option<Arc<str>>,
    pub(crate) wait_topic: Option<Arc<str>>,
    pub(crate) dead_topic: Option<Arc<str>>,
    pub(crate) partitions: i32,
    pub(crate) replication: Option<i16>,
    pub(crate) lease: Duration,
    pub(crate) park_after: Option<Duration>,
    pub(crate) done_retention: Duration,
    pub(crate) max_overdue: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) clock_skew: Duration,
    pub(crate) max_failures: u32,
    pub(crate) max_handouts: u32,
    pub(crate) prefetch: usize,
    pub(crate) max_task_bytes: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) publish_buffer: usize,
    /// `None`: the default of a group that is kept in the store.
    pub(crate) member_timeout: Option<Duration>,
}

impl Config {
    pub(crate) fn new(queue: Arc<str>) -> Self {
        let machine = machine::Settings::default();
        Config {
            queue,
            group: "kafkaq".into(),
            task_topic: None,
            wait_topic: None,
            dead_topic: None,
            partitions: 6,
            replication: None,
            lease: machine.lease,
            park_after: None,
            done_retention: machine.done_retention,
            max_overdue: machine.max_overdue,
            max_delay: machine.max_delay,
            clock_skew: machine.clock_skew,
            max_failures: machine.max_failures,
            max_handouts: machine.max_handouts,
            prefetch: machine.prefetch,
            // With kafkaq's headers below 1 MB, which is the default limit of librdkafka and, about, of Kafka.
            max_task_bytes: 1_000_000 - HEADROOM,
            publish_timeout: Duration::from_secs(30),
            publish_buffer: 64 << 20,
            member_timeout: None,
        }
    }

    pub(crate) fn task_topic(&self) -> Arc<str> {
        self.task_topic.clone().unwrap_or_else(|| self.queue.clone())
    }

    pub(crate) fn wait_topic(&self) -> Arc<str> {
        self.wait_topic.clone().unwrap_or_else(|| format!("{}.{}.wait", self.queue, self.group).into())
    }

    pub(crate) fn dead_topic(&self) -> Arc<str> {
        self.dead_topic.clone().unwrap_or_else(|| format!("{}.{}.dead", self.queue, self.group).into())
    }

    /// The name of the consumer group in the log. Its members read the same topics, so it is a group a queue.
    pub(crate) fn consumer_group(&self) -> Arc<str> {
        format!("{}.{}", self.queue, self.group).into()
    }

    pub(crate) fn park_after(&self) -> Duration {
        self.park_after.unwrap_or_else(|| (self.lease / 2).min(Duration::from_secs(10)))
    }

    /// The longest that a copy waits for a lease to end.
    pub(crate) fn longest_park(&self) -> Duration {
        self.lease + self.clock_skew
    }

    pub(crate) fn ladder(&self, wait_partitions: i32) -> machine::Ladder {
        machine::Ladder::new(self.longest_park(), self.max_delay, wait_partitions)
    }

    pub(crate) fn machine(&self, process: [u8; 16]) -> machine::Settings {
        machine::Settings {
            process,
            lease: self.lease,
            park_after: self.park_after(),
            done_retention: self.done_retention,
            max_overdue: self.max_overdue,
            clock_skew: self.clock_skew,
            max_failures: self.max_failures,
            max_handouts: self.max_handouts,
            max_delay: self.max_delay,
            prefetch: self.prefetch,
            ..machine::Settings::default()
        }
    }

    /// Where the leases lie, if everything makes sense together.
    ///
    /// # Errors
    /// `Invalid`, with the setting's name.
    pub(crate) fn check(&self) -> Result<Keyspace> {
        let keyspace = Keyspace::new(&self.queue, &self.group, &self.task_topic())?;
        let topics = [self.task_topic(), self.wait_topic(), self.dead_topic()];
        for topic in &topics {
            let clean = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if topic.is_empty()
                || topic.len() > 249
                || !topic.chars().all(clean)
                || &**topic == "."
                || &**topic == ".."
            {
                return invalid(
                    format!("topic `{topic}`"),
                    "A topic's name has 1 to 249 of A-Z a-z 0-9 . _ -",
                );
            }
        }
        if topics[0] == topics[1] || topics[0] == topics[2] || topics[1] == topics[2] {
            return invalid(
                format!("topics {topics:?}"),
                "Tasks, waiting tasks and dead letters need a topic each",
            );
        }
        for (name, value) in [
            ("lease_duration", self.lease),
            ("park_after", self.park_after()),
            ("publish_timeout", self.publish_timeout),
        ] {
            if value < Duration::from_millis(1) {
                return invalid(name, "It is at least a millisecond");
            }
        }
        if let Some(timeout) = self.member_timeout
            && !MEMBER_TIMEOUT.contains(&timeout)
        {
            return invalid(
                format!("member_timeout {timeout:?}"),
                "It is a second to an hour, and at least three times the store's request timeout",
            );
        }
        for (name, value) in [
            ("lease_duration", self.lease),
            ("done_retention", self.done_retention),
            ("max_overdue", self.max_overdue),
            ("max_delay", self.max_delay),
            ("clock_skew", self.clock_skew),
        ] {
            if value > LONGEST {
                return invalid(format!("{name} {value:?}"), "It is ten years at most");
            }
        }
        if self.park_after() >= self.lease {
            return invalid(
                format!("park_after {:?}", self.park_after()),
                format!("It has to be shorter than lease_duration, which is {:?}", self.lease),
            );
        }
        if self.partitions < 1 || self.replication.is_some_and(|r| r < 1) {
            return invalid("partitions or replication", "Each is at least 1");
        }
        if self.max_failures < 1 {
            return invalid("max_failures", "It is at least 1");
        }
        if self.max_handouts < self.max_failures {
            return invalid(
                format!("max_handouts {}", self.max_handouts),
                format!("It is at least max_failures, which is {}", self.max_failures),
            );
        }
        if self.max_task_bytes < 1 || self.max_task_bytes > 1 << 30 {
            return invalid("max_task_bytes", "It is 1 to 1073741824");
        }
        if self.publish_buffer < self.max_task_bytes {
            return invalid("publish_buffer", "It has room for one task of max_task_bytes at least");
        }
        Ok(keyspace)
    }

    /// How long the wait topic keeps records if it is made here: generous, since a consumer may be away.
    pub(crate) fn wait_retention(&self, longest_stay: Duration) -> Duration {
        longest_stay + self.max_overdue.max(7 * DAY)
    }
}

fn invalid<T>(what: impl std::fmt::Display, advice: impl Into<std::borrow::Cow<'static, str>>) -> Result<T> {
    Err(Error::not_applied(ErrorKind::Invalid, "check the settings").on(what).with_advice(advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("emails".into())
    }

    #[test]
    fn the_defaults_make_sense() {
        let c = config();
        c.check().unwrap();
        assert_eq!((&*c.wait_topic(), &*c.dead_topic()), ("emails.kafkaq.wait", "emails.kafkaq.dead"));
        assert_eq!(c.park_after(), Duration::from_secs(10));
    }

    /// Hole 19.
    #[test]
    fn a_park_after_that_is_not_shorter_than_the_lease_is_refused() {
        let mut c = config();
        c.park_after = Some(c.lease);
        let e = c.check().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains("park_after") && e.to_string().contains("60s"), "{e}");
        c.park_after = Some(c.lease - Duration::from_millis(1));
        c.check().unwrap();
    }

    #[test]
    fn every_setting_that_makes_no_sense_is_refused_by_name() {
        type Change = fn(&mut Config);
        let wrong: [(&str, Change); 15] = [
            ("queue", |c| c.queue = "a b".into()),
            ("group", |c| c.group = "a.b".into()),
            ("topic", |c| c.task_topic = Some("a/b".into())),
            ("topics", |c| c.dead_topic = Some(c.task_topic())),
            ("lease_duration", |c| c.lease = Duration::ZERO),
            ("park_after", |c| c.park_after = Some(Duration::ZERO)),
            ("max_delay", |c| c.max_delay = Duration::MAX),
            ("partitions", |c| c.partitions = 0),
            ("replication", |c| c.replication = Some(0)),
            ("max_failures", |c| c.max_failures = 0),
            ("max_handouts", |c| c.max_handouts = 3),
            ("max_task_bytes", |c| c.max_task_bytes = 0),
            ("publish_buffer", |c| c.publish_buffer = 10),
            ("member_timeout", |c| c.member_timeout = Some(Duration::from_millis(999))),
            ("member_timeout", |c| c.member_timeout = Some(Duration::from_secs(3601))),
        ];
        for (name, change) in wrong {
            let mut c = config();
            change(&mut c);
            let e = c.check().unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(name), "{name}: {e}");
        }
    }
}
