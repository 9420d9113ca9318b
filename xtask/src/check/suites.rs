//! Runs test binaries in parallel, and collects their outcomes.
//!
//! Most of them wait for servers and leases most of the time, so even on two cores several take hardly longer than the
//! longest.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::command::{Ended, interrupted, last_lines, quoted, run_into, shown};

use super::lanes::{self, Lane};
use super::load;
use super::output;
pub(super) use super::output::Tally;
use super::report::{Failure, seconds, word};

/// No test binary takes even a quarter of this. One that hangs is killed, and the others still run.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Packages whose tests use shared servers. The others start their own.
const SHARERS: &[&str] = &["kafkaq-tests", "kafkaq-rdkafka"];

/// A program that is run in parallel with others and prints its outcome at the end.
#[derive(Debug)]
pub(super) struct Suite {
    /// `kafkaq-tests::outage`.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) command: Command,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A test binary.
    Tests {
        package: String,
        /// Whether these are unit tests.
        unit: bool,
    },
    /// The blocks of Rust in documents and comments, which cargo runs.
    Documents,
    /// A check that runs no tests.
    Step,
}

impl Suite {
    /// Whether it needs servers that were started before it.
    pub(super) fn shares_servers(&self) -> bool {
        matches!(&self.kind, Kind::Tests { package, unit: false } if share_servers(package))
    }

    /// Runs only this one of its tests.
    pub(super) fn only(&mut self, test: Option<&str>) {
        if let Some(test) = test {
            self.command.args([test, "--exact"]);
        }
    }

    /// Sets these variables in its environment.
    pub(super) fn set(&mut self, env: &[(&'static str, String)]) {
        if self.kind != Kind::Step {
            self.command.envs(env.iter().map(|(name, value)| (name, value)));
        }
    }

    /// The command that repeats it, or one of its tests.
    fn again(&self, test: Option<&str>, place: &Place) -> String {
        let test = test.map(quoted);
        if self.kind == Kind::Documents {
            let test = test.map(|test| format!(" -- {test}")).unwrap_or_default();
            return format!("{}{test}", shown(&self.command));
        }
        let test = test.map(|test| format!("::{test}")).unwrap_or_default();
        format!("{}{}{test}", place.again, self.name)
    }
}

/// Whether the tests of a package need servers that were started before them.
pub(super) fn share_servers(package: &str) -> bool {
    SHARERS.contains(&package)
}

/// Where things are, for all suites of a run.
#[derive(Debug)]
pub(super) struct Place {
    /// What the suites print goes here, a file each.
    pub(super) output: PathBuf,
    /// The folders of the servers that suites share.
    pub(super) shared_servers: Vec<PathBuf>,
    /// How a failed test is repeated: this, and then `SUITE::TEST`.
    pub(super) again: String,
}

/// The outcome of a suite.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) name: String,
    /// Whether it was a check that runs no tests.
    pub(super) is_step: bool,
    pub(super) took: Duration,
    pub(super) cpu: Duration,
    pub(super) tally: Tally,
    pub(super) failure: Option<Failure>,
}

/// Runs all of `suites`, and prints the output of each when it has ended.
pub(super) fn run(suites: Vec<Suite>, place: &Place) -> Vec<Outcome> {
    let lane = |Lane { suites, width, nice }| (Mutex::new(VecDeque::from(suites)), width, nice);
    let lanes = lanes::of(suites).map(lane);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for (lane, width, nice) in &lanes {
            for place_in_lane in 0..*width {
                let sender = sender.clone();
                scope.spawn(move || {
                    while let Some(suite) = next(lane, place_in_lane) {
                        let (outcome, output) = run_one(suite, *nice, place);
                        // It receives as long as there are senders.
                        let _ = sender.send((outcome, output));
                    }
                });
            }
        }
        drop(sender);
        ended.iter().map(|(outcome, output)| told(outcome, &output)).collect()
    })
}

fn next(lane: &Mutex<VecDeque<Suite>>, place_in_lane: usize) -> Option<Suite> {
    let locked = || lane.lock().unwrap_or_else(PoisonError::into_inner);
    if place_in_lane >= lanes::ALWAYS {
        load::wait_until_low(|| locked().is_empty() || interrupted());
    }
    let next = locked().pop_front();
    next.filter(|_| !interrupted())
}

/// Prints a suite's output as cargo would.
fn told(outcome: Outcome, output: &str) -> Outcome {
    println!("\n     Running {}\n{}", outcome.name, output.trim_end());
    println!("--- {}: {} after {}", outcome.name, word(outcome.failure.is_none()), seconds(outcome.took));
    outcome
}

fn run_one(mut suite: Suite, nice: bool, place: &Place) -> (Outcome, String) {
    println!("--- {} begins", suite.name);
    let path = place.output.join(format!("{}.log", suite.name.replace("::", ".")));
    let mut niced = nice.then(|| niced(&suite.command));
    let command = niced.as_mut().unwrap_or(&mut suite.command);
    let ended = output_file(&path).and_then(|file| run_into(command, &file, LIMIT));
    let said = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let Ended { pid, result, took, cpu } = ended.unwrap_or_else(|error| Ended {
        pid: 0,
        result: Err(error),
        took: Duration::ZERO,
        cpu: Duration::ZERO,
    });
    let failure = result.err().map(|error| {
        let mut read = vec![path];
        read.extend(own_servers(pid));
        read.extend(place.shared_servers.iter().filter(|_| suite.shares_servers()).cloned());
        failure(&suite, &said, &error, read, place)
    });
    let is_step = suite.kind == Kind::Step;
    (Outcome { name: suite.name, is_step, took, cpu, tally: Tally::of(&said), failure }, said)
}

