//! The error of a call in a process that has exhausted its file descriptors.

use crate::{Adapter, create, key, one};
use kafkaq_core::{Effect, ErrorKind, Retry};
use std::{env, fs::File, net::SocketAddr, process::Command, time::Duration};

const SERVER: &str = "KAFKAQ_TEST_SERVER_FOR_FEW_DESCRIPTORS";

/// Runs the test of this name, which has called this, once more in a process that may open few files.
pub async fn are_named<A: Adapter>(test: &str) {
    let Ok(addr) = env::var(SERVER) else { return run_again::<A>(test) };
    let store = A::at(addr.parse::<SocketAddr>().unwrap(), Duration::from_secs(10));
    let mut all = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        all.push(file);
    }
    let error = one(&store, create(&key("a"), "a")).await.unwrap_err();
    drop(all);
    let facts = (error.kind(), error.effect(), error.retry());
    assert_eq!(facts, (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes), "{error}");
    assert!(error.advice().unwrap().contains("file descriptors"), "{error}");
    one(&store, create(&key("a"), "a")).await.unwrap();
}

fn run_again<A: Adapter>(test: &str) {
    let server = A::SERVICE.shared().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 100 && exec \"$@\"", "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(SERVER, server.addr().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
