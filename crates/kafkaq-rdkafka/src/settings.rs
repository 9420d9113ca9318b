//! The user's settings, kafkaq's defaults, and settings that are refused because they would break a guarantee.

use crate::{RdKafka, doubt, log, log::ConnectionErrors};
use kafkaq_core::{Error, ErrorKind, Result};
use rdkafka::{
    ClientConfig,
    config::{FromClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, DefaultConsumerContext},
    error::KafkaError,
};
use std::{fmt, net::Ipv6Addr, ops::RangeInclusive, sync::Arc, time::Duration};

/// How a member takes part in its consumer group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// KIP-848 if the server supports it and allows the requested session timeout, otherwise the classic protocol.
    #[default]
    Auto,
    /// KIP-848 (`group.protocol=consumer`): Kafka 4.0 and later.
    Consumer,
    /// The classic protocol, with the cooperative-sticky assignor unless another is set. Each topic has its own
    /// consumer in the group, so that every member gets its share of each topic.
    Classic,
}

/// Builds an [`RdKafka`]. The order of calls does not matter, except that a later value of a setting overrides an
/// earlier one.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    bootstrap: String,
    request_timeout: Duration,
    protocol: GroupProtocol,
    both: Vec<(String, String)>,
    producer: Vec<(String, String)>,
    consumer: Vec<(String, String)>,
}

/// The names of the settings, never their values: some are passwords.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |list: &[(String, String)]| list.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
        f.debug_struct("Builder")
            .field("bootstrap", &self.bootstrap)
            .field("request_timeout", &self.request_timeout)
            .field("protocol", &self.protocol)
            .field("set", &names(&self.both))
            .field("set_producer", &names(&self.producer))
            .field("set_consumer", &names(&self.consumer))
            .finish()
    }
}

const STATISTICS: &str = "statistics.interval.ms";
/// Only its statistics show that a client has forgotten its brokers (see `lost_brokers`).
const STATISTICS_MS: RangeInclusive<u32> = 1..=10_000;

const DEFAULTS: &[(&str, &str)] = &[
    // A missing topic is an error to report, not a topic to create with the server's defaults.
    ("allow.auto.create.topics", "false"),
    // The client's default of 10 s is as long as our own request timeout.
    ("reconnect.backoff.max.ms", "1000"),
    // Shows that a connection is back, and where the logs end.
    (STATISTICS, "10000"),
];

/// The largest record that the producer allows. The topic's own limit decides; but a server closes the connection on a
/// request above 100 MB (`socket.request.max.bytes`), and a consumer on such a response.
const MAX_RECORD_BYTES: usize = 64 << 20;
const MESSAGE_MAX_BYTES: &str = "message.max.bytes";
/// The highest value of `message.max.bytes` that librdkafka accepts.
pub(crate) const MOST_MESSAGE_BYTES: usize = 1_000_000_000;
const DEBUG: &str = "debug";
const COMPRESSION: [&str; 2] = ["compression.type", "compression.codec"];

/// Settings with two names. librdkafka is given settings in random order, so only one of the names may be set, or
/// either could win. Without `auto.commit.enable`: its other name is also a setting of its own.
const ALIASES: &[[&str; 2]] = &[
    COMPRESSION,
    ["acks", "request.required.acks"],
    ["delivery.timeout.ms", "message.timeout.ms"],
    ["linger.ms", "queue.buffering.max.ms"],
    ["max.in.flight", "max.in.flight.requests.per.connection"],
    ["max.partition.fetch.bytes", "fetch.message.max.bytes"],
    ["retries", "message.send.max.retries"],
    ["sasl.mechanism", "sasl.mechanisms"],
    ["sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"],
    ["sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"],
];

/// Longer than any server takes, and short enough for every clock.
const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    // The queue does the batching. Any wait at all costs a single publish a millisecond.
    ("linger.ms", "0"),
];

const CONSUMER_DEFAULTS: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "earliest"),
    ("fetch.queue.backoff.ms", "10"),
    // With the classic protocol this is how late an added partition is read. The client's default is 5 minutes.
    ("topic.metadata.refresh.interval.ms", "30000"),
    // A server answers one fetch at a time. One that waits for idle partitions delays those that were full when it was
    // sent, or that are new here.
    ("fetch.wait.max.ms", "100"),
    // Both count per partition here, because each has a queue of its own. A paused partition holds this much.
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "16384"),
];

