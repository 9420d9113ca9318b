//! etcd as a single member.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::docker::Recipe;
use super::node::data;
use super::ports::{Ports, ask};
use super::{ASK_LIMIT, Kind};
use crate::prerequisites;

pub(super) static KIND: Kind = Kind {
    name: "etcd",
    env_var: "KAFKAQ_TEST_ETCD",
    scheme: "http://",
    nodes: 1,
    tools: || vec![prerequisites::ETCD],
    native,
    container,
    answers,
    join: |_| Ok(()),
};

const IMAGE: &str = "quay.io/coreos/etcd:v3.6.11";

fn args(listen: &str, data: &Path, ports: Ports) -> Vec<String> {
    let Ports { client, peer, .. } = ports;
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls=http://{listen}:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Every swap creates a revision; without this they are kept forever.
        "--auto-compaction-retention=1h".to_owned(),
    ]
}

fn native(dir: &Path, ports: Ports) -> Result<Command> {
    let mut command = Command::new("etcd");
    command.args(args("127.0.0.1", &data(dir), ports));
    Ok(command)
}

fn container(ports: Ports) -> Recipe {
    let mut command = vec!["etcd".to_owned()];
    command.extend(args("0.0.0.0", Path::new("/etcd-data"), ports));
    Recipe { image: IMAGE, env: Vec::new(), args: command }
}

fn answers(port: u16) -> Result<bool> {
    Ok(ask(ASK_LIMIT, port, "GET /health HTTP/1.0\r\n\r\n")?.contains("\"health\":\"true\""))
}
