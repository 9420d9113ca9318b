//! The ports of servers, and simple requests to them.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The ports to choose from; see [`free_port`].
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where a node listens. It keeps both over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    /// For clients.
    pub(super) client: u16,
    /// For communication between servers.
    pub(super) peer: u16,
    /// Where clients are told to connect: to `client`, or to a proxy in front of it.
    pub(super) told: u16,
}

impl Ports {
    /// Chooses free ports, unless the caller passes those for clients: where the node listens, and where clients are
    /// told to connect.
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

/// Returns a port that nobody listens on and that was not returned to another caller: it may take a while until a
/// server listens on it, and the tests of several processes start many at once.
///
/// It isn't chosen by the kernel, which picks from the range of outgoing connections. While a server is stopped, such a
/// connection could take its port, or a reconnecting client could even connect to itself.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    first_free(next_number)
}

fn first_free(mut next_number: impl FnMut() -> Result<u16>) -> Result<u16> {
    let count = PORTS.end - PORTS.start;
    for _ in 0..count {
        let port = PORTS.start + next_number()? % count;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// Counts up in a file that all processes of this user share.
fn next_number() -> Result<u16> {
    let path = std::env::temp_dir().join(format!("kafkaq-ports-{}", nix::unistd::getuid()));
    let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    // Until it is closed.
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // If it contains anything else, start over.
    let number = text.trim().parse::<u16>().unwrap_or_default();
    file.rewind()?;
    // Always the same number of digits, so that nothing of a longer number is left.
    write!(file, "{:05}", number.wrapping_add(1))?;
    Ok(number)
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Returns the response of the server on this port, up to the end of the connection.
pub(super) fn ask(limit: Duration, port: u16, question: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&loopback(port), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
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
    fn nobody_else_is_given_a_port_before_its_server_listens() {
        // Each handle on the file is a lock of its own, so threads are as good as processes here.
        let many = |_| std::thread::spawn(|| (0..100).map(|_| free_port().unwrap()).collect::<Vec<_>>());
        let threads: Vec<_> = (0..8).map(many).collect();
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 800);
    }

    #[test]
    fn a_taken_port_is_not_given_out() {
        let port = free_port().unwrap();
        let _taken = TcpListener::bind(loopback(port)).unwrap();
        let mut numbers = (0..PORTS.end - PORTS.start).cycle().skip(usize::from(port - PORTS.start));
        assert_ne!(first_free(|| numbers.next().context("endless")).unwrap(), port);
    }
}
