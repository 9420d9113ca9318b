//! Redis without persistence: it loses everything when it ends, as the tests need it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::docker::Recipe;
use super::node::data;
use super::ports::{self, Ports};
use super::{ASK_LIMIT, Kind};
use crate::prerequisites;

pub(super) static KIND: Kind = Kind {
    name: "redis",
    env_var: "KAFKAQ_TEST_REDIS",
    scheme: "redis://",
    nodes: 1,
    tools: || vec![prerequisites::REDIS],
    native,
    container,
    answers,
    join: |_| Ok(()),
};

const IMAGE: &str = "redis:7.4.9";
const BUSY_LIMIT: Duration = Duration::from_secs(30);

fn args(port: u16) -> Vec<String> {
    ["--port", &port.to_string(), "--save", "", "--appendonly", "no"].map(str::to_owned).into()
}

pub(super) fn native(dir: &Path, ports: Ports) -> Result<Command> {
    let mut command = Command::new("redis-server");
    command.args(args(ports.client)).args(["--bind", "127.0.0.1", "--dir"]).arg(data(dir));
    Ok(command)
}

pub(super) fn container(ports: Ports) -> Recipe {
    let mut command = vec!["redis-server".to_owned()];
    command.extend(args(ports.client));
    // Inside a container, connections to the published port don't come from the loopback address.
    command.extend(["--protected-mode".to_owned(), "no".to_owned()]);
    Recipe { image: IMAGE, env: Vec::new(), args: command }
}

pub(super) fn answers(port: u16) -> Result<bool> {
    let answer = ask(port, "PING")?;
    // A server that requires a password is up, too.
    Ok(answer == "+PONG" || answer.starts_with("-NOAUTH"))
}

/// Returns the server's response to a one-line command.
pub(super) fn ask(port: u16, command: &str) -> Result<String> {
    ask_within(ASK_LIMIT, port, command)
}

/// Returns the response of the Redis on this port to a one-line command, even if it is busy.
///
/// # Errors
/// If it can't be reached or doesn't respond.
pub fn answer(port: u16, command: &str) -> Result<String> {
    ask_within(BUSY_LIMIT, port, command)
}

fn ask_within(limit: Duration, port: u16, command: &str) -> Result<String> {
    // The server closes the connection after its responses, the last of which is to QUIT.
    let answer = ports::ask(limit, port, &format!("{command}\r\nQUIT\r\n"))?;
    let answer = answer.trim_end();
    Ok(answer.strip_suffix("+OK").unwrap_or(answer).trim_end().to_owned())
}
