//! A Redis Cluster: which node has which slots, learned from the nodes and from their redirects.
//!
//! The map is fetched when there is none, and again after anything that casts doubt on it: a redirect, or a failing
//! node. All nodes are asked concurrently and the first response counts, so a node that is down costs no time. A node
//! that doesn't serve its slots is asked last: cut off from the others, it still responds with its old map.

use crate::{failure, link::has_error, node::Node, slot::SLOTS};
use futures_util::future::{join_all, select_ok};
use kafkaq_core::{
    OutageLog, Result,
    connection::{Call, unreachable},
    lock,
};
use redis::{Client, ConnectionAddr, Pipeline, ServerError, Value};
use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// The map is not fetched more often than this: until a failed node has a successor, every call casts doubt on it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The nodes that serve their slots may take this fraction of the time that is left, if there are others to ask.
const SERVING_SHARE: u32 = 2;

/// Stands for the owner of a slot that has none.
const NO_OWNER: usize = usize::MAX;

pub(crate) struct Cluster {
    /// The nodes to start with, and to fall back to when no other node responds.
    seeds: Vec<Arc<Node>>,
    /// How to reach any node: everything but the address.
    template: Client,
    connections: usize,
    map: Mutex<Map>,
    /// Held while fetching the map.
    looking: tokio::sync::Mutex<()>,
    /// Outages of more than one node.
    pub(crate) outages: OutageLog,
}

#[derive(Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot the place of its owner in `nodes`, or `NO_OWNER`. Empty before the first response.
    owners: Vec<usize>,
    /// Nodes that have left the map and may still have calls in flight. Without seeds, which are never dropped.
    displaced: Vec<Weak<Node>>,
    stale: bool,
    looked: Option<Instant>,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Need {
    Nothing,
    /// The current map is used meanwhile.
    Another,
    First,
}

