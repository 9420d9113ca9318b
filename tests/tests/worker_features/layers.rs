//! Layers of tower around the handlers.

use crate::{
    handlers::Load,
    shared::{Number, Runs, build, stop, until_all_finished, until_status, worker},
};
use kafkaq::{
    JobStatus,
    worker::{BoxContext, BoxHandler, BoxHandling, Ctx, Failure, Outcome},
};
use kafkaq_tests::{Case, Pair};
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Service, layer::layer_fn, limit::ConcurrencyLimitLayer};

pub(crate) const CASES: &[Case] = &[("layers", |pair| Box::pin(layers(pair)))];

/// Notes what goes through it.
#[derive(Clone)]
struct Noting(Runs, BoxHandler);

impl Service<BoxContext> for Noting {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxHandling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.1.poll_ready(cx)
    }

    fn call(&mut self, ctx: BoxContext) -> BoxHandling {
        assert_eq!(ctx.kind(), Some("number"));
        self.0.note(&ctx, serde_json::from_slice(ctx.payload()).unwrap());
        self.1.call(ctx)
    }
}

async fn layers(pair: &Pair) {
    const LIMIT: usize = 2;
    let queue = build(pair).await;
    let (seen, load) = (Runs::default(), Arc::new(Load::default()));
    let (noting, bearing) = (seen.clone(), load.clone());
    let running = worker(&queue)
        .layer(layer_fn(move |inner| Noting(noting.clone(), inner)))
        .layer(ConcurrencyLimitLayer::new(LIMIT))
        .on(move |ctx: Ctx, _: Number| {
            let load = bearing.clone();
            async move {
                load.bear(|| load.most() >= LIMIT).await;
                if ctx.attempt() == 1 { Err(Failure::retry("once more")) } else { Ok(()) }
            }
        })
        .start()
        .unwrap();
    for id in queue.enqueue_many((0..8).map(Number)).await {
        until_status(&queue, &id.unwrap(), JobStatus::Done).await;
    }
    until_all_finished(pair, &[&queue]).await;
    assert_eq!(load.most(), LIMIT);
    let mut executions: Vec<_> = seen.all().iter().map(|run| (run.number, run.attempt)).collect();
    executions.sort_unstable();
    assert_eq!(executions, (0..8).flat_map(|n| [(n, 1), (n, 2)]).collect::<Vec<_>>());
    let report = stop(running).await;
    assert_eq!((report.done, report.retried), (8, 8), "{report}");
}
