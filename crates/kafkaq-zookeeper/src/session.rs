//! One session: a connection, and a thread for it that can be ended.
//!
//! The client library reconnects by itself: endlessly while there is no server, with a new session and no credentials
//! when the old one has expired, and with requests that are still waiting. Only its runtime can stop it. So each
//! session has a runtime of one thread, which ends as soon as the connection is lost.
//!
//! What is read in a session is used only in the same session, and a write of an expired session has no effect.
//! That limits how long a process may be suspended between reading a version and writing to it: see `sweeper.rs`.

use crate::{builder::Settings, client::Client, failure::ConnectError, nodes::Nodes, sweeper};
use futures_util::{StreamExt, stream};
use kafkaq_core::{Operation, Result, lock};
use std::{
    cell::RefCell,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpSocket,
    runtime::{Builder, Handle, Runtime},
    sync::{Notify, OnceCell},
    time::{Instant, timeout_at},
};
use tracing::{Dispatch, dispatcher::DefaultGuard};
use zookeeper_async::{WatchedEvent, Watcher, ZkError, ZkState, ZooKeeper};

/// How many requests of one call are in flight.
const IN_FLIGHT: usize = 256;

/// How long the client library waits before it tries the next server; by default it doesn't wait at all.
const RETRY: Duration = Duration::from_millis(50);

/// Extra time for a session's thread that isn't scheduled.
const PATIENCE: Duration = Duration::from_secs(1);

const CLOSING: Duration = Duration::from_millis(300);

pub(crate) struct Session {
    zk: Arc<Client>,
    thread: Thread,
}

/// The session's thread. It ends with the last reference, or when told to.
#[derive(Clone)]
struct Thread {
    handle: Handle,
    runtime: Arc<Mutex<Ending>>,
}

/// Ends its runtime when dropped.
struct Ending(Option<Runtime>);

impl Ending {
    fn end(&mut self) {
        // Doesn't wait, so it may be called from anywhere, including the runtime itself.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end();
    }
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("kafkaq-zk").enable_all();
        if !tracing::enabled!(target: "kafkaq", tracing::Level::DEBUG) {
            builder.on_thread_start(log_nothing);
        }
        let runtime = builder.build()?;
        Ok(Thread { handle: runtime.handle().clone(), runtime: Arc::new(Mutex::new(Ending(Some(runtime)))) })
    }

    fn has_ended(&self) -> bool {
        lock(&self.runtime).0.is_none()
    }
}

/// Suppresses the client library's messages: it logs each attempt of each session as an error. The store's
/// [`OutageLog`](kafkaq_core::OutageLog) reports what an operator has to know, on other threads; messages of this
/// thread are for debugging.
fn log_nothing() {
    thread_local! {
        static SILENCE: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
    }
    SILENCE.set(Some(tracing::dispatcher::set_default(&Dispatch::none())));
}

/// A watcher that ignores events: no watches are set.
struct NoWatch;

impl Watcher for NoWatch {
    fn handle(&self, _: WatchedEvent) {}
}

/// The requests of one call in one session.
pub(crate) struct Requests {
    pub(crate) zk: Arc<Client>,
    /// The session is up to date with what was acknowledged before the call.
    up_to_date: OnceCell<()>,
}

impl Requests {
    /// Brings the session up to date, once for all items of the call. What another session has seen doesn't count: it
    /// may have been on another server.
    pub(crate) async fn bring_up_to_date(&self, operation: Operation) -> Result<()> {
        self.up_to_date.get_or_try_init(|| self.nodes().barrier(&self.zk, operation)).await.copied()
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.zk.settings.nodes
    }
}

/// One item of a call, and whether a write for it is in flight.
pub(crate) struct Item<Q> {
    pub(crate) ask: Q,
    pub(crate) sent: AtomicBool,
}

/// Why an item has no outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Late,
    Lost,
}

