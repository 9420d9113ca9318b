//! Nothing is measured: the feature `metrics` is off.

use kafkaq_core::{
    LostReason, Result, TaskId,
    machine::{Answer, Command, DeadReason, Ready},
};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct PublishMeter;

impl PublishMeter {
    pub(crate) fn new(_: &str) -> Self {
        PublishMeter
    }

    pub(crate) fn published(&self, _: &[Result<TaskId>]) {}
}

#[derive(Debug)]
pub(crate) struct CallMeter;

impl CallMeter {
    pub(crate) fn new(_: &str, _: &'static str) -> Self {
        CallMeter
    }

    pub(crate) fn ended(&self, _: Duration, _: usize, _: usize) {}
}

#[derive(Debug)]
pub(crate) struct JobMeter;

pub(crate) struct Asked;

impl JobMeter {
    pub(crate) fn new(_: &str) -> Self {
        JobMeter
    }

    pub(crate) fn handed_out(&self, _: &Ready) {}

    pub(crate) fn asked(&self, _: &Command) -> Asked {
        Asked
    }

    pub(crate) fn answered(&self, _: Asked, _: &Answer) {}

    pub(crate) fn dropped(&self, _: impl FnOnce() -> bool) {}

    pub(crate) fn lease_lost(&self, _: LostReason) {}

    pub(crate) fn dead_lettered(&self, _: DeadReason) {}
}

#[cfg(feature = "worker")]
#[derive(Clone, Debug)]
pub(crate) struct ExecutionMeter;

#[cfg(feature = "worker")]
impl ExecutionMeter {
    pub(crate) fn new(_: &str, _: &str) -> Self {
        ExecutionMeter
    }

    #[cfg(feature = "spans")]
    pub(crate) fn begin(&self, _: Option<std::time::SystemTime>) -> RunningMeter {
        RunningMeter
    }

    pub(crate) fn ended(&self, _: crate::worker::Ending) {}

    pub(crate) fn expired(&self, _: bool) {}

    pub(crate) fn timed_out(&self) {}

    pub(crate) fn slow(&self) {}

    pub(crate) fn slow_ended(&self) {}

    pub(crate) fn panicked(&self) {}
}

#[cfg(all(feature = "worker", feature = "spans"))]
#[derive(Debug)]
pub(crate) struct RunningMeter;
