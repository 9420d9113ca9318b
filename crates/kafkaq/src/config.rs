//! All settings of a queue, and their validation.

use kafkaq_core::{Error, ErrorKind, Keyspace, Result, machine};
use std::{borrow::Cow, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// Bytes that kafkaq's own headers may add to a task over its lifetime.
pub(crate) const HEADROOM: usize = 64 << 10;
/// Suffixes: the topic of marks of handled letters has the dead-letter topic's name, that of cursors the group's.
pub(crate) const MARKS: &str = ".handled";
pub(crate) const CURSORS: &str = ".cursors";
/// The maximum length of a topic's name.
const MAX_NAME: usize = 249;
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Sums of a few of these still fit easily into durations, clocks and servers.
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

// The range of each setting, as documented in the builder.
const LEASE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(30 * 24 * 3600);
const PARK_AFTER: RangeInclusive<Duration> = MILLISECOND..=Duration::from_secs(30 * 24 * 3600);
const REMEMBERED: RangeInclusive<Duration> = Duration::ZERO..=TEN_YEARS;
const MAX_DELAY: RangeInclusive<Duration> = Duration::ZERO..=TEN_YEARS;
const CLOCK_SKEW: RangeInclusive<Duration> = Duration::ZERO..=HOUR;
const MEMBER_TIMEOUT: RangeInclusive<Duration> = SECOND..=HOUR;
const PUBLISH_TIMEOUT: RangeInclusive<Duration> = MILLISECOND..=DAY;
#[cfg(feature = "metrics")]
const METRICS_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;
const PARTITIONS: RangeInclusive<i32> = 1..=10_000;
const REPLICATION: RangeInclusive<i16> = 1..=1_000;
const MAX_HANDOUTS: u32 = 1_000_000;
const PREFETCH: RangeInclusive<usize> = 0..=100_000;
const MAX_TASK_BYTES: RangeInclusive<usize> = 1..=32 << 20;
/// A semaphore counts these bytes in a `u32`.
const MAX_PUBLISH_BUFFER: usize = u32::MAX as usize;

/// Which jobs get a lease in the store: [`QueueBuilder::tracking`](crate::QueueBuilder::tracking).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tracking {
    /// Every job has a lease before it is handed out: no two workers have a task at once, and its outcome is
    /// remembered.
    #[default]
    Every,
    /// A job gets a lease when it takes longer than [`track_after`](crate::QueueBuilder::track_after). A quick one costs
    /// the store one read, batched with others, and no write.
    ///
    /// Tasks are still executed at least once. What you give up, for tasks whose id was left to `publish`:
    ///
    /// - After a crash or the loss of a partition, what was done since the last commit is executed again, up to 8,192
    ///   tasks per partition; it may also run a second time while the first execution is still running. A deploy and a
    ///   rebalance commit first, so they repeat nothing unless Kafka or the store is slow.
    /// - Quick tasks are not remembered: [`JobController::get`](crate::JobController::get) does not know them, a second
    ///   record of the same task is executed too, and so is everything if the group's offsets are reset. So choose the id
    ///   yourself if you want to repeat a failed `publish`.
    /// - [`JobController::cancel`](crate::JobController::cancel) cannot tell a quick task that is running, or done, from
    ///   one that nobody has started.
    /// - A crash is not counted as the task's failure, and the next execution has the same
    ///   [`attempt`](crate::JobView::attempt). So a task that kills its process gets one or two more tries.
    ///
    /// These still get a lease before they are handed out: ids that the caller chose, foreign records, delayed tasks,
    /// redeliveries, and in each partition the first 8,192 records after its assignment, which the previous owner may
    /// have started. A job that nobody takes within `track_after` gets one, too.
    Slow,
}

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
    pub(crate) tracking: Tracking,
    /// `None`: a second, or less if tasks are parked earlier.
    pub(crate) track_after: Option<Duration>,
    pub(crate) done_retention: Duration,
    pub(crate) max_overdue: Duration,
    /// `None`: a week, or longer if workers may be behind by more.
    pub(crate) task_retention: Option<Duration>,
    pub(crate) dead_retention: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) clock_skew: Duration,
    pub(crate) max_failures: u32,
    pub(crate) max_handouts: u32,
    pub(crate) prefetch: usize,
    pub(crate) max_task_bytes: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) publish_buffer: usize,
    /// `None`: as long as a lease, within limits.
    pub(crate) member_timeout: Option<Duration>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics_interval: Duration,
    #[cfg(feature = "spans")]
    pub(crate) propagator: Option<Arc<dyn crate::Propagator>>,
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
            tracking: Tracking::Every,
            track_after: None,
            done_retention: machine.done_retention,
            max_overdue: machine.max_overdue,
            task_retention: None,
            dead_retention: Duration::MAX,
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
            #[cfg(feature = "metrics")]
            metrics_interval: Duration::from_secs(10),
            #[cfg(feature = "spans")]
            propagator: None,
        }
    }

    pub(crate) fn task_topic(&self) -> Arc<str> {
        self.task_topic.clone().unwrap_or_else(|| self.queue.clone())
    }

    pub(crate) fn wait_topic(&self) -> Arc<str> {
        self.wait_topic.clone().unwrap_or_else(|| format!("{}.wait", self.consumer_group()).into())
    }

    pub(crate) fn dead_topic(&self) -> Arc<str> {
        self.dead_topic.clone().unwrap_or_else(|| format!("{}.dead", self.consumer_group()).into())
    }

    /// The name of the consumer group in the log. Its members read the same topics, so it names them all: two
    /// environments that differ in the task topic alone share neither a group nor what waits. Queues' names have no two
    /// dots in a row, so that queue `a` over topic `b.c` can't collide with queue `a.b` over topic `c`.
    pub(crate) fn consumer_group(&self) -> Arc<str> {
        match self.task_topic() {
            topic if topic == self.queue => format!("{topic}.{}", self.group).into(),
            topic => format!("{}..{topic}.{}", self.queue, self.group).into(),
        }
    }

    pub(crate) fn park_after(&self) -> Duration {
        self.park_after.unwrap_or_else(|| (self.lease / 2).min(Duration::from_secs(10)))
    }

    fn track_after(&self) -> Duration {
        self.track_after.unwrap_or_else(|| SECOND.min(self.park_after()))
    }

    pub(crate) fn task_retention(&self) -> Duration {
        self.task_retention.unwrap_or(7 * DAY).max(self.max_overdue)
    }

    /// Returns for how long after a task may first have been published its id can be published again, such that the
    /// task is still remembered when the second record is read. The task ends after it was published, its id is
    /// remembered for `done_retention` and `max_overdue`, and the second record is read within `max_overdue`. The first
    /// process's clock may be ahead of this one's, and the second record is appended within `publish_timeout`.
    pub(crate) fn id_window(&self) -> Duration {
        self.done_retention.saturating_sub(self.clock_skew + self.publish_timeout)
    }

    /// How long a process may be silent before others take its partitions. Tasks wait for that process's leases to
    /// expire in any case, but no partition should stop for longer than by Kafka's default.
    pub(crate) fn session_timeout(&self) -> Duration {
        self.member_timeout.unwrap_or_else(|| self.lease.clamp(10 * SECOND, 45 * SECOND))
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
            track_after: (self.tracking == Tracking::Slow).then(|| self.track_after()),
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

    /// Validates the settings, and returns the keyspace of the leases.
    ///
    /// # Errors
    /// `Invalid`, with the setting's name.
    pub(crate) fn check(&self) -> Result<Keyspace> {
        let keyspace = Keyspace::new(&self.queue, &self.group, &self.task_topic())?;
        let topics = [self.task_topic(), self.wait_topic(), self.dead_topic()];
        for topic in &topics {
            let clean = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if topic.is_empty()
                || topic.len() > MAX_NAME
                || !topic.chars().all(clean)
                || &**topic == "."
                || &**topic == ".."
            {
                return invalid(
                    format!("topic `{topic}`"),
                    "A topic's name has 1 to 249 characters of A-Z a-z 0-9 . _ -",
                );
            }
        }
        if topics[0] == topics[1] || topics[0] == topics[2] || topics[1] == topics[2] {
            return invalid(
                format!("topics {topics:?}"),
                "Tasks, waiting tasks and dead letters need separate topics",
            );
        }
        self.check_derived(self.marks_topic(), "the marks of dead letters", "dead_topic")?;
        within("lease_duration", self.lease, LEASE)?;
        within("park_after", self.park_after(), PARK_AFTER)?;
        if self.park_after() >= self.lease {
            return invalid(
                format!("park_after {:?}", self.park_after()),
                format!("It has to be shorter than lease_duration, which is {:?}", self.lease),
            );
        }
        within("track_after", self.track_after(), MILLISECOND..=self.park_after())?;
        within("done_retention", self.done_retention, REMEMBERED)?;
        within("max_overdue", self.max_overdue, REMEMBERED)?;
        within("max_delay", self.max_delay, MAX_DELAY)?;
        within("clock_skew", self.clock_skew, CLOCK_SKEW)?;
        if let Some(timeout) = self.member_timeout {
            within("member_timeout", timeout, MEMBER_TIMEOUT)?;
        }
        #[cfg(feature = "metrics")]
        within("metrics_interval", self.metrics_interval, METRICS_INTERVAL)?;
        within("publish_timeout", self.publish_timeout, PUBLISH_TIMEOUT)?;
        within("partitions", self.partitions, PARTITIONS)?;
        if let Some(factor) = self.replication {
            within("replication", factor, REPLICATION)?;
        }
        within("max_failures", self.max_failures, 1..=MAX_HANDOUTS)?;
        within("max_handouts", self.max_handouts, self.max_failures..=MAX_HANDOUTS)?;
        within("prefetch", self.prefetch, PREFETCH)?;
        within("max_task_bytes", self.max_task_bytes, MAX_TASK_BYTES)?;
        // Room for the largest task.
        within("publish_buffer", self.publish_buffer, self.max_task_bytes..=MAX_PUBLISH_BUFFER)?;
        for (name, value) in [
            ("task_retention", self.task_retention.unwrap_or(Duration::MAX)),
            ("dead_retention", self.dead_retention),
        ] {
            if value != Duration::MAX {
                within(name, value, self.max_overdue.max(SECOND)..=TEN_YEARS)?;
            }
        }
        Ok(keyspace)
    }

    /// Also validates the name that a group in a log without groups needs.
    ///
    /// # Errors
    /// The same as for [`check`](Config::check).
    pub(crate) fn check_for_log(&self) -> Result<Keyspace> {
        let keyspace = self.check()?;
        let cursors = format!("{}{CURSORS}", self.consumer_group());
        self.check_derived(cursors, "the group's cursors", "task_topic, queue or group")?;
        Ok(keyspace)
    }

    pub(crate) fn marks_topic(&self) -> String {
        format!("{}{MARKS}", self.dead_topic())
    }

    /// `settings` are those that make up the name.
    fn check_derived(&self, name: String, whose: &str, settings: &str) -> Result<()> {
        let named = [
            ("task_topic", self.task_topic()),
            ("wait_topic", self.wait_topic()),
            ("dead_topic", self.dead_topic()),
        ];
        if let Some((setting, _)) = named.iter().find(|(_, topic)| **topic == *name) {
            return invalid(
                format!("{setting} `{name}`"),
                format!("{whose} are in the topic of that name: choose another"),
            );
        }
        if name.len() > MAX_NAME {
            return invalid(
                format!("topic `{name}` for {whose}"),
                format!(
                    "It has {} characters and may have at most {MAX_NAME}: choose a shorter {settings}",
                    name.len()
                ),
            );
        }
        Ok(())
    }

    /// How long the wait topic keeps records if it is created here: generous, since consumers may be down.
    pub(crate) fn wait_retention(&self, longest_stay: Duration) -> Duration {
        longest_stay + self.max_overdue.max(7 * DAY)
    }
}

