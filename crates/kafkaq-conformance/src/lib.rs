#![doc = include_str!("../README.md")]

mod case;
mod check;
mod group;
mod kit;
mod log;
mod outage;
mod proxy;
mod store;

pub use case::Capability;
pub use kit::{Kit, Outcome, Report, Suite};
#[doc(hidden)]
pub use log::noise;
pub use outage::Outage;
pub use proxy::Proxy;

use kafkaq_core::{Broker, LeaseStore, PartitionLog};
use std::sync::Arc;

/// From an empty crate to a backend that passes.
pub mod guide {
    #[doc = include_str!("../docs/write-your-own-store.md")]
    ///
    /// # The complete store
    ///
    /// `examples/file_store.rs` of this crate:
    ///
    /// ```
    #[doc = include_str!("../examples/file_store.rs")]
    /// ```
    ///
    /// And its test, `tests/file_store.rs`:
    ///
    /// ```ignore
    #[doc = include_str!("../tests/file_store.rs")]
    /// ```
    pub mod write_your_own_store {}

    #[doc = include_str!("../docs/write-your-own-log.md")]
    ///
    /// # The complete log
    ///
    /// `examples/file_log.rs` of this crate:
    ///
    /// ```
    #[doc = include_str!("../examples/file_log.rs")]
    /// ```
    ///
    /// And its test, `tests/file_log.rs`:
    ///
    /// ```ignore
    #[doc = include_str!("../tests/file_log.rs")]
    /// ```
    pub mod write_your_own_log {}
}

/// Any error that prevents a client from being created. `?` converts every error into it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The rules of a [`LeaseStore`].
///
/// Each call of `make` returns a new client of the same store, as in another process. It is called within a tokio
/// runtime that lasts as long as one case.
pub fn store<S, F>(
    name: impl Into<String>,
    make: impl Fn() -> F + Send + Sync + 'static,
) -> Kit<dyn LeaseStore>
where
    S: LeaseStore,
    F: Future<Output = Result<S, BoxError>> + 'static,
{
    let make = Box::new(move || -> kit::Making<dyn LeaseStore> {
        let client = make();
        Box::pin(async move { Ok(Arc::new(client.await?) as Arc<dyn LeaseStore>) })
    });
    Kit::new(name.into(), make, |client| Box::pin(async move { client.close().await }), store::cases())
}

/// The rules of a [`PartitionLog`], with those of every log. For `make` see [`store`].
pub fn log<L, F>(
    name: impl Into<String>,
    make: impl Fn() -> F + Send + Sync + 'static,
) -> Kit<dyn PartitionLog>
where
    L: PartitionLog,
    F: Future<Output = Result<L, BoxError>> + 'static,
{
    let make = Box::new(move || -> kit::Making<dyn PartitionLog> {
        let client = make();
        Box::pin(async move { Ok(Arc::new(client.await?) as Arc<dyn PartitionLog>) })
    });
    let cases = log::cases().into_iter().chain(log::partition_cases()).collect();
    Kit::new(name.into(), make, |client| Box::pin(async move { client.close().await }), cases)
}

/// The rules of a [`Broker`], with those of every log. For `make` see [`store`].
pub fn broker<B, F>(name: impl Into<String>, make: impl Fn() -> F + Send + Sync + 'static) -> Kit<dyn Broker>
where
    B: Broker,
    F: Future<Output = Result<B, BoxError>> + 'static,
{
    let make = Box::new(move || -> kit::Making<dyn Broker> {
        let client = make();
        Box::pin(async move { Ok(Arc::new(client.await?) as Arc<dyn Broker>) })
    });
    let cases = log::cases().into_iter().chain(group::cases()).collect();
    Kit::new(name.into(), make, |client| Box::pin(async move { client.close().await }), cases)
}
