//! Figures of one run on one machine, as Markdown tables: `cargo xtask bench` runs it.
//!
//! It has no thresholds and never fails because of a figure. Servers and clients share the machine, so compare only
//! within one run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the figures are its purpose")]

mod crowd;
mod delays;
mod drain;
mod drive;
mod idle;
mod logs;
#[cfg(feature = "observed")]
mod observed;
mod pairs;
mod publish;
mod raw;
mod stores;
mod table;
mod worker;

use kafkaq_tests::{BrokerKind, StoreKind, not_asked_for};
use std::{error::Error, time::Duration};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Backends fail for many reasons, all of which are only printed.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The requested pairs among those that are representative of the others.
fn typical_pairs() -> impl Iterator<Item = (BrokerKind, StoreKind)> {
    let pairs = [
        (BrokerKind::Memory, StoreKind::Memory),
        (BrokerKind::RdKafka, StoreKind::Redis),
        (BrokerKind::RsKafka, StoreKind::Redis),
    ];
    pairs.into_iter().filter(|(broker, store)| not_asked_for(*broker, *store).is_none())
}

/// Whether a broker is asked for, with whatever store.
fn asked_for(broker: BrokerKind) -> bool {
    StoreKind::ALL.iter().any(|&store| not_asked_for(broker, store).is_none())
}

/// Fails if one of them has failed.
fn all<T>(outcomes: Vec<kafkaq::Result<T>>) -> Outcome<()> {
    for outcome in outcomes {
        outcome?;
    }
    Ok(())
}

/// Runs the named parts, or all; or acts as one process of a comparison.
#[tokio::main]
async fn main() -> Outcome<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("drive", words)) = named.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return drive::run(words).await;
    }
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    #[cfg(feature = "observed")]
    observed::install()?;
    println!("{}", machine());
    if wanted("pairs") {
        pairs::measure().await;
    }
    if wanted("stores") {
        stores::measure().await;
    }
    if wanted("logs") {
        logs::measure().await;
    }
    if wanted("publish") {
        publish::measure().await;
    }
    if wanted("delays") {
        delays::measure().await;
    }
    if wanted("idle") {
        idle::measure().await;
    }
    if wanted("worker") {
        worker::measure().await;
    }
    if wanted("crowd") {
        crowd::measure().await;
    }
    Ok(())
}

/// The machine, and whose allocator the clients have.
fn machine() -> String {
    let allocator = if cfg!(feature = "mimalloc") { "mimalloc" } else { "the system's allocator" };
    let observed = if cfg!(feature = "observed") { "; metrics and spans on" } else { "" };
    format!("{}; all servers and clients on it; {allocator}{observed}", xtask::machine())
}

/// Runs something that may fail, panic or hang, and describes the problem in a few words.
async fn attempt<T: Send + 'static>(
    limit: Duration,
    what: impl Future<Output = Outcome<T>> + Send + 'static,
) -> Result<T, String> {
    let mut task = tokio::spawn(what);
    match tokio::time::timeout(limit, &mut task).await {
        Ok(Ok(outcome)) => outcome.map_err(|e| format!("failed: {e}")),
        Ok(Err(panicked)) => Err(format!("failed: {panicked}")),
        Err(_elapsed) => {
            task.abort();
            Err(format!("not done after {limit:?}"))
        }
    }
}
