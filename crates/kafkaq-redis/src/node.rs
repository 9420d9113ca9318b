//! One server, over a few links that are used in turn.

use crate::link::{self, Dialer, Link};
use futures_util::future::join_all;
use kafkaq_core::{OutageLog, Result, connection::Call};
use redis::{Client, Cmd, Pipeline, Value};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

pub(crate) struct Node {
    links: Box<[Link]>,
    next_link: AtomicUsize,
    /// In a cluster: whether it has responded that it doesn't serve its slots.
    pub(crate) out_of_service: AtomicBool,
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
            out_of_service: AtomicBool::new(false),
            outages: OutageLog::new(format!("Redis at {address}")),
        }
    }

    /// Host and port, or the path of a socket.
    pub(crate) fn address(&self) -> &str {
        self.links[0].connect().address()
    }

    /// Like [`link::send`].
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

    /// Like [`Node::send`], to a node that doesn't own the slots of these commands yet.
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

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Operation;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::yield_now,
        time::timeout,
    };

    const LIMIT: Duration = Duration::from_secs(30);

    fn call() -> Call {
        Call::new(Operation::read("test"), LIMIT)
    }

    /// Accepts one connection and confirms every command that comes over it.
    async fn accept(listener: &TcpListener) {
        let (stream, _) = timeout(LIMIT, listener.accept()).await.expect("it connects").unwrap();
        tokio::spawn(serve(stream));
    }

    async fn serve(mut stream: TcpStream) {
        let mut received = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut received).await {
            let commands = received[..n].iter().filter(|byte| **byte == b'*').count();
            stream.write_all("+OK\r\n".repeat(commands).as_bytes()).await.unwrap();
        }
    }

    async fn connected(link: &Link) {
        let is_up = async {
            while !link.is_up() {
                yield_now().await;
            }
        };
        timeout(LIMIT, is_up).await.expect("it connects");
    }

    #[tokio::test]
    async fn lost_link_is_skipped_and_reconnects_in_the_background() {
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        for impatient in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = Client::open(format!("redis://{}", listener.local_addr().unwrap())).unwrap();
            let node = Node::new(&client, 2, impatient);
            for link in &node.links {
                let (answers, ()) = tokio::join!(node.send(call(), &ping), accept(&listener));
                answers.unwrap();
                connected(link).await;
            }

            let lost = &node.links[0];
            lost.leave(&lost.up(call()).await.unwrap(), "it is cut off");
            // The server accepts no connection now: a call that waited for the lost link would time out.
            for _ in 0..4 {
                timeout(LIMIT / 2, node.send(call(), &ping)).await.expect("it doesn't wait").unwrap();
            }
            assert!(!lost.is_up() && node.links[1].is_up());

            accept(&listener).await;
            connected(lost).await;
        }
    }
}
