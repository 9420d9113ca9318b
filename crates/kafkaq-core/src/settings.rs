//! Topic configs with Kafka's names, for Kafka's adapters.

use crate::{TopicInfo, TopicSpec};
use std::time::Duration;

const CLEANUP: &str = "cleanup.policy";
const RETENTION: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const MAX_RECORD_BYTES: &str = "max.message.bytes";
const TIMESTAMPS: &str = "message.timestamp.type";
const APPEND_TIME: &str = "LogAppendTime";
const SEGMENT: &str = "segment.ms";
/// The active segment is never compacted, and by default it lasts a week: a topic of a few keys would have millions of
/// records to read through.
const COMPACTED_SEGMENT: Duration = Duration::from_secs(3600);

impl TopicSpec {
    /// Returns the configs to create it with, under Kafka's names, except those left to the server. `cleanup.policy` is
    /// never left to it: a server that compacts by default would delete records that have to be kept.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let settings = [
            self.retention.map(|retention| (RETENTION, millis(retention).to_string())),
            self.unlimited_bytes.then(|| (RETENTION_BYTES, "-1".into())),
            self.max_record_bytes.map(|limit| (MAX_RECORD_BYTES, limit.to_string())),
            self.append_time.then(|| (TIMESTAMPS, APPEND_TIME.into())),
            Some((CLEANUP, if self.compacted { "compact" } else { "delete" }.into())),
            self.compacted.then(|| (SEGMENT, millis(COMPACTED_SEGMENT).to_string())),
        ];
        settings.into_iter().flatten().collect()
    }
}

impl TopicInfo {
    /// Applies one of its configs, by Kafka's name. Unknown ones are ignored.
    pub fn learn(&mut self, setting: &str, value: &str) {
        match setting {
            CLEANUP => self.compacted = Some(value.split(',').any(|policy| policy.trim() == "compact")),
            RETENTION => self.retention = value.parse().ok().map(duration),
            RETENTION_BYTES => self.retention_bytes = value.parse().ok(),
            MAX_RECORD_BYTES => self.max_record_bytes = value.parse().ok(),
            TIMESTAMPS => self.append_time = Some(value == APPEND_TIME),
            _ => {}
        }
    }
}

/// -1 is forever.
fn millis(duration: Duration) -> i64 {
    if duration == Duration::MAX { -1 } else { i64::try_from(duration.as_millis()).unwrap_or(-1) }
}

fn duration(millis: i64) -> Duration {
    u64::try_from(millis).map_or(Duration::MAX, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_becomes_exactly_the_settings_that_it_names() {
        // A server's default may be to compact, which deletes records that have a key.
        assert_eq!(TopicSpec::new("t").settings(), [("cleanup.policy", "delete".to_owned())]);
        let mut spec = TopicSpec::new("t");
        spec.retention = Some(Duration::MAX);
        spec.unlimited_bytes = true;
        spec.max_record_bytes = Some(2_000_000);
        spec.append_time = true;
        spec.compacted = true;
        let expected = [
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", "2000000"),
            ("message.timestamp.type", "LogAppendTime"),
            ("cleanup.policy", "compact"),
            ("segment.ms", "3600000"),
        ];
        let settings = spec.settings();
        assert_eq!(
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>(),
            expected
        );
        spec.retention = Some(Duration::from_secs(7));
        assert_eq!(spec.settings()[0].1, "7000");
    }

    #[test]
    fn learned_settings_equal_those_of_the_creation() {
        let mut spec = TopicSpec::new("t");
        spec.retention = Some(Duration::from_secs(60));
        spec.unlimited_bytes = true;
        spec.max_record_bytes = Some(1000);
        spec.append_time = true;
        let mut info = TopicInfo::new("t", 1);
        for (name, value) in spec.settings() {
            info.learn(name, &value);
        }
        info.learn("segment.ms", "1");
        assert_eq!((info.retention, info.retention_bytes), (spec.retention, Some(-1)));
        assert_eq!((info.max_record_bytes, info.append_time), (spec.max_record_bytes, Some(true)));
        assert_eq!(info.compacted, Some(false));
        for (policy, compacted) in [("delete", false), ("delete, compact", true)] {
            info.learn("cleanup.policy", policy);
            info.learn("retention.ms", "-1");
            assert_eq!((info.compacted, info.retention), (Some(compacted), Some(Duration::MAX)));
        }
    }
}