/// Required for reading without a group, whatever is set.
const READER: &[(&str, &str)] = &[
    // Never joined. librdkafka assigns partitions only to a consumer that has one.
    ("group.id", "kafkaq-reader"),
    ("group.protocol", "classic"),
    // An offset that doesn't exist is up to the caller.
    ("auto.offset.reset", "error"),
    // Reports that all records up to the log's end have been read.
    ("enable.partition.eof", "true"),
    // How long a topic may be unknown before it counts as missing.
    ("topic.metadata.propagation.max.ms", "1000"),
    ("fetch.error.backoff.ms", "100"),
    ("max.poll.interval.ms", "86400000"),
];

/// Settings of the classic protocol that KIP-848 leaves to the server; librdkafka refuses them there.
const CLASSIC_ONLY: &[&str] =
    &["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type"];

/// Name, allowed values (none: never), and the reason.
const GUARDED: &[(&str, &[&str], &str)] = &[
    (
        "auto.offset.reset",
        &["earliest", "smallest", "beginning"],
        "Anything else would skip the tasks of partitions that have no committed offset yet",
    ),
    ("enable.auto.commit", &["false"], "kafkaq commits what is finished, not what was fetched"),
    ("auto.commit.enable", &["false"], "kafkaq commits what is finished, not what was fetched"),
    ("enable.auto.offset.store", &["false"], "kafkaq commits what is finished, not what was fetched"),
    ("acks", &["all", "-1"], "A task counts as published when all in-sync replicas have it"),
    ("request.required.acks", &["all", "-1"], "A task counts as published when all in-sync replicas have it"),
    ("enable.idempotence", &["true"], "Without it a retried request can reorder and duplicate records"),
    ("delivery.report.only.error", &["false"], "Every append waits for its report"),
    ("transactional.id", &[], "kafkaq does not use transactions"),
    ("group.id", &[], "The queue names its group"),
    ("bootstrap.servers", &[], "It is the argument of RdKafka::builder"),
    ("metadata.broker.list", &[], "The addresses are the argument of RdKafka::builder"),
];

impl Builder {
    pub(crate) fn new(bootstrap: String) -> Self {
        Builder {
            bootstrap,
            request_timeout: Duration::from_secs(10),
            protocol: GroupProtocol::Auto,
            both: Vec::new(),
            producer: Vec::new(),
            consumer: Vec::new(),
        }
    }

    /// Sets any setting of librdkafka, for the producer and the consumer, overriding kafkaq's defaults.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.both.push((name.into(), value.into()));
        self
    }

    /// Sets it for the producer only.
    pub fn set_producer(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.producer.push((name.into(), value.into()));
        self
    }

    /// Sets it for the consumer only.
    pub fn set_consumer(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.consumer.push((name.into(), value.into()));
        self
    }

    /// How long a call may take: 10 s by default; 100 ms to 1 hour. Inside the client, appends time out a fifth earlier
    /// (`message.timeout.ms`), so that its own report arrives in time.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// Which group protocol to use; see [`GroupProtocol`].
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Checks the settings and starts the producer. It connects in the background: a server that is down is noticed at
    /// the first call.
    ///
    /// # Errors
    /// `Misconfigured` for a setting that librdkafka does not know or that would break one of kafkaq's guarantees, with
    /// the reason in its text.
    pub fn build(self) -> Result<RdKafka> {
        RdKafka::open(Settings::check(self)?)
    }
}

/// Checked settings.
#[derive(Debug)]
pub(crate) struct Settings {
    builder: Builder,
    connection_errors: Arc<ConnectionErrors>,
}

