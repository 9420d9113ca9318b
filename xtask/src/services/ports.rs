//! Which ports servers get.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// The ports to choose from; see [`free_port`].
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where a node listens. It keeps both over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    /// For clients.
    pub(super) client: u16,
    /// For what servers say to each other.
    pub(super) peer: u16,
    /// Where clients are told to connect: to `client`, or to what stands before it.
    pub(super) told: u16,
}

impl Ports {
    /// Free ones, unless the caller has those for clients: where the node listens, and where they are told to connect.
    pub(super) fn choose(clients: Option<(u16, u16)>) -> Result<Self> {
        let (client, told) = match clients {
            Some(clients) => clients,
            None => free_port().map(|port| (port, port))?,
        };
        Ok(Self { client, peer: free_port()?, told })
    }

    pub(super) fn addr(self) -> SocketAddr {
        loopback(self.client)
    }
}

/// A port that nobody listens on.
///
/// Not the kernel's choice: that is one of those which it also gives to outgoing connections. While a server is
/// stopped, such a connection may take its port, or a client that reconnects to it may even meet itself.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes begin at different places; within a process no port is given out twice in a row.
    let begin = u16::try_from(std::process::id() * 7 % u32::from(count))?;
    for _ in 0..count {
        let port = PORTS.start + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % count) % count;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_lie_below_the_ephemeral_range() {
        let (a, b) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(a, b);
        assert!(PORTS.contains(&a) && PORTS.contains(&b));
    }

    #[test]
    fn a_taken_port_is_not_given_out() {
        let port = free_port().unwrap();
        let _taken = TcpListener::bind(loopback(port)).unwrap();
        // Once round all of them.
        assert!(PORTS.clone().all(|_| free_port().unwrap() != port));
    }
}
