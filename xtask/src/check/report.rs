//! The outcome and duration of each step, and how to repeat failures.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use xtask::command::check_interrupt;

use super::suites::{Outcome, Tally};

/// How many of the slowest test binaries the summary names.
const SLOWEST: usize = 10;

/// Grows with each step; failures are recorded, and the next step continues.
#[derive(Debug, Default)]
pub(super) struct Report {
    steps: Vec<Step>,
    suites: Vec<Outcome>,
    failures: Vec<Failure>,
}

#[derive(Debug)]
struct Step {
    name: String,
    came_to: CameTo,
}

#[derive(Debug)]
enum CameTo {
    End {
        passed: bool,
        took: Duration,
        cpu: Duration,
    },
    /// It was skipped, for this reason.
    Skipped(String),
}

/// A failure, with what is needed to investigate it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) what: String,
    pub(super) why: String,
    /// The commands that repeat it alone.
    pub(super) again: Vec<String>,
    /// Files to read: output, and the folders of servers.
    pub(super) read: Vec<PathBuf>,
}

impl Report {
    /// Runs a step. Returns whether it passed, for steps that depend on it. After an interrupt no step is started.
    pub(super) fn step(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> bool {
        check_interrupt().is_ok() && self.step_always(name, step)
    }

    /// The same, but also after an interrupt: for cleanup.
    pub(super) fn step_always(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> bool {
        let mut result = Ok(());
        self.measured(name, |_| {
            result = step();
            result.is_ok()
        });
        if let Err(error) = result {
            let why = format!("{error:#}");
            self.failures.push(Failure { what: name.to_owned(), why, again: Vec::new(), read: Vec::new() });
            return false;
        }
        true
    }

    /// Records a failure outside of any step.
    pub(super) fn check(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            let what = "test binary".to_owned();
            self.failures.push(Failure { what, why: why(), again: Vec::new(), read: Vec::new() });
        }
    }

    /// Runs test binaries: `run` returns their outcomes. Returns whether all passed.
    pub(super) fn suites(&mut self, name: &'static str, run: impl FnOnce() -> Vec<Outcome>) -> bool {
        check_interrupt().is_ok()
            && self.measured(name, |report| {
                let outcomes = run();
                let (steps, suites): (Vec<_>, Vec<_>) =
                    outcomes.into_iter().partition(|outcome| outcome.is_step);
                for Outcome { name, took, cpu, failure, .. } in steps {
                    report
                        .steps
                        .push(Step { name, came_to: CameTo::End { passed: failure.is_none(), took, cpu } });
                    report.failures.extend(failure);
                }
                let passed = suites.iter().all(|suite| suite.failure.is_none());
                report.suites.extend(suites);
                passed
            })
    }

    fn measured(&mut self, name: &'static str, step: impl FnOnce(&mut Self) -> bool) -> bool {
        println!("\n=== {name}");
        let (since, cpu) = (Instant::now(), cpu_of_children());
        let passed = step(self);
        let (took, cpu) = (since.elapsed(), cpu_of_children().saturating_sub(cpu));
        println!("=== {name}: {} after {}", word(passed), seconds(took));
        self.steps.push(Step { name: name.to_owned(), came_to: CameTo::End { passed, took, cpu } });
        passed
    }

    pub(super) fn skip(&mut self, name: &'static str, why: String) {
        println!("\n=== {name}: skipped; {why}");
        self.steps.push(Step { name: name.to_owned(), came_to: CameTo::Skipped(why) });
    }

    /// The tables, and at the very end what failed.
    pub(super) fn print(&self) {
        println!("\n=== summary{:>38}{:>12}", "wall", "processor");
        for Step { name, came_to } in &self.steps {
            match came_to {
                CameTo::End { passed, took, cpu } => {
                    println!("{name:<30}{:<8}{:>11}{:>12}", word(*passed), seconds(*took), seconds(*cpu));
                }
                CameTo::Skipped(why) => println!("{name:<30}skipped: {why}"),
            }
        }
        // An interrupted step has not failed by itself.
        if check_interrupt().is_ok() {
            self.print_suites();
            self.failures().for_each(Failure::print);
        }
    }

    fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failures.iter().chain(self.suites.iter().filter_map(|suite| suite.failure.as_ref()))
    }

