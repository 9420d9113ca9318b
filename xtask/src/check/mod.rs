//! `cargo xtask test`: everything that must hold. What fails is noted and told at the end, with the command that
//! repeats it; what doesn't depend on it is still run, and the servers are always ended.
//!
//! All steps that build the workspace choose the same features and the same profile, so that the C library and the
//! dependencies are built once.

mod built;
mod features;
mod lanes;
mod licences;
mod metadata;
mod output;
mod packages;
mod report;
mod suites;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use xtask::command::{capture, run};
use xtask::prerequisites::{self, KCAT};
use xtask::services::{Service, Services};

use crate::backends::Backends;
use crate::cargo;
use built::Built;
use report::Report;
use suites::{Place, Suite};

/// Not `--all-features`: among them are ways to build librdkafka that exclude each other or take many minutes. The
/// tests start servers as we do.
const FEATURES: &[&str] = &[
    "--features=kafkaq/full,kafkaq-etcd/tls,kafkaq-redis/tls,kafkaq-rskafka/tls,kafkaq-tests/mimalloc",
    #[cfg(feature = "containers")]
    "--features=xtask/containers",
];

/// Packages of which no test meets a server.
const WITHOUT_SERVERS: &[&str] = &["kafkaq", "kafkaq-core", "kafkaq-conformance", "kafkaq-sim", "xtask"];

/// How much to check.
#[derive(Debug)]
pub(crate) struct Options {
    /// No servers, no documentation.
    pub(crate) quick: bool,
    /// Nothing but this test binary, or of it this test.
    pub(crate) only: Option<Only>,
    /// Nothing but the matrix, and of it the pairs of these.
    pub(crate) backends: Option<Backends>,
    /// What runs in Kafka's place: itself, or Redpanda.
    pub(crate) kafka: Service,
}

impl Default for Options {
    fn default() -> Self {
        Self { quick: false, only: None, backends: None, kafka: Service::Kafka }
    }
}

/// `PACKAGE::BINARY` and perhaps `::TEST`, as a failed test is told.
#[derive(Debug)]
pub(crate) struct Only {
    suite: String,
    /// How cargo names the binary.
    target: Vec<String>,
    test: Option<String>,
}

impl Only {
    fn package(&self) -> &str {
        self.suite.split("::").next().unwrap_or_default()
    }
}

impl std::str::FromStr for Only {
    type Err = anyhow::Error;

    fn from_str(path: &str) -> Result<Self> {
        let mut parts = path.splitn(3, "::");
        let (Some(package), Some(target)) = (parts.next(), parts.next()) else {
            bail!(
                "--only {path}: it is PACKAGE::BINARY or PACKAGE::BINARY::TEST, such as kafkaq-tests::outage"
            )
        };
        let option = match target {
            "lib" => vec!["--lib".to_owned()],
            // The only programs with tests are tools, which are called as their packages.
            name if name == package => vec!["--bin".to_owned(), name.to_owned()],
            name => vec!["--test".to_owned(), name.to_owned()],
        };
        Ok(Self {
            suite: format!("{package}::{target}"),
            target: option,
            test: parts.next().map(str::to_owned),
        })
    }
}

/// Runs every check, or those that were asked for.
///
/// # Errors
/// When one fails, or at an interrupt; by then the servers are down again.
pub(crate) fn everything(options: &Options) -> Result<()> {
    let dir = xtask::root().join(".services/test");
    fs::create_dir_all(&dir)?;
    let one_run = File::create(dir.join("run.lock"))?;
    one_run.try_lock().map_err(|_| anyhow!("another `cargo xtask test` is under way in this folder"))?;

    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    prerequisites::ensure_space(target.as_deref().unwrap_or(xtask::root()))?;

    let mut check = Check { report: Report::default(), options, dir };
    // Without them nothing says anything about the project.
    if check.report.step("prerequisites", || prerequisites(options)) {
        check.all();
    }
    check.report.print();
    check.report.verdict()
}

/// A run under way.
struct Check<'a> {
    report: Report,
    options: &'a Options,
    /// Where its servers live, and what it leaves to read.
    dir: PathBuf,
}

