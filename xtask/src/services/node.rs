//! One process or container of a server: its folder, its ports, its lifecycle.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::container::Container;
use super::instance::Instance;
use super::ports::Ports;
use super::{Group, Kind, POLL, START_LIMIT, STOP_LIMIT, docker};
use crate::command::{check_interrupt, last_lines};

/// A node on ports that it keeps over restarts.
#[derive(Debug)]
pub(super) struct Node {
    kind: &'static Kind,
    dir: PathBuf,
    pub(super) ports: Ports,
    /// Extra options; such a node is always a plain process.
    options: Option<Vec<String>>,
    /// None when it was stopped.
    pub(super) instance: Option<Instance>,
}

impl Node {
    pub(super) fn new(kind: &'static Kind, dir: PathBuf, ports: Ports, options: Option<Vec<String>>) -> Self {
        let node = Self { kind, dir, ports, options, instance: None };
        let _ = fs::remove_file(node.log());
        node
    }

    /// The node whose state was written to `dir`, running or not.
    pub(super) fn find(kind: &'static Kind, dir: PathBuf) -> Option<Self> {
        let state = fs::read_to_string(dir.join("state")).ok()?;
        let (instance, ports) = state.trim().split_once(" ports ")?;
        let (client, peer) = ports.split_once(' ')?;
        let client = client.parse().ok()?;
        let ports = Ports { client, peer: peer.parse().ok()?, told: client };
        Some(Self { kind, dir, ports, options: None, instance: Some(instance.parse().ok()?) })
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn is_running(&self) -> bool {
        self.instance.as_ref().is_some_and(Instance::is_running)
    }

    pub(super) fn answers(&self) -> bool {
        (self.kind.answers)(self.ports.client).unwrap_or(false)
    }

    pub(super) fn running(&self) -> Result<&Instance> {
        let instance = self.instance.as_ref().filter(|instance| instance.is_running());
        instance.with_context(|| format!("{} does not run", self.name()))
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        self.end(|instance| instance.stop(STOP_LIMIT))
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.end(Instance::kill)
    }

    fn end(&mut self, how: impl FnOnce(&Instance) -> Result<()>) -> Result<()> {
        if let Some(instance) = &self.instance {
            if let Instance::Container(container) = instance {
                // It is removed with the container.
                let _ = fs::write(self.log(), container.log());
            }
            how(instance).with_context(|| format!("cannot end {}", self.name()))?;
            let _ = fs::remove_file(self.state_file());
            self.instance = None;
        }
        Ok(())
    }

    /// Starts it with its existing data. `all` are the ports of its server, the first node's first.
    pub(super) fn start(&mut self, all: &[Ports], group: Group) -> Result<()> {
        fs::create_dir_all(self.data())?;
        let instance = if self.is_contained() {
            let recipe = (self.kind.container)(self.ports);
            let place = match all[0] == self.ports {
                true => docker::Network::Publish(all.iter().map(|ports| ports.client).collect()),
                false => docker::Network::Of(container_name(self.kind, all[0])),
            };
            Instance::Container(Container::start(&container_name(self.kind, self.ports), &recipe, &place)?)
        } else {
            let log = File::options().create(true).append(true).open(self.log())?;
            let mut command = (self.kind.native)(&self.dir, self.ports)?;
            command.args(self.options.iter().flatten());
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            if matches!(group, Group::Own { .. }) {
                command.process_group(0);
            }
            // A test's server ends soon: a JVM's optimizing compilation never pays off.
            if group != (Group::Own { for_tests: false }) {
                command.env("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC");
            }
            Instance::spawn(&mut command)?
        };
        // Written before waiting, so that `down` also finds a server whose start was interrupted.
        let Ports { client, peer, .. } = self.ports;
        fs::write(self.state_file(), format!("{instance} ports {client} {peer}\n"))?;
        self.instance = Some(instance);
        Ok(())
    }

    pub(super) fn wait_until_it_answers(&self) -> Result<()> {
        let since = Instant::now();
        loop {
            check_interrupt()?;
            if self.answers() {
                return Ok(());
            }
            if !self.is_running() {
                bail!("{} ended while starting:\n{}", self.name(), self.end_of_log());
            }
            if since.elapsed() > START_LIMIT {
                let limit = START_LIMIT.as_secs();
                bail!("{} did not respond within {limit} s:\n{}", self.name(), self.end_of_log());
            }
            thread::sleep(POLL);
        }
    }

    pub(super) fn remove_data(&self) -> Result<()> {
        if self.is_contained() {
            Container::remove(&container_name(self.kind, self.ports))?;
        }
        match fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.data().display()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn remove_folder(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        if let (Some(around), 2..) = (self.dir.parent(), self.kind.nodes) {
            // Only the last node of a cluster leaves it empty.
            let _ = fs::remove_dir(around);
        }
        Ok(())
    }

    fn is_contained(&self) -> bool {
        self.options.is_none() && docker::is_used()
    }

    fn end_of_log(&self) -> String {
        let log = match &self.instance {
            Some(Instance::Container(container)) => container.log(),
            _ => fs::read_to_string(self.log()).unwrap_or_default(),
        };
        last_lines(log.trim_end(), 20)
    }

    fn name(&self) -> String {
        format!("{} on {}", self.kind.name, self.ports.addr())
    }

    pub(super) fn data(&self) -> PathBuf {
        data(&self.dir)
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state")
    }
}

/// Where a node that lives in `dir` keeps its data.
pub(super) fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Returns a unique name per node: containers can't share a name, and a port is used only once.
fn container_name(kind: &Kind, ports: Ports) -> String {
    format!("kafkaq-{}-{}", kind.name, ports.client)
}
