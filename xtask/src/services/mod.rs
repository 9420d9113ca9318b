//! Real servers for tests and trying out.
//!
//! ```no_run
//! use xtask::services::Service;
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut redis = Service::Redis.start("/tmp/my-test/redis", None)?;
//! redis.pause()?; // it hangs: connections stay open, nothing is answered
//! redis.resume()?;
//! redis.kill()?; // it is gone, without having tidied up
//! redis.start_again_empty()?; // and back on the same port, remembering nothing
//! # Ok(())
//! # } // dropped: ended, and its data removed
//! ```
//!
//! A server is a container where a Docker engine answers, and a plain process otherwise (Linux only). The
//! environment variable `KAFKAQ_SERVICES` set to `docker` or `native` decides it by hand.
//!
//! All of it listens on 127.0.0.1 only.

mod docker;
mod instance;
mod kafka;
mod redis;
mod set;

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{check_interrupt, last_lines};
use crate::prerequisites::{self, Tool};
use instance::Instance;
pub use set::Services;

#[cfg(test)]
pub(crate) use instance::is_running;

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a server may take to end in good order.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long one question to a server may take.
const ASK_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// The ports to choose from; see [`free_port`].
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Apache Kafka: one node, broker and controller in one.
    Kafka,
    /// Redis, without persistence.
    Redis,
}

impl Service {
    /// Every kind.
    pub const ALL: &[Self] = &[Self::Kafka, Self::Redis];

    /// The name on the command line and of the folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
        }
    }

    /// The environment variable by which tests learn where the server is.
    #[must_use]
    pub fn env_var(self) -> &'static str {
        match self {
            Self::Kafka => "KAFKAQ_TEST_KAFKA",
            Self::Redis => "KAFKAQ_TEST_REDIS",
        }
    }

    /// The programs that the server needs on this machine.
    #[must_use]
    pub fn tools(self) -> Vec<Tool> {
        match self {
            _ if docker::is_used() => Vec::new(),
            Self::Kafka => kafka::tools(),
            Self::Redis => vec![prerequisites::REDIS],
        }
    }

    /// Starts a server that keeps its data under `dir`, and waits until it answers. Without a `port` it takes a
    /// free one.
    ///
    /// A folder is for one server at a time: one that an earlier run left there is ended first, and its data
    /// removed. What the server needs must be there already (see [`prerequisites::ensure`] and
    /// [`Service::tools`]); Kafka itself is fetched once.
    ///
    /// # Errors
    /// When the server cannot be started or does not answer in time; the error has the end of its log.
    pub fn start(self, dir: impl Into<PathBuf>, port: Option<u16>) -> Result<Server> {
        self.start_in(dir.into(), port, Group::Ours)
    }

    fn start_in(self, dir: PathBuf, port: Option<u16>, group: Group) -> Result<Server> {
        if let Some(mut earlier) = Server::find(self, &dir) {
            earlier.kill()?;
            earlier.remove_data()?;
        }
        let port = port.map_or_else(free_port, Ok)?;
        let mut server = Server { service: self, dir, port, group, instance: None, owned: true };
        let _ = fs::remove_file(server.log());
        server.start_again_empty()?;
        Ok(server)
    }

    fn answers(self, port: u16) -> bool {
        match self {
            Self::Kafka => kafka::answers(port),
            Self::Redis => redis::answers(port),
        }
        .unwrap_or(false)
    }

    fn native(self, dir: &Path, port: u16) -> Result<Command> {
        match self {
            Self::Kafka => kafka::native(dir, port),
            Self::Redis => redis::native(dir, port),
        }
    }

    fn container(self, port: u16) -> docker::Recipe {
        match self {
            Self::Kafka => kafka::container(port),
            Self::Redis => redis::container(port),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which process group a server is in, and so whether Ctrl-C at the terminal ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// That of the process that starts it: a test that is interrupted leaves no server behind.
    Ours,
    /// One of its own: it is to outlive the command that starts it.
    Own,
}

/// A server on a port that it keeps over restarts. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Server {
    service: Service,
    dir: PathBuf,
    port: u16,
    group: Group,
    /// None when it was stopped.
    instance: Option<Instance>,
    owned: bool,
}

