//! The interface to the trace context of another library.

use crate::Headers;
use std::fmt;
use tracing::Span;

/// Carries the trace context of a publisher to the executions of its tasks, in the tasks' headers: W3C's `traceparent`
/// and `tracestate`, or any others. They survive retries, parking, dead letters and redrives, so that all executions of
/// a task know its publisher.
///
/// `tracing` itself knows no context beyond the process. The crate
/// [`kafkaq-opentelemetry`](https://docs.rs/kafkaq-opentelemetry) implements this for OpenTelemetry. Set it once, with
/// [`QueueBuilder::propagator`](crate::QueueBuilder::propagator): the publishers and the worker of the queue use it.
pub trait Propagator: fmt::Debug + Send + Sync + 'static {
    /// Adds the context of the current span to the headers of a task that is about to be published. Called once per
    /// task, inside the span `kafkaq.publish` if that is enabled, otherwise inside the caller's.
    ///
    /// Names must not start with `kafkaq`. The added headers don't count towards
    /// [`max_task_bytes`](crate::QueueBuilder::max_task_bytes), so keep it small: below 8 KiB.
    fn inject(&self, headers: &mut Headers);

    /// Links the span of an execution, which has not been entered yet, to the context in the headers of its task.
    /// Called once per execution, if the span is enabled.
    fn extract(&self, span: &Span, headers: &Headers);
}
