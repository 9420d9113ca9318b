//! `cargo xtask test`: everything that must hold, in order; it stops at the first failure and always tidies up.
//!
//! All steps that build the workspace choose the same features, so that the C library and the dependencies are
//! built once.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use xtask::command::{capture, check_interrupt, run, run_keeping};
use xtask::prerequisites::{self, KCAT, on_path};
use xtask::services::{Service, Services};

use crate::backends::Backends;
use crate::{cargo, features, metadata};

/// Not `--all-features`: among them are ways to build librdkafka that exclude each other or take many minutes. The
/// tests start servers as we do.
const FEATURES: &[&str] = &[
    "--features=kafkaq/full,kafkaq-etcd/tls,kafkaq-redis/tls,kafkaq-rskafka/tls,kafkaq-tests/mimalloc",
    #[cfg(feature = "containers")]
    "--features=xtask/containers",
];

/// How much to check.
#[derive(Debug)]
pub(crate) struct Options {
    /// No servers, no documentation.
    pub(crate) quick: bool,
    /// Nothing but the matrix, and of it the pairs of these.
    pub(crate) backends: Option<Backends>,
    /// What runs in Kafka's place: itself, or Redpanda.
    pub(crate) kafka: Service,
}

impl Default for Options {
    fn default() -> Self {
        Self { quick: false, backends: None, kafka: Service::Kafka }
    }
}

/// Runs every check, or those that were asked for.
///
/// # Errors
/// When one fails, or at an interrupt; by then the servers are down again.
pub(crate) fn everything(options: Options) -> Result<()> {
    let dir = xtask::root().join(".services/test");
    fs::create_dir_all(&dir)?;
    let one_run = File::create(dir.join("run.lock"))?;
    one_run.try_lock().map_err(|_| anyhow!("another `cargo xtask test` is under way in this folder"))?;

    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    prerequisites::ensure_space(target.as_deref().unwrap_or(xtask::root()))?;

    let mut report = Report::default();
    let result = if options.quick {
        without_servers(&mut report, &options).and_then(|()| quick_tests(&mut report))
    } else {
        let services = Services::of(dir);
        let result = match &options.backends {
            Some(backends) => matrix(&mut report, &services, backends, options.kafka),
            None => without_servers(&mut report, &options)
                .and_then(|()| with_servers(&mut report, &services, options.kafka)),
        };
        // Also after a failure and an interrupt, and without looking at either.
        let down = report.step_always("services down", || services.down(Service::KINDS));
        result.and(down)
    };
    report.print();
    result
}

fn without_servers(report: &mut Report, options: &Options) -> Result<()> {
    report.step("prerequisites", || prerequisites(options))?;
    report.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    report.step("rust-version", metadata::check_rust_version)?;
    report.step("clippy", || {
        let what = ["clippy", "--workspace", "--all-targets"];
        run(cargo(&what).args(FEATURES).args(["--", "-D", "warnings"]))
    })?;
    if !options.quick {
        report.step("each feature alone", features::check_each)?;
        report.step("documentation", || {
            let what = ["doc", "--workspace", "--no-deps"];
            run(cargo(&what).args(FEATURES).env("RUSTDOCFLAGS", "-D warnings"))
        })?;
    }
    // A convenience: nobody has to install it.
    if on_path("cargo-deny") {
        report.step("licences and sources", || {
            run(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))
        })?;
    } else {
        report.skip("licences and sources", "to have it: cargo install --locked cargo-deny");
    }
    // As the README has it: nothing but Rust.
    report.step("quickstart in memory", || run(&mut cargo(&["run", "--example", "quickstart"])))
}

fn with_servers(report: &mut Report, services: &Services, kafka: Service) -> Result<()> {
    let urls = up(report, services, Service::ALL, kafka)?;
    let env: Vec<_> = urls.iter().map(|(service, url)| (service.env_var(), url.as_str())).collect();
    tests(report, &["--workspace"], &env)?;
    report.step("quickstart on Kafka and Redis", || {
        let features = ["run", "--example", "quickstart", "--features", "full", "--"];
        let mut cargo = cargo(&features);
        for (service, url) in urls.iter().filter(|(service, _)| Service::QUICKSTART.contains(service)) {
            cargo.arg(format!("--{service}")).arg(url);
        }
        run(&mut cargo)
    })
}