impl Cluster {
    /// Starts with these nodes: at least one. Their settings other than the address apply to all nodes.
    pub(crate) fn new(clients: &[Client], connections: usize) -> Option<Self> {
        let seed = |client| Arc::new(Node::new(client, connections, true));
        let seeds: Vec<_> = clients.iter().map(seed).collect();
        let template = clients.first()?.clone();
        Some(Cluster {
            outages: OutageLog::new(name(&seeds)),
            seeds,
            template,
            connections,
            map: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn seeds(&self) -> &[Arc<Node>] {
        &self.seeds
    }

    /// The nodes that are known to have slots, or to have had some.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.map().nodes.clone()
    }

    /// The known owner of the slot.
    pub(crate) fn owner(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.map();
        let place = *map.owners.get(usize::from(slot))?;
        map.nodes.get(place).cloned()
    }

    /// The number of slots without an owner.
    pub(crate) fn vacant(&self) -> usize {
        self.map().owners.iter().filter(|owner| **owner == NO_OWNER).count()
    }

    /// Ensures that there is a map, and refreshes one in doubt.
    ///
    /// # Errors
    /// If there is none, and no node returns one in time.
    pub(crate) async fn look(&self, call: Call) -> Result<()> {
        let call = call.part(failure::SLOTS);
        let _looking = match self.need()? {
            Need::Nothing => return Ok(()),
            Need::Another => match self.looking.try_lock() {
                Ok(looking) => looking,
                Err(_) => return Ok(()),
            },
            Need::First => timeout_at(call.deadline(), self.looking.lock())
                .await
                .map_err(|_elapsed| unreachable(failure::SLOTS, self.name(), None))?,
        };
        // Somebody may have fetched it while this waited.
        let need = self.need()?;
        if need == Need::Nothing {
            return Ok(());
        }
        let answer = self.ask_all(call).await;
        let mut map = self.map();
        map.looked = Some(Instant::now());
        match answer {
            Ok(ranges) => self.learn(&mut map, &ranges),
            Err(e) if need == Need::First => return Err(e),
            Err(e) => tracing::debug!(target: "kafkaq", error = %e, "no node returned the map of slots"),
        }
        Ok(())
    }

    /// Fetches the map from any node.
    async fn ask_all(&self, call: Call) -> Result<Vec<Range>> {
        let nodes = self.nodes();
        let is_new = |seed: &&Arc<Node>| find(&nodes, seed.address()).is_none();
        let seeds: Vec<_> = self.seeds.iter().filter(is_new).cloned().collect();
        let first_of = async |nodes: &[Arc<Node>]| {
            let questions = nodes.iter().map(|node| Box::pin(ask(node, call)));
            select_ok(questions).await.map(|(ranges, _others)| ranges)
        };
        let (doubtful, serving): (Vec<_>, Vec<_>) =
            nodes.iter().cloned().partition(|node| node.out_of_service.load(Relaxed));
        if doubtful.is_empty() {
            return first_of(&[serving, seeds].concat()).await;
        }
        if !serving.is_empty() {
            let limit = call.deadline().saturating_duration_since(Instant::now()) / SERVING_SHARE;
            if let Ok(Ok(ranges)) = timeout(limit, first_of(&serving)).await {
                return Ok(ranges);
            }
        }
        // A seed may be one of them, under another name.
        first_of(&[doubtful, seeds].concat()).await
    }

    /// Marks the map as doubtful: something failed that a new map may explain.
    pub(crate) fn mark_stale(&self) {
        self.map().stale = true;
    }

    /// Casts doubt on the map if a node, by its responses, doesn't serve its slots: another may have taken them over.
    pub(crate) fn observe(&self, node: &Node, answers: &[Value]) {
        let out_of_service = has_error(answers, failure::is_out_of_service);
        node.out_of_service.store(out_of_service, Relaxed);
        if out_of_service {
            self.mark_stale();
        }
    }

    /// The node that a refused command goes to instead, if only this command does. If the whole slot has moved, the map
    /// is changed.
    pub(crate) fn redirect(&self, from: &Node, refusal: &ServerError) -> Option<Arc<Node>> {
        let (slot, to) = refusal.details()?.split_once(' ')?;
        // Without a host it is another port of the same host.
        let to = if to.starts_with(':') { [host(from.address()), to].concat() } else { to.to_owned() };
        let mut map = self.map();
        let node = self.node(&map.nodes, &to).filter(|_| !map.closed)?;
        if find(&map.nodes, &to).is_none() {
            map.nodes.push(node.clone());
        }
        if failure::is_ask(refusal) {
            return Some(node);
        }
        map.stale = true;
        let place = map.nodes.iter().position(|known| Arc::ptr_eq(known, &node))?;
        *map.owners.get_mut(slot.parse::<usize>().ok()?)? = place;
        None
    }

    pub(crate) async fn close(&self) {
        let map = std::mem::replace(&mut *self.map(), Map { closed: true, ..Map::default() });
        let displaced: Vec<_> = map.displaced.iter().filter_map(Weak::upgrade).collect();
        join_all(self.seeds.iter().chain(&map.nodes).chain(&displaced).map(|node| node.close())).await;
    }

    fn need(&self) -> Result<Need> {
        let map = self.map();
        if map.closed {
            return Err(failure::SLOTS.closed());
        }
        let recent = map.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        Ok(match map.owners.is_empty() {
            true => Need::First,
            false if map.stale && !recent => Need::Another,
            false => Need::Nothing,
        })
    }

    fn learn(&self, map: &mut Map, ranges: &[Range]) {
        if map.closed {
            return;
        }
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut owners = vec![NO_OWNER; usize::from(SLOTS)];
        for Range { slots, address } in ranges {
            let known = nodes.iter().position(|node| node.address() == address);
            let place = match (known, self.node(&map.nodes, address)) {
                (Some(place), _) => place,
                (None, Some(node)) => {
                    nodes.push(node);
                    nodes.len() - 1
                }
                (None, None) => continue,
            };
            if let Some(owners) = owners.get_mut(usize::from(*slots.start())..=usize::from(*slots.end())) {
                owners.fill(place);
            }
        }
        tracing::debug!(target: "kafkaq", nodes = nodes.len(), "learned which node has which slots");
        map.displaced.retain(|node| node.strong_count() > 0);
        let stays = |old: &Arc<Node>| nodes.iter().chain(&self.seeds).any(|node| Arc::ptr_eq(node, old));
        map.displaced.extend(map.nodes.iter().filter(|old| !stays(old)).map(Arc::downgrade));
        (map.nodes, map.owners, map.stale) = (nodes, owners, false);
    }

    /// The node at this address: a known one, or a new one. Doesn't connect.
    fn node(&self, known: &[Arc<Node>], address: &str) -> Option<Arc<Node>> {
        if let Some(node) = find(known, address).or_else(|| find(&self.seeds, address)) {
            return Some(node);
        }
        let (host, port) = (host(address).to_owned(), address.rsplit_once(':')?.1.parse().ok()?);
        let template = self.template.get_connection_info();
        let addr = match template.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let client = Client::open(template.clone().set_addr(addr)).ok()?;
        Some(Arc::new(Node::new(&client, self.connections, true)))
    }

    /// As shown in errors and log messages.
    fn name(&self) -> String {
        name(&self.seeds)
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        lock(&self.map)
    }
}

fn name(seeds: &[Arc<Node>]) -> String {
    let addresses: Vec<_> = seeds.iter().map(|seed| seed.address()).collect();
    format!("the Redis Cluster at {}", addresses.join(", "))
}

fn find(nodes: &[Arc<Node>], address: &str) -> Option<Arc<Node>> {
    nodes.iter().find(|node| node.address() == address).cloned()
}

/// Returns the host of `host:port`; an IPv6 address has more colons.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// A range of slots, and their owner.
#[derive(Debug, PartialEq)]
struct Range {
    slots: RangeInclusive<u16>,
    address: String,
}

async fn ask(node: &Node, call: Call) -> Result<Vec<Range>> {
    let mut question = Pipeline::with_capacity(1);
    question.cmd("CLUSTER").arg("SLOTS");
    match node.send(call, &question).await?.pop() {
        Some(Value::ServerError(e)) => Err(failure::refused(failure::SLOTS, &e)),
        Some(answer) => match ranges(&answer, host(node.address())) {
            Some(ranges) if !ranges.is_empty() => Ok(ranges),
            // The node has not joined the others yet.
            Some(_) => Err(failure::unassigned(failure::SLOTS)),
            None => Err(failure::unexpected_response(failure::SLOTS)),
        },
        None => Err(failure::unexpected_response(failure::SLOTS)),
    }
}

/// Reads `[[first, last, [host, port, ..], replicas..]..]`. A node that doesn't know its own name leaves it out.
fn ranges(answer: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let range = |range: &Value| {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(owner), ..] = &range[..] else { return None };
        let [host, Value::Int(port), ..] = &owner[..] else { return None };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => str::from_utf8(host).ok()?,
            _ => asked,
        };
        let slots = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
        Some(Range { slots, address: format!("{host}:{port}") })
    };
    ranges.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RedisStore;
    use kafkaq_core::{ErrorKind, Key, LeaseStore};
    use redis::parse_redis_value;
    use std::{net::SocketAddr, sync::atomic::AtomicBool};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::sleep,
    };

    const LIMIT: Duration = Duration::from_secs(30);

    fn cluster() -> Cluster {
        Cluster::new(&[Client::open("redis://10.0.0.1:7000").unwrap()], 1).unwrap()
    }

    fn refusal(line: &str) -> ServerError {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(e) => e,
            other => panic!("{other:?}"),
        }
    }

    fn learnt() -> Cluster {
        let cluster = cluster();
        let range = |slots, address: &str| Range { slots, address: address.to_owned() };
        let ranges = [range(0..=99, "10.0.0.1:7000"), range(100..=16_383, "10.0.0.2:7000")];
        cluster.learn(&mut cluster.map(), &ranges);
        cluster
    }

    fn owner(cluster: &Cluster, slot: u16) -> String {
        cluster.owner(slot).unwrap().address().to_owned()
    }

    #[test]
    fn response_of_a_node_is_parsed_as_a_map() {
        let node = |host: Value| Value::Array(vec![host, Value::Int(7001), Value::BulkString(b"id".into())]);
        let range = |host| Value::Array(vec![Value::Int(5), Value::Int(9), node(host), node(Value::Nil)]);
        let named = Value::BulkString(b"10.0.0.2".into());
        let answer = Value::Array(vec![range(named), range(Value::BulkString(vec![])), range(Value::Nil)]);
        let found: Vec<_> =
            ranges(&answer, "me").unwrap().into_iter().map(|r| (r.slots, r.address)).collect();
        let expected = ["10.0.0.2:7001", "me:7001", "me:7001"].map(|address| (5..=9, address.to_owned()));
        assert_eq!(found, expected);
        assert_eq!(ranges(&Value::Okay, "me"), None);
    }

    #[test]
    fn moved_slot_gets_its_new_owner_and_others_keep_theirs() {
        let cluster = learnt();
        let from = cluster.owner(100).unwrap();
        assert!(cluster.redirect(&from, &refusal("MOVED 100 10.0.0.3:7000")).is_none());
        assert!(cluster.redirect(&from, &refusal("MOVED 101 :7001")).is_none());
        assert_eq!(owner(&cluster, 100), "10.0.0.3:7000");
        assert_eq!(owner(&cluster, 101), "10.0.0.2:7001");
        assert_eq!(owner(&cluster, 102), "10.0.0.2:7000");
    }

    #[test]
    fn migrating_slot_stays_with_its_owner() {
        let cluster = learnt();
        let from = cluster.owner(100).unwrap();
        let other = cluster.redirect(&from, &refusal("ASK 100 10.0.0.1:7000")).unwrap();
        assert_eq!(other.address(), "10.0.0.1:7000");
        assert_eq!(owner(&cluster, 100), "10.0.0.2:7000");
    }

    #[tokio::test]
    async fn slots_outside_the_map_have_no_owner() {
        let cluster = learnt();
        let from = cluster.owner(0).unwrap();
        assert!(cluster.redirect(&from, &refusal("MOVED 60000 10.0.0.3:7000")).is_none());
        assert!(cluster.redirect(&from, &refusal("MOVED x")).is_none());
        cluster.learn(&mut cluster.map(), &[Range { slots: 0..=0, address: "10.0.0.1:7000".into() }]);
        assert!(cluster.owner(1).is_none());
        assert_eq!(cluster.vacant(), 16_383);
        cluster.close().await;
        assert!(cluster.owner(0).is_none() && cluster.redirect(&from, &refusal("ASK 0 h:1")).is_none());
    }

    #[tokio::test]
    async fn close_reaches_a_node_that_has_left_the_map_while_it_is_in_use() {
        let cluster = cluster();
        let range = |address: &str| Range { slots: 0..=16_383, address: address.to_owned() };
        cluster.learn(&mut cluster.map(), &[range("127.0.0.1:1")]);
        let in_use = cluster.owner(0).unwrap();
        let seed = "10.0.0.1:7000";
        for address in ["127.0.0.1:2", seed, "127.0.0.1:3", seed, "127.0.0.1:4"] {
            cluster.learn(&mut cluster.map(), &[range(address)]);
        }
        assert!(cluster.map().displaced.len() <= 2, "unused ones are dropped");
        cluster.close().await;
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        let e = in_use.send(Call::new(failure::READ, LIMIT), &ping).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
    }

    /// The old and the new primary of all slots but one, which always belongs to the new one.
    struct Failover {
        addresses: [SocketAddr; 2],
        /// The old one is cut off, and the new one has taken over.
        over: AtomicBool,
    }

    impl Failover {
        async fn start() -> Arc<Self> {
            let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
            let nodes = [bind().await, bind().await];
            let addresses = nodes.each_ref().map(|node| node.local_addr().unwrap());
            let failover = Arc::new(Failover { addresses, over: AtomicBool::new(false) });
            for (number, listener) in nodes.into_iter().enumerate() {
                let failover = failover.clone();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(failover.clone().serve(number, stream));
                    }
                });
            }
            failover
        }

        async fn serve(self: Arc<Self>, number: usize, mut stream: TcpStream) -> std::io::Result<()> {
            let mut received = [0; 4096];
            loop {
                let n = stream.read(&mut received).await?;
                if n == 0 {
                    return Ok(());
                }
                for command in String::from_utf8_lossy(&received[..n]).split('*').skip(1) {
                    if number == 1 && command.contains("SLOTS") {
                        // Not the first to respond.
                        sleep(Duration::from_millis(100)).await;
                    }
                    stream.write_all(self.answer(number, command).as_bytes()).await?;
                }
            }
        }

        fn answer(&self, number: usize, command: &str) -> String {
            let over = self.over.load(Relaxed);
            if command.contains("SLOTS") {
                let range = |slots: RangeInclusive<u16>, owner: usize| {
                    let (first, last, port) = (slots.start(), slots.end(), self.addresses[owner].port());
                    format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n")
                };
                let most = range(0..=16_382, number * usize::from(over));
                return format!("*2\r\n{most}{}", range(16_383..=16_383, 1));
            }
            let answer = match command.contains("MGET") {
                true if number == 0 && over => "-CLUSTERDOWN The cluster is down",
                true => "*1\r\n$-1",
                false => "+OK",
            };
            format!("{answer}\r\n")
        }
    }

    #[tokio::test]
    async fn node_that_does_not_serve_its_slots_is_replaced_by_their_new_owner() {
        let failover = Failover::start().await;
        // The old one has two names.
        let [old, new] = failover.addresses;
        let urls = [format!("redis://localhost:{}", old.port()), format!("redis://{new}")];
        let store = RedisStore::cluster(urls).request_timeout(LIMIT).connections(1).build().unwrap();
        let key = [Key::of(&["t", "a"]).unwrap()];
        store.get(&key).await.remove(0).unwrap();
        failover.over.store(true, Relaxed);
        let finds_it = async {
            while store.get(&key).await.remove(0).is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, finds_it).await.expect("it asks the other node");
        store.close().await.unwrap();
    }
}
