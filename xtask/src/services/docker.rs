//! Servers in containers, by the `docker` command.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::POLL;
use crate::command::{capture, run};

/// An engine that hangs is none.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// What to run: everything else is the same for all servers.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) image: &'static str,
    pub(super) env: Vec<(String, String)>,
    pub(super) args: Vec<String>,
}

/// How a container is reached. It listens on the ports that it has outside, so that an address means the same on both
/// sides; nodes of a cluster share one network, so that it means the same among them as well.
#[derive(Debug)]
pub(super) enum Network {
    /// Its own, with these ports published on the loopback.
    Publish(Vec<u16>),
    /// That of the container of this name.
    Of(String),
}

/// Whether servers are started as containers; looked up once.
pub(super) fn is_used() -> bool {
    static USED: OnceLock<bool> = OnceLock::new();
    *USED.get_or_init(|| match std::env::var("KAFKAQ_SERVICES").as_deref() {
        Ok("docker") => true,
        Ok("native") => false,
        _ => engine_answers(),
    })
}

fn engine_answers() -> bool {
    let mut command = Command::new("docker");
    command.args(["info", "--format", "{{.ServerVersion}}"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let since = Instant::now();
    while since.elapsed() < PING_LIMIT {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(POLL),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Starts the container of this name if there is one, and makes it otherwise; returns its id.
pub(super) fn start(name: &str, recipe: &Recipe, network: &Network) -> Result<String> {
    if docker(&["start", name]).is_err() {
        // Apart from `run`, so that the first download shows its progress and can be interrupted.
        if docker(&["image", "inspect", recipe.image]).is_err() {
            run(Command::new("docker").args(["pull", recipe.image]).stdout(std::io::stderr()))
                .with_context(|| format!("cannot fetch the image {}", recipe.image))?;
        }
        docker(&recipe.create(name, network))?;
    }
    docker(&["inspect", "--format", "{{.Id}}", name])
}

impl Recipe {
    fn create(&self, name: &str, network: &Network) -> Vec<String> {
        let fixed = ["run", "--detach", "--label", "kafkaq", "--name", name];
        let mut args: Vec<String> = fixed.map(str::to_owned).into();
        match network {
            Network::Publish(ports) => args.extend(
                ports.iter().flat_map(|port| ["--publish".to_owned(), format!("127.0.0.1:{port}:{port}")]),
            ),
            Network::Of(other) => args.extend(["--network".to_owned(), format!("container:{other}")]),
        }
        args.extend(
            self.env.iter().flat_map(|(name, value)| ["--env".to_owned(), format!("{name}={value}")]),
        );
        args.push(self.image.to_owned());
        args.extend(self.args.iter().cloned());
        args
    }
}

pub(super) fn is_running(id: &str) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", id]).is_ok_and(|answer| answer == "true")
}

/// Also ends a paused container. One that is no longer there is no error.
pub(super) fn stop(id: &str, limit: Duration) -> Result<()> {
    if !is_running(id) {
        return Ok(());
    }
    let _ = docker(&["unpause", id]);
    if limit.is_zero() {
        return docker(&["kill", id]).map(drop);
    }
    docker(&["stop", "-t", &limit.as_secs().to_string(), id]).map(drop)
}

pub(super) fn pause(id: &str) -> Result<()> {
    docker(&["pause", id]).map(drop)
}

pub(super) fn resume(id: &str) -> Result<()> {
    docker(&["unpause", id]).map(drop)
}

/// Removes the container, running or not, with its data. One that is not there is no error.
pub(super) fn remove(name: &str) -> Result<()> {
    let found = docker(&["ps", "--all", "--quiet", "--filter", &format!("name=^{name}$")])?;
    if found.is_empty() { Ok(()) } else { docker(&["rm", "--force", "--volumes", name]).map(drop) }
}

pub(super) fn log(id: &str) -> String {
    // The servers log to both streams.
    let output = Command::new("docker").args(["logs", "--tail", "40", id]).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    )
}

fn docker<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Result<String> {
    capture(Command::new("docker").args(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_published_on_the_loopback_only() {
        let env = vec![("A".to_owned(), "b c".to_owned())];
        let recipe = Recipe { image: "redis:7", env, args: vec!["redis-server".to_owned()] };
        assert_eq!(
            recipe.create("kafkaq-redis-20001", &Network::Publish(vec![20_001])).join("|"),
            "run|--detach|--label|kafkaq|--name|kafkaq-redis-20001|--publish|127.0.0.1:20001:20001\
             |--env|A=b c|redis:7|redis-server"
        );
    }

    #[test]
    fn further_nodes_of_a_cluster_share_the_network_of_the_first() {
        let recipe = Recipe { image: "redis:7", env: Vec::new(), args: Vec::new() };
        let args = recipe.create("second", &Network::Of("first".to_owned())).join(" ");
        assert!(args.contains("--network container:first") && !args.contains("--publish"), "{args}");
    }
}
