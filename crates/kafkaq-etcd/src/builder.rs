//! Builds a store from endpoints, without connecting.

use crate::{
    EtcdStore,
    link::{Link, Member, Members},
};
use etcd_client::ConnectOptions;
use kafkaq_core::{
    Error, ErrorKind, Result,
    connection::{check_prefix, check_timeout, is_address},
};
use std::{borrow::Cow, fmt, time::Duration};
use tonic::transport::{Endpoint, Uri};

const OP: &str = "set up the etcd store";

/// How often idle connections are probed: firewalls and load balancers silently forget them otherwise.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// How often the server is pinged while requests are in flight. etcd disconnects clients that ping more than once in 5
/// s, or without a request in flight.
const PING: Duration = Duration::from_secs(10);

const HOW_TO_WRITE: &str = "An endpoint looks like host:2379, http://host:2379 or https://host:2379; set a \
                            user with `user`; https needs the feature `tls`";

/// Settings of an [`EtcdStore`]. From [`EtcdStore::builder`].
#[derive(Clone)]
#[must_use]
pub struct EtcdStoreBuilder {
    endpoints: Vec<String>,
    prefix: String,
    request_timeout: Duration,
    user: Option<(String, String)>,
    #[cfg(feature = "tls")]
    root_certificates: Option<Vec<u8>>,
    #[cfg(feature = "tls")]
    client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl EtcdStoreBuilder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        EtcdStoreBuilder {
            endpoints,
            prefix: "kafkaq/".into(),
            request_timeout: Duration::from_secs(2),
            user: None,
            #[cfg(feature = "tls")]
            root_certificates: None,
            #[cfg(feature = "tls")]
            client_certificate: None,
        }
    }

    /// The prefix of every key: 1 to 200 bytes. Two prefixes are two stores. Default: `kafkaq/`.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        EtcdStoreBuilder { prefix: prefix.into(), ..self }
    }

    /// How long a call may take, including connecting: 1 ms to 1 h. Default: 2 s.
    pub fn request_timeout(self, limit: Duration) -> Self {
        EtcdStoreBuilder { request_timeout: limit, ..self }
    }

    /// The user of etcd and the password. Default: none. An etcd from before the releases of March 2026 doesn't enforce
    /// permissions on keys: see [the crate's page](crate#connecting).
    pub fn user(self, name: impl Into<String>, password: impl Into<String>) -> Self {
        EtcdStoreBuilder { user: Some((name.into(), password.into())), ..self }
    }

    /// The certificates to trust, in PEM, instead of the system's.
    #[cfg(feature = "tls")]
    pub fn root_certificates(self, pem: impl Into<Vec<u8>>) -> Self {
        EtcdStoreBuilder { root_certificates: Some(pem.into()), ..self }
    }

    /// The client certificate and its key, in PEM.
    #[cfg(feature = "tls")]
    pub fn client_certificate(self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        EtcdStoreBuilder { client_certificate: Some((certificate.into(), key.into())), ..self }
    }

    /// Builds the store. It needs no server: the first call connects.
    ///
    /// # Errors
    /// `Invalid` if there is no endpoint or one can't be parsed or needs TLS that isn't compiled in, if a certificate
    /// can't be read, or if the timeout, the prefix or the user is out of range.
    pub fn build(self) -> Result<EtcdStore> {
        check_timeout(OP, self.request_timeout)?;
        check_prefix(OP, &self.prefix)?;
        if self.user.as_ref().is_some_and(|(name, password)| name.is_empty() || password.is_empty()) {
            return Err(invalid("A user has a name and a password"));
        }
        if self.endpoints.is_empty() {
            return Err(invalid("Set at least one endpoint, such as 127.0.0.1:2379"));
        }
        let members = self.endpoints.iter().map(|text| self.member(text)).collect::<Result<_>>()?;
        let mut options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        if let Some((name, password)) = self.user {
            options = options.with_user(name, password);
        }
        let probe = format!("{}probe", self.prefix);
        Ok(EtcdStore::new(
            self.prefix,
            self.request_timeout,
            Link::new(Members::new(members, options, probe)),
        ))
    }

    fn member(&self, text: &str) -> Result<Member> {
        let scheme = if self.wants_tls() { "https" } else { "http" };
        let url = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
        let uri: Uri = url.parse().map_err(|e| invalid(HOW_TO_WRITE).with_source(e))?;
        // Without the text itself: it may contain a password.
        let address = uri.authority().filter(|authority| is_address(authority.as_str()));
        let is_bare = uri.path() == "/" && !text.contains(['?', '#']);
        let Some(address) = address.filter(|_| is_bare).map(ToString::to_string) else {
            return Err(invalid(HOW_TO_WRITE));
        };
        let endpoint = match uri.scheme_str() {
            Some("http") if !self.wants_tls() => Endpoint::from(uri),
            Some("http") => {
                return Err(invalid("Certificates are set, but an endpoint starts with http://"));
            }
            Some("https") => self.secure(Endpoint::from(uri))?,
            _ => return Err(invalid(HOW_TO_WRITE)),
        };
        let endpoint = endpoint
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(false);
        Ok(Member { address, endpoint })
    }

    #[cfg(not(feature = "tls"))]
    fn wants_tls(&self) -> bool {
        false
    }

    #[cfg(feature = "tls")]
    fn wants_tls(&self) -> bool {
        self.root_certificates.is_some() || self.client_certificate.is_some()
    }

    #[cfg(not(feature = "tls"))]
    fn secure(&self, _: Endpoint) -> Result<Endpoint> {
        Err(invalid(HOW_TO_WRITE))
    }

    #[cfg(feature = "tls")]
    fn secure(&self, endpoint: Endpoint) -> Result<Endpoint> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};
        const IN_PEM: &str = "Certificates and keys have to be in PEM";
        let mut tls = match &self.root_certificates {
            Some(pem) if !has_certificate(pem) => return Err(invalid(IN_PEM)),
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        if let Some((certificate, key)) = &self.client_certificate {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(tls).map_err(|e| invalid(IN_PEM).with_source(e))
    }
}

/// The client accepts a file without certificates as an empty list.
#[cfg(feature = "tls")]
fn has_certificate(pem: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    pem.windows(BEGIN.len()).any(|text| text == BEGIN)
}

fn invalid(advice: impl Into<Cow<'static, str>>) -> Error {
    Error::not_applied(ErrorKind::Invalid, OP).with_advice(advice)
}

impl fmt::Debug for EtcdStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the endpoints, which may hold a password in the wrong place, and without user and keys.
        f.debug_struct("EtcdStoreBuilder")
            .field("prefix", &self.prefix)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
