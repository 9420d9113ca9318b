//! The checks that run no tests.

use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use xtask::command::run;

use super::suites::{Kind, Suite};
use super::{architecture, blocks, cost, features, licences, metadata, packages, workspace};
use crate::cargo;

/// A check by itself: `cargo xtask test --only clippy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Format,
    RustVersion,
    Architecture,
    Blocks,
    Packages,
    Licences,
    Clippy,
    Features,
    Documentation,
    Quickstart,
    Cost,
}

impl Step {
    /// Fast steps.
    pub(super) const SHORT: [Step; 6] =
        [Step::Format, Step::RustVersion, Step::Architecture, Step::Blocks, Step::Packages, Step::Licences];

    /// CPU-bound steps that take a while.
    pub(super) const LONG: [Step; 5] =
        [Step::Clippy, Step::Features, Step::Documentation, Step::Quickstart, Step::Cost];

    fn all() -> impl Iterator<Item = Step> {
        Step::SHORT.into_iter().chain(Step::LONG)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Step::Format => "format",
            Step::RustVersion => "rust-version",
            Step::Architecture => "architecture",
            Step::Blocks => "blocks",
            Step::Packages => "packages",
            Step::Licences => "licences",
            Step::Clippy => "clippy",
            Step::Features => "features",
            Step::Documentation => "documentation",
            Step::Quickstart => "quickstart",
            Step::Cost => "cost",
        }
    }

    /// Returns why it is skipped here, which is not a failure.
    pub(super) fn why_not(self) -> Option<String> {
        match self {
            // A convenience: it need not be installed.
            Step::Licences => licences::find().err().map(|error| {
                let advice = "to install it: cargo install --locked cargo-deny";
                format!("the licences were not checked. {error:#}; {advice}")
            }),
            Step::Cost => cost::incomparable(),
            _ => None,
        }
    }

    /// Runs it in this process.
    ///
    /// # Errors
    /// If the check fails.
    pub(super) fn run(self) -> Result<()> {
        match self {
            Step::Format => run(&mut cargo(&["fmt", "--all", "--check"])),
            Step::RustVersion => metadata::check_rust_version(),
            Step::Architecture => architecture::check(),
            Step::Blocks => blocks::check(),
            Step::Packages => packages::check(),
            Step::Licences => licences::find()?.check(),
            Step::Clippy => {
                run(workspace("clippy").args(["--all-targets", "--keep-going", "--", "-D", "warnings"]))
            }
            Step::Features => features::check_each(),
            Step::Documentation => run(workspace("doc").arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings")),
            // As in the README: with nothing but Rust.
            Step::Quickstart => run(&mut cargo(&["run", "--example", "quickstart"])),
            Step::Cost => cost::check(),
        }
    }

    /// The same as a separate process, to run in parallel with others.
    ///
    /// # Errors
    /// If the path of this program can't be determined.
    pub(super) fn suite(self) -> Result<Suite> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["test", "--only", self.name()]).current_dir(xtask::root());
        Ok(Suite { name: self.name().to_owned(), kind: Kind::Step, command })
    }
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match Step::all().find(|step| step.name() == name) {
            Some(step) => Ok(step),
            None => bail!("there is no check `{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_known_by_its_name_and_is_short_or_long() {
        for step in Step::all() {
            assert_eq!(step.name().parse::<Step>().unwrap(), step);
            assert!(Step::SHORT.contains(&step) != Step::LONG.contains(&step));
        }
        assert!("speed".parse::<Step>().unwrap_err().to_string().contains("speed"));
    }
}