impl Session {
    /// Connects, and returns when a server has accepted the session. Dropping the future leaves nothing behind.
    ///
    /// `first`: the server to start with. One that accepts connections and then hangs uses up all the time, so the next
    /// attempt must start with another.
    pub(crate) async fn open(
        settings: Arc<Settings>,
        first: usize,
        sweeps: bool,
        deadline: Instant,
    ) -> Result<Session, ConnectError> {
        let thread = Thread::start().map_err(ConnectError::Io)?;
        // The listener must not keep the runtime alive.
        let ending = Arc::downgrade(&thread.runtime);
        let connecting = thread.handle.spawn(async move {
            let addresses = resolve(&settings.servers, first).await?;
            let connecting =
                ZooKeeper::connect_with_retry_time(&addresses, settings.session_timeout, NoWatch, RETRY);
            let zk = connecting.await.map_err(ConnectError::ZooKeeper)?;
            let connected = Arc::new(Notify::new());
            let on_connected = connected.clone();
            zk.add_listener(move |state| match state {
                ZkState::Connected => on_connected.notify_one(),
                ZkState::Closed => {}
                _ => {
                    tracing::debug!(target: "kafkaq", ?state, "the session with ZooKeeper is lost");
                    if let Some(ending) = ending.upgrade() {
                        lock(&ending).end();
                    }
                }
            });
            // An earlier request could get an earlier response, which the client would take for the session.
            connected.notified().await;
            if let Some((user, password)) = &settings.digest {
                let credentials = format!("{user}:{password}").into_bytes();
                zk.add_auth("digest", credentials).await.map_err(ConnectError::ZooKeeper)?;
            }
            let zk = Arc::new(Client::new(zk, settings));
            if sweeps {
                tokio::spawn(sweeper::run(zk.clone()));
            }
            Ok(zk)
        });
        match timeout_at(deadline, connecting).await {
            Ok(Ok(connected)) => Ok(Session { zk: connected?, thread }),
            Ok(Err(_ended)) => Err(ConnectError::Lost),
            // The client library doesn't say why it could not connect. If no socket can be opened, that is why.
            Err(_elapsed) => Err(TcpSocket::new_v4().err().map_or(ConnectError::Late, ConnectError::Io)),
        }
    }

    /// Returns whether it carries no further calls. Those in flight end in it.
    pub(crate) fn is_lost(&self) -> bool {
        self.thread.has_ended() || self.zk.is_used_up()
    }

