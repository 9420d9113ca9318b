//! What a consumer of the group is built from.

use crate::slot::Doubt;
use kafkaq_core::Partition;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) topics: Vec<Arc<str>>,
    /// Recreated topics, for which the consumer is rebuilt, each with the partitions that were read since.
    replaced: HashMap<Arc<str>, HashSet<i32>>,
    /// How many consecutive consumers have failed before it.
    pub(crate) failures: u32,
}

impl Plan {
    pub(crate) fn new(topics: &[Arc<str>]) -> Self {
        Plan { topics: topics.to_vec(), ..Plan::default() }
    }

    pub(crate) fn replaced(&mut self, topic: Arc<str>) {
        self.replaced.insert(topic, HashSet::new());
    }

    /// Records that something of a partition was read. From now on, that shows whether the topic is recreated once
    /// more.
    pub(crate) fn was_read(&mut self, of: &Partition) {
        if let Some(read) = self.replaced.get_mut(&of.topic) {
            read.insert(of.index);
        }
    }

    /// Returns the doubt about a new assignment. Until something was read, the committed offset may be of the earlier
    /// log, which is known.
    pub(crate) fn doubt(&self, of: &Partition) -> Doubt {
        match self.replaced.get(&of.topic) {
            Some(read) if !read.contains(&of.index) => Doubt::Log,
            _ => Doubt::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recreated_log_is_doubted_until_it_was_read_from() {
        let [one, two, other] =
            [("t", 0), ("t", 1), ("u", 0)].map(|(topic, index)| Partition::new(topic, index));
        let doubts = |plan: &Plan| [&one, &two, &other].map(|of| plan.doubt(of));
        let mut plan = Plan::default();
        plan.was_read(&one);
        assert_eq!(doubts(&plan), [Doubt::Nothing; 3]);
        plan.replaced("t".into());
        assert_eq!(doubts(&plan), [Doubt::Log, Doubt::Log, Doubt::Nothing]);
        plan.was_read(&one);
        plan.was_read(&other);
        let mut next = plan.clone();
        assert_eq!(doubts(&next), [Doubt::Nothing, Doubt::Log, Doubt::Nothing], "also of the next consumer");
        next.replaced("t".into());
        assert_eq!(doubts(&next), [Doubt::Log, Doubt::Log, Doubt::Nothing], "recreated once more");
    }
}
