//! A bad network: a proxy in front of a server that can swallow answers and cut connections.

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
}

const MODES: [Mode; 3] = [Mode::Pass, Mode::SwallowAnswers, Mode::CutAtAnswer];

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn to(server_port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::new(AtomicU8::new(Mode::Pass as u8)),
            accepted: Arc::default(),
            open: Arc::default(),
        };
        let (mode, accepted, open) = (proxy.mode.clone(), proxy.accepted.clone(), proxy.open.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                accepted.fetch_add(1, Relaxed);
                open.fetch_add(1, Relaxed);
                let (from_client, to_client) = client.into_split();
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                let (from_server, to_server) = server.into_split();
                let open = open.clone();
                tokio::spawn(async move {
                    requests(from_client, to_server).await;
                    open.fetch_sub(1, Relaxed);
                });
                tokio::spawn(answers(from_server, to_client, mode.clone()));
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }

    /// Connections that the client has not closed.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: Arc<AtomicU8>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        match MODES[usize::from(mode.load(Relaxed))] {
            Mode::CutAtAnswer => return,
            Mode::SwallowAnswers => {}
            Mode::Pass if to.write_all(&buffer[..n]).await.is_err() => return,
            Mode::Pass => {}
        }
    }
}
