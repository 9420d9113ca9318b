//! The requests on our own connections, each in versions that every Kafka from 2.4 on supports.

pub(crate) mod fetch;
pub(crate) mod metadata;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod topics;
