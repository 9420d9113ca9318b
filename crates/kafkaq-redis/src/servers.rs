//! One server or a cluster: distributes the parts of a batch.

use crate::{cluster::Cluster, node::Node};
use kafkaq_core::{OutageLog, Result, connection::Call};
use redis::{Pipeline, ServerError, Value};
use std::sync::Arc;

pub(crate) enum Servers {
    One(Arc<Node>),
    Cluster(Box<Cluster>),
}

/// A part of a batch that goes to one node, as places in the batch.
pub(crate) struct Share {
    pub(crate) node: Arc<Node>,
    /// The keys belong to a slot that the node is about to get.
    asking: bool,
    pub(crate) places: Vec<usize>,
}

impl Share {
    pub(crate) async fn send(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        if self.asking {
            self.node.send_asking(call, commands).await
        } else {
            self.node.send(call, commands).await
        }
    }
}

/// The open part of a batch.
#[derive(Default)]
pub(crate) struct Open {
    pub(crate) places: Vec<usize>,
    /// Places to be sent with `ASKING`, each with its node.
    asks: Vec<(usize, Arc<Node>)>,
}

impl Open {
    pub(crate) fn all(n: usize) -> Self {
        Open { places: (0..n).collect(), asks: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.asks.is_empty()
    }

    pub(crate) fn into_places(self) -> impl Iterator<Item = usize> {
        self.places.into_iter().chain(self.asks.into_iter().map(|(place, _)| place))
    }
}

impl Servers {
    /// # Errors
    /// If there is no server to send anything to.
    pub(crate) async fn ready(&self, call: Call) -> Result<()> {
        match self {
            Servers::One(_) => Ok(()),
            Servers::Cluster(cluster) => cluster.look(call).await,
        }
    }

    /// Returns what each node gets, and what none does.
    pub(crate) fn share(&self, open: Open, slot: impl Fn(usize) -> u16) -> (Vec<Share>, Vec<usize>) {
        let cluster = match self {
            Servers::One(node) => {
                let places = open.into_places().collect();
                return (vec![Share { node: node.clone(), asking: false, places }], Vec::new());
            }
            Servers::Cluster(cluster) => cluster,
        };
        let (mut shares, mut unassigned) = (Vec::<Share>::new(), Vec::new());
        let mut add = |node: Arc<Node>, asking, place| {
            let same = |share: &&mut Share| share.asking == asking && Arc::ptr_eq(&share.node, &node);
            match shares.iter_mut().find(same) {
                Some(share) => share.places.push(place),
                None => shares.push(Share { node, asking, places: vec![place] }),
            }
        };
        for place in open.places {
            match cluster.owner(slot(place)) {
                Some(node) => add(node, false, place),
                None => unassigned.push(place),
            }
        }
        open.asks.into_iter().for_each(|(place, node)| add(node, true, place));
        if !unassigned.is_empty() {
            cluster.mark_stale();
        }
        (shares, unassigned)
    }

    /// Records where a refused command goes instead. Returns false if it goes nowhere: a single server has no others.
    pub(crate) fn redirect(&self, from: &Node, place: usize, refusal: &ServerError, open: &mut Open) -> bool {
        let Servers::Cluster(cluster) = self else { return false };
        match cluster.redirect(from, refusal) {
            Some(node) => open.asks.push((place, node)),
            None => open.places.push(place),
        }
        true
    }

    /// Observes the responses of a node to its part of a batch.
    pub(crate) fn observe(&self, node: &Node, answers: &[Value]) {
        if let Servers::Cluster(cluster) = self {
            cluster.observe(node, answers);
        }
    }

    /// Marks the map as stale, since a node failed.
    pub(crate) fn mark_stale(&self) {
        if let Servers::Cluster(cluster) = self {
            cluster.mark_stale();
        }
    }

    /// How many keys a command may have: those of different slots can't share one.
    pub(crate) fn keys_per_command(&self) -> usize {
        match self {
            Servers::One(_) => crate::command::CHUNK,
            Servers::Cluster(_) => 1,
        }
    }

    /// Their addresses, for messages.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        match self {
            Servers::One(node) => vec![node.address()],
            Servers::Cluster(cluster) => cluster.seeds().iter().map(|seed| seed.address()).collect(),
        }
    }

    /// Outages of more than one node.
    pub(crate) fn outages(&self) -> Option<&OutageLog> {
        match self {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => Some(&cluster.outages),
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Servers::One(node) => node.close().await,
            Servers::Cluster(cluster) => cluster.close().await,
        }
    }
}