fn within<T: PartialOrd + fmt::Debug>(name: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    invalid(format!("{name} {value:?}"), format!("It must be {:?} to {:?}", range.start(), range.end()))
}

fn invalid<T>(what: impl fmt::Display, advice: impl Into<Cow<'static, str>>) -> Result<T> {
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
        let mut c = config();
        c.check().unwrap();
        assert_eq!((&*c.wait_topic(), &*c.dead_topic()), ("emails.kafkaq.wait", "emails.kafkaq.dead"));
        c.task_topic = Some("emails-test".into());
        assert_eq!(&*c.consumer_group(), "emails..emails-test.kafkaq");
        assert_eq!(&*c.wait_topic(), "emails..emails-test.kafkaq.wait");
        assert_eq!(c.park_after(), Duration::from_secs(10));
    }

    #[test]
    fn queues_that_differ_share_no_group() {
        let mut groups = std::collections::HashMap::new();
        let names = ["a", "a.b", "a.b.c", "b", "b.c", "c", ".a", "a..b", "a.", "."];
        for (queue, topic) in names.iter().flat_map(|queue| names.map(|topic| (*queue, topic))) {
            let mut c = Config::new(queue.into());
            c.task_topic = Some(topic.into());
            if c.check().is_ok() {
                let of = groups.entry(c.consumer_group()).or_insert((queue, topic));
                assert_eq!(*of, (queue, topic), "both are group {}", c.consumer_group());
            }
        }
        assert!(groups.len() > 50);
    }

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

    type Change = fn(&mut Config);

    #[test]
    fn invalid_settings_are_refused_with_their_name_and_limits() {
        let wrong: [(&str, Change); 38] = [
            ("queue", |c| c.queue = "a b".into()),
            ("group", |c| c.group = "a.b".into()),
            ("topic", |c| c.task_topic = Some("a/b".into())),
            ("topics", |c| c.dead_topic = Some(c.task_topic())),
            ("lease_duration 0ns: invalid. It must be 10ms to 2592000s", |c| c.lease = Duration::ZERO),
            ("lease_duration 1ms", |c| c.lease = MILLISECOND),
            ("lease_duration", |c| c.lease = Duration::MAX),
            ("park_after 0ns: invalid. It must be 1ms", |c| c.park_after = Some(Duration::ZERO)),
            ("park_after", |c| c.park_after = Some(Duration::MAX)),
            ("track_after 0ns: invalid. It must be 1ms to 10s", |c| c.track_after = Some(Duration::ZERO)),
            ("track_after 11s", |c| c.track_after = Some(11 * SECOND)),
            ("done_retention", |c| c.done_retention = Duration::MAX),
            ("max_overdue", |c| c.max_overdue = Duration::MAX),
            ("max_delay", |c| c.max_delay = Duration::MAX),
            ("clock_skew", |c| c.clock_skew = Duration::MAX),
            ("partitions 0: invalid. It must be 1 to 10000", |c| c.partitions = 0),
            ("partitions", |c| c.partitions = i32::MAX),
            ("replication", |c| c.replication = Some(0)),
            ("replication", |c| c.replication = Some(i16::MAX)),
            ("max_failures", |c| c.max_failures = 0),
            ("max_failures", |c| c.max_failures = u32::MAX),
            ("max_handouts 3: invalid. It must be 25 to 1000000", |c| c.max_handouts = 3),
            ("max_handouts", |c| c.max_handouts = u32::MAX),
            ("prefetch", |c| c.prefetch = usize::MAX),
            ("max_task_bytes", |c| c.max_task_bytes = 0),
            ("max_task_bytes 33554433: invalid. It must be 1 to 33554432", |c| {
                c.max_task_bytes = (32 << 20) + 1;
            }),
            ("publish_buffer 10: invalid. It must be 934464 to", |c| c.publish_buffer = 10),
            ("publish_buffer", |c| c.publish_buffer = usize::MAX),
            ("publish_timeout", |c| c.publish_timeout = Duration::ZERO),
            ("publish_timeout", |c| c.publish_timeout = Duration::MAX),
            ("member_timeout", |c| c.member_timeout = Some(Duration::from_millis(999))),
            ("member_timeout", |c| c.member_timeout = Some(Duration::from_secs(3601))),
            ("member_timeout", |c| c.member_timeout = Some(Duration::MAX)),
            ("task_retention", |c| c.task_retention = Some(Duration::ZERO)),
            ("task_retention 60s: invalid. It must be 3600s", |c| c.task_retention = Some(60 * SECOND)),
            ("task_retention", |c| c.task_retention = Some(TEN_YEARS + SECOND)),
            ("dead_retention", |c| c.dead_retention = Duration::ZERO),
            ("dead_retention", |c| c.dead_retention = TEN_YEARS + SECOND),
        ];
        for (says, change) in wrong {
            let mut c = config();
            change(&mut c);
            let e = c.check().unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(says), "{says}: {e}");
        }
    }

    #[test]
    fn derived_topic_names_that_are_too_long_or_taken_are_refused_with_the_setting_to_change() {
        let name = |length| Some("n".repeat(length).into());
        let custom = || {
            let mut c = config();
            (c.task_topic, c.wait_topic, c.dead_topic) = (name(226), Some("wait".into()), name(241));
            c
        };
        // The group is `emails..<task_topic>.kafkaq`.
        custom().check_for_log().unwrap();
        let mut long_letters = custom();
        long_letters.dead_topic = name(242);
        let mut long_group = custom();
        long_group.task_topic = name(227);
        long_group.check().unwrap();
        let mut taken_by_wait = config();
        taken_by_wait.wait_topic = Some("emails.kafkaq.dead.handled".into());
        let mut taken_by_dead = config();
        taken_by_dead.dead_topic = Some("emails.kafkaq.cursors".into());
        taken_by_dead.check().unwrap();
        for (c, says) in [
            (long_letters, ["marks of dead letters", "250 characters", "shorter dead_topic"]),
            (long_group, ["group's cursors", "250 characters", "shorter task_topic, queue or group"]),
            (taken_by_wait, ["marks of dead letters", "wait_topic `emails.kafkaq.dead.handled`", "another"]),
            (taken_by_dead, ["group's cursors", "dead_topic `emails.kafkaq.cursors`", "another"]),
        ] {
            let e = c.check_for_log().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
            assert!(says.iter().all(|part| e.to_string().contains(part)), "{says:?}: {e}");
        }
    }

    #[test]
    fn every_limit_itself_is_allowed() {
        let allowed: [Change; 9] = [
            |c| c.lease = *LEASE.start(),
            |c| c.lease = *LEASE.end(),
            |c| (c.done_retention, c.max_overdue, c.max_delay) = (TEN_YEARS, TEN_YEARS, TEN_YEARS),
            |c| (c.done_retention, c.max_overdue, c.max_delay) = Default::default(),
            |c| (c.clock_skew, c.publish_timeout) = (*CLOCK_SKEW.end(), *PUBLISH_TIMEOUT.end()),
            |c| (c.prefetch, c.max_task_bytes) = (*PREFETCH.end(), *MAX_TASK_BYTES.end()),
            |c| (c.task_retention, c.dead_retention) = (Some(Duration::MAX), Duration::MAX),
            |c| (c.max_failures, c.max_handouts) = (MAX_HANDOUTS, MAX_HANDOUTS),
            |c| c.publish_buffer = MAX_PUBLISH_BUFFER,
        ];
        for change in allowed {
            let mut c = config();
            change(&mut c);
            c.check().unwrap();
            // The largest sums of settings.
            let _ = c.wait_retention(TEN_YEARS) + c.done_retention + c.longest_park() + c.session_timeout();
        }
    }
}