    /// Processes all items concurrently, up to a limit. When it returns, nothing of it is running, and each item has
    /// its outcome or none; `Some`: why some have none.
    pub(crate) async fn each<Q, A, W, F>(
        &self,
        deadline: Instant,
        items: &[Arc<Item<Q>>],
        work: W,
    ) -> (Vec<Option<Result<A>>>, Option<Cut>)
    where
        Q: Send + Sync + 'static,
        A: Send + 'static,
        W: Fn(Arc<Requests>, Arc<Item<Q>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<A>> + Send,
    {
        let outcomes = Arc::new(Mutex::new(items.iter().map(|_| None).collect::<Vec<_>>()));
        let requests = Arc::new(Requests { zk: self.zk.clone(), up_to_date: OnceCell::new() });
        let (mine, items) = (outcomes.clone(), items.to_vec());
        let all_in = async move {
            let started = items.into_iter().enumerate().map(|(place, item)| {
                let one = work(requests.clone(), item);
                async move { (place, one.await) }
            });
            let mut answers = stream::iter(started).buffer_unordered(IN_FLIGHT);
            while let Some((place, outcome)) = answers.next().await {
                lock(&mine)[place] = Some(outcome);
            }
        };
        let mut job = self.thread.handle.spawn(async move { timeout_at(deadline, all_in).await.is_ok() });
        let cut = match timeout_at(deadline + PATIENCE, &mut job).await {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => Some(Cut::Late),
            Ok(Err(_ended)) => Some(Cut::Lost),
            Err(_elapsed) => {
                // It may still be about to send. Without its runtime it won't.
                lock(&self.thread.runtime).end();
                let _ = job.await;
                Some(Cut::Late)
            }
        };
        let outcomes = std::mem::take(&mut *lock(&outcomes));
        (outcomes, cut)
    }

    /// Closes the session at the server, which otherwise keeps it until it expires.
    pub(crate) async fn close(&self) {
        let zk = self.zk.clone();
        let closing = self.thread.handle.spawn(async move { zk.request().close().await });
        let _ = timeout_at(Instant::now() + CLOSING, closing).await;
        lock(&self.thread.runtime).end();
    }
}

/// Resolves every address of every server. The client library would resolve names on its thread, with one address per
/// name.
async fn resolve(servers: &[String], first: usize) -> Result<String, ConnectError> {
    let mut addresses: Vec<String> = Vec::new();
    let mut failure = None;
    for server in servers {
        match tokio::net::lookup_host(server).await {
            Ok(found) => addresses.extend(found.map(|address| address.to_string())),
            Err(e) => failure = Some(ConnectError::Resolve(format!("{server}: {e}"))),
        }
    }
    match failure {
        Some(failure) if addresses.is_empty() => Err(failure),
        _ if addresses.is_empty() => Err(ConnectError::ZooKeeper(ZkError::BadArguments)),
        _ => {
            let first = first % addresses.len();
            addresses.rotate_left(first);
            Ok(addresses.join(","))
        }
    }
}

impl<Q> Item<Q> {
    pub(crate) fn new(ask: Q) -> Arc<Self> {
        Arc::new(Item { ask, sent: AtomicBool::new(false) })
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{failure, link::Link};
    use kafkaq_core::Key;
    use std::sync::atomic::AtomicUsize;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use zookeeper_async::Acl;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Returns settings for a server without nodes that counts its sessions.
    async fn settings(max_requests: u32, sessions: Arc<AtomicUsize>) -> Arc<Settings> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                sessions.fetch_add(1, Relaxed);
                tokio::spawn(serve(stream));
            }
        });
        let nodes = Nodes { root: "/kafkaq".into(), acl: Acl::open_unsafe().clone(), clock_skew: LIMIT };
        Arc::new(Settings {
            servers: vec![server],
            digest: None,
            request_timeout: LIMIT,
            session_timeout: LIMIT,
            sweep_every: Duration::from_secs(1),
            linger: LIMIT,
            max_requests,
            nodes,
        })
    }

    /// Accepts the session, and answers each request with the error `NoNode`.
    async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
        let accepted = [&[0; 4][..], &10_000_i32.to_be_bytes(), &[1; 8], &16_i32.to_be_bytes(), &[0; 17]];
        let mut answer = accepted.concat();
        loop {
            let mut request = vec![0; stream.read_u32().await? as usize];
            stream.read_exact(&mut request).await?;
            if answer.is_empty() {
                answer = [&request[..4], &1_i64.to_be_bytes(), &(-101_i32).to_be_bytes()].concat();
            }
            stream.write_u32(answer.len() as u32).await?;
            stream.write_all(&answer).await?;
            answer.clear();
        }
    }

    async fn read(link: &Link, keys: usize) {
        let keys = (0..keys).map(|n| Key::of(&["t", &n.to_string()]).unwrap()).collect();
        let get = |requests: Arc<Requests>, item: Arc<Item<Key>>| async move {
            requests.nodes().get(&requests, &item.ask).await
        };
        for outcome in link.each(failure::READ, keys, get).await {
            assert_eq!(outcome.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_session_is_replaced_before_its_request_numbers_run_out() {
        let sessions = Arc::new(AtomicUsize::new(0));
        let settings = settings(4, sessions.clone()).await;
        // The first link's sweeper sends requests, too.
        let link = Link::new(settings, 1);
        let mut after = Vec::new();
        // With one more request than keys. A call stays in the session in which it started.
        for keys in [1, 1, 1, 9, 1] {
            read(&link, keys).await;
            after.push(sessions.load(Relaxed));
        }
        assert_eq!(after, [1, 1, 2, 2, 3]);
    }

    #[tokio::test]
    async fn a_sweeper_ends_with_the_requests_of_its_session() {
        let settings = settings(4, Arc::default()).await;
        let deadline = Instant::now() + LIMIT;
        let session = Session::open(settings, 0, false, deadline).await.ok().unwrap();
        timeout(LIMIT, sweeper::run(session.zk.clone())).await.expect("it ends");
        assert!(session.is_lost());
    }
}
