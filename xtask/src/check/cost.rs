//! The client's cost per task, counted by callgrind: a count is the same on an idle and on a busy machine.
//!
//! The figures are those of one compiler, target and C library; elsewhere they are not compared. `COST=overwrite`
//! rewrites them.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use xtask::command::{capture, run};
use xtask::prerequisites::{self, VALGRIND};

use super::metadata;
use crate::cargo;

/// The parts of `kafkaq-cost`, each with a number of tasks for which the counts are stable.
const PARTS: [(&str, u32); 5] =
    [("machine", 5000), ("publish", 2000), ("publish-many", 5000), ("one-worker", 1000), ("workers", 5000)];

/// From run to run a count differs by less than half a percent.
const MOST_RISE: f64 = 0.02;
/// So that an improvement isn't lost again unnoticed.
const MOST_FALL: f64 = 0.05;
/// Some counts are next to nothing.
const SLACK: f64 = 0.1;

const OVERWRITE: &str = "COST=overwrite cargo xtask test --only cost";

/// Returns why the figures can't be compared here.
pub(super) fn incomparable() -> Option<String> {
    let comparable = || {
        let (known, here) = (Figures::read()?.environment, environment()?);
        ensure!(known == here, "the figures are from {known}, but this is {here}");
        Ok(())
    };
    comparable().err().map(|error: Error| format!("the cost per task was not compared: {error:#}"))
}

/// # Errors
/// When a task costs more than the figures say, or so much less that they are out of date.
pub(super) fn check() -> Result<()> {
    let overwrite = std::env::var_os("COST").is_some_and(|value| value == "overwrite");
    if let Some(why) = incomparable().filter(|_| !overwrite) {
        bail!(why);
    }
    prerequisites::ensure(&[VALGRIND])?;
    run(&mut cargo(&["build", "--release", "--quiet", "--package", "kafkaq-cost"]))?;
    let target = metadata::target()?;
    let costs = PARTS.iter().map(|(part, tasks)| count(&target, part, *tasks));
    let counted = Figures { environment: environment()?, costs: costs.collect::<Result<_>>()? };
    println!("{counted}");
    if overwrite {
        return fs::write(file(), counted.to_string()).context("cannot write the figures");
    }
    let changes = Figures::read()?.changes(&counted);
    ensure!(changes.is_empty(), "{}\nif that is intended: {OVERWRITE}", changes.join("\n"));
    Ok(())
}

fn file() -> PathBuf {
    xtask::root().join("crates/kafkaq-cost/figures.txt")
}

/// What the counts depend on besides the code.
fn environment() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = capture(Command::new(rustc).arg("-vV"))?;
    let of = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.with_context(|| format!("`rustc -vV` doesn't say `{name}`"))
    };
    let libc = capture(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    let libc = libc.unwrap_or_else(|_| "a libc other than glibc".to_owned());
    Ok(format!("rustc {}, {}, {libc}", of("release: ")?, of("host: ")?))
}

