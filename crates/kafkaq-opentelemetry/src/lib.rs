#![doc = include_str!("../README.md")]

use kafkaq::{Headers, Propagator};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Carries OpenTelemetry's context from a publisher to the executions of its tasks: see the [crate](self).
#[derive(Debug)]
pub struct OpenTelemetry {
    propagator: Box<dyn TextMapPropagator + Send + Sync>,
    links: bool,
}

impl OpenTelemetry {
    /// Creates a propagator of W3C's `traceparent` and `tracestate`. Executions are children of the publisher's span.
    #[must_use]
    pub fn new() -> Self {
        OpenTelemetry { propagator: Box::new(TraceContextPropagator::new()), links: false }
    }

    /// Uses other headers: another format, or, with a composite propagator, also baggage.
    #[must_use]
    pub fn with_propagator(mut self, propagator: impl TextMapPropagator + Send + Sync + 'static) -> Self {
        self.propagator = Box::new(propagator);
        self
    }

    /// Starts a separate trace with each execution, with a link to the publisher's span.
    #[must_use]
    pub fn with_links(mut self) -> Self {
        self.links = true;
        self
    }
}

impl Default for OpenTelemetry {
    fn default() -> Self {
        OpenTelemetry::new()
    }
}

impl Propagator for OpenTelemetry {
    fn inject(&self, headers: &mut Headers) {
        // A context that was set explicitly takes precedence.
        if self.propagator.fields().any(|name| headers.get(name).is_some()) {
            return;
        }
        let mut context = Span::current().context();
        if !context.span().span_context().is_valid() {
            // The context of code that uses OpenTelemetry's own spans.
            context = Context::current();
        }
        self.propagator.inject_context(&context, &mut Inject(headers));
    }

    fn extract(&self, span: &Span, headers: &Headers) {
        let context = self.propagator.extract_with_context(&Context::new(), &Extract(headers));
        let publisher = context.span().span_context().clone();
        if self.links {
            span.add_link(publisher);
        } else if publisher.is_valid() {
            // It fails only if no OpenTelemetry layer sees the span.
            let _ = span.set_parent(context);
        }
    }
}

struct Inject<'a>(&'a mut Headers);

impl Injector for Inject<'_> {
    fn set(&mut self, name: &str, value: String) {
        // An empty `tracestate` is omitted.
        if !value.is_empty() {
            self.0.push(name.to_owned(), Some(value.into()));
        }
    }
}

struct Extract<'a>(&'a Headers);

impl Extractor for Extract<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.0.get(name)?).ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()).collect()
    }
}
