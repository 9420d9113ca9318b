//! Redis: a cache that forgets everything when it ends, which is what the tests want of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::docker::Recipe;
use super::{ASK_LIMIT, loopback};

fn args(port: u16) -> Vec<String> {
    ["--port", &port.to_string(), "--save", "", "--appendonly", "no"].map(str::to_owned).into()
}

pub(super) fn native(dir: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new("redis-server");
    command.args(args(port)).args(["--bind", "127.0.0.1", "--dir"]).arg(dir.join("data"));
    Ok(command)
}

pub(super) fn container(port: u16) -> Recipe {
    let mut command = vec!["redis-server".to_owned()];
    command.extend(args(port));
    // Inside, the published port is reached from another address than the loopback's.
    command.extend(["--protected-mode".to_owned(), "no".to_owned()]);
    Recipe { image: "redis:7", env: Vec::new(), port, args: command }
}

pub(super) fn answers(port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&loopback(port), ASK_LIMIT)?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG\r\n")
}
