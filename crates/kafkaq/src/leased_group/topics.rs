//! Tracks which partitions exist, for the group, and produces alerts for the operator.

use kafkaq_core::{Error, ErrorKind, Partition, Retry, TopicInfo};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often a topic that is still missing is reported.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// In how many consecutive checks a topic has to be missing. A broker that has just started may not know all topics
/// yet.
const CERTAIN: u32 = 2;

/// The topics that a member reads.
pub(super) struct Topics(Vec<Topic>);

struct Topic {
    name: Arc<str>,
    /// The number of partitions, as last seen.
    partitions: i32,
    /// In how many checks in a row it was missing.
    missing: u32,
    told: Option<Instant>,
}

impl Topics {
    pub(super) fn new(names: &[Arc<str>]) -> Self {
        let topic = |name: &Arc<str>| Topic { name: name.clone(), partitions: 0, missing: 0, told: None };
        Topics(names.iter().map(topic).collect())
    }

    /// Applies a check, one `TopicInfo` per topic, in order. Returns what to report, by topic.
    pub(super) fn observe(&mut self, infos: &[Option<TopicInfo>], now: Instant) -> Vec<(Partition, Error)> {
        let mut alarms = Vec::new();
        for (topic, info) in self.0.iter_mut().zip(infos) {
            if let Some(info) = info {
                (topic.partitions, topic.missing, topic.told) = (info.partitions, 0, None);
                continue;
            }
            topic.missing = topic.missing.saturating_add(1);
            // A member that has just joined has nothing to lose.
            if topic.missing < CERTAIN && topic.partitions > 0 {
                continue;
            }
            topic.partitions = 0;
            if topic.told.is_none_or(|at| now >= at + TELL_EVERY) {
                topic.told = Some(now);
                alarms.push((Partition::new(topic.name.clone(), -1), missing(&topic.name)));
            }
        }
        alarms
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = Partition> {
        let of = |t: &Topic| {
            (0..t.partitions).map({
                let name = t.name.clone();
                move |index| Partition::new(name.clone(), index)
            })
        };
        self.0.iter().flat_map(of)
    }

    /// Whether one of them was missing at the last check.
    pub(super) fn is_incomplete(&self) -> bool {
        self.0.iter().any(|topic| topic.missing > 0)
    }
}

fn missing(topic: &str) -> Error {
    Error::not_applied(ErrorKind::NotFound, "look for partitions")
        .on(topic)
        .with_retry(Retry::Yes)
        .with_advice(
            "The topic was deleted, and its records with it. A running member doesn't recreate it, since its \
         settings are not known here: start a queue, which does, or create it by hand. It is read again as \
         soon as it is there",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(topics: &mut Topics, partitions: &[i32], now: Instant) -> (Vec<String>, Vec<i32>) {
        let info = |n: &i32| (*n > 0).then(|| TopicInfo::new("x", *n));
        let told = topics.observe(&partitions.iter().map(info).collect::<Vec<_>>(), now);
        let count = |name: &str| topics.partitions().filter(|p| *p.topic == *name).count() as i32;
        (told.iter().map(|(p, _)| p.topic.to_string()).collect(), vec![count("a"), count("b")])
    }

    #[test]
    fn topic_that_is_missing_twice_is_lost_and_reported_once_per_minute() {
        let mut topics = Topics::new(&["a".into(), "b".into()]);
        let (begin, sec) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(look(&mut topics, &[2, 3], begin), (vec![], vec![2, 3]));
        assert!(!topics.is_incomplete());
        assert_eq!(look(&mut topics, &[2, 0], begin), (vec![], vec![2, 3]), "a broker that has just started");
        assert!(topics.is_incomplete());
        assert_eq!(look(&mut topics, &[2, 3], begin), (vec![], vec![2, 3]));
        look(&mut topics, &[2, 0], begin);
        assert_eq!(look(&mut topics, &[2, 0], begin), (vec!["b".to_string()], vec![2, 0]));
        assert_eq!(look(&mut topics, &[2, 0], begin + sec * 59).0, Vec::<String>::new());
        assert_eq!(look(&mut topics, &[2, 0], begin + sec * 60).0, ["b"]);
        assert_eq!(look(&mut topics, &[2, 5], begin), (vec![], vec![2, 5]));
        look(&mut topics, &[2, 0], begin);
        assert_eq!(look(&mut topics, &[2, 0], begin).0, ["b"], "reported again");
    }

    #[test]
    fn topic_that_never_existed_is_reported_at_once() {
        let mut topics = Topics::new(&["a".into(), "b".into()]);
        assert_eq!(look(&mut topics, &[0, 3], Instant::now()), (vec!["a".to_string()], vec![0, 3]));
    }
}
