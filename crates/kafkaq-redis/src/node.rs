//! One server, over a few links that are used in turn.

use crate::link::{self, Dialer, Link};
use futures_util::future::join_all;
use kafkaq_core::{OutageLog, Result, connection::Call};
use redis::{Client, Cmd, Pipeline, Value};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) struct Node {
    links: Box<[Link]>,
    next_link: AtomicUsize,
    pub(crate) outages: OutageLog,
}

impl Node {
    /// Has at least one connection. A cluster node fails fast while it is down, so that a call's parts for other nodes
    /// needn't wait.
    pub(crate) fn new(client: &Client, connections: usize, impatient: bool) -> Self {
        let link = |_| {
            let link = Link::new(Dialer::new(client.clone()));
            if impatient { link.impatient() } else { link }
        };
        let address = client.get_connection_info().addr().to_string();
        Node {
            links: (0..connections.max(1)).map(link).collect(),
            next_link: AtomicUsize::new(0),
            outages: OutageLog::new(format!("Redis at {address}")),
        }
    }

    /// Host and port, or the path of a socket.
    pub(crate) fn address(&self) -> &str {
        self.links[0].connect().address()
    }

    /// As [`link::send`].
    pub(crate) async fn send(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        link::send(self.link(call), call, commands).await
    }

    /// The next link. One that is down connects in the background while another is up.
    fn link(&self, call: Call) -> &Link {
        let next = self.next_link.fetch_add(1, Relaxed) % self.links.len();
        let (before, from) = self.links.split_at(next);
        let link = &self.links[next];
        if link.is_up() {
            return link;
        }
        let Some(other) = from.iter().chain(before).find(|other| other.is_up()) else { return link };
        link.wake(call);
        other
    }

    /// As [`Node::send`], to a node that doesn't own the slots of these commands yet.
    pub(crate) async fn send_asking(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        let mut both = Pipeline::with_capacity(2 * commands.len());
        for command in commands.cmd_iter() {
            both.add_command(Cmd::new().arg("ASKING").to_owned()).add_command(command.clone());
        }
        Ok(self.send(call, &both).await?.into_iter().skip(1).step_by(2).collect())
    }

    pub(crate) async fn close(&self) {
        join_all(self.links.iter().map(Link::close)).await;
    }
}
