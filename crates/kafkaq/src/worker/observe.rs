//! Metrics and spans of the worker's executions.

use super::{context::Ctx, handlers::Executing, headers::Expired, report::Ending};
use crate::{
    Queue,
    telemetry::{ExecutionMeter, ExecutionSpans},
};

/// Observes the executions of one kind.
#[derive(Clone, Debug)]
pub(super) struct Observe {
    meter: ExecutionMeter,
    #[cfg_attr(not(feature = "spans"), allow(dead_code))]
    spans: ExecutionSpans,
}

impl Observe {
    pub(super) fn new(queue: &Queue, kind: &str) -> Self {
        Observe {
            meter: ExecutionMeter::new(queue.name(), kind),
            spans: ExecutionSpans::new(queue.publisher().spans(), kind),
        }
    }

    pub(super) fn ended(&self, ending: Ending) {
        self.meter.ended(ending);
    }

    pub(super) fn expired(&self, then: Expired) {
        self.meter.expired(then == Expired::Dead);
    }

    /// An execution is running for a long time.
    pub(super) fn slow(&self) {
        self.meter.slow();
    }

    /// It has ended.
    pub(super) fn slow_ended(&self) {
        self.meter.slow_ended();
    }

    pub(super) fn timed_out(&self) {
        self.meter.timed_out();
    }

    pub(super) fn panicked(&self) {
        self.meter.panicked();
    }

    /// Observes an execution that is about to start.
    #[cfg(not(any(feature = "metrics", feature = "spans")))]
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing {
        execute(ctx)
    }

    /// Observes an execution that is about to start.
    #[cfg(any(feature = "metrics", feature = "spans"))]
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing
    where
        S: Send + Sync + 'static,
    {
        let executing = execute(ctx.clone());
        observed::around(self.clone(), ctx, executing)
    }
}

#[cfg(any(feature = "metrics", feature = "spans"))]
mod observed {
    use super::{Ctx, Executing, Observe};
    use crate::{telemetry::RunningMeter, worker::handlers::Ended};

    /// Observes the execution from when it runs, which may be later than when it was created: it may wait for its key.
    pub(super) fn around<S>(observe: Observe, ctx: Ctx<S>, executing: Executing) -> Executing
    where
        S: Send + Sync + 'static,
    {
        match executing {
            Executing::Async(handler) => Executing::Async(Box::pin(async move {
                let observed = Observed::begin(&observe, &ctx);
                #[cfg(feature = "spans")]
                let handler = tracing::Instrument::instrument(handler, observed.span.clone());
                observed.ended(handler.await)
            })),
            Executing::Blocking(handler) => Executing::Blocking(Box::new(move || {
                let observed = Observed::begin(&observe, &ctx);
                #[cfg(feature = "spans")]
                let ended = observed.span.in_scope(handler);
                #[cfg(not(feature = "spans"))]
                let ended = handler();
                observed.ended(ended)
            })),
        }
    }

    /// An execution that is observed until this is dropped.
    struct Observed {
        _running: RunningMeter,
        #[cfg(feature = "spans")]
        span: tracing::Span,
    }

    impl Observed {
        fn begin<S>(observe: &Observe, ctx: &Ctx<S>) -> Self {
            Observed {
                _running: observe.meter.begin((ctx.attempt() == 1).then(|| ctx.published())),
                #[cfg(feature = "spans")]
                span: observe.spans.begin(ctx),
            }
        }

        fn ended(self, ended: Ended) -> Ended {
            #[cfg(feature = "spans")]
            {
                use crate::{telemetry::ExecutionSpans, worker::Outcome};
                let (outcome, why) = match &ended {
                    Ended::Returned(Outcome::Done) => ("done", None),
                    Ended::Returned(Outcome::Snooze(_)) => ("snooze", None),
                    Ended::Returned(Outcome::Retry { reason, .. }) => ("retry", Some(&**reason)),
                    Ended::Returned(Outcome::Reject(reason)) => ("reject", Some(&**reason)),
                    Ended::Panicked(told) => ("panic", Some(&**told)),
                    Ended::NotStarted(_) => ("not started", None),
                };
                ExecutionSpans::ended(&self.span, outcome, why);
            }
            ended
        }
    }
}
