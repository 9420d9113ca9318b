//! Builds a store from addresses, without connecting.

use crate::{ZooKeeperStore, client::MAX_REQUESTS, nodes::Nodes};
use kafkaq_core::{
    Error, ErrorKind, Result,
    connection::{MAX_PREFIX, check_timeout, is_address},
};
use std::{borrow::Cow, fmt, ops::RangeInclusive, time::Duration};
use zookeeper_async::Acl;

const OP: &str = "set up the ZooKeeper store";

/// Each is a thread.
const MAX_SESSIONS: usize = 16;

const HOUR: Duration = Duration::from_secs(3600);
/// The client library counts in whole seconds.
const SESSION_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
const SWEEP_EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
const MAX_CLOCK_SKEW: Duration = HOUR;
const MAX_LINGER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Settings shared by all sessions.
pub(crate) struct Settings {
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) digest: Option<(String, String)>,
    pub(crate) request_timeout: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) sweep_every: Duration,
    pub(crate) linger: Duration,
    /// How many requests a session carries before another takes its place.
    pub(crate) max_requests: u32,
    pub(crate) nodes: Nodes,
}

impl Settings {
    pub(crate) fn address(&self) -> String {
        self.servers.join(",")
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("address", &self.address())
            .field("root", &self.nodes.root)
            .field("user", &self.digest.as_ref().map(|(user, _)| user))
            .field("request_timeout", &self.request_timeout)
            .field("session_timeout", &self.session_timeout)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`ZooKeeperStore`]. From [`ZooKeeperStore::builder`].
#[derive(Clone)]
#[must_use]
pub struct ZooKeeperStoreBuilder {
    addresses: String,
    prefix: String,
    digest: Option<(String, String)>,
    request_timeout: Duration,
    session_timeout: Duration,
    sessions: usize,
    clock_skew: Duration,
    sweep_every: Duration,
    linger: Duration,
}

impl ZooKeeperStoreBuilder {
    pub(crate) fn new(addresses: String) -> Self {
        ZooKeeperStoreBuilder {
            addresses,
            prefix: "kafkaq".into(),
            digest: None,
            request_timeout: Duration::from_secs(2),
            session_timeout: Duration::from_secs(10),
            sessions: 2,
            clock_skew: Duration::from_secs(10),
            sweep_every: Duration::from_secs(600),
            linger: Duration::from_secs(600),
        }
    }

    /// The parent node of everything, within the chroot. It may have several segments, and is created if it is missing.
    /// Two prefixes are two stores. Default: `kafkaq`.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        ZooKeeperStoreBuilder { prefix: prefix.into(), ..self }
    }

    /// The client's user, in the scheme `digest`. Nodes that it creates belong to this user alone. The password is sent
    /// unencrypted: there is no TLS.
    pub fn digest(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        ZooKeeperStoreBuilder { digest: Some((user.into(), password.into())), ..self }
    }

    /// How long a call may take, including connecting: 1 ms to 1 h. Default: 2 s.
    pub fn request_timeout(self, limit: Duration) -> Self {
        ZooKeeperStoreBuilder { request_timeout: limit, ..self }
    }

    /// How long a client may be silent before its session expires, 1 s to 1 h; servers adjust it to their limits.
    /// Default: 10 s.
    pub fn session_timeout(self, limit: Duration) -> Self {
        ZooKeeperStoreBuilder { session_timeout: limit, ..self }
    }

    /// How many sessions to use, 1 to 16. Each has a connection and a thread. Default: 2.
    pub fn sessions(self, n: usize) -> Self {
        ZooKeeperStoreBuilder { sessions: n, ..self }
    }

    /// How much the clocks of the machines that use the store may differ: values live that much longer, so that none
    /// expires early. Up to 1 h. Default: 10 s.
    pub fn clock_skew(self, skew: Duration) -> Self {
        ZooKeeperStoreBuilder { clock_skew: skew, ..self }
    }

    /// How often each shard is searched for removed and expired values, by one of the processes that use the store:
    /// 1 s to 7 days. Default: 10 min.
    pub fn sweep_every(self, interval: Duration) -> Self {
        ZooKeeperStoreBuilder { sweep_every: interval, ..self }
    }

