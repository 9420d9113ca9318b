//! Apache ZooKeeper as a single server.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::docker::Recipe;
use super::node::data;
use super::ports::{Ports, ask};
use super::{ASK_LIMIT, Kind};
use crate::prerequisites::{self, ZOOKEEPER};

pub(super) static KIND: Kind = Kind {
    name: "zookeeper",
    env_var: "KAFKAQ_TEST_ZOOKEEPER",
    scheme: "",
    nodes: 1,
    tools: || vec![ZOOKEEPER, prerequisites::JAVA],
    native,
    container,
    answers,
    join: |_| Ok(()),
};

const IMAGE: &str = "zookeeper:3.9.3";

/// Short ticks, so that sessions end soon after their clients, and as many connections as tests like.
const TICK_MILLIS: &str = "500";
const MORE: &str = "admin.enableServer=false";

fn native(dir: &Path, ports: Ports) -> Result<Command> {
    let config = dir.join("zoo.cfg");
    let own = [
        format!("tickTime={TICK_MILLIS}"),
        "maxClientCnxns=0".to_owned(),
        format!("dataDir={}", data(dir).display()),
        "clientPortAddress=127.0.0.1".to_owned(),
        format!("clientPort={}", ports.client),
        MORE.to_owned(),
    ];
    fs::write(&config, own.join("\n") + "\n")?;
    let mut command = Command::new(ZOOKEEPER.program());
    // In the foreground the script becomes the server, and so its process id stays. Its own log would go elsewhere.
    command.arg("start-foreground").arg(config).env("ZOOCFGDIR", dir).env("ZOO_LOG_DIR", dir);
    Ok(command)
}

fn container(ports: Ports) -> Recipe {
    let env = [
        ("ZOO_TICK_TIME", TICK_MILLIS.to_owned()),
        ("ZOO_MAX_CLIENT_CNXNS", "0".to_owned()),
        ("ZOO_SERVERS", format!("server.1=127.0.0.1:2888:3888;{}", ports.client)),
        ("ZOO_CFG_EXTRA", MORE.to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).into();
    Recipe { image: IMAGE, env, args: Vec::new() }
}

fn answers(port: u16) -> Result<bool> {
    // While it starts: "This ZooKeeper instance is not currently serving requests".
    Ok(ask(ASK_LIMIT, port, "srvr")?.starts_with("Zookeeper version"))
}
