//! The error of a call in a process that has exhausted its file descriptors.

use crate::{Adapter, create, key, one};
use kafkaq_core::{Effect, ErrorKind, Retry};
use std::{env, fs::File, net::SocketAddr, process::Command, time::Duration};

const SERVER: &str = "KAFKAQ_TEST_SERVER_FOR_FEW_DESCRIPTORS";

/// The test runs once more, in a process that may open few files.
pub async fn used_up_descriptors_are_named<A: Adapter>() {
    let Ok(addr) = env::var(SERVER) else { return run_again::<A>() };
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

fn run_again<A: Adapter>() {
    let server = A::SERVICE.shared().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 100 && exec \"$@\"", "sh"])
        .arg(env::current_exe().unwrap())
        .args(["used_up_descriptors_are_named", "--nocapture"])
        .env(SERVER, server.addr().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
