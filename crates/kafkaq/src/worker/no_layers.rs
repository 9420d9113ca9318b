//! There are no layers: the feature `tower` is off.

use super::{context::Ctx, handlers::Executing};

#[derive(Default)]
pub(super) struct Layers;

impl Layers {
    pub(super) fn build(&self) -> Layered {
        Layered
    }
}

#[derive(Clone)]
pub(super) struct Layered;

impl Layered {
    pub(super) fn around<S>(&self, ctx: Ctx<S>, execute: impl FnOnce(Ctx<S>) -> Executing) -> Executing {
        execute(ctx)
    }
}
