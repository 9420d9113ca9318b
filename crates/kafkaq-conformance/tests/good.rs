//! The pair in memory keeps every rule. Also what the kit looks like from outside: `cargo test --test good -- --list`.

use kafkaq::memory::{MemoryLog, MemoryStore};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (log, broker, store) = (MemoryLog::new(), MemoryLog::new(), MemoryStore::new());
    let log = kafkaq_conformance::log("memory_log", move || std::future::ready(Ok(log.clone())));
    let broker = kafkaq_conformance::broker("memory_broker", move || std::future::ready(Ok(broker.clone())));
    let store = kafkaq_conformance::store("memory_store", move || std::future::ready(Ok(store.clone())));
    kafkaq_conformance::Suite::from(log).and(broker).and(store).run()
}
