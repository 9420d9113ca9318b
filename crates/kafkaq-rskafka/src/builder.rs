//! Builds a log from addresses, without connecting.

use crate::{RsKafka, link::Settings};
use kafkaq_core::{Error, ErrorKind, Result};
use rskafka::client::{Credentials, SaslConfig};
use std::{fmt, net::Ipv6Addr, sync::Arc, time::Duration};

const OP: &str = "set up the Kafka client";

const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Enough for one batch of Kafka's default size and for the metadata of a cluster with a few thousand topics.
const MIN_MESSAGE: usize = 2 << 20;
/// The maximum length of a host name.
const MAX_NAME: usize = 255;
/// The protocol uses signed 32-bit sizes.
const MAX_MESSAGE: usize = 1 << 30;

/// Settings of an [`RsKafka`]. From [`RsKafka::builder`].
#[derive(Clone)]
#[must_use]
pub struct Builder {
    bootstrap: String,
    request_timeout: Duration,
    max_message_bytes: usize,
    client_id: String,
    sasl: Option<SaslConfig>,
    #[cfg(feature = "tls")]
    tls: Option<crate::tls::Tls>,
}

impl Builder {
    pub(crate) fn new(bootstrap: String) -> Self {
        Builder {
            bootstrap,
            request_timeout: Duration::from_secs(10),
            max_message_bytes: 64 << 20,
            client_id: "kafkaq".into(),
            sasl: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// How long a call may take, including connecting and retries: 100 ms to 1 h. A fetch may take its `max_wait` in
    /// addition. Default: 10 s.
    pub fn request_timeout(self, limit: Duration) -> Self {
        Builder { request_timeout: limit, ..self }
    }

    /// The largest record to send and the largest response to accept: 2 MiB to 1 GiB. Default: 64 MiB. The server has
    /// its own limits; this one limits this process's memory.
    pub fn max_message_bytes(self, limit: usize) -> Self {
        Builder { max_message_bytes: limit, ..self }
    }

    /// The name under which the server knows this client, in its logs and quotas: 1 to 255 bytes. Default: `kafkaq`.
    pub fn client_id(self, name: impl Into<String>) -> Self {
        Builder { client_id: name.into(), ..self }
    }

    /// Authenticates with SASL PLAIN, which sends the password: use it over TLS only. User and password have 1 to 255
    /// bytes each.
    pub fn sasl_plain(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::Plain(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Authenticates with SASL SCRAM-SHA-256.
    pub fn sasl_scram_sha_256(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::ScramSha256(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Authenticates with SASL SCRAM-SHA-512.
    pub fn sasl_scram_sha_512(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::ScramSha512(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Encrypts the connections, and trusts the system's certificates unless others are set.
    #[cfg(feature = "tls")]
    pub fn tls(mut self) -> Self {
        self.tls.get_or_insert_default();
        self
    }

    /// The certificates to trust, in PEM, instead of the system's. Implies [`tls`](Self::tls).
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.get_or_insert_default().roots = Some(pem.into());
        self
    }

    /// The client certificate and its key, in PEM. Implies [`tls`](Self::tls).
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.get_or_insert_default().identity = Some((certificate.into(), key.into()));
        self
    }

    /// Builds the log. It needs no server: the first call connects.
    ///
    /// # Errors
    /// `Invalid` if an address is not `host:port`, a certificate can't be read, or a setting is out of its range.
    pub fn build(self) -> Result<RsKafka> {
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&self.request_timeout) {
            return Err(invalid("Use a request_timeout from 100 ms to 1 h"));
        }
        if !(MIN_MESSAGE..=MAX_MESSAGE).contains(&self.max_message_bytes) {
            return Err(invalid("Use max_message_bytes from 2 MiB to 1 GiB"));
        }
        if self.client_id.is_empty() || self.client_id.len() > MAX_NAME {
            return Err(invalid("Use a client_id of 1 to 255 bytes"));
        }
        if let Some(sasl) = &self.sasl
            && !is_sasl(sasl)
        {
            return Err(invalid("Use a SASL user and a password of 1 to 255 bytes, none of them zero"));
        }
        let addresses: Vec<Arc<str>> = self.bootstrap.split(',').map(|a| a.trim().into()).collect();
        if let Some(wrong) = addresses.iter().find(|a| !is_address(a)) {
            let advice = "Addresses look like kafka-1:9092,kafka-2:9092, those of IPv6 like [::1]:9092";
            return Err(invalid(advice).on(format!("`{wrong}`")));
        }
        Ok(RsKafka::new(Settings {
            bootstrap: addresses.join(","),
            addresses,
            request_timeout: self.request_timeout,
            max_message_bytes: self.max_message_bytes,
            client_id: self.client_id,
            sasl: self.sasl,
            #[cfg(feature = "tls")]
            tls: self.tls.map(|tls| tls.config()).transpose()?,
        }))
    }
}

/// A host's name or address, and a port.
fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // After `%` comes the interface.
        Some(six) => six.split('%').next().is_some_and(|six| six.parse::<Ipv6Addr>().is_ok()),
        None => {
            let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
            !host.is_empty() && host.len() <= MAX_NAME && host.chars().all(is_allowed)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+')
}

fn is_sasl(sasl: &SaslConfig) -> bool {
    let is_text = |text: &str| (1..=MAX_NAME).contains(&text.len()) && !text.contains('\0');
    match sasl {
        SaslConfig::Plain(with) | SaslConfig::ScramSha256(with) | SaslConfig::ScramSha512(with) => {
            is_text(&with.username) && is_text(&with.password)
        }
        SaslConfig::Oauthbearer(_) => true,
    }
}

pub(crate) fn invalid(advice: &'static str) -> Error {
    Error::not_applied(ErrorKind::Invalid, OP).with_advice(advice)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the user, the password and the keys.
        f.debug_struct("Builder")
            .field("bootstrap", &self.bootstrap)
            .field("request_timeout", &self.request_timeout)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_refused_before_connecting() {
        let ok = || Builder::new("a:1, [::1]:2,[fe80::1%eth0]:3,kafka_1.example-2.com:65535".into());
        assert!(ok().build().is_ok());
        let addresses = [
            "",
            "a",
            "a:",
            ":1",
            "a:1,",
            "a:70000",
            "a:0",
            "a:-1",
            "a:+1",
            "a:x",
            "kafka://a:1",
            "::1:9092",
            "[::1]",
            "[nonsense]:1",
            "a b:1",
            "user@a:1",
            "a:1;b:2",
            "a/b:1",
        ];
        for wrong in addresses {
            let e = Builder::new(wrong.into()).build().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{wrong}");
            assert!(e.to_string().contains("kafka-1:9092"), "{e}");
        }
        assert!(Builder::new(format!("{}:1", "x".repeat(256))).build().is_err());
        let named = |wrong: Builder, name: &str| {
            let e = wrong.build().unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(name), "{e}");
        };
        for limit in [Duration::ZERO, Duration::from_millis(99), Duration::from_secs(3601), Duration::MAX] {
            named(ok().request_timeout(limit), "request_timeout from 100 ms to 1 h");
        }
        for limit in [0, 1000, (1 << 30) + 1, usize::MAX] {
            named(ok().max_message_bytes(limit), "max_message_bytes from 2 MiB to 1 GiB");
        }
        named(ok().client_id(""), "client_id of 1 to 255");
        named(ok().client_id("x".repeat(256)), "client_id of 1 to 255");
        for (user, password) in [("", "x"), ("x", ""), ("a\0b", "x"), ("x", "a\0b")] {
            named(ok().sasl_plain(user, password), "1 to 255");
            named(ok().sasl_scram_sha_256(user, password), "1 to 255");
            named(ok().sasl_scram_sha_512(user, password), "1 to 255");
        }
    }

    #[test]
    fn no_debug_output_has_a_secret() {
        let builder = Builder::new("a:1".into()).sasl_plain("me", "secret");
        let shown = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(!shown.contains("secret") && shown.contains("a:1"), "{shown}");
    }
}
