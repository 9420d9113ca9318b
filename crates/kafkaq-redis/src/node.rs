//! One server, over a few links that take turns.

use crate::link::{Call, Link};
use kafkaq_core::Result;
use redis::{Client, Cmd, Pipeline, Value};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) struct Node {
    links: Box<[Link]>,
    next_link: AtomicUsize,
}

impl Node {
    /// With at least one connection.
    pub(crate) fn new(client: &Client, connections: usize, impatient: bool) -> Self {
        let links = (0..connections.max(1)).map(|_| Link::new(client.clone(), impatient)).collect();
        Node { links, next_link: AtomicUsize::new(0) }
    }

    /// Host and port, or the path of a socket.
    pub(crate) fn address(&self) -> &str {
        self.links[0].address()
    }

    /// As [`Link::send`].
    pub(crate) async fn send(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        self.links[self.next_link.fetch_add(1, Relaxed) % self.links.len()].send(call, commands).await
    }

    /// As [`Node::send`], to a node that doesn't own the slots of these commands yet.
    pub(crate) async fn send_asking(&self, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
        let mut both = Pipeline::with_capacity(2 * commands.len());
        for command in commands.cmd_iter() {
            both.add_command(Cmd::new().arg("ASKING").to_owned()).add_command(command.clone());
        }
        Ok(self.send(call, &both).await?.into_iter().skip(1).step_by(2).collect())
    }

    pub(crate) fn close(&self) {
        self.links.iter().for_each(Link::close);
    }
}
