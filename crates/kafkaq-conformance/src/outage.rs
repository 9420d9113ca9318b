//! Server outages.

use crate::BoxError;
use async_trait::async_trait;

/// Cuts off the server from its clients, and restores it with all its data.
///
/// Implement it in any way: stop and continue the process, pause the container, or put a [`Proxy`](crate::Proxy) in
/// between. Connections may hang, break or be refused meanwhile, as long as no response gets through. While a case has
/// the server cut off, the kit runs no other case of it.
#[async_trait]
pub trait Outage: Send + Sync + 'static {
    /// When this returns, no response of the server reaches a client.
    async fn cut(&self) -> Result<(), BoxError>;

    /// When this returns, clients can reach the server again. Called after every cut, and also if there was none.
    async fn restore(&self) -> Result<(), BoxError>;
}
