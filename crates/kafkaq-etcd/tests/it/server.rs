//! A server of one's own: a child process on free ports, ended by its process id.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) struct Server {
    child: Child,
    ports: Ports,
    folder: PathBuf,
    options: Vec<String>,
}

#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) client: u16,
    pub(crate) peer: u16,
    /// Plain HTTP, whatever the clients speak: for asking whether it is up.
    health: u16,
}

impl Ports {
    pub(crate) fn free() -> Ports {
        // All at once, so that they differ.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer, health] = sockets.map(|s| s.local_addr().unwrap().port());
        Ports { client, peer, health }
    }

    pub(crate) fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// With further options, such as `--max-txn-ops=64`.
    pub(crate) fn with(options: &[&str]) -> Server {
        // Another test may take a free port first: then the server exits, and we look for others.
        for _ in 0..10 {
            let ports = Ports::free();
            let alone = format!("--initial-cluster=only={}", ports.peer_url());
            let client = format!("http://127.0.0.1:{}", ports.client);
            let urls =
                [format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")];
            let mut all = vec!["--name=only", &alone, &urls[0], &urls[1]];
            all.extend(options);
            let mut server = Server::launch(ports, &all);
            if server.await_ready() {
                return server;
            }
        }
        panic!("etcd did not start; run it by hand with {options:?} to see why");
    }

    /// Without waiting for it.
    pub(crate) fn launch(ports: Ports, options: &[&str]) -> Server {
        let folder = std::env::temp_dir().join(format!("kafkaq-etcd-{}-{}", std::process::id(), ports.peer));
        std::fs::create_dir_all(&folder).unwrap();
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        let child = spawn(ports, &folder, &options);
        Server { child, ports, folder, options }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.client
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.signal("-CONT");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same ports, the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.ports, &self.folder, &self.options);
        assert!(self.await_ready(), "the server did not come back");
    }

    /// After `kill`: all data is gone.
    pub(crate) fn wipe(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
        std::fs::create_dir_all(&self.folder).unwrap();
    }

    /// Stops it in the middle of whatever it does; its connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success(), "kill {signal} failed");
    }

    /// A client without the store, for setting things up and for looking behind the scenes.
    pub(crate) async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.address()], None).await.unwrap()
    }

    /// Whether this child runs and says that it is healthy.
    pub(crate) fn await_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            let healthy = health(self.ports.health).is_ok_and(|text| text.contains(r#""health":"true""#));
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if healthy {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(ports: Ports, folder: &Path, options: &[String]) -> Child {
    let program = std::env::var("KAFKAQ_ETCD_SERVER").unwrap_or_else(|_| "etcd".into());
    let result = Command::new(&program)
        .arg(format!("--data-dir={}", folder.join("data").display()))
        .arg(format!("--listen-peer-urls={}", ports.peer_url()))
        .arg(format!("--initial-advertise-peer-urls={}", ports.peer_url()))
        .arg(format!("--listen-metrics-urls=http://127.0.0.1:{}", ports.health))
        // So that a leader is there soon.
        .args(["--heartbeat-interval=20", "--election-timeout=200"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match result {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => panic!(
            "{program} is not there: install it (Debian: apt-get install etcd-server) or set KAFKAQ_ETCD_SERVER"
        ),
        Err(e) => panic!("{program}: {e}"),
    }
}

fn health(port: u16) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    Ok(text)
}
