//! Tower layers around the handlers.

use super::{
    builder::WorkerBuilder,
    context::Ctx,
    failure::Outcome,
    handlers::{Ended, Executing},
    headers, panics,
    stop::StopReason,
};
use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn},
    ops::Deref,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::runtime::Handle;
use tower_layer::Layer;
use tower_service::Service;

/// An execution as layers see it: a [`Ctx`] without the worker's state, and its handler. It can't be cloned: a layer
/// passes it on at most once.
pub struct BoxContext {
    ctx: Ctx,
    handler: Executing,
    progress: Arc<Progress>,
}

/// What happened to the handler inside the layers.
#[derive(Default)]
struct Progress {
    begun: AtomicBool,
    panicked: AtomicBool,
}

impl BoxContext {
    /// The task's kind, if it has one.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        headers::kind(self.headers()).map(|(kind, _)| kind)
    }
}

impl Deref for BoxContext {
    type Target = Ctx;

    fn deref(&self) -> &Ctx {
        &self.ctx
    }
}

impl fmt::Debug for BoxContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoxContext").field(&self.ctx).finish()
    }
}

type Handling = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The service that a layer wraps: the handlers, with the layers that were added later. Cheap to clone.
pub struct BoxHandler {
    /// For this clone: readiness, such as a permit, belongs to one execution.
    service: Box<dyn CloneService>,
}

/// A service that can be cloned behind a pointer.
trait CloneService: Send + Sync {
    fn clone_box(&self) -> Box<dyn CloneService>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>>;
    fn call(&mut self, ctx: BoxContext) -> Handling;
}

impl<T> CloneService for T
where
    T: Service<BoxContext, Response = Outcome, Error = Infallible> + Clone + Send + Sync + 'static,
    T::Future: Send + 'static,
{
    fn clone_box(&self) -> Box<dyn CloneService> {
        Box::new(self.clone())
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::poll_ready(self, cx)
    }

    fn call(&mut self, ctx: BoxContext) -> Handling {
        let handling = Service::call(self, ctx);
        Box::pin(async move {
            match handling.await {
                Ok(outcome) => outcome,
                Err(never) => match never {},
            }
        })
    }
}

impl Service<BoxContext> for BoxHandler {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxHandling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, ctx: BoxContext) -> BoxHandling {
        BoxHandling(self.service.call(ctx))
    }
}

impl Clone for BoxHandler {
    fn clone(&self) -> Self {
        BoxHandler { service: self.service.clone_box() }
    }
}

impl fmt::Debug for BoxHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxHandler").finish_non_exhaustive()
    }
}

/// An execution under way.
#[must_use = "an execution makes no progress unless it is polled"]
pub struct BoxHandling(Handling);

impl Future for BoxHandling {
    type Output = Result<Outcome, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for BoxHandling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxHandling").finish_non_exhaustive()
    }
}

/// The innermost service: runs the handler that comes with the execution.
#[derive(Clone)]
struct Innermost;

impl Service<BoxContext> for Innermost {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxHandling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ctx: BoxContext) -> BoxHandling {
        let BoxContext { handler, progress, .. } = ctx;
        BoxHandling(Box::pin(async move {
            progress.begun.store(true, Relaxed);
            let ended = match handler {
                Executing::Async(handler) => handler.await,
                // On a thread for blocking work: see `Layered::around`.
                Executing::Blocking(handler) => handler(),
            };
            match ended {
                Ended::Returned(outcome) => outcome,
                Ended::Panicked(reason) => {
                    progress.panicked.store(true, Relaxed);
                    Outcome::Retry { delay: None, reason }
                }
                Ended::NotStarted(delay) => Outcome::Snooze(delay.unwrap_or_default()),
            }
        }))
    }
}

type Wrap = Box<dyn Fn(BoxHandler) -> BoxHandler + Send + Sync>;

/// The layers of a worker, outermost first.
#[derive(Default)]
pub(super) struct Layers(Vec<Wrap>);

impl Layers {
    /// Wraps the handlers in the layers.
    pub(super) fn build(&self) -> Layered {
        let innermost = BoxHandler { service: Box::new(Innermost) };
        let is_any = !self.0.is_empty();
        let service = self.0.iter().rev().fold(innermost, |inner, wrap| wrap(inner));
        Layered(is_any.then_some(service))
    }
}

