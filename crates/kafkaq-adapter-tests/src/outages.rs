//! What an operator reads while a server is down.

use crate::{Adapter, Log, create, key, one, read, until};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(1);

/// Returns the lines about outages, without other messages.
fn lines(log: &Log) -> Vec<String> {
    log.lines().into_iter().filter(|line| line.starts_with("WARN") || line.contains("works again")).collect()
}

pub async fn a_server_that_stands_still_is_logged_once_and_so_is_its_return<A: Adapter>() {
    let server = A::SERVICE.own().unwrap();
    let (log, mut store) = (Log::capture(), A::at(server.addr(), LIMIT));
    // A failure while the server is still starting would be reported as the outage.
    let mut before = 0;
    until("a store swaps and has never failed", async || {
        store = A::at(server.addr(), LIMIT);
        before = lines(&log).len();
        one(&store, create(&key("a"), "a")).await.is_ok() && lines(&log).len() == before
    })
    .await;
    server.pause().unwrap();
    for n in 0..3 {
        one(&store, create(&key(&format!("b{n}")), "b")).await.unwrap_err();
        read(&store, &key("a")).await.unwrap_err();
    }
    let told = lines(&log).split_off(before);
    let [begins] = &told[..] else { panic!("{told:#?}") };
    let address = server.addr().to_string();
    for words in ["WARN kafkaq:", "is failing", &address, "check that it runs"] {
        assert!(begins.contains(words), "{words} is not in {begins}");
    }
    server.resume().unwrap();
    until("its return is logged", async || {
        let _ = (read(&store, &key("a")).await, one(&store, create(&key("c"), "c")).await);
        lines(&log).len() > before + 1
    })
    .await;
    let told = lines(&log).split_off(before + 1);
    let [over] = &told[..] else { panic!("{told:#?}") };
    assert!(over.starts_with("INFO kafkaq:") && over.contains("works again"), "{over}");
}
