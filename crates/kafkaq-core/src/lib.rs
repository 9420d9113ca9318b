#![doc = include_str!("../README.md")]

#[cfg(feature = "connection")]
pub mod connection;
mod continuity;
mod envelope;
mod error;
#[cfg(feature = "machine")]
pub mod group;
mod hash;
mod headers;
mod history;
mod key;
mod lease;
mod log;
mod lost;
#[cfg(feature = "machine")]
pub mod machine;
mod outage_log;
pub mod partitioner;
mod record;
mod settings;
mod store;
mod task;
mod wire;

#[cfg(test)]
mod golden;

pub use continuity::{Cursor, Mark, Standing, standing, standing_within};
#[cfg(feature = "machine")]
pub(crate) use envelope::FORWARD_HEADER;
pub use envelope::{DecodeError, Envelope, HEADER, ID_HEADER};
pub use error::{Effect, Error, ErrorKind, Result, Retry};
pub use headers::Headers;
pub use history::{FailureRecord, History};
pub use key::{Key, Keyspace};
pub use lease::{Lease, LeaseState, LeaseToken, Wall};
pub use log::{
    Assignment, Broker, Commit, Consumer, Event, EventStream, FetchLimit, JoinRequest, Log, Member, Offsets,
    PartitionLog, TopicInfo, TopicSpec,
};
pub use lost::LostReason;
pub use outage_log::OutageLog;
pub use record::{Batch, NewRecord, Partition, Position, Record};
pub use store::{LeaseStore, Swap, Swapped};
pub use task::{Task, TaskId};
