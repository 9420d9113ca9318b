//! From addresses to a log. Nothing connects here.

use crate::{RsKafka, link::Settings};
use kafkaq_core::{Error, ErrorKind, Result};
use rskafka::client::{Credentials, SaslConfig};
use std::{fmt, sync::Arc, time::Duration};

const OP: &str = "set up the Kafka client";

const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Room for one batch of Kafka's default size and for the metadata of a cluster with some thousand topics.
const MIN_MESSAGE: usize = 2 << 20;
/// The protocol counts in 32 bits with a sign.
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

    /// How long a call may take, connecting and attempts included: 100 ms to 1 h. A fetch may take its `max_wait`
    /// on top. Default: 10 s.
    pub fn request_timeout(self, limit: Duration) -> Self {
        Builder { request_timeout: limit, ..self }
    }

    /// The largest record to send and the largest answer to accept: 2 MiB to 1 GiB. Default: 64 MiB. The server has
    /// its own limits; this one bounds this process's memory.
    pub fn max_message_bytes(self, limit: usize) -> Self {
        Builder { max_message_bytes: limit, ..self }
    }

    /// The name under which the server knows this client, in its logs and quotas. Default: `kafkaq`.
    pub fn client_id(self, name: impl Into<String>) -> Self {
        Builder { client_id: name.into(), ..self }
    }

    /// Signs in with SASL PLAIN, which sends the password: use it over TLS only.
    pub fn sasl_plain(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::Plain(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Signs in with SASL SCRAM-SHA-256.
    pub fn sasl_scram_sha_256(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::ScramSha256(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Signs in with SASL SCRAM-SHA-512.
    pub fn sasl_scram_sha_512(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        let sasl = SaslConfig::ScramSha512(Credentials::new(user.into(), password.into()));
        Builder { sasl: Some(sasl), ..self }
    }

    /// Encrypts the connections, and trusts the system's certificates unless others are given.
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

    /// The certificate and its key, in PEM, by which this client proves who it is. Implies [`tls`](Self::tls).
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.get_or_insert_default().identity = Some((certificate.into(), key.into()));
        self
    }

    /// Makes the log. It needs no server: the first call connects.
    ///
    /// # Errors
    /// `Invalid` if an address is not `host:port`, a certificate can't be read, or a limit is out of range.
    pub fn build(self) -> Result<RsKafka> {
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&self.request_timeout) {
            return Err(invalid("Use a request timeout from 100 ms to 1 h"));
        }
        if !(MIN_MESSAGE..=MAX_MESSAGE).contains(&self.max_message_bytes) {
            return Err(invalid("Use max_message_bytes from 2 MiB to 1 GiB"));
        }
        let addresses: Vec<Arc<str>> = self.bootstrap.split(',').map(|a| a.trim().into()).collect();
        if let Some(wrong) = addresses.iter().find(|a| !is_address(a)) {
            return Err(invalid("Addresses look like kafka-1:9092,kafka-2:9092").on(format!("`{wrong}`")));
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

fn is_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok())
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
    fn what_makes_no_sense_is_refused_before_anything_connects() {
        let ok = || Builder::new("a:1, [::1]:2".into());
        assert!(ok().build().is_ok());
        for wrong in ["", "a", "a:", ":1", "a:1,", "a:70000", "kafka://a:1"] {
            let e = Builder::new(wrong.into()).build().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{wrong}");
        }
        assert!(ok().request_timeout(Duration::ZERO).build().is_err());
        assert!(ok().max_message_bytes(1000).build().is_err());
        assert!(ok().max_message_bytes(usize::MAX).build().is_err());
    }

    #[test]
    fn no_debug_output_has_a_secret() {
        let builder = Builder::new("a:1".into()).sasl_plain("me", "secret");
        let shown = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(!shown.contains("secret") && shown.contains("a:1"), "{shown}");
    }
}
