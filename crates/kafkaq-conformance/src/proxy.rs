//! An [`Outage`] for every server that is reached over TCP: a proxy that goes silent.

use crate::{BoxError, Outage};
use async_trait::async_trait;
use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Sits between clients and a server on this machine. While the server is cut off, requests still reach it but no
/// response comes back, which is the outage that is hardest to distinguish from success. Restoring breaks the
/// connections that missed a response.
///
/// Let the clients connect to [`Proxy::addr`], and give the kit a clone with
/// [`Kit::with_outage`](crate::Kit::with_outage).
#[derive(Clone)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: Mutex<SocketAddr>,
    cut: AtomicBool,
    accepted: AtomicUsize,
    refusing: AtomicBool,
    open: Mutex<Vec<Arc<Connection>>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    muted: AtomicBool,
}

impl Connection {
    fn end(&self) {
        // An error says that it has ended already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, for as long as the process lives.
    ///
    /// # Errors
    /// If the address can't be resolved, or no port is free.
    pub fn to(server: impl ToSocketAddrs) -> io::Result<Self> {
        Self::rewriting(server, |_| {})
    }

    /// Whatever clients send passes through `rewrite` first, piece by piece as it arrives: it may change bytes, but not
    /// their number. So a test can simulate an older server than the available one.
    ///
    /// # Errors
    /// The same as for [`Proxy::to`].
    pub fn rewriting(
        server: impl ToSocketAddrs,
        rewrite: impl Fn(&mut [u8]) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Shared {
            server: Mutex::new(first_address(server)?),
            cut: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            refusing: AtomicBool::new(false),
            open: Mutex::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let proxy = Proxy { addr: listener.local_addr()?, shared: Arc::new(shared) };
        let (shared, rewrite) = (proxy.shared.clone(), Arc::new(rewrite));
        thread::Builder::new().name("proxy".into()).spawn(move || {
            // A connection that can't be made is dropped: to the client it is a server that went away.
            for client in listener.incoming().flatten() {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                let _ = shared.connect(client, rewrite.clone());
            }
        })?;
        Ok(proxy)
    }

    /// Returns the address that clients connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns how many connections clients have made so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Returns how many of them are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open().len()
    }

    /// Lets no more responses through the connections that are open now, as if a firewall had forgotten them. New ones
    /// work.
    pub fn mute(&self) {
        self.shared.open().iter().for_each(|connection| connection.muted.store(true, Ordering::SeqCst));
    }

    /// Routes new connections to another server, as an address does after a failover. Open ones are not affected.
    ///
    /// # Errors
    /// If the address can't be resolved.
    pub fn lead_to(&self, server: impl ToSocketAddrs) -> io::Result<()> {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = first_address(server)?;
        Ok(())
    }

    /// The other way to cut off the server: breaks every connection, and each new one at once, until
    /// [`Outage::restore`].
    pub fn refuse(&self) {
        self.shared.refusing.store(true, Ordering::SeqCst);
        self.shared.end_all();
    }
}

fn first_address(server: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    let no_address = || io::Error::new(io::ErrorKind::NotFound, "no such address");
    server.to_socket_addrs()?.next().ok_or_else(no_address)
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addr", &self.addr)
            .field("cut", &self.shared.cut)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        self.open().iter().for_each(|connection| connection.end());
    }

    fn connect(
        self: &Arc<Self>,
        client: TcpStream,
        rewrite: Arc<impl Fn(&mut [u8]) + Send + Sync + 'static>,
    ) -> io::Result<()> {
        let server = *self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let server = TcpStream::connect(server)?;
        let connection = Arc::new(Connection { client, server, muted: AtomicBool::new(false) });
        connection.client.set_nodelay(true)?;
        connection.server.set_nodelay(true)?;
        {
            let mut open = self.open();
            // Under the lock, so that `refuse` finds every connection that was accepted.
            if self.refusing.load(Ordering::SeqCst) {
                return Ok(());
            }
            open.push(connection.clone());
        }
        let (requests, answers, shared) = (connection.clone(), connection, self.clone());
        thread::Builder::new().name("requests".into()).spawn(move || {
            pump(&requests.client, &requests.server, |bytes| {
                rewrite(bytes);
                true
            });
            requests.end();
        })?;
        thread::Builder::new().name("answers".into()).spawn(move || {
            let silent = || shared.cut.load(Ordering::SeqCst) || answers.muted.load(Ordering::SeqCst);
            pump(&answers.server, &answers.client, |_| !silent());
            answers.end();
            shared.open().retain(|other| !Arc::ptr_eq(other, &answers));
        })?;
        Ok(())
    }
}

/// Copies until one side ends; bytes that don't pass are dropped.
fn pump(mut from: &TcpStream, mut to: &TcpStream, passes: impl Fn(&mut [u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if passes(&mut buffer[..n]) && to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

#[async_trait]
impl Outage for Proxy {
    async fn cut(&self) -> Result<(), BoxError> {
        self.shared.cut.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn restore(&self) -> Result<(), BoxError> {
        if self.shared.cut.load(Ordering::SeqCst) {
            // Broken before responses pass again: half a response would be worse than none.
            self.shared.end_all();
            self.shared.cut.store(false, Ordering::SeqCst);
        }
        self.shared.refusing.store(false, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that echoes everything.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || pump(&client, &client, |_| true));
            }
        });
        addr
    }

    /// Returns whether what is sent comes back; a closed connection is an error or the end of the stream.
    fn answers(mut to: &TcpStream) -> bool {
        let mut answer = [0];
        to.write_all(b"x").and_then(|()| to.read_exact(&mut answer)).is_ok()
    }

    #[tokio::test]
    async fn refusing_proxy_breaks_old_and_new_connections_until_restored() {
        let proxy = Proxy::to(echo()).unwrap();
        let connect = || TcpStream::connect(proxy.addr()).unwrap();
        let old = connect();
        assert!(answers(&old));
        for _ in 0..2 {
            proxy.refuse();
            assert!(!answers(&old) && !answers(&connect()));
            proxy.restore().await.unwrap();
            assert!(!answers(&old) && answers(&connect()));
        }
    }
}
