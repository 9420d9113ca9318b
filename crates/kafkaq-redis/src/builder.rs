//! Builds a store from a URL, without connecting.

use crate::{RedisStore, cluster::Cluster, node::Node, servers::Servers};
use kafkaq_core::{
    Error, ErrorKind, Result,
    connection::{check_prefix, check_timeout, is_host},
};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    io::tcp::{TcpSettings, socket2},
};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

const OP: &str = "set up the Redis store";

/// More connections only cost memory: Redis executes on one core.
const MAX_CONNECTIONS: usize = 64;

/// How often idle connections are probed: firewalls and load balancers silently forget them otherwise.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Settings of a [`RedisStore`]. From [`RedisStore::builder`] or [`RedisStore::cluster`].
#[derive(Clone)]
#[must_use]
pub struct RedisStoreBuilder {
    urls: Vec<String>,
    cluster: bool,
    prefix: String,
    request_timeout: Duration,
    connections: usize,
    #[cfg(feature = "tls")]
    root_certificates: Option<Vec<u8>>,
    #[cfg(feature = "tls")]
    client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisStoreBuilder {
    pub(crate) fn new(urls: Vec<String>, cluster: bool) -> Self {
        RedisStoreBuilder {
            urls,
            cluster,
            prefix: "kafkaq/".into(),
            request_timeout: Duration::from_secs(2),
            connections: 2,
            #[cfg(feature = "tls")]
            root_certificates: None,
            #[cfg(feature = "tls")]
            client_certificate: None,
        }
    }

    /// The prefix of every key: 1 to 200 bytes. Two prefixes are two stores. Default: `kafkaq/`.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        RedisStoreBuilder { prefix: prefix.into(), ..self }
    }

    /// How long a call may take, including connecting: 1 ms to 1 h. Default: 2 s.
    pub fn request_timeout(self, limit: Duration) -> Self {
        RedisStoreBuilder { request_timeout: limit, ..self }
    }

    /// How many connections to use, per node in a cluster: 1 to 64. Each is served by one task, hence by one core at a
    /// time. Default: 2.
    pub fn connections(self, n: usize) -> Self {
        RedisStoreBuilder { connections: n, ..self }
    }

    /// The certificates to trust, in PEM, instead of the system's.
    #[cfg(feature = "tls")]
    pub fn root_certificates(self, pem: impl Into<Vec<u8>>) -> Self {
        RedisStoreBuilder { root_certificates: Some(pem.into()), ..self }
    }

    /// The client certificate and its key, in PEM.
    #[cfg(feature = "tls")]
    pub fn client_certificate(self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        RedisStoreBuilder { client_certificate: Some((certificate.into(), key.into())), ..self }
    }

    /// Builds the store. It needs no server: the first call connects.
    ///
    /// # Errors
    /// `Invalid` if the URL can't be parsed, is incomplete or needs TLS that isn't compiled in, if a certificate can't
    /// be read, or if the timeout, the number of connections or the prefix is out of range. For a cluster also if there
    /// is no URL, if one names a socket or a database other than 0, or if the prefix has a brace.
    pub fn build(self) -> Result<RedisStore> {
        check_timeout(OP, self.request_timeout)?;
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return Err(invalid(format!("connections is {}: use 1 to {MAX_CONNECTIONS}", self.connections)));
        }
        check_prefix(OP, &self.prefix)?;
        let clients = self.urls.iter().map(|url| self.client(url)).collect::<Result<Vec<_>>>()?;
        let servers = match &clients[..] {
            [client] if !self.cluster => Servers::One(Arc::new(Node::new(client, self.connections, false))),
            clients => Servers::Cluster(Box::new(self.begin_at(clients)?)),
        };
        Ok(RedisStore::new(self.prefix, self.request_timeout, servers))
    }

    fn begin_at(&self, clients: &[Client]) -> Result<Cluster> {
        if self.prefix.contains('{') {
            return Err(invalid("Use a prefix without braces: they would put all leases on one node"));
        }
        let fits = |client: &Client| {
            let info = client.get_connection_info();
            info.redis_settings().db() == 0 && !matches!(info.addr(), ConnectionAddr::Unix(_))
        };
        if !clients.iter().all(fits) {
            return Err(invalid("A URL of a Redis Cluster must have a host, and no database other than 0"));
        }
        Cluster::new(clients, self.connections)
            .ok_or_else(|| invalid("Set the URL of at least one node of the Redis Cluster"))
    }

    fn client(&self, url: &str) -> Result<Client> {
        let open = |url: &str| {
            let info = url.into_connection_info()?;
            let tcp = TcpSettings::default()
                .set_nodelay(true)
                .set_keepalive(socket2::TcpKeepalive::new().with_time(KEEPALIVE));
            if !leads_somewhere(&info) {
                return Err((
                    redis::ErrorKind::InvalidClientConfig,
                    "the host, the port, the path or the database is invalid",
                )
                    .into());
            }
            // One protocol version, whatever the URL says: every server has it, and its responses are parsed by hand.
            let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            self.open(info.set_tcp_settings(tcp).set_redis_settings(redis))
        };
        open(url).map_err(|e| {
            invalid(
                "A URL looks like redis://user:password@host:6379/0 or unix:///path?db=0; rediss:// is for TLS \
                 and needs the feature `tls`; special characters of a password are percent-encoded",
            )
            .with_source(e)
        })
    }

    #[cfg(not(feature = "tls"))]
    fn open(&self, info: ConnectionInfo) -> redis::RedisResult<Client> {
        Client::open(info)
    }

    #[cfg(feature = "tls")]
    fn open(&self, info: ConnectionInfo) -> redis::RedisResult<Client> {
        let certificates = self.root_certificates.is_some() || self.client_certificate.is_some();
        if !certificates && !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(info);
        }
        // The redis crate uses the process's default crypto provider. rustls finds it by itself only if no dependency
        // has compiled in a second one, and panics otherwise. If the application has installed one, it stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client_tls = self
            .client_certificate
            .clone()
            .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
        let root_cert = self.root_certificates.clone();
        Client::build_with_tls(info, redis::TlsCertificates { client_tls, root_cert })
    }
}

fn leads_somewhere(info: &ConnectionInfo) -> bool {
    let is_somewhere = match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            is_host(host) && *port > 0
        }
        ConnectionAddr::Unix(path) => path.file_name().is_some(),
        _ => true,
    };
    is_somewhere && info.redis_settings().db() >= 0
}

fn invalid(advice: impl Into<Cow<'static, str>>) -> Error {
    Error::not_applied(ErrorKind::Invalid, OP).with_advice(advice)
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URLs, which may hold a password, and without the keys.
        f.debug_struct("RedisStoreBuilder")
            .field("cluster", &self.cluster)
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}
