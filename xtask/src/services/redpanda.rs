//! Redpanda, which speaks Kafka's protocol, in Kafka's place. As a container only: it has no package that everybody
//! can install.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::Kind;
use super::docker::Recipe;
use super::kafka;
use super::ports::Ports;

pub(super) static KIND: Kind = Kind {
    name: "redpanda",
    // Everything that is tested on Kafka can be tested on it.
    env_var: kafka::KIND.env_var,
    scheme: kafka::KIND.scheme,
    nodes: 1,
    tools: Vec::new,
    native,
    container,
    answers: kafka::answers,
    join: |_| Ok(()),
};

const IMAGE: &str = "redpandadata/redpanda:v26.1.14";

/// Like Kafka's: groups settle at once, a session timeout may be as short as a second, and topics aren't created
/// automatically.
const SETTINGS: [&str; 3] = [
    "redpanda.group_initial_rebalance_delay=0",
    "redpanda.group_min_session_timeout_ms=1000",
    "redpanda.auto_create_topics_enabled=false",
];

fn native(_: &Path, _: Ports) -> Result<Command> {
    bail!("Redpanda is available only as a container: please start Docker, or use Kafka instead")
}

fn container(ports: Ports) -> Recipe {
    let Ports { client: port, told, .. } = ports;
    // Small, next to others on the same machine, and without waiting for the disk.
    let fixed = ["redpanda", "start", "--mode=dev-container", "--smp=1", "--memory=1G"];
    let mut args: Vec<_> = fixed.map(str::to_owned).into();
    args.push(format!("--kafka-addr=PLAINTEXT://0.0.0.0:{port}"));
    args.push(format!("--advertise-kafka-addr=PLAINTEXT://127.0.0.1:{told}"));
    args.extend(SETTINGS.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
    Recipe { image: IMAGE, env: Vec::new(), args }
}