impl<S> WorkerBuilder<S> {
    /// Adds a tower layer around all handlers: a service whose request is a [`BoxContext`](super::BoxContext), whose
    /// response is an [`Outcome`](super::Outcome), and which can't fail. Each layer is applied once per worker, so its
    /// limits and counts apply to all kinds together. The layer that was added first is the outermost, as with tower's
    /// `ServiceBuilder`.
    ///
    /// Layers run where the handler runs, inside its span, and within its time limit, which starts over when a batch is
    /// complete. A layer that doesn't call the inner service decides the outcome by itself. Layers see a panic of the
    /// handler as an [`Outcome::Retry`] with its message; a panic of a layer counts as a failure of the task, like a
    /// handler's.
    ///
    /// - Around a **blocking** handler they run on the thread that it blocks.
    /// - A task that is executed [one at a time](super::Options::one_at_a_time) reaches them once it has its key.
    /// - Each task of a **batch** passes through the layers separately: they see it wait for its batch, and its own
    ///   outcome.
    ///
    /// [`Outcome::Retry`]: super::Outcome::Retry
    ///
    /// ```
    /// use kafkaq::worker::{BoxContext, BoxHandler, Ctx, Worker};
    /// use std::{convert::Infallible, task::{Context, Poll}};
    /// use tower::{Service, layer::layer_fn, limit::ConcurrencyLimitLayer};
    ///
    /// #[derive(Clone)]
    /// struct Log(BoxHandler);
    ///
    /// impl Service<BoxContext> for Log {
    ///     type Response = kafkaq::worker::Outcome;
    ///     type Error = Infallible;
    ///     type Future = kafkaq::worker::BoxHandling;
    ///
    ///     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
    ///         self.0.poll_ready(cx)
    ///     }
    ///
    ///     fn call(&mut self, ctx: BoxContext) -> Self::Future {
    ///         println!("{} of kind {:?}, attempt {}", ctx.id(), ctx.kind(), ctx.attempt());
    ///         self.0.call(ctx)
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kafkaq::Result<()> {
    /// # let queue = kafkaq::Queue::builder("q").build().await?;
    /// let worker = Worker::builder(queue)
    ///     .layer(layer_fn(Log))
    ///     .layer(ConcurrencyLimitLayer::new(8))
    ///     .otherwise(async |_: Ctx| {});
    /// # worker.start()?.stop_now();
    /// # Ok(())
    /// # }
    /// ```
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<BoxHandler> + Send + Sync + 'static,
        L::Service:
            Service<BoxContext, Response = Outcome, Error = Infallible> + Clone + Send + Sync + 'static,
        <L::Service as Service<BoxContext>>::Future: Send + 'static,
    {
        self.layers.0.push(Box::new(move |inner| BoxHandler { service: Box::new(layer.layer(inner)) }));
        self
    }
}

/// The handlers of a worker in their layers, or none if it has no layers.
#[derive(Clone)]
pub(super) struct Layered(Option<BoxHandler>);

impl Layered {
    /// Passes an execution through the layers.
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing {
        let Some(service) = self.0.clone() else { return execute(ctx) };
        let stop = ctx.stop().clone();
        let handler = execute(ctx.clone());
        let blocks = matches!(handler, Executing::Blocking(_));
        let progress = Arc::<Progress>::default();
        let ctx = BoxContext { ctx: ctx.stateless(), handler, progress: progress.clone() };
        let inside = progress.clone();
        let run = async move {
            match panics::caught(handle(service, ctx)).await.into() {
                // The handler's outcome, unless a layer changed it.
                Ended::Returned(Outcome::Retry { delay: None, reason }) if inside.panicked.load(Relaxed) => {
                    Ended::Panicked(reason)
                }
                ended => ended,
            }
        };
        if !blocks {
            return Executing::Async(Box::pin(run));
        }
        // All on the thread that the handler blocks, which can't be stopped from outside. While waiting in a layer
        // before the handler has started, check for the end here.
        Executing::Blocking(Box::new(move || {
            let before_it_began = async {
                let reason = stop.requested().await;
                if progress.begun.load(Relaxed) {
                    pending::<()>().await;
                }
                reason
            };
            Handle::current().block_on(async {
                tokio::select! {
                    biased;
                    ended = run => ended,
                    reason = before_it_began => match reason {
                        // Layers run within the time limit.
                        StopReason::TimedOut => Ended::timed_out_before("handler"),
                        _ => Ended::NotStarted(None),
                    }
                }
            })
        }))
    }
}

async fn handle(mut service: BoxHandler, ctx: BoxContext) -> Outcome {
    match poll_fn(|cx| Service::poll_ready(&mut service, cx)).await {
        Ok(()) => {}
        Err(never) => match never {},
    }
    match Service::call(&mut service, ctx).await {
        Ok(outcome) => outcome,
        Err(never) => match never {},
    }
}