    fn print_suites(&self) {
        if self.suites.is_empty() {
            return;
        }
        let mut slowest: Vec<_> = self.suites.iter().collect();
        slowest.sort_by_key(|suite| std::cmp::Reverse(suite.took));
        println!("\n=== the slowest of {} test binaries", self.suites.len());
        for suite in slowest.iter().take(SLOWEST) {
            let Outcome { name, took, cpu, tally, .. } = suite;
            println!("{name:<38}{:>11}{:>12}   {} passed", seconds(*took), seconds(*cpu), tally.passed);
        }
        let mut sum = Tally::default();
        self.suites.iter().for_each(|suite| sum.add(suite.tally));
        let took = self.suites.iter().map(|suite| suite.took).sum::<Duration>();
        let all = self.suites.iter().all(|suite| suite.failure.is_none());
        println!("\n=== all tests\n{}", sum.line(all, took));
    }

    /// # Errors
    /// If anything failed, and after an interrupt.
    pub(super) fn verdict(&self) -> Result<()> {
        check_interrupt()?;
        let failed: Vec<_> = self.failures().map(|failure| failure.what.as_str()).collect();
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }
}

impl Failure {
    fn print(&self) {
        println!("\n=== failed: {}\n{}", self.what, self.why);
        if !self.again.is_empty() {
            println!("to repeat it alone:");
            self.again.iter().for_each(|command| println!("    {command}"));
        }
        if !self.read.is_empty() {
            println!("its output, and the logs of its servers:");
            let files = self.read.iter().flat_map(|path| files(path));
            files.for_each(|path| println!("    {}", path.display()));
        }
    }
}

/// Returns a file itself; for a server's folder, its log or those of its nodes.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let inner = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path().join("log"));
    let mut logs: Vec<_> =
        std::iter::once(path.join("log")).chain(inner).filter(|log| log.is_file()).collect();
    logs.sort();
    logs
}

pub(super) fn word(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// CPU time of programs that have ended.
fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN);
    let micros = usage.map_or(0, |usage| (usage.user_time() + usage.system_time()).num_microseconds());
    Duration::from_micros(micros.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn steps_after_a_failure_run_and_the_failure_is_reported() {
        let mut report = Report::default();
        assert!(!report.step("first", || Err(anyhow!("for a reason"))));
        assert!(report.step("second", || Ok(())));
        assert_eq!(report.steps.len(), 2);
        assert_eq!(report.failures[0].why, "for a reason");
        assert_eq!(report.verdict().unwrap_err().to_string(), "failed: first");
    }

    #[test]
    fn what_is_skipped_fails_nothing() {
        let mut report = Report::default();
        report.skip("licences", "nobody has the tool".to_owned());
        assert!(report.step("other", || Ok(())));
        report.verdict().unwrap();
    }

    #[test]
    fn logs_of_all_nodes_of_a_cluster_are_listed() {
        let cluster = std::env::temp_dir().join(format!("xtask-report-{}", std::process::id()));
        for node in ["node-1", "node-2"] {
            fs::create_dir_all(cluster.join(node)).unwrap();
            fs::write(cluster.join(node).join("log"), "").unwrap();
        }
        let logs = files(&cluster);
        fs::remove_dir_all(&cluster).unwrap();
        assert_eq!(logs, ["node-1/log", "node-2/log"].map(|log| cluster.join(log)));
    }

    #[test]
    fn a_failed_suite_is_a_failure() {
        let mut report = Report::default();
        let outcome = |name: &str, passed: bool| {
            let failure = Failure { what: name.to_owned(), why: String::new(), again: vec![], read: vec![] };
            let (took, cpu, tally) = (Duration::ZERO, Duration::ZERO, Tally::default());
            let failure = (!passed).then_some(failure);
            Outcome { name: name.to_owned(), is_step: false, took, cpu, tally, failure }
        };
        let outcomes = vec![outcome("kafkaq::lib", true), outcome("kafkaq::jobs", false)];
        assert!(!report.suites("tests", || outcomes));
        assert_eq!(report.verdict().unwrap_err().to_string(), "failed: kafkaq::jobs");
    }
}
