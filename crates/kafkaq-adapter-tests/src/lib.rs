//! Tests shared by kafkaq's stores, beyond the rules that the conformance kit checks: how a client fails, reconnects
//! and closes, with a server that stops, hangs and comes back.
//!
//! An adapter implements [`Adapter`] and lists the cases with [`cases!`](crate::cases).

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod certificate;
pub mod descriptors;
mod fixtures;
mod log;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod outages;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod reconnecting;
mod stopwatch;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod strangers;

pub use certificate::Certificate;
pub use fixtures::{create, key, keys, one, read, remove, replace, until, value};
pub use kafkaq_conformance::noise;
pub use log::{Log, silence_no_place};
pub use stopwatch::Stopwatch;

use kafkaq_core::LeaseStore;
use std::{net::SocketAddr, time::Duration};
use xtask::services::Service;

/// A store on a server, as the cases see it.
pub trait Adapter {
    /// The store.
    type Store: LeaseStore;

    /// What it is a client of.
    const SERVICE: Service;

    /// How many connections the client library makes at the most when it is asked for one.
    const KNOCKS: usize;

    /// A store that keeps one connection to this address and lets a call take so long.
    fn at(addr: SocketAddr, limit: Duration) -> Self::Store;
}

/// Makes a test of each case that is named: `cases! { reconnecting for Redis: first, second }`.
#[macro_export]
macro_rules! cases {
    ($module:ident for $adapter:ty: $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            $crate::$module::$case::<$adapter>().await;
        })*
    };
}
