//! A server of one node or several, as tests use it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Result;

use super::instance::Instance;
use super::node::Node;
use super::ports::Ports;
use super::{Group, Service};

/// A server on ports that it keeps over restarts. Dropping it ends the server and removes its folder; if a test has
/// failed, the log stays.
///
/// Operations on a cluster apply to all its nodes.
#[derive(Debug)]
pub struct Server {
    service: Service,
    /// At least one.
    nodes: Vec<Node>,
    /// `false` if the start or the end of a cluster was interrupted.
    complete: bool,
    group: Group,
    owned: bool,
}

impl Server {
    /// `ports`: where it listens, and where its clients are told to connect.
    pub(super) fn start(
        service: Service,
        dir: &Path,
        ports: Option<(u16, u16)>,
        group: Group,
        options: Option<Vec<String>>,
    ) -> Result<Self> {
        if let Some(mut earlier) = Self::find(service, dir) {
            earlier.kill()?;
            earlier.remove_data()?;
        }
        let kind = service.kind();
        let node = |(number, dir)| {
            let ports = ports.filter(|_| number == 0);
            Ok(Node::new(kind, dir, Ports::choose(ports)?, options.clone()))
        };
        let nodes = folders(service, dir).into_iter().enumerate().map(node).collect::<Result<_>>()?;
        let mut server = Self { service, nodes, complete: true, group, owned: true };
        server.start_again_empty()?;
        Ok(server)
    }

    /// The server whose state was written to `dir`, running or not. Dropping it leaves the server alone.
    pub(super) fn find(service: Service, dir: &Path) -> Option<Self> {
        let find = |dir| Node::find(service.kind(), dir);
        let nodes: Vec<_> = folders(service, dir).into_iter().filter_map(find).collect();
        let complete = nodes.len() == service.kind().nodes;
        (!nodes.is_empty()).then_some(Self {
            service,
            nodes,
            complete,
            group: Group::Own { for_tests: false },
            owned: false,
        })
    }

    /// Returns `127.0.0.1` and the port; for a cluster, that of its first node.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.nodes[0].ports.addr()
    }

    /// The address as clients of this server write it: `127.0.0.1:9092`, `redis://127.0.0.1:6379`. Of a cluster
    /// those of all nodes, with commas between.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = self.service.kind().scheme;
        let url = |node: &Node| format!("{scheme}{}", node.ports.addr());
        self.nodes.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// The process id; none for a container and for a server that was stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.nodes[0].instance.as_ref().and_then(Instance::pid)
    }

    /// The file that the server logs to; of a container it is written when that ends.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.nodes[0].log()
    }

    /// The folder of its data, which a test may change while the server is down. A container has its data inside.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.nodes[0].data()
    }

    /// Whether its processes are there, paused or not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.complete && self.nodes.iter().all(Node::is_running)
    }

    /// Shuts the server down; one that takes longer than 10 s is killed. Its data stays.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        first_error(self.nodes.iter_mut().map(Node::stop))
    }

    /// Kills the server (SIGKILL). Its data stays as it was at that moment.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        first_error(self.nodes.iter_mut().map(Node::kill))
    }

    /// Freezes the server (SIGSTOP): its connections stay open without responses.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        first_error(self.nodes.iter().map(|node| node.running()?.pause()))
    }

    /// Resumes a paused server.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        first_error(self.nodes.iter().map(|node| node.running()?.resume()))
    }

    /// Restarts a stopped server, on the same port and with its data. (Redis keeps none.)
    ///
    /// # Errors
    /// The same as for [`Service::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.kill()?;
        let all: Vec<Ports> = self.nodes.iter().map(|node| node.ports).collect();
        for node in &mut self.nodes {
            node.start(&all, self.group)?;
        }
        self.nodes.iter().try_for_each(Node::wait_until_it_answers)?;
        (self.service.kind().join)(&all)
    }

    /// Ends the server if it runs, and restarts it on the same port without its data.
    ///
    /// # Errors
    /// The same as for [`Service::start`].
    pub fn start_again_empty(&mut self) -> Result<()> {
        self.kill()?;
        self.remove_data()?;
        self.start_again()
    }

    /// Splits a cluster into its nodes, which can be stopped and started separately.
    #[must_use]
    pub fn into_nodes(mut self) -> Vec<Self> {
        let Self { service, group, owned, .. } = self;
        let alone = |node| Self { service, nodes: vec![node], complete: true, group, owned };
        std::mem::take(&mut self.nodes).into_iter().map(alone).collect()
    }

    /// From now on the server outlives this value.
    pub(super) fn keep_running(mut self) {
        self.owned = false;
    }

    pub(super) fn answers(&self) -> bool {
        self.complete && self.nodes.iter().all(Node::answers)
    }

    pub(super) fn remove_data(&self) -> Result<()> {
        // The first node's container last: the others use its network, and Podman refuses otherwise.
        first_error(self.nodes.iter().rev().map(Node::remove_data))
    }

    /// Describes its state.
    pub(super) fn status(&self) -> String {
        let (url, log) = (self.url(), self.log());
        let instances: Vec<_> =
            self.nodes.iter().flat_map(|node| &node.instance).map(Instance::to_string).collect();
        let it = instances.join(", ");
        if !self.is_running() {
            format!("died ({it}); its log: {}", log.display())
        } else if self.answers() {
            format!("up at {url} ({it})")
        } else {
            format!("does not respond at {url} ({it}); its log: {}", log.display())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.owned {
            let ended = self.kill().and_then(|()| self.remove_data()).and_then(|()| {
                let failed = thread::panicking();
                if failed { Ok(()) } else { self.nodes.iter().try_for_each(Node::remove_folder) }
            });
            if let Err(error) = ended {
                eprintln!("{error:#}");
            }
        }
    }
}

/// A single node lives in the server's folder, those of a cluster in folders below it.
fn folders(service: Service, dir: &Path) -> Vec<PathBuf> {
    match service.kind().nodes {
        1 => vec![dir.to_owned()],
        nodes => (1..=nodes).map(|number| dir.join(format!("node-{number}"))).collect(),
    }
}

/// Returns the first error after running all: a failure of one node must not skip the others.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.collect::<Vec<_>>().into_iter().collect()
}
