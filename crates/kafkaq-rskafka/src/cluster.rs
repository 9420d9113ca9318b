//! The brokers and the leaders of partitions, as reported by the cluster within the last ten seconds.

use crate::{
    failure::Failure,
    protocol::metadata::{Described, DescribedPartition, DescribedTopic, Metadata},
    wire::{CONNECT_SHARE, Connections, Request, format::TopicId},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use kafkaq_core::{Partition, lock};
use rskafka::client::error::ProtocolError;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Leaders are looked up again after this, which also finds added partitions and recreated topics.
const MAX_AGE: Duration = Duration::from_secs(10);
/// Topics that were used within this are looked up together.
const IN_USE: Duration = Duration::from_secs(60);
/// A topic that has not been used for this long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// How many ends of fetches are remembered per partition: only few readers read it at once.
const READERS: usize = 4;
/// How many known brokers are tried before the configured addresses.
const KNOWN: usize = 3;

#[derive(Default)]
pub(crate) struct Cluster {
    view: Mutex<View>,
    /// Held during a lookup, so that others wait for it. Has the last failure and its time.
    asking: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    /// Every request starts with another broker.
    turn: AtomicUsize,
}

#[derive(Default)]
struct View {
    brokers: HashMap<i32, Arc<str>>,
    controller: Option<Arc<str>>,
    topics: HashMap<Arc<str>, Topic>,
}

struct Topic {
    id: Option<TopicId>,
    /// The server's code for it.
    code: i16,
    /// The broker that leads each partition.
    leaders: HashMap<i32, Option<i32>>,
    /// The latest leadership of each partition under this id, its epoch first. A broker that is cut off from the others
    /// reports earlier ones.
    latest: HashMap<i32, (i32, Option<i32>)>,
    /// The partitions that were read through this handle.
    read: HashMap<i32, Read>,
    asked: Option<Instant>,
    used: Instant,
}

/// The positions of a partition's readers.
struct Read {
    /// The topic's id then.
    id: TopicId,
    /// Where the last fetches have ended, with the leader epoch of the record before: a truncated log has another one
    /// there.
    ends: VecDeque<(i64, i32)>,
}

/// The broker to contact for a partition.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) address: Arc<str>,
    pub(crate) topic: Option<TopicId>,
}

impl Cluster {
    /// The leader of a partition.
    pub(crate) async fn leader(
        &self,
        connections: &Connections,
        of: &Partition,
        deadline: Instant,
    ) -> Result<Leader, Failure> {
        match self.known_leader(of) {
            Some(leader) => Ok(leader),
            None => self.look_up(connections, of, deadline).await,
        }
    }

    /// The current leader of a partition.
    pub(crate) async fn look_up(
        &self,
        connections: &Connections,
        of: &Partition,
        deadline: Instant,
    ) -> Result<Leader, Failure> {
        let since = Instant::now();
        let asking = timeout_at(deadline, self.asking.lock()).await;
        let mut failed = asking.map_err(|_| Failure::not_connected())?;
        // The previous holder of the lock may have looked up this one too, or failed for all.
        if let Some((at, failure)) = &*failed
            && *at >= since
        {
            return Err(failure.clone());
        }
        if !self.was_asked(&of.topic, since)
            && let Err(failure) = self.describe(connections, self.in_use(&of.topic), deadline).await
        {
            *failed = Some((Instant::now(), failure.clone()));
            return Err(failure);
        }
        self.leader_in_view(of)
    }

