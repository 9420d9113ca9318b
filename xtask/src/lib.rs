//! The parts of `cargo xtask` that the integration tests use too: real servers, started and stopped on demand.
//!
//! [`services`] starts brokers and stores, [`prerequisites`] installs what they need, and [`command`] runs other
//! programs so that an interrupt ends them as well.

#![allow(clippy::print_stderr, reason = "reporting progress is this tool's job")]

pub mod command;
pub mod prerequisites;
pub mod services;

use std::{fs, path::Path};

/// The root folder of the workspace.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Describes the machine: its processor, cores and memory.
#[must_use]
pub fn machine() -> String {
    let of = |file: &str, name: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'))?;
        Some(line.1.trim().to_owned())
    };
    let processor = of("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = of("/proc/meminfo", "MemTotal")
        .and_then(|kib| kib.trim_end_matches(" kB").parse::<u64>().ok())
        .map_or_else(|| "memory unknown".to_owned(), |kib| format!("{} GiB", kib.div_ceil(1 << 20)));
    format!("{processor}, {cores} cores, {memory}")
}
