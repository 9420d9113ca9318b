//! The parts of `cargo xtask` that the integration tests use too: real servers, started and stopped on demand.
//!
//! [`services`] starts brokers and stores, [`prerequisites`] installs what they need, and [`command`] runs other
//! programs so that an interrupt ends them as well.

#![allow(clippy::print_stderr, reason = "telling people what happens is this tool's job")]

pub mod command;
pub mod prerequisites;
pub mod services;

use std::path::Path;

/// The root folder of the workspace.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
