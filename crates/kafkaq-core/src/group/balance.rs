//! Balances partitions among members, without agreement: every member sees the owners of all partitions and moves at
//! most one partition at a time towards balance, first within a topic and then over all topics. Each move reduces the
//! sum of squares, so this terminates.

use super::{MemberId, view::PartitionView};
use std::{collections::BTreeMap, sync::Arc};

/// How many partitions each live member has or is about to get.
#[derive(Debug, Default)]
pub(super) struct Loads {
    topics: BTreeMap<Arc<str>, Load>,
    total: BTreeMap<MemberId, usize>,
}

#[derive(Debug, Default)]
struct Load {
    partitions: usize,
    of: BTreeMap<MemberId, usize>,
}

impl Loads {
    /// `holder` returns the live member that has a partition or is promised it.
    pub(super) fn new(
        views: &[PartitionView],
        me: MemberId,
        holder: impl Fn(&PartitionView) -> Option<MemberId>,
    ) -> Self {
        let mut loads = Loads::default();
        loads.total.insert(me, 0);
        for view in views.iter().filter(|s| !s.gone) {
            let topic = loads.topics.entry(view.partition.topic.clone()).or_default();
            topic.partitions += 1;
            if let Some(member) = holder(view) {
                *topic.of.entry(member).or_default() += 1;
                *loads.total.entry(member).or_default() += 1;
            }
        }
        loads
    }

    /// Whether the member may take a free partition of the topic: not beyond an equal share, so that several members
    /// that see the same free partitions share them at once.
    pub(super) fn has_room(&self, topic: &str, me: MemberId) -> bool {
        let members = self.total.len();
        self.topics.get(topic).is_some_and(|t| t.get(me) < t.partitions.div_ceil(members))
    }

    pub(super) fn add(&mut self, topic: &str, member: MemberId) {
        if let Some(t) = self.topics.get_mut(topic) {
            *t.of.entry(member).or_default() += 1;
        }
        *self.total.entry(member).or_default() += 1;
    }

    /// From which member, in which topic, a partition should move to `me`. `anyway`: even if that doesn't improve
    /// balance.
    pub(super) fn victim(&self, me: MemberId, anyway: bool) -> Option<(Arc<str>, MemberId)> {
        let mine = self.total(me);
        let cases =
            self.topics.iter().flat_map(|(name, topic)| topic.of.keys().map(move |m| (name, topic, *m)));
        cases
            .filter(|(_, topic, m)| {
                let more = topic.get(*m).saturating_sub(topic.get(me));
                let helps = more >= 2 || (more == 1 && self.total(*m) >= mine + 2);
                *m != me && (helps || (anyway && more == 1))
            })
            .max_by_key(|(_, topic, m)| (topic.get(*m).saturating_sub(topic.get(me)), self.total(*m)))
            .map(|(name, _, m)| (name.clone(), m))
    }

    fn total(&self, member: MemberId) -> usize {
        self.total.get(&member).copied().unwrap_or_default()
    }
}

impl Load {
    fn get(&self, member: MemberId) -> usize {
        self.of.get(&member).copied().unwrap_or_default()
    }
}
