//! `cargo xtask test`: all checks. Failures are reported at the end, with the command that repeats them; steps that
//! don't depend on them still run, and the servers are always stopped.
//!
//! All steps that build the workspace choose the same features and the same profile, so that the C library and the
//! dependencies are built once.

mod architecture;
mod blocks;
mod built;
mod cost;
mod features;
mod lanes;
mod licences;
mod load;
mod metadata;
mod output;
mod packages;
mod report;
mod sources;
mod steps;
mod suites;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use xtask::command::{capture, run};
use xtask::prerequisites::{self, KCAT, VALGRIND};
use xtask::services::{Service, Services};

use crate::backends::Backends;
use crate::cargo;
use built::Built;
use report::Report;
use steps::Step;
use suites::{Kind, Place, Suite};

/// Not `--all-features`: among them are ways to build librdkafka that exclude each other or take many minutes.
const FEATURES: &str = "kafkaq/full,kafkaq/cron,kafkaq/metrics,kafkaq/msgpack,kafkaq/spans,kafkaq/testing,\
     kafkaq/tower,kafkaq-etcd/tls,kafkaq-redis/tls,kafkaq-rskafka/tls,kafkaq-tests/mimalloc";

/// The code that starts containers is built for the tests only if we start them too. It is always linted.
const CONTAINERS: &str = "xtask/containers";

/// Packages whose tests need no server.
const WITHOUT_SERVERS: &[&str] = &[
    "kafkaq",
    "kafkaq-compile-fail",
    "kafkaq-core",
    "kafkaq-conformance",
    "kafkaq-opentelemetry",
    "kafkaq-sim",
    "xtask",
];

/// A command of cargo that looks at the whole workspace.
fn workspace(command: &str) -> Command {
    cargo(&[command, "--workspace", "--features", FEATURES, "--features", CONTAINERS])
}

/// A command of cargo that builds tests, with the features that all tests are built with.
fn tests(command: &[&str]) -> Command {
    let mut command = cargo(command);
    command.args(["--features", FEATURES]);
    if cfg!(feature = "containers") {
        command.args(["--features", CONTAINERS]);
    }
    command
}

/// How much to check.
#[derive(Debug)]
pub(crate) struct Options {
    /// No servers, no documentation.
    pub(crate) quick: bool,
    /// Only this test binary, or one test of it.
    pub(crate) only: Option<Only>,
    /// Only the matrix, and only the pairs of these backends.
    pub(crate) backends: Option<Backends>,
    /// Kafka, or Redpanda in its place.
    pub(crate) kafka: Service,
}

impl Default for Options {
    fn default() -> Self {
        Self { quick: false, only: None, backends: None, kafka: Service::Kafka }
    }
}

/// A part of the checks, as named in failures.
#[derive(Debug)]
pub(crate) enum Only {
    Step(Step),
    /// `PACKAGE::BINARY` and perhaps `::TEST`.
    Tests {
        suite: String,
        package: String,
        /// How cargo names the binary.
        target: Vec<String>,
        test: Option<String>,
    },
}

impl std::str::FromStr for Only {
    type Err = anyhow::Error;

    fn from_str(path: &str) -> Result<Self> {
        let mut parts = path.splitn(3, "::");
        let (Some(package), Some(target)) = (parts.next(), parts.next()) else {
            let advice =
                "it must be that, or PACKAGE::BINARY, or PACKAGE::BINARY::TEST, such as kafkaq-tests::outage";
            return path.parse().map(Self::Step).context(advice);
        };
        let options = match target {
            "lib" => vec!["--lib".to_owned()],
            // The only programs with tests are tools, which are called as their packages.
            name if name == package => vec!["--bin".to_owned(), name.to_owned()],
            name => vec!["--test".to_owned(), name.to_owned()],
        };
        Ok(Self::Tests {
            suite: format!("{package}::{target}"),
            package: package.to_owned(),
            target: options,
            test: parts.next().map(str::to_owned),
        })
    }
}

/// Runs all checks, or the requested ones.
///
/// # Errors
/// If one fails, or on an interrupt; by then the servers are down again.
pub(crate) fn everything(options: &Options) -> Result<()> {
    if let Some(Only::Step(step)) = options.only {
        prerequisites::ensure(&prerequisites::build_tools())?;
        return step.run();
    }
    let dir = xtask::root().join(".services/test");
    fs::create_dir_all(&dir)?;
    let one_run = File::create(dir.join("run.lock"))?;
    one_run.try_lock().map_err(|_| anyhow!("another `cargo xtask test` is running in this folder"))?;

    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    prerequisites::ensure_space(target.as_deref().unwrap_or(xtask::root()))?;

    let mut check = Check { report: Report::default(), options, dir };
    // Without them no check is meaningful.
    if check.report.step("prerequisites", || prerequisites(options)) {
        check.all();
    }
    check.report.print();
    check.report.verdict()
}

