//! Redis: a cache that forgets everything when it ends, which is what the tests want of it.

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
    // Inside, the published port is reached from another address than the loopback's.
    command.extend(["--protected-mode".to_owned(), "no".to_owned()]);
    Recipe { image: IMAGE, env: Vec::new(), args: command }
}

pub(super) fn answers(port: u16) -> Result<bool> {
    let answer = ask(port, "PING")?;
    // One that wants a password serves those who have it.
    Ok(answer == "+PONG" || answer.starts_with("-NOAUTH"))
}

/// What the server answers to a command of one line.
pub(super) fn ask(port: u16, command: &str) -> Result<String> {
    ask_within(ASK_LIMIT, port, command)
}

/// What a Redis on this port of this machine answers to a command of one line, even if it is busy.
///
/// # Errors
/// When it can't be reached or doesn't answer.
pub fn answer(port: u16, command: &str) -> Result<String> {
    ask_within(BUSY_LIMIT, port, command)
}

fn ask_within(limit: Duration, port: u16, command: &str) -> Result<String> {
    // The server hangs up after its answers, the last of which is to QUIT.
    let answer = ports::ask(limit, port, &format!("{command}\r\nQUIT\r\n"))?;
    let answer = answer.trim_end();
    Ok(answer.strip_suffix("+OK").unwrap_or(answer).trim_end().to_owned())
}
