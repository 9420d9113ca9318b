#![doc = include_str!("../README.md")]

mod continuity;
mod envelope;
mod error;
#[cfg(feature = "machine")]
pub mod group;
mod hash;
mod headers;
mod key;
mod lease;
mod log;
#[cfg(feature = "machine")]
pub mod machine;
pub mod partitioner;
mod record;
mod settings;
mod store;
mod task;

pub use continuity::{Cursor, Mark, Standing, standing, standing_within};
pub use envelope::{DecodeError, Envelope, HEADER, ID_HEADER};
pub use error::{Effect, Error, ErrorKind, Result, Retry};
pub use headers::Headers;
pub use key::{Key, Keyspace};
pub use lease::{Fence, Lease, LeaseState, Wall};
pub use log::{
    Assignment, Broker, Commit, Consumer, Event, EventStream, FetchLimit, JoinRequest, Log, Member, Offsets,
    PartitionLog, TopicInfo, TopicSpec,
};
pub use record::{Batch, NewRecord, Partition, Position, Record};
pub use store::{LeaseStore, Swap, Swapped};
pub use task::{Task, TaskId};