impl Settings {
    fn check(mut builder: Builder) -> Result<Self> {
        for (name, value) in builder.both.iter().chain(&builder.producer).chain(&builder.consumer) {
            if let Some((_, allowed, why)) = GUARDED.iter().find(|(n, ..)| n == name)
                && !allowed.contains(&value.as_str())
            {
                let mend = match allowed.first() {
                    Some(good) => format!("{why}: leave it out or set it to `{good}`"),
                    None => format!("{why}: leave it out"),
                };
                return Err(refused(name).with_advice(mend));
            }
            if name == STATISTICS && !value.trim().parse().is_ok_and(|ms| STATISTICS_MS.contains(&ms)) {
                let (least, most) = (STATISTICS_MS.start(), STATISTICS_MS.end());
                return Err(refused(name).with_advice(format!(
                    "Statistics show when a client no longer connects to any broker and has to be replaced: \
                     leave it out or set it to {least} to {most}"
                )));
            }
        }
        if !REQUEST_TIMEOUT.contains(&builder.request_timeout) {
            let (least, most) = (REQUEST_TIMEOUT.start(), REQUEST_TIMEOUT.end());
            let advice = format!("It is {:?} and must be {least:?} to {most:?}", builder.request_timeout);
            return Err(refused("request_timeout").with_advice(advice));
        }
        builder.bootstrap = addresses(&builder.bootstrap)?;
        for list in [&mut builder.both, &mut builder.consumer] {
            if let Some(at) = list.iter().position(|(n, _)| n == "group.protocol") {
                builder.protocol = match list.remove(at).1.as_str() {
                    "classic" => GroupProtocol::Classic,
                    "consumer" => GroupProtocol::Consumer,
                    _ => return Err(refused("group.protocol").with_advice("Use `consumer` or `classic`")),
                };
            }
        }
        let connection_errors = Arc::new(ConnectionErrors::new(&builder.bootstrap));
        let settings = Settings { builder, connection_errors };
        settings.producer().create_native_config().map_err(|e| broken(&e))?;
        let protocols: &[_] = match settings.protocol() {
            GroupProtocol::Auto => &[GroupProtocol::Classic, GroupProtocol::Consumer],
            GroupProtocol::Classic => &[GroupProtocol::Classic],
            GroupProtocol::Consumer => &[GroupProtocol::Consumer],
        };
        for protocol in protocols {
            let mut config = settings.consumer("", [0; 16], *protocol);
            // Conflicting settings are detected when a client is created; without a group it is soon gone again.
            config.remove("group.id");
            BaseConsumer::<DefaultConsumerContext>::from_config(&config).map_err(|e| broken(&e))?;
        }
        Ok(settings)
    }

    /// For records that are otherwise too large. Unless a codec was chosen, uses the one that every client can read.
    pub(crate) fn compressing_producer(&self) -> ClientConfig {
        const CODEC: &str = if cfg!(feature = "gzip") { "gzip" } else { "lz4" };
        let mut config = self.producer();
        if COMPRESSION.iter().all(|name| config.get(name).is_none_or(|codec| codec == "none")) {
            set(&mut config, COMPRESSION[0], CODEC);
        }
        config
    }

    /// The largest record that an append accepts, whatever the topic's limit.
    pub(crate) fn max_record_bytes(&self) -> usize {
        self.producer()
            .get(MESSAGE_MAX_BYTES)
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(MAX_RECORD_BYTES)
    }

    pub(crate) fn bootstrap(&self) -> &str {
        &self.builder.bootstrap
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.builder.request_timeout
    }

    /// Connection problems of all clients that are created from these settings.
    pub(crate) fn connection_errors(&self) -> &Arc<ConnectionErrors> {
        &self.connection_errors
    }

    pub(crate) fn protocol(&self) -> GroupProtocol {
        self.builder.protocol
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        let mut config = self.client(PRODUCER_DEFAULTS);
        let limit = self.request_timeout();
        config.set(MESSAGE_MAX_BYTES, MAX_RECORD_BYTES.to_string());
        config.set("message.timeout.ms", (limit * 4 / 5).as_millis().to_string());
        config.set("topic.metadata.propagation.max.ms", (limit / 2).as_millis().to_string());
        let mut config = self.over(config, &self.builder.producer);
        let contexts =
            config.get(DEBUG).map_or(doubt::CONTEXT.into(), |own| format!("{own},{}", doubt::CONTEXT));
        config.set(DEBUG, contexts).set_log_level(RDKafkaLogLevel::Debug);
        config
    }

    /// Whether the user wants the producer's debug lines, which are otherwise only used to detect doubts.
    pub(crate) fn shows_debug(&self) -> bool {
        let mut set = self.builder.both.iter().chain(&self.builder.producer);
        matches!(log::level(), RDKafkaLogLevel::Debug) && set.any(|(name, _)| name == DEBUG)
    }

