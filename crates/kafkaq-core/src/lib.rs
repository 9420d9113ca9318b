#![doc = include_str!("../README.md")]

#[cfg(feature = "connection")]
pub mod connection;
mod continuity;
mod descriptors;
mod error;
mod hash;
mod headers;
mod key;
mod log;
mod numbered;
mod operation;
mod outage_log;
mod record;
mod settings;
mod store;
mod sync;
mod uuids;

pub use continuity::{Cursor, Mark, Standing, standing, standing_within};
#[doc(hidden)]
pub use descriptors::out_of_descriptors;
pub use error::{Effect, Error, ErrorKind, Result, Retry};
#[doc(hidden)]
pub use hash::Fnv;
pub use headers::{HEADER, Headers, ID_HEADER};
pub use key::Key;
pub use log::{
    Assignment, Broker, Commit, Consumer, Event, EventStream, FetchLimit, JoinRequest, Log, Member, Offsets,
    PartitionLog, TopicInfo, TopicSpec,
};
pub use numbered::NumberedKey;
#[doc(hidden)]
pub use operation::Operation;
pub use outage_log::OutageLog;
pub use record::{Batch, NewRecord, Partition, Position, Record};
pub use store::{LeaseStore, Swap, Swapped};
#[doc(hidden)]
pub use sync::lock;

// What backends never see: the machines, what they write to the log and to the store, and tasks.
#[cfg(feature = "machine")]
mod envelope;
#[cfg(feature = "machine")]
mod faults;
#[cfg(feature = "machine")]
#[cfg(test)]
mod golden;
#[cfg(feature = "machine")]
pub mod group;
#[cfg(feature = "machine")]
mod history;
#[cfg(feature = "machine")]
pub mod key_lock;
#[cfg(feature = "machine")]
mod keyspace;
#[cfg(feature = "machine")]
mod lease;
#[cfg(feature = "machine")]
mod lost;
#[cfg(feature = "machine")]
pub mod machine;
#[cfg(feature = "machine")]
pub mod partitioner;
#[cfg(feature = "machine")]
mod task;
#[cfg(feature = "machine")]
mod wire;

#[cfg(feature = "machine")]
pub use {
    envelope::{DecodeError, Envelope},
    history::{FailureRecord, History},
    keyspace::Keyspace,
    lease::{Lease, LeaseState, LeaseToken, Wall},
    lost::LostReason,
    task::{Task, TaskId},
};
