//! Spans, with the fields of OpenTelemetry's messaging conventions.

use super::Propagator;
use crate::config::Config;
use kafkaq_core::{Headers, Result, TaskId};
use std::{fmt, sync::Arc};
use tracing::{Instrument, Span, field::Empty};

/// The spans of a publisher.
#[derive(Clone, Debug)]
pub(crate) struct PublishSpans {
    queue: Arc<str>,
    propagator: Option<Arc<dyn Propagator>>,
}

impl PublishSpans {
    pub(crate) fn new(config: &Config) -> Self {
        PublishSpans { queue: config.queue.clone(), propagator: config.propagator.clone() }
    }

    /// Adds the trace context to a task.
    pub(crate) fn inject(&self, headers: &mut Headers) {
        if let Some(propagator) = &self.propagator {
            propagator.inject(headers);
        }
    }

    /// Publishes a task in a span.
    pub(crate) async fn of_one(&self, publish: impl Future<Output = Result<TaskId>>) -> Result<TaskId> {
        let span = self.span();
        let outcome = publish.instrument(span.clone()).await;
        match &outcome {
            Ok(id) => drop(span.record("messaging.message.id", id.as_str())),
            Err(e) => failed(&span, e),
        }
        outcome
    }

    /// Publishes tasks in one span.
    pub(crate) async fn of_many(
        &self,
        publish: impl Future<Output = Vec<Result<TaskId>>>,
    ) -> Vec<Result<TaskId>> {
        let span = self.span();
        let outcomes = publish.instrument(span.clone()).await;
        span.record("messaging.batch.message_count", outcomes.len());
        if let Some(e) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
            failed(&span, e);
        }
        outcomes
    }

    fn span(&self) -> Span {
        tracing::info_span!(
            target: "kafkaq",
            "kafkaq.publish",
            otel.name = %format_args!("publish {}", self.queue),
            otel.kind = "producer",
            otel.status_code = Empty,
            otel.status_description = Empty,
            "messaging.system" = "kafkaq",
            "messaging.operation.name" = "publish",
            "messaging.operation.type" = "send",
            "messaging.destination.name" = &*self.queue,
            "messaging.message.id" = Empty,
            "messaging.batch.message_count" = Empty,
        )
    }
}

fn failed(span: &Span, why: &dyn fmt::Display) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(why));
}

#[cfg(feature = "worker")]
pub(crate) use executions::ExecutionSpans;

#[cfg(feature = "worker")]
mod executions {
    use super::{Arc, Empty, Propagator, PublishSpans, Span, failed};
    use crate::worker::Ctx;

    /// The spans of the executions of one kind.
    #[derive(Clone, Debug)]
    pub(crate) struct ExecutionSpans {
        queue: Arc<str>,
        kind: Arc<str>,
        propagator: Option<Arc<dyn Propagator>>,
    }

    impl ExecutionSpans {
        pub(crate) fn new(publisher: &PublishSpans, kind: &str) -> Self {
            let PublishSpans { queue, propagator } = publisher.clone();
            ExecutionSpans { queue, kind: kind.into(), propagator }
        }

        /// The span of an execution that is about to start.
        pub(crate) fn begin<S>(&self, ctx: &Ctx<S>) -> Span {
            let span = tracing::info_span!(
                target: "kafkaq",
                parent: None,
                "kafkaq.execute",
                otel.name = %format_args!("execute {}", self.queue),
                otel.kind = "consumer",
                otel.status_code = Empty,
                otel.status_description = Empty,
                "messaging.system" = "kafkaq",
                "messaging.operation.name" = "execute",
                "messaging.operation.type" = "process",
                "messaging.destination.name" = &*self.queue,
                "messaging.message.id" = ctx.id().as_str(),
                kafkaq.kind = &*self.kind,
                kafkaq.attempt = ctx.attempt(),
                kafkaq.failures = ctx.failures(),
                kafkaq.outcome = Empty,
            );
            if let Some(propagator) = self.propagator.as_ref().filter(|_| !span.is_disabled()) {
                propagator.extract(&span, ctx.headers());
            }
            span
        }

        /// The handler's outcome, and why it failed.
        pub(crate) fn ended(span: &Span, outcome: &'static str, why: Option<&str>) {
            span.record("kafkaq.outcome", outcome);
            if let Some(why) = why {
                failed(span, &why);
            }
        }
    }
}
