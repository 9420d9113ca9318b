//! A server of one's own: a child process on a free port, ended by its process id.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

pub(crate) struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    /// One that tests share, each under a prefix of its own; it ends with the last of them.
    pub(crate) fn shared() -> Arc<Server> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start());
        *shared = Arc::downgrade(&server);
        server
    }

    pub(crate) fn start() -> Server {
        // Another test may take the free port first: then the server exits, and we look for another port.
        for _ in 0..5 {
            let port = free_port();
            let folder = std::env::temp_dir().join(format!("kafkaq-zookeeper-{}-{port}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let mut child = spawn(port, &folder);
            if await_ready(&mut child, port) {
                return Server { child, port, folder };
            }
            let _ = std::fs::remove_dir_all(&folder);
        }
        panic!(
            "ZooKeeper did not start: Debian's package is `zookeeper` (apt-get install zookeeper); for another, put \
             the class path of its jars into KAFKAQ_ZOOKEEPER_CLASSPATH"
        );
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same port, the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.port, &self.folder);
        assert!(await_ready(&mut self.child, self.port), "the server did not come back");
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
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, folder: &Path) -> Child {
    let classes = std::env::var("KAFKAQ_ZOOKEEPER_CLASSPATH")
        .unwrap_or_else(|_| "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar".into());
    let settings = folder.join("zoo.cfg");
    // Fast ticks, so that sessions may be short. The tests ask for no durability.
    let text = format!(
        "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
         extendedTypesEnabled=true\nmaxClientCnxns=0\n4lw.commands.whitelist=ruok\n",
        folder.display()
    );
    std::fs::write(&settings, text).unwrap();
    let result = Command::new("java")
        .args(["-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dzookeeper.forceSync=no", "-cp", &classes])
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(settings)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match result {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            panic!("java is not there: install ZooKeeper with it (Debian: apt-get install zookeeper)")
        }
        Err(e) => panic!("java: {e}"),
    }
}

/// Whether this child runs and answers.
fn await_ready(child: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        match are_you_ok(port) {
            Ok(answer) if answer == "imok" => return true,
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn are_you_ok(port: u16) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"ruok")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    Ok(text)
}