    /// How long the nodes of removed and expired values are kept. **This must be longer than the longest session that
    /// the servers allow (`maxSessionTimeout`, 40 s by default) together with the longest request timeout**: a process
    /// that resumes after that can do no harm. Up to 30 days. Default: 10 min.
    pub fn linger(self, time: Duration) -> Self {
        ZooKeeperStoreBuilder { linger: time, ..self }
    }

    /// Builds the store. It needs no server: the first call connects.
    ///
    /// # Errors
    /// `Invalid` if the addresses, the prefix or the user are malformed, or if a number is out of range.
    pub fn build(self) -> Result<ZooKeeperStore> {
        let (servers, chroot) = match self.addresses.split_once('/') {
            Some((servers, chroot)) => (servers, chroot),
            None => (self.addresses.as_str(), ""),
        };
        let servers: Vec<String> = servers.split(',').map(|server| server.trim().to_owned()).collect();
        if !servers.iter().all(|server| is_address(server)) {
            return Err(invalid("Addresses look like host:2181,host:2181/chroot; the chroot is optional"));
        }
        let chroot = chroot.strip_suffix('/').unwrap_or(chroot);
        let chroot = (!chroot.is_empty()).then_some(chroot);
        let root =
            chroot.into_iter().chain([&*self.prefix]).map(|path| format!("/{path}")).collect::<String>();
        if root.len() > MAX_PREFIX || !root.split('/').skip(1).all(is_segment) {
            return Err(invalid(
                "The chroot and the prefix have segments between single slashes, none of which is `.` or `..`, and \
                 together at most 200 characters",
            ));
        }
        check_timeout(OP, self.request_timeout)?;
        if !SESSION_TIMEOUT.contains(&self.session_timeout) {
            return Err(invalid(format!("session_timeout is {:?}: use 1 s to 1 h", self.session_timeout)));
        }
        if !SWEEP_EVERY.contains(&self.sweep_every) {
            return Err(invalid(format!("sweep_every is {:?}: use 1 s to 7 days", self.sweep_every)));
        }
        if self.clock_skew > MAX_CLOCK_SKEW {
            return Err(invalid(format!("clock_skew is {:?}: use up to 1 h", self.clock_skew)));
        }
        if self.linger <= self.session_timeout + self.request_timeout || self.linger > MAX_LINGER {
            return Err(invalid(format!(
                "linger is {:?}: use more than a session and a request take together, up to 30 days",
                self.linger
            )));
        }
        if !(1..=MAX_SESSIONS).contains(&self.sessions) {
            return Err(invalid(format!("sessions is {}: use 1 to {MAX_SESSIONS}", self.sessions)));
        }
        if self.digest.as_ref().is_some_and(|(user, _)| user.is_empty() || user.contains(':')) {
            return Err(invalid("A user has a name without colons"));
        }
        let acl = if self.digest.is_some() { Acl::creator_all() } else { Acl::open_unsafe() };
        let nodes = Nodes { root, acl: acl.clone(), clock_skew: self.clock_skew };
        let settings = Settings {
            servers,
            digest: self.digest,
            request_timeout: self.request_timeout,
            session_timeout: self.session_timeout,
            sweep_every: self.sweep_every,
            linger: self.linger,
            max_requests: MAX_REQUESTS,
            nodes,
        };
        Ok(ZooKeeperStore::new(settings, self.sessions))
    }
}

/// ZooKeeper refuses control characters and everything beyond the basic multilingual plane; the allowed characters are
/// enough in practice.
fn is_segment(segment: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() || c == ' ';
    !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(plain)
}

fn invalid(advice: impl Into<Cow<'static, str>>) -> Error {
    Error::not_applied(ErrorKind::Invalid, OP).with_advice(advice)
}

impl fmt::Debug for ZooKeeperStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperStoreBuilder")
            .field("addresses", &self.addresses)
            .field("prefix", &self.prefix)
            .field("user", &self.digest.as_ref().map(|(user, _)| user))
            .field("request_timeout", &self.request_timeout)
            .field("session_timeout", &self.session_timeout)
            .field("sessions", &self.sessions)
            .finish_non_exhaustive()
    }
}
