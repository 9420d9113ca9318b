//! Apache Kafka as a single node without ZooKeeper, from its Maven artifacts or its image.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::docker::{self, Recipe};
use super::node::data;
use super::ports::{Ports, loopback};
use super::{ASK_LIMIT, Kind};
use crate::command::{capture, run};
use crate::prerequisites::{JAVA, MAVEN, Tool};

pub(super) static KIND: Kind = Kind {
    name: "kafka",
    env_var: "KAFKAQ_TEST_KAFKA",
    scheme: "",
    nodes: 1,
    tools,
    native,
    container,
    answers,
    join: |_| Ok(()),
};

/// The version of Kafka that runs without a container.
pub const VERSION: &str = "4.3.1";
const IMAGE: &str = "apache/kafka:4.3.1";
/// Sixteen bytes in base64, "kafkaq-test-only": each node is a cluster of its own, so the id need not be unique.
const CLUSTER_ID: &str = "a2Fma2FxLXRlc3Qtb25seQ";
const HEAP: [&str; 2] = ["-Xms512m", "-Xmx1g"];
/// For a short-lived program: skips expensive JIT compilation.
const SOON: &str = "-XX:TieredStopAtLevel=1";

/// What a single node needs, and what makes tests fast: groups settle at once, and a session timeout may be as short as
/// a second.
const SETTINGS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("num.partitions", "6"),
    ("auto.create.topics.enable", "false"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "2"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("share.coordinator.state.topic.num.partitions", "4"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    ("group.consumer.min.session.timeout.ms", "1000"),
    ("group.consumer.session.timeout.ms", "6000"),
    ("group.consumer.min.heartbeat.interval.ms", "200"),
    ("group.consumer.heartbeat.interval.ms", "1000"),
    // As long as a test wants.
    ("group.consumer.max.session.timeout.ms", "3600000"),
    ("group.consumer.max.heartbeat.interval.ms", "1800000"),
];

fn settings(listen: &str, ports: Ports) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let Ports { client: port, peer: controller, told } = ports;
    let mut settings: Vec<_> = SETTINGS.iter().map(own).collect();
    let mut add = |name: &str, value: String| settings.push((name.to_owned(), value));
    add("listeners", format!("PLAINTEXT://{listen}:{port},CONTROLLER://127.0.0.1:{controller}"));
    add("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{told}"));
    add("controller.quorum.voters", format!("1@127.0.0.1:{controller}"));
    add("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned());
    settings
}

/// Maven only until Kafka has been fetched.
fn tools() -> Vec<Tool> {
    let mut tools = vec![JAVA];
    if !is_fetched() {
        tools.push(MAVEN);
    }
    tools
}

fn native(dir: &Path, ports: Ports) -> Result<Command> {
    let libs = fetch()?;
    let properties = dir.join("server.properties");
    let data = data(dir);
    if !data.join("meta.properties").exists() {
        let mut settings = settings("127.0.0.1", ports);
        settings.push(("log.dirs".to_owned(), data.display().to_string()));
        let lines = settings.iter().map(|(name, value)| format!("{name}={value}\n"));
        fs::write(&properties, lines.collect::<String>())?;
        let mut format = java(&libs);
        format.args([SOON, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&properties);
        capture(&mut format).context("cannot format Kafka's data folder")?;
    }
    let mut command = java(&libs);
    command.args(HEAP).arg("kafka.Kafka").arg(properties);
    Ok(command)
}

/// A program of Kafka's distribution, by its Java class. `None` if servers are containers, which contain it.
///
/// # Errors
/// If Kafka has to be fetched first and that fails.
pub fn program(class: &str) -> Result<Option<Command>> {
    if docker::is_used() {
        return Ok(None);
    }
    let mut command = java(&fetch()?);
    command.args([SOON, class]);
    Ok(Some(command))
}

fn java(libs: &Path) -> Command {
    let mut command = Command::new("java");
    command.args([
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
    ]);
    command.arg("-cp").arg(libs.join("*"));
    command
}

fn container(ports: Ports) -> Recipe {
    let as_env =
        |(name, value): (String, String)| (format!("KAFKA_{}", name.to_uppercase().replace('.', "_")), value);
    let mut env: Vec<_> = settings("0.0.0.0", ports).into_iter().map(as_env).collect();
    env.push(("KAFKA_HEAP_OPTS".to_owned(), HEAP.join(" ")));
    Recipe { image: IMAGE, env, args: Vec::new() }
}

/// The folder of Kafka's libraries, shared by everything that is started in this workspace.
fn dist() -> PathBuf {
    crate::root().join(".services/dist").join(format!("kafka-{VERSION}"))
}

/// Written last: a download that was cut short has none.
fn marker() -> PathBuf {
    dist().join("complete")
}

fn is_fetched() -> bool {
    marker().exists()
}

/// Fetches Kafka unless it is there, and returns the folder of its libraries.
fn fetch() -> Result<PathBuf> {
    let libs = dist().join("libs");
    fs::create_dir_all(dist())?;
    // Tests may start several servers at once.
    let lock = File::create(dist().join("lock"))?;
    lock.lock()?;
    if !is_fetched() {
        eprintln!("fetching Kafka {VERSION} from Maven Central");
        if libs.exists() {
            fs::remove_dir_all(&libs)?;
        }
        let pom = dist().join("pom.xml");
        fs::write(&pom, include_str!("kafka-pom.xml").replace("KAFKA_VERSION", VERSION))?;
        let mut mvn = Command::new("mvn");
        let log = dist().join("maven.log");
        mvn.args(["-B", "-f"]).arg(pom).arg("-l").arg(&log);
        mvn.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
        mvn.arg(format!("-DoutputDirectory={}", libs.display()));
        let advice = || format!("cannot fetch Kafka's libraries; see {}", log.display());
        run(mvn.stdout(Stdio::null())).with_context(advice)?;
        fs::write(marker(), VERSION)?;
    }
    Ok(libs)
}

/// Returns whether the node serves clients: it lists itself in its metadata only once the controller has registered it.
pub(super) fn answers(port: u16) -> Result<bool> {
    // Version 1 of a Metadata request without topics: api key, version, correlation id, client id, topics.
    const REQUEST: [u8; 19] = *b"\0\x03\0\x01\0\0\0\x07\0\x05xtask\0\0\0\0";
    let mut stream = TcpStream::connect_timeout(&loopback(port), ASK_LIMIT)?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    let size = u32::try_from(REQUEST.len())?.to_be_bytes();
    stream.write_all(&[&size[..], &REQUEST].concat())?;
    // The start of the response: size, correlation id, number of brokers.
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    ensure!(head[4..8] == REQUEST[4..8], "the response to another request");
    Ok(head[8..12] != [0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_gets_the_same_settings_as_the_native_server() {
        let recipe = container(Ports { client: 20_001, peer: 20_002, told: 20_003 });
        let value = |name: &str| recipe.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(value("KAFKA_GROUP_CONSUMER_MIN_SESSION_TIMEOUT_MS"), Some("1000"));
        assert_eq!(value("KAFKA_ADVERTISED_LISTENERS"), Some("PLAINTEXT://127.0.0.1:20003"));
        assert_eq!(recipe.env.len(), SETTINGS.len() + 4 + 1);
        assert!(IMAGE.ends_with(VERSION));
    }
}
