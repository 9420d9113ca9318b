//! What the worker tells of its executions: metrics and spans.

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

    /// An execution runs for long.
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

    /// Observes an execution that is about to begin.
    #[cfg(not(any(feature = "metrics", feature = "spans")))]
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing {
        execute(ctx)
    }

    /// Observes an execution that is about to begin.
    #[cfg(any(feature = "metrics", feature = "spans"))]
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing {
        let observed = observed::Observed::begin(self, &ctx);
        observed.around(execute(ctx))
    }
}

#[cfg(any(feature = "metrics", feature = "spans"))]
mod observed {
    use super::{Ctx, Executing, Observe};
    use crate::{telemetry::RunningMeter, worker::handlers::Ended};

    /// An execution that is observed until this is dropped.
    pub(super) struct Observed {
        running: RunningMeter,
        #[cfg(feature = "spans")]
        span: tracing::Span,
    }

    impl Observed {
        pub(super) fn begin<S>(observe: &Observe, ctx: &Ctx<S>) -> Self {
            Observed {
                running: observe.meter.begin((ctx.attempt() == 1).then(|| ctx.published())),
                #[cfg(feature = "spans")]
                span: observe.spans.begin(ctx),
            }
        }

        pub(super) fn around(self, executing: Executing) -> Executing {
            #[cfg(not(feature = "metrics"))]
            if self.span.is_disabled() {
                return executing;
            }
            match executing {
                Executing::Async(handler) => Executing::Async(Box::pin(async move {
                    #[cfg(feature = "spans")]
                    let handler = tracing::Instrument::instrument(handler, self.span.clone());
                    self.ended(handler.await)
                })),
                Executing::Blocking(handler) => Executing::Blocking(Box::new(move || {
                    #[cfg(feature = "spans")]
                    let ended = self.span.in_scope(handler);
                    #[cfg(not(feature = "spans"))]
                    let ended = handler();
                    self.ended(ended)
                })),
            }
        }

        fn ended(self, ended: Ended) -> Ended {
            if let Ended::Panicked(_) = &ended {
                self.running.panicked();
            }
            #[cfg(feature = "spans")]
            {
                use crate::{telemetry::ExecutionSpans, worker::Outcome};
                let (outcome, why) = match &ended {
                    Ended::Returned(Outcome::Done) => ("done", None),
                    Ended::Returned(Outcome::Snooze(_)) => ("snooze", None),
                    Ended::Returned(Outcome::Retry { reason, .. }) => ("retry", Some(&**reason)),
                    Ended::Returned(Outcome::Reject(reason)) => ("reject", Some(&**reason)),
                    Ended::Panicked(told) => ("panic", Some(&**told)),
                };
                ExecutionSpans::ended(&self.span, outcome, why);
            }
            ended
        }
    }
}
