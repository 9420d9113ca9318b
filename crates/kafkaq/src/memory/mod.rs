//! A log and a store in memory: the defaults, meant for tests. They need no server and no disk, fulfill the whole
//! contract of `kafkaq-core`, and lose everything when the process ends.
//!
//! A clone of [`MemoryLog`] or [`MemoryStore`] is another client of the same data, as a second process would be.
//! Each is closed separately, so a test can close a queue and start it again on the remaining data.
//!
//! ```
//! use futures_util::StreamExt;
//! use kafkaq::memory::MemoryLog;
//! use kafkaq_core::{Broker, Commit, Event, JoinRequest, Log, NewRecord, Partition, TopicSpec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kafkaq_core::Result<()> {
//! let log = MemoryLog::new();
//! log.ensure_topics(&[TopicSpec::new("emails")]).await?;
//! let mut record = NewRecord::default();
//! record.value = Some("hello".into());
//! log.append(&Partition::new("emails", 0), &[record]).await;
//!
//! let mut consumer = log.join(JoinRequest::new("senders", vec!["emails".into()], [1; 16])).await?;
//! while let Some(event) = consumer.events.next().await {
//!     if let Event::Records(assignment, batch) = event? {
//!         assert_eq!(batch.records[0].value.as_deref(), Some(&b"hello"[..]));
//!         consumer.member.commit(&[Commit { assignment, offset: batch.next }]).await;
//!         consumer.member.leave().await?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod consumer;
mod group;
mod log;
mod state;
mod store;

pub use log::MemoryLog;
pub use store::MemoryStore;

use crate::sync::lock;
