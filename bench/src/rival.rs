//! The queues that kafkaq is compared with, and how the program of each is built.
//!
//! Its source is in a folder of the rival's name beside this package. It is copied to the target folder and built
//! there, so that build artifacts stay there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use xtask::command::capture;
use xtask::prerequisites::on_path;
use xtask::services::KAFKA_VERSION;

use crate::stage::Program;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    ShareGroups,
    Asynq,
    Apalis,
    BullMq,
}

impl Rival {
    pub(crate) const ALL: [Rival; 4] = [Rival::ShareGroups, Rival::Asynq, Rival::Apalis, Rival::BullMq];

    /// The name on the command line and of the folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rival::ShareGroups => "share-groups",
            Rival::Asynq => "asynq",
            Rival::Apalis => "apalis",
            Rival::BullMq => "bullmq",
        }
    }

    /// The programs that build and run it, and where each comes from.
    fn tools(self) -> &'static [(&'static str, &'static str)] {
        const JDK: &str = "a JDK, 17 or later";
        match self {
            Rival::ShareGroups => &[("java", JDK), ("javac", JDK), ("mvn", "Maven")],
            Rival::Asynq => &[("go", "Go, 1.24 or later: https://go.dev/dl")],
            Rival::Apalis => &[],
            Rival::BullMq => &[
                ("node", "Node.js, 20 or later: https://nodejs.org"),
                ("npm", "npm, which comes with Node.js"),
            ],
        }
    }

    /// Returns the platform that it runs on, as reported by the platform.
    pub(crate) fn platform(self) -> Option<String> {
        let (program, argument) = match self {
            Rival::ShareGroups => ("java", "--version"),
            Rival::Asynq => ("go", "version"),
            Rival::BullMq => ("node", "--version"),
            Rival::Apalis => return None,
        };
        let said = capture(Command::new(program).arg(argument)).ok()?;
        Some(format!("{program} ({})", said.lines().next()?.trim()))
    }

    /// Builds the program in a folder, and returns how it is started.
    pub(crate) fn build(self, below: &Path) -> Result<Program> {
        self.try_build(&below.join(self.name())).with_context(|| {
            let name = self.name();
            format!("{name} can't be built; `--rivals` with the other names goes without it")
        })
    }

    fn try_build(self, folder: &Path) -> Result<Program> {
        copy(&xtask::root().join("bench").join(self.name()), folder)?;
        let build = |program: &str, args: &[&str]| {
            capture(Command::new(program).args(args).current_dir(folder)).map(drop)
        };
        let program = |program, words: &[&str]| {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            Program { program, words }
        };
        let file = |name: &str| folder.join(name).display().to_string();
        match self {
            Rival::ShareGroups => {
                build("mvn", &["-B", "-q", &format!("-Dkafka.version={KAFKA_VERSION}"), "compile"])?;
                let path = format!("{}:{}", file("target/classes"), file("target/dependency/*"));
                let logger = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn";
                Ok(program("java".to_owned(), &[logger, "-cp", &path, "ShareGroups"]))
            }
            Rival::Asynq => {
                build("go", &["build", "-mod=readonly", "-o", "driver", "."])?;
                Ok(program(file("driver"), &[]))
            }
            Rival::Apalis => {
                let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
                build(&cargo, &["build", "--release", "--locked", "--target-dir", "target"])?;
                Ok(program(file("target/release/apalis-driver"), &[]))
            }
            Rival::BullMq => {
                build("npm", &["ci", "--no-audit", "--no-fund"])?;
                Ok(program("node".to_owned(), &[&file("driver.mjs")]))
            }
        }
    }
}

impl FromStr for Rival {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match Rival::ALL.into_iter().find(|rival| rival.name() == name) {
            Some(rival) => Ok(rival),
            None => {
                bail!("there is no rival `{name}`: it must be {}", Rival::ALL.map(Rival::name).join(", "))
            }
        }
    }
}

/// Checks that the tools of these rivals are there.
///
/// # Errors
/// Names what to install, and how to leave out the rival.
pub(crate) fn ensure_tools(rivals: &[Rival]) -> Result<()> {
    refuse_missing(rivals, on_path)
}

fn refuse_missing(rivals: &[Rival], is_there: impl Fn(&str) -> bool) -> Result<()> {
    let mut missing = String::new();
    for rival in rivals {
        for (program, what) in rival.tools().iter().filter(|(program, _)| !is_there(program)) {
            missing += &format!("\n  {program} for {}: {what}", rival.name());
        }
    }
    ensure!(
        missing.is_empty(),
        "please install what is missing, or name the other rivals with --rivals:{missing}"
    );
    Ok(())
}

/// Copies a folder of sources. Other existing files stay: they are artifacts of an earlier build.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to: PathBuf = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else if fs::read(entry.path())? != fs::read(&to).unwrap_or_default() {
            // Only what has changed: otherwise everything would be rebuilt.
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_known_by_its_name_and_has_a_folder() {
        for rival in Rival::ALL {
            assert_eq!(rival.name().parse::<Rival>().unwrap(), rival);
            assert!(xtask::root().join("bench").join(rival.name()).is_dir());
        }
        assert!("sidekiq".parse::<Rival>().unwrap_err().to_string().contains("share-groups, asynq"));
    }

    #[test]
    fn missing_tools_are_named_with_their_rival() {
        refuse_missing(&Rival::ALL, |_| true).unwrap();
        refuse_missing(&[Rival::Apalis], |_| false).unwrap();
        let error =
            refuse_missing(&[Rival::Asynq, Rival::BullMq], |tool| tool == "node").unwrap_err().to_string();
        assert!(error.contains("go for asynq") && error.contains("npm for bullmq"), "{error}");
        assert!(!error.contains("node for"), "{error}");
    }

    /// A lock file names packages, but no mirrors.
    #[test]
    fn lock_files_name_no_address_but_the_public_ones() {
        for (lock, public) in [
            ("bullmq/package-lock.json", "https://registry.npmjs.org/"),
            ("apalis/Cargo.lock", "https://github.com/rust-lang/crates.io-index"),
        ] {
            let text = fs::read_to_string(xtask::root().join("bench").join(lock)).unwrap();
            let resolved = text.lines().filter(|line| line.contains("resolved") || line.contains("source ="));
            let private: Vec<_> = resolved.filter(|line| !line.contains(public)).collect();
            assert!(private.is_empty(), "{lock}: {private:?}");
        }
    }
}
