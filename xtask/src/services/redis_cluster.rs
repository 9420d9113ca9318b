//! A Redis Cluster: three primaries that share the slots, each like the single Redis.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::docker::Recipe;
use super::ports::Ports;
use super::redis::{self, ask};
use super::{Kind, POLL, START_LIMIT};
use crate::command::check_interrupt;
use crate::prerequisites;

const NODES: usize = 3;

pub(super) static KIND: Kind = Kind {
    name: "redis-cluster",
    env_var: "KAFKAQ_TEST_REDIS_CLUSTER",
    scheme: "redis://",
    nodes: NODES,
    tools: || vec![prerequisites::REDIS],
    native,
    container,
    answers: redis::answers,
    join,
};

/// How many slots a cluster has, on all nodes together.
const SLOTS: usize = 16_384;

fn args(ports: Ports) -> Vec<String> {
    // While one node is down, the others keep serving their slots: the tests check that.
    let peer = ports.peer.to_string();
    ["--cluster-enabled", "yes", "--cluster-port", &peer, "--cluster-require-full-coverage", "no"]
        .map(str::to_owned)
        .into()
}

fn native(dir: &Path, ports: Ports) -> Result<Command> {
    let mut command = redis::native(dir, ports)?;
    command.args(args(ports));
    Ok(command)
}

fn container(ports: Ports) -> Recipe {
    let mut recipe = redis::container(ports);
    recipe.args.extend(args(ports));
    recipe
}

/// Joins the nodes. Nodes that have met before find each other by themselves.
fn join(nodes: &[Ports]) -> Result<()> {
    if info(nodes[0], "cluster_slots_assigned")? == "0" {
        for (n, ports) in nodes.iter().enumerate() {
            let (first, end) = (n * SLOTS / nodes.len(), (n + 1) * SLOTS / nodes.len());
            command(*ports, &format!("CLUSTER ADDSLOTSRANGE {first} {}", end - 1))?;
            for Ports { client, peer, .. } in &nodes[..n] {
                command(*ports, &format!("CLUSTER MEET 127.0.0.1 {client} {peer}"))?;
            }
        }
    }
    let since = Instant::now();
    for ports in nodes {
        while info(*ports, "cluster_state")? != "ok" || info(*ports, "cluster_slots_ok")? != SLOTS.to_string()
        {
            check_interrupt()?;
            ensure!(since.elapsed() < START_LIMIT, "the nodes of the Redis Cluster do not find each other");
            thread::sleep(POLL);
        }
    }
    Ok(())
}

fn command(node: Ports, text: &str) -> Result<()> {
    let answer = ask(node.client, text)?;
    ensure!(answer == "+OK", "{text}: {answer}");
    Ok(())
}

fn info(node: Ports, name: &str) -> Result<String> {
    let info = ask(node.client, "CLUSTER INFO")?;
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.unwrap_or_default().trim().to_owned())
}