/// A run in progress.
struct Check<'a> {
    report: Report,
    options: &'a Options,
    /// The folder of its servers and output.
    dir: PathBuf,
}

impl Check<'_> {
    fn all(&mut self) {
        let Options { quick, only, backends, .. } = self.options;
        match (only, backends) {
            (Some(Only::Tests { package, target, .. }), _) => {
                let shared: &[Service] = if suites::share_servers(package) { Service::ALL } else { &[] };
                self.on_servers(target, shared, &[]);
            }
            (_, Some(backends)) => {
                let env = [(Backends::ENV_VAR, backends.as_str().to_owned())];
                self.on_servers(&["--test", "matrix"].map(str::to_owned), &backends.services(), &env);
            }
            _ => {
                for step in Step::SHORT {
                    if self.applies(step) {
                        self.report.step(step.name(), || step.run());
                    }
                }
                if *quick {
                    self.report.step("clippy", || Step::Clippy.run());
                    self.report.step("quickstart", || Step::Quickstart.run());
                    self.quick_tests();
                } else {
                    self.on_servers(&[], Service::ALL, &[]);
                }
            }
        }
    }

    /// Returns whether to run a step. If not, the summary says so.
    fn applies(&mut self, step: Step) -> bool {
        let why_not = step.why_not();
        let applies = why_not.is_none();
        if let Some(why) = why_not {
            self.report.skip(step.name(), why);
        }
        applies
    }

    /// All unit tests, and all other tests of the crates that need no server.
    fn quick_tests(&mut self) {
        let mut which = vec!["--lib".to_owned(), "--bins".to_owned()];
        let integration = metadata::integration_tests(WITHOUT_SERVERS).unwrap_or_default();
        which.extend(integration.into_iter().flat_map(|test| ["--test".to_owned(), test]));
        let mut suites = self.built(&which).suites;
        suites.retain(|suite| match &suite.kind {
            Kind::Tests { package, unit } => *unit || WITHOUT_SERVERS.contains(&package.as_str()),
            _ => true,
        });
        suites.push(documents());
        self.run("tests", suites, &[], &[]);
    }

    /// Runs tests on their own servers: all, or the requested ones of what these cargo options build.
    fn on_servers(&mut self, which: &[String], services: &[Service], env: &[(&'static str, String)]) {
        let mut suites = self.built(which);
        let quickstart = self.put_aside(suites.quickstart.take());
        let mut suites = std::mem::take(&mut suites.suites);
        if let Some(Only::Tests { suite: only, test, .. }) = &self.options.only {
            let there = suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>().join(", ");
            suites.retain(|suite| suite.name == *only);
            self.report.check(!suites.is_empty(), || format!("there is no test binary {only} in {there}"));
            suites.iter_mut().for_each(|suite| suite.only(test.as_deref()));
        }
        let all = which.is_empty();
        if all {
            // They use the CPU time that the tests leave idle.
            for step in Step::LONG {
                if !self.applies(step) {
                    continue;
                }
                match step.suite() {
                    Ok(suite) => suites.push(suite),
                    Err(error) => self.report.check(false, || format!("{error:#}")),
                }
            }
            suites.push(documents());
        }
        if suites.is_empty() {
            return;
        }
        let own = Services::of(self.dir.clone()).for_tests();
        let mut env = env.to_vec();
        if services.is_empty() || self.up(&own, services, &mut env) {
            self.run("tests", suites, services, &env);
            if all {
                self.quickstart(quickstart, &env);
            }
        } else {
            // The others start their own.
            suites.retain(|suite| !suite.shares_servers());
            self.run("tests that need no shared servers", suites, &[], &env);
        }
        if !services.is_empty() {
            // Also after a failure or an interrupt, regardless of either.
            self.report.step_always("services down", || own.down(Service::KINDS));
        }
    }

    fn built(&mut self, which: &[String]) -> Built {
        // The first builds the same as the second, but a compile error doesn't stop the rest.
        let all: &[&str] = &["build", "--workspace", "--tests", "--examples", "--keep-going"];
        let mut cargo = tests(if which.is_empty() { all } else { &["test", "--workspace", "--no-run"] });
        cargo.args(which);
        let mut built = Built::default();
        let messages = self.dir.join("built.json");
        self.report.step("tests built", || built.build(&mut cargo, &messages));
        built
    }

    /// A later build without features has the same name.
    fn put_aside(&mut self, quickstart: Option<PathBuf>) -> Option<PathBuf> {
        let aside = self.dir.join("quickstart");
        match fs::copy(quickstart?, &aside) {
            Ok(_) => Some(aside),
            Err(error) => {
                self.report.check(false, || format!("the quickstart can't be copied: {error}"));
                None
            }
        }
    }

    /// Starts new servers, and puts their addresses into `env`. The one in Kafka's place uses its name.
    fn up(&mut self, own: &Services, services: &[Service], env: &mut Vec<(&'static str, String)>) -> bool {
        let started = services.iter().map(|&service| self.in_place_of(service)).collect::<Vec<_>>();
        self.report.step("services up", || {
            // What a killed run may have left.
            own.down(Service::KINDS)?;
            let urls = own.up(&started)?;
            env.extend(services.iter().map(|service| service.env_var()).zip(urls));
            Ok(())
        })
    }

    fn in_place_of(&self, service: Service) -> Service {
        if service == Service::Kafka { self.options.kafka } else { service }
    }

    fn run(
        &mut self,
        step: &'static str,
        mut suites: Vec<Suite>,
        services: &[Service],
        env: &[(&'static str, String)],
    ) {
        suites.iter_mut().for_each(|suite| suite.set(env));
        let folders = services.iter().map(|&service| self.dir.join(self.in_place_of(service).name()));
        let again = match self.options.kafka {
            Service::Kafka => "cargo xtask test --only ".to_owned(),
            other => format!("cargo xtask test --kafka {other} --only "),
        };
        let place = Place { output: self.dir.join("output"), shared_servers: folders.collect(), again };
        self.report.suites(step, || suites::run(suites, &place));
    }

    /// As the README has it, but built with everything else.
    fn quickstart(&mut self, program: Option<PathBuf>, env: &[(&'static str, String)]) {
        // Otherwise its build has failed, which was reported.
        let Some(program) = program else { return };
        self.report.step("quickstart on Kafka and Redis", || {
            let mut quickstart = Command::new(program);
            for service in Service::QUICKSTART {
                let url = env.iter().find(|(name, _)| *name == service.env_var());
                let (_, url) = url.with_context(|| format!("{service} was not started"))?;
                quickstart.arg(format!("--{service}")).arg(url);
            }
            run(&mut quickstart)
        });
    }
}

/// The blocks of Rust in documents and comments, which cargo builds and runs. None needs a server.
fn documents() -> Suite {
    let command = tests(&["test", "--doc", "--workspace", "--no-fail-fast"]);
    Suite { name: "documents".to_owned(), kind: Kind::Documents, command }
}

fn prerequisites(options: &Options) -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        capture(&mut cargo(&[subcommand, "--version"]))
            .with_context(|| format!("please install: rustup component add {component}"))?;
    }
    let mut tools = prerequisites::build_tools();
    if !options.quick {
        tools.push(KCAT);
        if Step::Cost.why_not().is_none() {
            tools.push(VALGRIND);
        }
        // Servers that tests start with custom options are processes, even if the others are containers.
        tools.extend([prerequisites::REDIS, prerequisites::ETCD]);
        tools.extend(Service::ALL.iter().flat_map(|service| service.tools()));
    }
    prerequisites::ensure(&tools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_or_test_is_selected_by_the_name_in_its_failure() {
        let only = |path: &str| match path.parse().unwrap() {
            Only::Tests { suite, target, test, .. } => (suite, target.join(" "), test.unwrap_or_default()),
            Only::Step(step) => (step.name().to_owned(), String::new(), String::new()),
        };
        let own = |parts: (&str, &str, &str)| (parts.0.to_owned(), parts.1.to_owned(), parts.2.to_owned());
        for (path, parts) in [
            (
                "kafkaq-tests::matrix::rdkafka_redis::x",
                ("kafkaq-tests::matrix", "--test matrix", "rdkafka_redis::x"),
            ),
            ("kafkaq-core::lib", ("kafkaq-core::lib", "--lib", "")),
            ("xtask::xtask", ("xtask::xtask", "--bin xtask", "")),
            ("clippy", ("clippy", "", "")),
        ] {
            assert_eq!(only(path), own(parts));
        }
        assert!("outage".parse::<Only>().unwrap_err().to_string().contains("kafkaq-tests::outage"));
    }
}