    /// For one-off queries and for creating topics: a producer's handle that produces nothing.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.over(self.client(&[]), &[])
    }

    pub(crate) fn consumer(&self, group: &str, member: [u8; 16], protocol: GroupProtocol) -> ClientConfig {
        let mut config = self.client(CONSUMER_DEFAULTS);
        if protocol == GroupProtocol::Classic {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        } else {
            // Kafka's default, `uniform`, balances the number of partitions over all topics: of two members, one may
            // get the whole task topic. `range` shares each topic.
            config.set("group.remote.assignor", "range");
        }
        let name: String = member.iter().take(4).map(|b| format!("{b:02x}")).collect();
        config.set("client.id", format!("kafkaq-{name}"));
        let mut config = self.over(config, &self.builder.consumer);
        config.set("group.id", group);
        if protocol == GroupProtocol::Classic {
            config.set("group.protocol", "classic").remove("group.remote.assignor");
        } else {
            config.set("group.protocol", "consumer");
            for name in CLASSIC_ONLY {
                config.remove(name);
            }
        }
        config
    }

    /// For reading without a group. `readahead` is in KiB per partition; 0 reads one batch per fetch.
    pub(crate) fn reader(&self, readahead: usize) -> ClientConfig {
        let mut config = self.over(self.client(CONSUMER_DEFAULTS), &self.builder.consumer);
        // The end of a log is its leader's; followers lag behind.
        for name in ["group.instance.id", "group.remote.assignor", "session.timeout.ms", "client.rack"] {
            config.remove(name);
        }
        for (name, value) in READER {
            config.set(*name, *value);
        }
        config.set("queued.max.messages.kbytes", readahead.max(1).to_string());
        if readahead == 0 {
            set(&mut config, "fetch.message.max.bytes", "1");
            config.set("queued.min.messages", "1");
        }
        config
    }

    fn client(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(log::level());
        config.set("bootstrap.servers", self.bootstrap()).set("client.id", "kafkaq");
        for (name, value) in DEFAULTS.iter().chain(defaults) {
            config.set(*name, *value);
        }
        config
    }

    fn over(&self, mut config: ClientConfig, own: &[(String, String)]) -> ClientConfig {
        for (name, value) in self.builder.both.iter().chain(own) {
            set(&mut config, name, value);
        }
        config
    }
}

/// Overrides a setting, by whichever of its names it was set before.
fn set(config: &mut ClientConfig, name: &str, value: &str) {
    for alias in ALIASES.iter().filter(|names| names.contains(&name)).flatten() {
        config.remove(alias);
    }
    config.set(name, value);
}

/// The addresses as librdkafka accepts them: `host:port`, or `host` for port 9092, optionally with a security protocol
/// in front.
///
/// # Errors
/// `Misconfigured`, with the invalid address.
fn addresses(bootstrap: &str) -> Result<String> {
    let list: Vec<&str> = bootstrap.split(',').map(str::trim).filter(|address| !address.is_empty()).collect();
    if list.is_empty() {
        return Err(refused("bootstrap").with_advice("Use one or more addresses: host:port,host:port"));
    }
    match list.iter().find(|address| !is_address(address)) {
        Some(wrong) => Err(refused("bootstrap").with_advice(format!(
            "`{wrong}` is not an address: it must be host:port, with a port of 1 to 65535"
        ))),
        None => Ok(list.join(",")),
    }
}

fn is_address(address: &str) -> bool {
    const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
    let rest = match address.split_once("://") {
        Some((protocol, rest)) if PROTOCOLS.contains(&protocol.to_ascii_lowercase().as_str()) => rest,
        Some(_) => return false,
        None => address,
    };
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, port)) => (ip.parse::<Ipv6Addr>().map_or("", |_| ip), port.strip_prefix(':')),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    // The brackets of an IPv6 address have been removed.
    let is_host = |c: char| c.is_alphanumeric() || "-._:".contains(c);
    !host.is_empty() && host.chars().all(is_host) && port.is_none_or(is_port)
}

fn refused(name: &str) -> Error {
    Error::not_applied(ErrorKind::Misconfigured, "configure").on(format_args!("`{name}`"))
}

/// librdkafka's complaint about a setting, without the value: it may be a password.
pub(crate) fn broken(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, said, name, value) => {
            let said = if value.is_empty() { said.clone() } else { said.replace(value.as_str(), "…") };
            refused(name).with_source(said)
        }
        KafkaError::ClientCreation(said) => {
            Error::not_applied(ErrorKind::Misconfigured, "configure").with_source(said.clone())
        }
        other => Error::not_applied(ErrorKind::Misconfigured, "configure").with_source(other.clone()),
    }
}

#[cfg(test)]
mod tests;
