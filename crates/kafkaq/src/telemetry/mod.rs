//! Telemetry: metrics, and spans with the trace context of a task.
//!
//! If a feature is off, its types are empty and their methods do nothing, so callers need no `cfg` and pay nothing.

#[cfg(feature = "metrics")]
mod gauges;
#[cfg(feature = "metrics")]
mod meters;
#[cfg(not(feature = "metrics"))]
#[path = "no_meters.rs"]
mod meters;
#[cfg(feature = "metrics")]
mod names;
#[cfg(feature = "spans")]
mod propagator;
#[cfg(not(feature = "spans"))]
#[path = "no_spans.rs"]
mod spans;
#[cfg(feature = "spans")]
mod spans;

#[cfg(feature = "metrics")]
pub(crate) use gauges::publish_gauges;
#[cfg(feature = "worker")]
pub(crate) use meters::ExecutionMeter;
#[cfg(all(feature = "worker", any(feature = "metrics", feature = "spans")))]
pub(crate) use meters::RunningMeter;
pub(crate) use meters::{CallMeter, JobMeter, PublishMeter};
#[cfg(feature = "spans")]
pub use propagator::Propagator;
#[cfg(feature = "worker")]
pub(crate) use spans::ExecutionSpans;
pub(crate) use spans::PublishSpans;