fn failure(suite: &Suite, said: &str, error: &anyhow::Error, read: Vec<PathBuf>, place: &Place) -> Failure {
    let set = output::seed(said).map(|seed| format!("{seed} ")).unwrap_or_default();
    let again = |test| format!("{set}{}", suite.again(test, place));
    let failed = output::failed(said);
    let (why, again) = match suite.kind {
        Kind::Step => (last_lines(said.trim_end(), 20), vec![again(None)]),
        _ if failed.is_empty() => (format!("{error:#}; it named no test"), vec![again(None)]),
        _ => (failed.join("\n"), failed.iter().map(|test| again(Some(test))).collect()),
    };
    Failure { what: suite.name.clone(), why, again, read }
}

/// The same, at a lower priority.
fn niced(command: &Command) -> Command {
    let mut niced = Command::new("nice");
    niced.arg("-n10").arg(command.get_program()).args(command.get_args());
    niced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    niced.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    niced
}

/// A new file; an earlier run's is gone.
fn output_file(path: &Path) -> Result<File> {
    let advice = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(advice)?;
    }
    File::create(path).and_then(|_| File::options().append(true).open(path)).with_context(advice)
}

/// Returns the folders of the servers that a test's process started. Those of passed tests no longer exist.
fn own_servers(pid: u32) -> Vec<PathBuf> {
    let own = |name: &str| name.starts_with("kafkaq-") && name.contains(&format!("-{pid}-"));
    let folders = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let folders = folders.filter(|entry| own(&entry.file_name().to_string_lossy())).map(|entry| entry.path());
    let mut folders: Vec<_> = folders.collect();
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A suite that runs a shell script.
    fn suite(name: &str, script: &str) -> Suite {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let kind = Kind::Tests { package: "none".to_owned(), unit: true };
        Suite { name: name.to_owned(), kind, command }
    }

    /// A place that is removed when this is dropped.
    struct Scratch(Place);

    impl Scratch {
        fn new(name: &str) -> Self {
            let output = std::env::temp_dir().join(format!("xtask-suites-{name}-{}", std::process::id()));
            let again = "cargo xtask test --only ".to_owned();
            Self(Place { output, shared_servers: Vec::new(), again })
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.output);
        }
    }

    #[test]
    fn failing_suite_does_not_stop_others_and_has_a_command_to_repeat_it() {
        let failing = "echo KAFKAQ_TEST_SEED=7; printf 'failures:\n    one\n    two\n\n'; exit 101";
        let passing = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'";
        let place = Scratch::new("goes-on");
        let suites = vec![suite("a::bad", failing), suite("a::good", passing), suite("b::good", passing)];
        let mut outcomes = run(suites, &place.0);
        outcomes.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["a::bad", "a::good", "b::good"]);
        assert_eq!(outcomes[1].tally.passed + outcomes[2].tally.passed, 6);
        assert!(outcomes[1].failure.is_none());
        let failure = outcomes[0].failure.as_ref().unwrap();
        assert_eq!(failure.why, "one\ntwo");
        let again = |test| format!("KAFKAQ_TEST_SEED=7 cargo xtask test --only a::bad::{test}");
        assert_eq!(failure.again, [again("one"), again("two")]);
        assert_eq!(fs::read_to_string(&failure.read[0]).unwrap().lines().next(), Some("KAFKAQ_TEST_SEED=7"));
    }

    #[test]
    fn suite_that_crashes_or_does_not_start_fails_as_a_whole() {
        let place = Scratch::new("dies");
        let no_program = Suite { command: Command::new("/no/such/program"), ..suite("a::none", "") };
        for suite in [suite("a::dead", "kill -9 $$"), no_program] {
            let name = suite.name.clone();
            let failure = run(vec![suite], &place.0).remove(0).failure.unwrap();
            assert_eq!(failure.again, [format!("cargo xtask test --only {name}")]);
        }
    }

    #[test]
    fn a_block_of_a_document_is_repeated_by_cargo() {
        let place = Scratch::new("documents");
        let failing = "printf 'failures:\n    README.md - (line 3)\n\n'; exit 101";
        let documents = Suite { kind: Kind::Documents, ..suite("documents", failing) };
        let failure = run(vec![documents], &place.0).remove(0).failure.unwrap();
        assert!(failure.again[0].starts_with("sh -c "), "{:?}", failure.again);
        assert!(failure.again[0].ends_with(" -- 'README.md - (line 3)'"), "{:?}", failure.again);
    }

    #[test]
    fn failed_step_shows_the_end_of_its_output() {
        let place = Scratch::new("step");
        let step = Suite { kind: Kind::Step, ..suite("clippy", "seq 100; exit 1") };
        let outcome = run(vec![step], &place.0).remove(0);
        let failure = outcome.failure.unwrap();
        assert!(outcome.is_step && failure.why.starts_with("81\n") && failure.why.ends_with("\n100"));
        assert_eq!(failure.again, ["cargo xtask test --only clippy"]);
    }

    #[test]
    fn the_folders_of_a_suites_own_servers_are_found() {
        let folder = std::env::temp_dir().join(format!("kafkaq-redis-{}-0", u32::MAX));
        fs::create_dir_all(&folder).unwrap();
        let found = own_servers(u32::MAX);
        fs::remove_dir(&folder).unwrap();
        assert_eq!(found, [folder]);
    }
}
