//! There are no spans: the feature `spans` is off.

use crate::config::Config;
use kafkaq_core::Headers;

#[derive(Clone, Debug)]
pub(crate) struct PublishSpans;

impl PublishSpans {
    pub(crate) fn new(_: &Config) -> Self {
        PublishSpans
    }

    pub(crate) fn inject(&self, _: &mut Headers) {}

    pub(crate) fn of_one<F>(&self, publish: F) -> F {
        publish
    }

    pub(crate) fn of_many<F>(&self, publish: F) -> F {
        publish
    }
}

#[cfg(feature = "worker")]
#[derive(Clone, Debug)]
pub(crate) struct ExecutionSpans;

#[cfg(feature = "worker")]
impl ExecutionSpans {
    pub(crate) fn new(_: &PublishSpans, _: &str) -> Self {
        ExecutionSpans
    }
}
