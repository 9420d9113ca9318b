//! Replaces containers if xtask was built without them: there is no value of this type, and trying to create one
//! returns an error with advice.

use std::time::Duration;

use anyhow::{Result, bail};

use super::docker::{Network, Recipe};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Container {}

impl Container {
    pub(super) fn start(_: &str, _: &Recipe, _: &Network) -> Result<Self> {
        bail!(
            "this build starts no containers: run the tests with `cargo xtask test`, or pass cargo \
             `--features xtask/containers`, or set KAFKAQ_SERVICES=native to use plain processes"
        )
    }

    pub(super) fn known(_: &str) -> Result<Self> {
        bail!("the server is a container, and this build has none: cargo needs `--features xtask/containers`")
    }

    pub(super) fn remove(_: &str) -> Result<()> {
        Ok(())
    }

    pub(super) fn id(&self) -> &str {
        match *self {}
    }

    pub(super) fn is_running(&self) -> bool {
        match *self {}
    }

    pub(super) fn stop(&self, _: Duration) -> Result<()> {
        match *self {}
    }

    pub(super) fn kill(&self) -> Result<()> {
        match *self {}
    }

    pub(super) fn pause(&self) -> Result<()> {
        match *self {}
    }

    pub(super) fn resume(&self) -> Result<()> {
        match *self {}
    }

    pub(super) fn log(&self) -> String {
        match *self {}
    }
}
