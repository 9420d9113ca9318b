//! `cargo xtask bench`: figures, side by side in one run.

use std::ffi::OsString;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Error, Result, anyhow, bail};
use xtask::command::run;
use xtask::prerequisites;
use xtask::services::{Service, Services};

use crate::backends::Backends;
use crate::cargo;

/// A part that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Pairs,
    Stores,
    Logs,
    Publish,
    Delays,
    Idle,
    Worker,
    Crowd,
    Seeds,
}

impl Part {
    const ALL: [Part; 9] = [
        Part::Pairs,
        Part::Stores,
        Part::Logs,
        Part::Publish,
        Part::Delays,
        Part::Idle,
        Part::Worker,
        Part::Crowd,
        Part::Seeds,
    ];

    fn name(self) -> &'static str {
        match self {
            Part::Pairs => "pairs",
            Part::Stores => "stores",
            Part::Logs => "logs",
            Part::Publish => "publish",
            Part::Delays => "delays",
            Part::Idle => "idle",
            Part::Worker => "worker",
            Part::Crowd => "crowd",
            Part::Seeds => "seeds",
        }
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match Part::ALL.into_iter().find(|part| part.name() == name) {
            Some(part) => Ok(part),
            None => bail!(
                "bench {name}: it must be pairs, stores, logs, publish, delays, idle, worker, crowd or seeds"
            ),
        }
    }
}

/// What to measure.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Everything if it is empty.
    pub(crate) parts: Vec<Part>,
    /// Only these backends.
    pub(crate) backends: Option<Backends>,
    /// With that allocator instead of the system's.
    pub(crate) mimalloc: bool,
    /// With metrics and spans.
    pub(crate) observed: bool,
}

impl Options {
    /// `cargo build` or `cargo run` of the parts that need servers.
    fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = cargo(&[subcommand, "--release", "--package", "kafkaq-tests", "--bin", "bench"]);
        if self.mimalloc {
            cargo.args(["--features", "mimalloc"]);
        }
        if self.observed {
            cargo.args(["--features", "observed"]);
        }
        cargo
    }
}

/// Builds, starts its own servers, measures, and stops them whatever happens.
///
/// # Errors
/// If something can't be built or started; never because of a figure.
pub(crate) fn measure(options: &Options) -> Result<()> {
    let mut parts: Vec<_> =
        Part::ALL.into_iter().filter(|p| options.parts.is_empty() || options.parts.contains(p)).collect();
    let seeds = parts.pop_if(|last| *last == Part::Seeds).is_some();
    let servers = !parts.is_empty();

    let wanted = options.backends.as_ref().map_or_else(|| Service::ALL.to_vec(), Backends::services);
    let mut tools = prerequisites::build_tools();
    if servers {
        tools.extend(wanted.iter().flat_map(|service| service.tools()));
    }
    prerequisites::ensure(&tools)?;
    if servers {
        run(&mut options.cargo("build"))?;
    }
    if seeds {
        run(&mut cargo(&["build", "--release", "--package", "kafkaq-sim"]))?;
    }

    if servers {
        let services = Services::of(xtask::root().join(".services/bench"));
        let result = on_servers(&services, &wanted, &parts, options);
        let down = services.down(Service::ALL);
        result.and(down)?;
    }
    if seeds {
        println!("\n## Seeds\n");
        let seeds =
            ["run", "--release", "--quiet", "--package", "kafkaq-sim", "--", "seeds", "--count", "10000"];
        run(&mut cargo(&seeds))?;
    }
    Ok(())
}

/// Runs the parts `compare` and `growth`, which are a separate program that parses its own arguments.
///
/// # Errors
/// When a tool is missing, or something can't be built or started.
pub(crate) fn apart(words: &[OsString]) -> Result<()> {
    let servers = Service::QUICKSTART.iter().flat_map(|service| service.tools());
    prerequisites::ensure(&prerequisites::build_tools().into_iter().chain(servers).collect::<Vec<_>>())?;
    let mut bench = cargo(&["run", "--release", "--quiet", "--package", "kafkaq-bench", "--"]);
    // It reads each process's resource usage from the system.
    run(bench.args(words).env("KAFKAQ_SERVICES", "native"))
}

fn on_servers(services: &Services, wanted: &[Service], parts: &[Part], options: &Options) -> Result<()> {
    // Left over from a killed run.
    services.down(Service::ALL)?;
    let urls = services.up(wanted)?;
    let mut bench = options.cargo("run");
    bench.args(["--quiet", "--"]).args(parts.iter().map(|part| part.name()));
    bench.envs(wanted.iter().map(|service| service.env_var()).zip(&urls));
    bench.envs(options.backends.as_ref().map(|backends| (Backends::ENV_VAR, backends.as_str())));
    run(&mut bench).map_err(|e| anyhow!("the benchmark ended early: {e:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_name_and_another_is_refused() {
        for part in Part::ALL {
            assert_eq!(part.name().parse::<Part>().unwrap(), part);
        }
        assert!("speed".parse::<Part>().unwrap_err().to_string().contains("bench speed"));
    }
}
