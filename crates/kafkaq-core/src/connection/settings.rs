//! Validates the settings of a store. What they refuse would fail later, with a worse error.

use crate::{Error, ErrorKind, Result};
use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

/// How long a call may take. Anything outside is a mistake.
const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// The maximum length of a prefix.
pub const MAX_PREFIX: usize = 200;

/// Checks the `request_timeout` of a store.
///
/// # Errors
/// `Invalid` if a call may not take that long.
pub fn check_timeout(operation: &'static str, limit: Duration) -> Result<()> {
    if REQUEST_TIMEOUT.contains(&limit) {
        return Ok(());
    }
    Err(Error::not_applied(ErrorKind::Invalid, operation)
        .with_advice(format!("request_timeout is {limit:?}: use 1 ms to 1 h")))
}

/// Checks the prefix of a store's keys.
///
/// # Errors
/// `Invalid` if it is empty, too long, or not printable.
pub fn check_prefix(operation: &'static str, prefix: &str) -> Result<()> {
    let is_printable = !prefix.chars().any(|c| c.is_control() || c.is_whitespace());
    if is_printable && (1..=MAX_PREFIX).contains(&prefix.len()) {
        return Ok(());
    }
    Err(Error::not_applied(ErrorKind::Invalid, operation)
        .with_advice("A prefix has 1 to 200 bytes, no spaces and no control characters"))
}

/// A warning if a server's version is older than the oldest that is tested. What isn't a version is not judged.
#[must_use]
pub fn older_than(product: &str, version: &str, oldest: (u32, u32)) -> Option<String> {
    let mut numbers = version.split('.').map_while(|n| n.parse().ok());
    let found = (numbers.next()?, numbers.next().unwrap_or(0));
    let (major, minor) = oldest;
    (found < oldest).then(|| {
        format!("{product} {version} is older than {major}.{minor}, the oldest that kafkaq is tested with")
    })
}

/// Whether this can be a host name or an IP address; IPv6 with or without brackets.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && !label.starts_with('-') && label.chars().all(fits)
    };
    bare.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(is_label))
}

/// Whether this is a host, a colon and a port.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
    text.rsplit_once(':').is_some_and(|(host, port)| {
        // Without brackets the end of an IPv6 address is ambiguous.
        is_port(port) && is_host(host) && (!host.contains(':') || host.starts_with('['))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_addresses_are_refused() {
        for sound in ["h:1", "a-b.example:65535", "10.0.0.1:6379", "[::1]:2181", "redis_1:6379", "host.:1"] {
            assert!(is_address(sound), "{sound}");
        }
        for wrong in [
            "",
            "h",
            ":1",
            "h:",
            "h:0",
            "h:65536",
            "h:+5",
            "a b:1",
            " h:1",
            "a..b:1",
            "..:1",
            "-a:1",
            "*:1",
            "::1:2181",
            "[::1:1",
            "h:1:2",
            "http://h:1",
            "u@h:1",
            "h:1/x",
            "größe:1",
        ] {
            assert!(!is_address(wrong), "{wrong}");
        }
        assert!(
            is_host("::1") && is_host("[::1]") && !is_host(&"a".repeat(64)) && !is_host(&"a.".repeat(130))
        );
    }

    #[test]
    fn prefix_is_not_empty_and_printable() {
        let is_prefix = |text: &str| check_prefix("test", text).is_ok();
        assert!(is_prefix("kafkaq/") && is_prefix(&"x".repeat(200)) && is_prefix("größe:"));
        assert!(!["", " ", "a b", "a\n", "a\0"].into_iter().any(is_prefix) && !is_prefix(&"x".repeat(201)));
    }
}
