//! Whether there is a Docker engine, and how containers are specified. [`container`](super::container) creates them.

use std::env;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// An engine that doesn't respond in time counts as missing.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// The version of the engine's API that testcontainers speaks, which it does not negotiate: that of Docker 29. Podman
/// supports whatever version is requested.
pub(super) const API: &str = "1.52";

/// What a container runs: everything else is the same for all servers.
#[derive(Debug)]
#[cfg_attr(not(feature = "containers"), allow(dead_code, reason = "no container is created then"))]
pub(super) struct Recipe {
    pub(super) image: &'static str,
    pub(super) env: Vec<(String, String)>,
    pub(super) args: Vec<String>,
}

/// How a container is reached. It listens on its published ports, so that an address is the same inside and outside;
/// nodes of a cluster share one network, so that it is also the same among them.
#[derive(Debug)]
#[cfg_attr(not(feature = "containers"), allow(dead_code, reason = "no container is created then"))]
pub(super) enum Network {
    /// Its own, with these ports published on the loopback.
    Publish(Vec<u16>),
    /// That of the container of this name.
    Of(String),
}

/// Whether servers are started as containers; looked up once.
#[must_use]
pub fn is_used() -> bool {
    static USED: OnceLock<bool> = OnceLock::new();
    *USED.get_or_init(|| match env::var("KAFKAQ_SERVICES").as_deref() {
        Ok("docker") => true,
        Ok("native") => false,
        _ => socket().is_some_and(|socket| {
            let answer = ping(&socket);
            answer.inspect_err(|error| eprintln!("servers will be plain processes: {error:#}")).is_ok()
        }),
    })
}

/// Returns the engine's socket, by the rules of testcontainers. A remote engine doesn't count: its servers would be on
/// another machine's loopback.
fn socket() -> Option<PathBuf> {
    let below = |variable, path| env::var_os(variable).map(|folder| Path::new(&folder).join(path));
    let places = match env::var("DOCKER_HOST") {
        Ok(host) => vec![host.strip_prefix("unix://").map(PathBuf::from)],
        Err(_) => vec![
            Some(PathBuf::from("/var/run/docker.sock")),
            below("XDG_RUNTIME_DIR", ".docker/run/docker.sock"),
            below("HOME", ".docker/run/docker.sock"),
            below("HOME", ".docker/desktop/docker.sock"),
        ],
    };
    places.into_iter().flatten().find(|socket| socket.exists())
}

/// Pings the engine with the API version that will be used.
fn ping(socket: &Path) -> Result<()> {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PING_LIMIT))?;
        stream.set_write_timeout(Some(PING_LIMIT))?;
        stream.write_all(format!("GET /v{API}/_ping HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(10_000).read_to_string(&mut answer)?;
        anyhow::Ok(answer)
    };
    let engine = || format!("the Docker engine at {}", socket.display());
    let answer = ask().with_context(|| format!("{} does not answer", engine()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if body.contains("too new") {
        bail!("{} is too old, Docker 29 is needed: {}", engine(), body.trim());
    }
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{} answers {status} {}", engine(), body.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Pings an engine with a fixed response. Returns the result and the request.
    fn asked(answer: &'static str) -> (Result<()>, String) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = env::temp_dir().join(format!("kafkaq-engine-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let engine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 1000];
            let length = stream.read(&mut question).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            if answer.is_empty() {
                // Hangs until the other side has had enough.
                let _ = stream.read(&mut question);
            }
            String::from_utf8_lossy(&question[..length]).into_owned()
        });
        let result = ping(&path);
        let question = engine.join().unwrap();
        std::fs::remove_file(path).unwrap();
        (result, question)
    }

    #[test]
    fn an_engine_is_asked_in_the_version_that_will_be_spoken() {
        let (result, question) = asked("HTTP/1.0 200 OK\r\nApi-Version: 1.52\r\n\r\nOK");
        result.unwrap();
        assert!(question.starts_with(&format!("GET /v{API}/_ping HTTP/1.0\r\n")), "{question}");
    }

    #[test]
    fn an_engine_that_is_too_old_is_refused_with_its_own_words() {
        let (result, _) = asked(
            "HTTP/1.0 400 Bad Request\r\n\r\n{\"message\":\"client version 1.52 is too new. Maximum supported API \
             version is 1.41\"}",
        );
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("Docker 29 is needed") && error.contains("1.41"), "{error}");
    }

    #[test]
    fn hanging_engine_counts_as_missing() {
        let since = Instant::now();
        let (result, _) = asked("");
        assert!(format!("{:#}", result.unwrap_err()).contains("does not answer"));
        assert!(since.elapsed() >= PING_LIMIT);
    }

    #[test]
    fn error_response_counts_as_missing() {
        let (result, _) = asked("HTTP/1.0 503 Service Unavailable\r\n\r\nstarting");
        assert!(result.unwrap_err().to_string().contains("503"));
    }
}
