//! A server of one's own: a child process on a free port, ended by its process id.

use std::{
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// With further options, such as `--requirepass secret`.
    pub(crate) fn with(options: &[&str]) -> Server {
        // Another test may take the free port first: then the server exits, and we look for another port.
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        for _ in 0..10 {
            let port = free_port();
            let folder = std::env::temp_dir().join(format!("kafkaq-redis-{}-{port}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let mut child = spawn(port, &folder, &options);
            if await_ready(&mut child, port) {
                return Server { child, port, folder, options };
            }
            let _ = std::fs::remove_dir_all(&folder);
        }
        panic!("redis-server did not start; run it by hand with {options:?} to see why");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.signal("-CONT");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same port, an empty database.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.port, &self.folder, &self.options);
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

    /// One command over a connection of its own, for setting things up.
    pub(crate) fn ask(&self, words: &[&str]) -> redis::Value {
        self.try_ask(words).unwrap()
    }

    pub(crate) fn try_ask(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
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

fn spawn(port: u16, folder: &Path, options: &[String]) -> Child {
    let program = std::env::var("KAFKAQ_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
    let port = port.to_string();
    let result = Command::new(&program)
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--unixsocket", "redis.sock", "--dir"])
        .arg(folder)
        .args(options)
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn();
    match result {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => panic!(
            "{program} is not there: install it (Debian: apt-get install redis-server) or set KAFKAQ_REDIS_SERVER"
        ),
        Err(e) => panic!("{program}: {e}"),
    }
}

/// Whether this child, and no other server, answers on the port.
fn await_ready(child: &mut Child, port: u16) -> bool {
    let pid = format!("process_id:{}\r\n", child.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        match answer_to_info(port) {
            // A server with a password tells nothing; that it is still running has to do.
            Ok(info) if info.contains(&pid) || info.starts_with("-NOAUTH") => return true,
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn answer_to_info(port: u16) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port))?;
    socket.write_all(b"INFO server\r\nQUIT\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    Ok(text)
}