impl Check<'_> {
    fn all(&mut self) {
        let Options { quick, only, backends, .. } = self.options;
        match (only, backends) {
            (Some(only), _) => {
                let shared: &[Service] =
                    if suites::share_servers(only.package()) { Service::ALL } else { &[] };
                self.on_servers(&only.target, shared, &[]);
            }
            (None, Some(backends)) => {
                let env = [(Backends::ENV_VAR, backends.as_str().to_owned())];
                self.on_servers(&["--test", "matrix"].map(str::to_owned), &backends.services(), &env);
            }
            (None, None) => {
                self.without_tests();
                if *quick {
                    self.quick_tests();
                } else {
                    self.on_servers(&[], Service::ALL, &[]);
                }
            }
        }
    }

    fn without_tests(&mut self) {
        let report = &mut self.report;
        report.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
        report.step("rust-version", metadata::check_rust_version);
        report.step("packages", packages::check);
        match licences::find() {
            Ok(deny) => drop(report.step("licences and sources", || deny.check())),
            // A convenience: nobody has to install it.
            Err(error) => report.skip(
                "licences and sources",
                format!("not checked: {error:#}. To have it: cargo install --locked cargo-deny"),
            ),
        }
        report.step("clippy", || {
            let what = ["clippy", "--workspace", "--all-targets", "--keep-going"];
            run(cargo(&what).args(FEATURES).args(["--", "-D", "warnings"]))
        });
        if !self.options.quick {
            report.step("each feature alone", features::check_each);
            report.step("documentation", || {
                let what = ["doc", "--workspace", "--no-deps"];
                run(cargo(&what).args(FEATURES).env("RUSTDOCFLAGS", "-D warnings"))
            });
        }
        // As the README has it: nothing but Rust.
        report.step("quickstart in memory", || run(&mut cargo(&["run", "--example", "quickstart"])));
    }

    /// All unit tests, and what else the crates have that meet no server.
    fn quick_tests(&mut self) {
        let mut which = vec!["--lib".to_owned(), "--bins".to_owned()];
        let integration = metadata::integration_tests(WITHOUT_SERVERS).unwrap_or_default();
        which.extend(integration.into_iter().flat_map(|test| ["--test".to_owned(), test]));
        let mut suites = self.built(&which).suites;
        suites.retain(|suite| suite.is_unit || WITHOUT_SERVERS.contains(&suite.package.as_str()));
        let each = WITHOUT_SERVERS.iter().flat_map(|package| ["--package", package]);
        suites.push(doctests(&each.collect::<Vec<_>>()));
        self.tests(suites, &[], &[]);
    }

    /// Tests on servers of their own: all, or of what these options of cargo build that which was asked for.
    fn on_servers(&mut self, which: &[String], services: &[Service], env: &[(&'static str, String)]) {
        let mut built = self.built(which);
        match &self.options.only {
            Some(only) => {
                let there = built.suites.iter().map(|suite| suite.name()).collect::<Vec<_>>().join(", ");
                built.suites.retain(|suite| suite.name() == only.suite);
                let found = !built.suites.is_empty();
                self.report.check(found, || format!("there is no test binary {}, but {there}", only.suite));
                built.suites.iter_mut().for_each(|suite| suite.only(only.test.as_deref()));
            }
            None if which.is_empty() => built.suites.push(doctests(&["--workspace"])),
            None => {}
        }
        if built.suites.is_empty() {
            return;
        }
        let own = Services::of(self.dir.clone());
        let mut env = env.to_vec();
        if services.is_empty() || self.up(&own, services, &mut env) {
            self.tests(built.suites, services, &env);
            if which.is_empty() {
                self.quickstart(built.quickstart, &env);
            }
        } else {
            // The others start their own.
            built.suites.retain(|suite| !suite.shares_servers());
            self.tests(built.suites, &[], &env);
        }
        if !services.is_empty() {
            // Also after a failure and an interrupt, and without looking at either.
            self.report.step_always("services down", || own.down(Service::KINDS));
        }
    }

    fn built(&mut self, which: &[String]) -> Built {
        let mut cargo = cargo(&["test", "--no-run", "--workspace"]);
        cargo.args(which).args(FEATURES);
        let mut built = Built::default();
        let messages = self.dir.join("built.json");
        self.report.step("tests built", || built.build(&mut cargo, &messages));
        built
    }

    /// Starts servers afresh, and puts into `env` where they are. The one in Kafka's place goes by its name.
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

    fn tests(&mut self, mut suites: Vec<Suite>, services: &[Service], env: &[(&'static str, String)]) {
        suites.iter_mut().for_each(|suite| suite.set(env));
        let logs = services.iter().map(|&service| self.dir.join(self.in_place_of(service).name()));
        let again = match self.options.kafka {
            Service::Kafka => "cargo xtask test --only ".to_owned(),
            other => format!("cargo xtask test --kafka {other} --only "),
        };
        let place = Place {
            output: self.dir.join("output"),
            shared_logs: logs.flat_map(|folder| suites::logs_in(&folder)).collect(),
            again,
        };
        self.report.suites("tests", || suites::run(suites, &place));
    }

    /// As the README has it, but built with everything else.
    fn quickstart(&mut self, program: Option<PathBuf>, env: &[(&'static str, String)]) {
        // Else its build has failed, which was told.
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

/// The blocks of Rust in documents and comments; cargo builds and runs them.
fn doctests(packages: &[&str]) -> Suite {
    let mut command = cargo(&["test", "--doc", "--no-fail-fast"]);
    command.args(packages).args(FEATURES);
    Suite::documents(command)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_is_named_as_its_failure_is_told() {
        let only: Only = "kafkaq-tests::matrix::rdkafka_redis::an_id_is_one_task".parse().unwrap();
        assert_eq!(
            (only.suite.as_str(), &only.target[..]),
            ("kafkaq-tests::matrix", &["--test".to_owned(), "matrix".into()][..])
        );
        assert_eq!(only.test.as_deref(), Some("rdkafka_redis::an_id_is_one_task"));
        let only: Only = "kafkaq-core::lib".parse().unwrap();
        assert_eq!(
            (only.suite.as_str(), &only.target[..], only.test),
            ("kafkaq-core::lib", &["--lib".to_owned()][..], None)
        );
        assert_eq!("xtask::xtask".parse::<Only>().unwrap().target, ["--bin", "xtask"]);
        assert!("outage".parse::<Only>().unwrap_err().to_string().contains("kafkaq-tests::outage"));
    }
}
