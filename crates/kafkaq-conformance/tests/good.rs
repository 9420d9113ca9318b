//! The pair in memory keeps every rule, and so does a group that is kept in the store. Also what the kit looks like
//! from outside: `cargo test --test good -- --list`.

use kafkaq::{
    LeasedGroup,
    memory::{MemoryLog, MemoryStore},
};
use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let (log, broker, store) = (MemoryLog::new(), MemoryLog::new(), MemoryStore::new());
    let (leased, state) = (MemoryLog::new(), MemoryStore::new());
    let (of_broker, of_leased) = (broker.clone(), leased.clone());
    let leased = kafkaq_conformance::broker("memory_leased_group", move || {
        // A group settles in steps of a tenth of it.
        let timeout = Duration::from_secs(5);
        std::future::ready(Ok(LeasedGroup::new(leased.clone(), state.clone()).with_member_timeout(timeout)))
    });
    let log = kafkaq_conformance::log("memory_log", move || std::future::ready(Ok(log.clone())));
    let broker = kafkaq_conformance::broker("memory_broker", move || std::future::ready(Ok(broker.clone())));
    let store = kafkaq_conformance::store("memory_store", move || std::future::ready(Ok(store.clone())));
    let delete = |topics: MemoryLog| {
        move |name: String| std::future::ready(topics.delete_topic(&name).map_err(Into::into))
    };
    let broker = broker.with_topic_deletion(delete(of_broker));
    let leased = leased.with_topic_deletion(delete(of_leased));
    kafkaq_conformance::Suite::from(log).and(broker).and(store).and(leased).run()
}
