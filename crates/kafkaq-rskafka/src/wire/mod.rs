//! Kafka's protocol over connections of our own: a request and its response at a time.

mod connection;
pub(crate) mod format;
mod pool;
mod sasl;

pub(crate) use connection::{Api, Request};
pub(crate) use pool::{CONNECT_SHARE, Connections};
