//! A server that goes away and comes back.

use crate::BoxError;
use async_trait::async_trait;

/// Takes the server away from its clients, and gives it back with all its data.
///
/// Implement it with whatever you have: stop and continue the process, pause the container, or put a
/// [`Proxy`](crate::Proxy) between. Connections may hang, break or be refused meanwhile, as long as no answer comes
/// through. While a case has the server cut off, the kit runs no other case of it.
#[async_trait]
pub trait Outage: Send + Sync + 'static {
    /// No answer of the server reaches a client when this returns.
    async fn cut(&self) -> Result<(), BoxError>;

    /// Clients can reach the server again when this returns. Called after every cut, and when there was none.
    async fn restore(&self) -> Result<(), BoxError>;
}