/// The pairs of some backends, on the servers that they need.
fn matrix(report: &mut Report, services: &Services, backends: &Backends, kafka: Service) -> Result<()> {
    report.step("prerequisites", || prerequisites::ensure(&prerequisites::build_tools()))?;
    let urls = up(report, services, &backends.services(), kafka)?;
    let mut env: Vec<_> = urls.iter().map(|(service, url)| (service.env_var(), url.as_str())).collect();
    env.push((Backends::ENV_VAR, backends.as_str()));
    tests(report, &["--workspace", "--test", "matrix"], &env)
}

/// Starts servers afresh, and returns where they are. `kafka` is started in the place of Kafka, and goes by its name.
fn up(
    report: &mut Report,
    services: &Services,
    which: &[Service],
    kafka: Service,
) -> Result<Vec<(Service, String)>> {
    let started = which.iter().map(|&service| if service == Service::Kafka { kafka } else { service });
    let started: Vec<_> = started.collect();
    let mut urls = Vec::new();
    report.step("services up", || {
        // What a killed run may have left.
        services.down(Service::KINDS)?;
        urls = services.up(&started)?;
        Ok(())
    })?;
    Ok(which.iter().copied().zip(urls).collect())
}

/// All unit tests, and what else the crates have that meet no server.
fn quick_tests(report: &mut Report) -> Result<()> {
    tests(report, &["--workspace", "--lib", "--bins"], &[])?;
    let without = ["kafkaq", "kafkaq-core", "kafkaq-conformance", "kafkaq-sim", "xtask"];
    tests(report, &without.map(|package| ["--package", package]).concat(), &[])
}

/// Unit, property, simulation, integration and documentation tests.
fn tests(report: &mut Report, which: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let mut cargo = cargo(&["test"]);
    cargo.args(which).args(FEATURES).envs(env.iter().copied());
    let mut results = Vec::new();
    // Without those of files that hold no test.
    let is_result =
        |line: &str| line.starts_with("test result:") && !line.contains(" 0 passed; 0 failed; 0 ignored;");
    let result = report.step("tests", || run_keeping(&mut cargo, &mut results, is_result));
    report.test_results.append(&mut results);
    result
}

fn prerequisites(options: &Options) -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        capture(&mut cargo(&[subcommand, "--version"]))
            .with_context(|| format!("please install: rustup component add {component}"))?;
    }
    let mut tools = prerequisites::build_tools();
    if !options.quick {
        tools.push(KCAT);
        // What tests start with options of their own is a process, also where the others are containers.
        tools.extend([prerequisites::REDIS, prerequisites::ETCD]);
        tools.extend(Service::ALL.iter().flat_map(|service| service.tools()));
    }
    prerequisites::ensure(&tools)
}

/// What each step came to.
#[derive(Default)]
struct Report {
    rows: Vec<(&'static str, String)>,
    test_results: Vec<String>,
}

impl Report {
    fn step(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        self.step_always(name, || check_interrupt().and_then(|()| step()))
    }

    fn step_always(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n=== {name}");
        let since = Instant::now();
        let result = step().with_context(|| format!("{name} failed"));
        let took = since.elapsed();
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("=== {name}: {word} after {}", seconds(took));
        self.rows.push((name, format!("{word:<8}{:>9}", seconds(took))));
        result
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        println!("\n=== {name}: skipped; {why}");
        self.rows.push((name, "skipped".to_owned()));
    }

    /// The table, and once more what the tests came to, so that it stands at the end.
    fn print(&self) {
        println!("\n=== summary");
        for (name, outcome) in &self.rows {
            println!("{name:<32}{outcome}");
        }
        if !self.test_results.is_empty() {
            println!("\n=== test results once more");
        }
        for line in &self.test_results {
            println!("{line}");
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