    /// Looks up topics, without creating any. Returns one outcome per name, in the same order.
    pub(crate) async fn topics(
        &self,
        connections: &Connections,
        names: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Vec<Result<DescribedTopic, Failure>>, Failure> {
        let described = self.describe(connections, names.to_vec(), deadline).await?.topics;
        let outcomes = names.iter().map(|name| {
            let topic = described.iter().find(|topic| *topic.name == **name);
            let topic = topic.ok_or_else(Failure::not_found)?;
            // A topic without a leader exists, too.
            match Failure::of_code(topic.code, || format!("asked for the topic {name}")) {
                Err(failure) if failure.code != Some(ProtocolError::LeaderNotAvailable) => {
                    Err(failure.unsent())
                }
                _ => Ok(topic.clone()),
            }
        });
        Ok(outcomes.collect())
    }

    /// The broker that creates topics.
    pub(crate) async fn controller(
        &self,
        connections: &Connections,
        deadline: Instant,
    ) -> Result<Arc<str>, Failure> {
        self.describe(connections, Vec::new(), deadline).await?;
        // The controller is being elected.
        lock(&self.view).controller.clone().ok_or_else(Failure::no_leader)
    }

    /// Invalidates what is known about a topic.
    pub(crate) fn invalidate(&self, topic: &str) {
        if let Some(topic) = lock(&self.view).topics.get_mut(topic) {
            topic.asked = None;
        }
    }

    /// Records that a partition is being read under this id. Fails, once, if it was read under another one before.
    pub(crate) fn reads(&self, partition: &Partition, id: Option<TopicId>) -> Result<(), Failure> {
        let Some(id) = id else { return Ok(()) };
        let mut view = lock(&self.view);
        let Some(topic) = view.topics.get_mut(&partition.topic) else { return Ok(()) };
        let fresh = || Read { id, ends: VecDeque::new() };
        let read = topic.read.entry(partition.index).or_insert_with(fresh);
        if read.id == id {
            return Ok(());
        }
        *read = fresh();
        Err(Failure::recreated())
    }

    /// Records where a fetch has ended, and the leader epoch of the record before that.
    pub(crate) fn has_read(&self, partition: &Partition, next: i64, epoch: Option<i32>) {
        let Some(epoch) = epoch else { return };
        self.with_ends(partition, |ends| {
            ends.retain(|(end, _)| *end != next);
            ends.truncate(READERS - 1);
            ends.push_front((next, epoch));
        });
    }

    /// The leader epoch of the record before an offset, if a fetch has ended there.
    pub(crate) fn epoch_below(&self, partition: &Partition, offset: i64) -> Option<i32> {
        let of = |ends: &mut VecDeque<(i64, i32)>| ends.iter().find(|(end, _)| *end == offset).copied();
        self.with_ends(partition, of).flatten().map(|(_, epoch)| epoch)
    }

    /// Forgets the epochs of a partition whose log was replaced.
    pub(crate) fn forget_epochs(&self, partition: &Partition) {
        self.with_ends(partition, VecDeque::clear);
    }

    fn with_ends<T>(&self, of: &Partition, work: impl FnOnce(&mut VecDeque<(i64, i32)>) -> T) -> Option<T> {
        let mut view = lock(&self.view);
        let read = view.topics.get_mut(&of.topic)?.read.get_mut(&of.index)?;
        Some(work(&mut read.ends))
    }

    fn known_leader(&self, of: &Partition) -> Option<Leader> {
        let mut view = lock(&self.view);
        let topic = view.topics.get_mut(&of.topic)?;
        topic.used = Instant::now();
        if topic.asked.is_none_or(|at| at.elapsed() >= MAX_AGE) {
            return None;
        }
        let id = topic.id;
        let leader = (*topic.leaders.get(&of.index)?)?;
        Some(Leader { address: view.brokers.get(&leader)?.clone(), topic: id })
    }

    fn leader_in_view(&self, of: &Partition) -> Result<Leader, Failure> {
        let view = lock(&self.view);
        let topic = view.topics.get(&of.topic).ok_or_else(Failure::not_found)?;
        if topic.leaders.is_empty() {
            Failure::of_code(topic.code, || format!("asked for the topic {}", of.topic))
                .map_err(Failure::unsent)?;
        }
        let leader = topic.leaders.get(&of.index).ok_or_else(Failure::not_found)?;
        let address = leader.and_then(|leader| view.brokers.get(&leader)).ok_or_else(Failure::no_leader)?;
        Ok(Leader { address: address.clone(), topic: topic.id })
    }

    fn was_asked(&self, topic: &str, since: Instant) -> bool {
        let view = lock(&self.view);
        view.topics.get(topic).and_then(|topic| topic.asked).is_some_and(|at| at >= since)
    }

    /// Returns the topic, and the others that are in use.
    fn in_use(&self, name: &Arc<str>) -> Vec<Arc<str>> {
        let view = lock(&self.view);
        let others = view.topics.iter().filter(|(_, topic)| topic.used.elapsed() < IN_USE);
        let others = others.map(|(other, _)| other.clone()).filter(|other| other != name);
        std::iter::once(name.clone()).chain(others).collect()
    }

    async fn describe(
        &self,
        connections: &Connections,
        topics: Vec<Arc<str>>,
        deadline: Instant,
    ) -> Result<Described, Failure> {
        let request = Metadata { topics };
        let asked = Instant::now();
        let described = self.ask_anybody(connections, &request, deadline).await?;
        self.learn(&request.topics, &described, asked)?;
        Ok(described)
    }

    fn learn(&self, names: &[Arc<str>], described: &Described, asked: Instant) -> Result<(), Failure> {
        let mut view = lock(&self.view);
        if described.brokers.is_empty() {
            return Err(Failure::no_leader());
        }
        view.brokers = described.brokers.iter().cloned().collect();
        view.controller = view.brokers.get(&described.controller).cloned();
        for name in names {
            let found = described.topics.iter().find(|topic| *topic.name == **name);
            let fresh = || Topic {
                id: None,
                code: 0,
                leaders: HashMap::new(),
                latest: HashMap::new(),
                read: HashMap::new(),
                asked: None,
                used: Instant::now(),
            };
            let topic = view.topics.entry(name.clone()).or_insert_with(fresh);
            topic.asked = Some(asked);
            // A deleted topic keeps its id, to distinguish it from the next one with that name.
            topic.leaders.clear();
            if let Some(found) = found {
                topic.code = found.code;
                // Without ids, a lower epoch may be of a recreated topic.
                if found.id.is_none() || topic.id != found.id {
                    topic.latest.clear();
                }
                topic.id = found.id;
                let latest = &mut topic.latest;
                topic.leaders =
                    found.partitions.iter().map(|found| (found.index, newer(latest, found))).collect();
            }
        }
        view.topics.retain(|_, topic| topic.used.elapsed() < FORGOTTEN);
        Ok(())
    }

    /// Asks one broker after another, until one responds. The next one is asked when another has failed, or has had its
    /// part of the time; those that were asked may still respond, since connecting to a distant broker takes longer.
    pub(crate) async fn ask_anybody<R: Request>(
        &self,
        connections: &Connections,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Failure> {
        let mut candidates = self.candidates(connections).into_iter();
        let share = connections.settings.request_timeout / CONNECT_SHARE;
        let each = share / u32::try_from(candidates.len()).unwrap_or(u32::MAX).max(1);
        let (mut asked, mut last) = (FuturesUnordered::new(), Failure::not_connected());
        let mut next_at = Instant::now();
        loop {
            if Instant::now() >= next_at
                && let Some(address) = candidates.next()
            {
                next_at = Instant::now() + each;
                let limit = deadline.min(Instant::now() + share);
                asked.push(async move { connections.exchange(&address, request, limit).await });
            }
            tokio::select! {
                biased;
                outcome = asked.next() => match outcome {
                    Some(Ok(response)) => return Ok(response),
                    Some(Err(failure)) if failure.answered => return Err(failure),
                    Some(Err(failure)) => (last, next_at) = (failure, Instant::now()),
                    None => return Err(last.not_reached()),
                },
                () = sleep_until(next_at), if candidates.len() > 0 => {}
            }
        }
    }

    /// Brokers with a connection, a few known ones, and the configured ones.
    fn candidates(&self, connections: &Connections) -> Vec<Arc<str>> {
        let mut known: Vec<_> = lock(&self.view).brokers.values().cloned().collect();
        known.sort_unstable();
        let turn = self.turn.fetch_add(1, Relaxed);
        if !known.is_empty() {
            let at = turn % known.len();
            known.rotate_left(at);
        }
        let connected = connections.connected();
        known.sort_by_key(|address| !connected.contains(address));
        known.truncate(KNOWN);
        for address in &connections.settings.addresses {
            if !known.contains(address) {
                known.push(address.clone());
            }
        }
        known
    }
}

/// Returns the leader with the later epoch: the one that was just described, or the latest one so far.
fn newer(latest: &mut HashMap<i32, (i32, Option<i32>)>, found: &DescribedPartition) -> Option<i32> {
    let DescribedPartition { index, leader, epoch } = *found;
    let known = latest.entry(index).or_insert((epoch, None));
    if epoch < 0 || epoch >= known.0 {
        *known = (epoch.max(known.0), (leader >= 0).then_some(leader));
    }
    known.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TopicId = TopicId([1; 16]);
    const RECREATED: TopicId = TopicId([2; 16]);

    #[test]
    fn a_leader_of_an_earlier_epoch_is_ignored_unless_the_topic_is_another() {
        let cluster = Cluster::default();
        let of = Partition::new("t", 0);
        let leader_after = |id, leader, epoch| {
            let partition = DescribedPartition { index: 0, leader, epoch };
            let topic = DescribedTopic { code: 0, name: "t".into(), id, partitions: vec![partition] };
            let brokers = (1..=3).map(|n| (n, format!("broker-{n}:9092").into())).collect();
            let described = Described { brokers, controller: 1, topics: vec![topic] };
            cluster.learn(&["t".into()], &described, Instant::now()).unwrap();
            cluster.leader_in_view(&of).map(|leader| leader.address.to_string()).unwrap_or_default()
        };
        assert_eq!(leader_after(Some(T), 2, 5), "broker-2:9092");
        assert_eq!(leader_after(Some(T), 1, 4), "broker-2:9092", "1 is cut off from the others");
        assert_eq!(leader_after(Some(T), -1, 4), "broker-2:9092");
        assert_eq!(leader_after(Some(T), 3, -1), "broker-3:9092", "without an epoch");
        assert_eq!(leader_after(Some(T), 1, 4), "broker-3:9092");
        assert_eq!(leader_after(Some(T), -1, 6), "", "3 has failed");
        assert_eq!(leader_after(Some(T), 3, 5), "");
        assert_eq!(leader_after(Some(T), 3, 7), "broker-3:9092");
        assert_eq!(leader_after(Some(RECREATED), 1, 0), "broker-1:9092");
        assert_eq!(leader_after(None, 2, 3), "broker-2:9092");
        assert_eq!(leader_after(None, 1, 0), "broker-1:9092", "recreated, of a server without ids");
    }
}
