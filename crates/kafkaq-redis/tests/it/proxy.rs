//! A bad network: a proxy in front of a server that can cut, swallow and change what passes.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass,
    /// Requests reach the server; the answers vanish and the connection stays open.
    SwallowAnswers,
    /// Requests reach the server; then the connection breaks.
    CutAtAnswer,
    /// Behaves like a server before 7.0, which answers `SET NX GET` with a syntax error.
    OldServer,
}

const MODES: [Mode; 4] = [Mode::Pass, Mode::SwallowAnswers, Mode::CutAtAnswer, Mode::OldServer];

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    accepted: Arc<AtomicUsize>,
    spoilt: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn to(server_port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::new(AtomicU8::new(Mode::Pass as u8)),
            accepted: Arc::default(),
            spoilt: Arc::default(),
        };
        let (mode, accepted, spoilt) = (proxy.mode.clone(), proxy.accepted.clone(), proxy.spoilt.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                accepted.fetch_add(1, Relaxed);
                let (from_client, to_client) = client.into_split();
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(requests(from_client, to_server, mode.clone(), spoilt.clone()));
                tokio::spawn(answers(from_server, to_client, mode.clone()));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }

    /// Commands so far that an old server did not understand.
    pub(crate) fn spoilt(&self) -> usize {
        self.spoilt.load(Relaxed)
    }
}

fn mode(shared: &AtomicU8) -> Mode {
    MODES[usize::from(shared.load(Relaxed))]
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: Arc<AtomicU8>,
    spoilt: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let mut bytes = buffer[..n].to_vec();
        if mode(&shared) == Mode::OldServer {
            let (new, old) = (b"NX\r\n$3\r\nGET\r\n", b"NX\r\n$3\r\nWAT\r\n");
            for at in 0..bytes.len().saturating_sub(new.len() - 1) {
                if bytes[at..].starts_with(new) {
                    bytes[at..at + old.len()].copy_from_slice(old);
                    spoilt.fetch_add(1, Relaxed);
                }
            }
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: Arc<AtomicU8>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        match mode(&shared) {
            Mode::CutAtAnswer => return,
            Mode::SwallowAnswers => {}
            Mode::Pass | Mode::OldServer => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