fn count(target: &Path, part: &str, tasks: u32) -> Result<Cost> {
    let profile = target.join(format!("callgrind.{part}"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--zero-before=*kafkaq_cost::counted*"]);
    valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
    valgrind.arg(target.join("release/kafkaq-cost")).args([part, &tasks.to_string()]);
    capture(&mut valgrind)?;
    Cost::of(part, tasks, &fs::read_to_string(profile)?)
}

/// The cost of a part of the client, per task.
#[derive(Debug, PartialEq)]
struct Cost {
    part: String,
    counts: [f64; COUNTS.len()],
}

/// Reading the clock costs more than its instructions, as far as callgrind sees them.
const COUNTS: [&str; 3] = ["instructions", "allocations", "clock-reads"];

impl Cost {
    /// Parses a profile in callgrind's format.
    fn of(part: &str, tasks: u32, profile: &str) -> Result<Self> {
        let instructions = profile.lines().find_map(|line| line.strip_prefix("summary: "));
        let instructions: u64 = instructions.context("callgrind has not summed up")?.trim().parse()?;
        let (mut allocations, mut clock_reads) = (0, 0);
        // Only the first occurrence of a function has a name next to its number.
        let (mut names, mut callee) = (HashMap::new(), "");
        for line in profile.lines() {
            if let Some((_, function)) = line.split_once("fn=(") {
                let (number, name) = function.split_once(')').context("a function without a number")?;
                callee = *names.entry(number).or_insert(name.trim());
            } else if let Some(calls) = line.strip_prefix("calls=") {
                let (calls, _) = calls.split_once(' ').context("calls of nothing")?;
                match callee.split('@').next() {
                    Some("malloc" | "calloc" | "realloc" | "posix_memalign") => {
                        allocations += calls.parse::<u64>()?;
                    }
                    Some("clock_gettime") => clock_reads += calls.parse::<u64>()?,
                    _ => {}
                }
            }
        }
        let per_task = |n: u64| n as f64 / f64::from(tasks);
        Ok(Cost { part: part.to_owned(), counts: [instructions, allocations, clock_reads].map(per_task) })
    }
}

/// The figures of the file, or those that were counted.
#[derive(Debug, PartialEq)]
struct Figures {
    environment: String,
    costs: Vec<Cost>,
}

impl Figures {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
        text.parse().with_context(|| format!("to rewrite the figures: {OVERWRITE}"))
    }

    /// Returns the figures that differ too much from the known ones, one line each.
    fn changes(&self, counted: &Figures) -> Vec<String> {
        let mut changes = Vec::new();
        for Cost { part, counts } in &counted.costs {
            let Some(known) = self.costs.iter().find(|cost| cost.part == *part) else {
                changes.push(format!("{part}: there is no figure"));
                continue;
            };
            for ((name, now), before) in COUNTS.iter().zip(counts).zip(known.counts) {
                let change = now - before;
                if change > (MOST_RISE * before).max(SLACK) || -change > (MOST_FALL * before).max(SLACK) {
                    let word = if change > 0.0 { "more" } else { "fewer" };
                    changes.push(format!("{part}: {now:.1} {name} per task, {:.1} {word}", change.abs()));
                }
            }
        }
        changes
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.environment)?;
        let [instructions, allocations, clock_reads] = COUNTS;
        writeln!(f, "{:<15}{instructions:>13}{allocations:>13}{clock_reads:>13}", "per task")?;
        for Cost { part, counts: [instructions, allocations, clock_reads] } in &self.costs {
            writeln!(f, "{part:<15}{instructions:>13.0}{allocations:>13.1}{clock_reads:>13.1}")?;
        }
        Ok(())
    }
}

impl FromStr for Figures {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let environment = lines.next().context("there are no figures")?.to_owned();
        let cost = |line: &str| {
            let (part, counts) = line.split_once(' ').context("a part without figures")?;
            let counts = counts.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
            let counts = counts.try_into().ok().context("a part with too few or too many figures")?;
            Ok(Cost { part: part.to_owned(), counts })
        };
        Ok(Figures { environment, costs: lines.skip(1).map(cost).collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(counts: [f64; 3]) -> Figures {
        Figures { environment: "here".to_owned(), costs: vec![Cost { part: "machine".to_owned(), counts }] }
    }

    #[test]
    fn figures_round_trip() {
        let figures = figures([9922.0, 4.1, 0.0]);
        assert_eq!(figures.to_string().parse::<Figures>().unwrap(), figures);
    }

    #[test]
    fn small_rise_and_large_fall_are_reported_but_not_noise() {
        let known = figures([10_000.0, 4.0, 0.0]);
        assert!(known.changes(&figures([10_100.0, 4.05, 0.05])).is_empty());
        assert!(known.changes(&figures([9_600.0, 3.9, 0.0])).is_empty());
        assert_eq!(
            known.changes(&figures([10_300.0, 5.0, 0.0])),
            [
                "machine: 10300.0 instructions per task, 300.0 more",
                "machine: 5.0 allocations per task, 1.0 more"
            ]
        );
        assert_eq!(
            known.changes(&figures([9_000.0, 4.0, 0.0])),
            ["machine: 9000.0 instructions per task, 1000.0 fewer"]
        );
        let none = Figures { costs: Vec::new(), ..known };
        assert_eq!(none.changes(&figures([1.0, 0.0, 0.0])), ["machine: there is no figure"]);
    }

    #[test]
    fn calls_are_counted_by_callee() {
        let profile = "events: Ir\nsummary: 30\n\nfn=(1) main\n0 10\ncfn=(2) malloc\ncalls=6 0 \n0 60\n\
             cfi=(9) vdso\ncfn=(3) clock_gettime@@GLIBC_2.17\ncalls=3 0 \n0 9\n\nfn=(4) other\ncfn=(2)\ncalls=2 0 \n0 7\n\
             cfn=(1)\ncalls=9 0 \n0 7\n";
        assert_eq!(Cost::of("machine", 2, profile).unwrap().counts, [15.0, 4.0, 1.5]);
    }
}