impl Server {
    /// `127.0.0.1` and the port.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        loopback(self.port)
    }

    /// The address as clients of this server write it: `127.0.0.1:9092`, `redis://127.0.0.1:6379`.
    #[must_use]
    pub fn url(&self) -> String {
        match self.service {
            Service::Kafka => self.addr().to_string(),
            Service::Redis => format!("redis://{}", self.addr()),
        }
    }

    /// The process id; none for a container and for a server that was stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.instance.as_ref().and_then(Instance::pid)
    }

    /// The file that the server logs to; empty for a container.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Whether its process is there, paused or not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.instance.as_ref().is_some_and(Instance::is_running)
    }

    /// Ends the server in good order; one that takes longer than 10 s is killed. Its data stays.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        self.end(|instance| instance.stop(STOP_LIMIT))
    }

    /// Ends the server on the spot (SIGKILL). Its data stays as it was at that moment.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Instance::kill)
    }

    /// Freezes the server (SIGSTOP): its connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.running()?.pause()
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.running()?.resume()
    }

    /// Starts a stopped server again, on the same port and with the data that it left. (Redis leaves none.)
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.kill()?;
        fs::create_dir_all(self.data())?;
        let instance = if docker::is_used() {
            Instance::Container(docker::start(&self.container_name(), &self.service.container(self.port))?)
        } else {
            let log = File::options().create(true).append(true).open(self.log())?;
            let mut command = self.service.native(&self.dir, self.port)?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            if self.group == Group::Own {
                command.process_group(0);
            }
            Instance::spawn(&mut command)?
        };
        // Written before the wait, so that `down` also finds a server whose start was cut short.
        fs::write(self.state_file(), format!("{instance} port {}\n", self.port))?;
        self.instance = Some(instance);
        self.wait_until_it_answers()
    }

    /// Ends the server if it runs, and starts it on the same port with nothing of its data.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_again_empty(&mut self) -> Result<()> {
        self.kill()?;
        self.remove_data()?;
        self.start_again()
    }

    /// The server whose state was written to `dir`, running or not. Dropping it leaves the server alone.
    fn find(service: Service, dir: &Path) -> Option<Self> {
        let state = fs::read_to_string(dir.join("state")).ok()?;
        let (instance, port) = state.trim().split_once(" port ")?;
        Some(Self {
            service,
            dir: dir.to_owned(),
            port: port.parse().ok()?,
            group: Group::Own,
            instance: Some(instance.parse().ok()?),
            owned: false,
        })
    }

    /// From now on the server outlives this value.
    fn keep_running(mut self) {
        self.owned = false;
    }

    fn running(&self) -> Result<&Instance> {
        let instance = self.instance.as_ref().filter(|instance| instance.is_running());
        instance.with_context(|| format!("{} on {} does not run", self.service, self.addr()))
    }

    fn end(&mut self, how: impl FnOnce(&Instance) -> Result<()>) -> Result<()> {
        if let Some(instance) = &self.instance {
            how(instance).with_context(|| format!("cannot end {} on {}", self.service, self.addr()))?;
            let _ = fs::remove_file(self.state_file());
            self.instance = None;
        }
        Ok(())
    }

    fn remove_data(&self) -> Result<()> {
        if docker::is_used() {
            docker::remove(&self.container_name())?;
        }
        match fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.data().display()))
            }
            _ => Ok(()),
        }
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        let since = Instant::now();
        loop {
            check_interrupt()?;
            if self.service.answers(self.port) {
                return Ok(());
            }
            if !self.is_running() {
                bail!("{} ended while starting:\n{}", self.service, self.end_of_log());
            }
            if since.elapsed() > START_LIMIT {
                let limit = START_LIMIT.as_secs();
                bail!("{} did not answer within {limit} s:\n{}", self.service, self.end_of_log());
            }
            thread::sleep(POLL);
        }
    }

    fn end_of_log(&self) -> String {
        let log = match &self.instance {
            Some(Instance::Container(id)) => docker::log(id),
            _ => fs::read_to_string(self.log()).unwrap_or_default(),
        };
        last_lines(log.trim_end(), 20)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Two containers can't share a name, and a port is taken once: so this is one name a server.
    fn container_name(&self) -> String {
        format!("kafkaq-{}-{}", self.service, self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.owned {
            let ended = self.kill().and_then(|()| self.remove_data());
            if let Err(error) = ended {
                eprintln!("{error:#}");
            }
        }
    }
}

/// A port that nobody listens on.
///
/// Not the kernel's choice: that is one of those which it also gives to outgoing connections. While a server is
/// stopped, such a connection may take its port, or a client that reconnects to it may even meet itself.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes begin at different places; within a process no port is given out twice in a row.
    let begin = u16::try_from(std::process::id() * 7 % u32::from(count))?;
    for _ in 0..count {
        let port = PORTS.start + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % count) % count;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_lie_below_the_ephemeral_range() {
        let (a, b) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(a, b);
        assert!(PORTS.contains(&a) && PORTS.contains(&b));
    }

    #[test]
    fn a_taken_port_is_not_given_out() {
        let port = free_port().unwrap();
        let _taken = TcpListener::bind(loopback(port)).unwrap();
        // Once round all of them.
        assert!(PORTS.clone().all(|_| free_port().unwrap() != port));
    }
}
