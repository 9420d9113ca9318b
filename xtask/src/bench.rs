//! `cargo xtask bench`: figures, side by side in one run.

use anyhow::{Result, anyhow};
use xtask::command::run;
use xtask::prerequisites;
use xtask::services::{Service, Services};

use crate::cargo;

/// Builds, starts servers of its own, measures, and ends them whatever happens.
///
/// # Errors
/// When something can't be built or started; never because of a figure.
pub(crate) fn everything() -> Result<()> {
    let mut tools = prerequisites::build_tools();
    tools.extend(Service::ALL.iter().flat_map(|service| service.tools()));
    prerequisites::ensure(&tools)?;
    let build = ["build", "--release", "--package", "kafkaq-tests", "--package", "kafkaq-sim", "--bins"];
    run(&mut cargo(&build))?;

    let services = Services::of(xtask::root().join(".services/bench"));
    let result = measure(&services);
    let down = services.down(Service::ALL);
    result.and(down)
}

fn measure(services: &Services) -> Result<()> {
    let urls = services.up(Service::ALL)?;
    let env = Service::ALL.iter().map(|service| service.env_var()).zip(&urls);
    let bench = ["run", "--release", "--quiet", "--package", "kafkaq-tests", "--bin", "bench"];
    run(cargo(&bench).envs(env)).map_err(|e| anyhow!("the benchmark ended early: {e:#}"))?;
    let seeds = ["run", "--release", "--quiet", "--package", "kafkaq-sim", "--", "seeds", "--count", "10000"];
    run(&mut cargo(&seeds))
}
