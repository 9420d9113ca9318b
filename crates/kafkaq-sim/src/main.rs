//! Runs seeds, looks for planted faults, and replays a seed as a readable trace.
#![allow(clippy::print_stdout)]

use kafkaq_core::machine::Fault;
use kafkaq_sim::{Counts, GroupSim, KeyLockSim, Profile, Search, Subject, Trouble, WorldFault};
use std::fmt::{Debug, Display};
use std::time::Instant;

const USAGE: &str =
    "usage: kafkaq-sim [group | key-lock] seeds [--from N] [--count N] [--fault NAME] [--only TROUBLE,..]
       kafkaq-sim [group | key-lock] faults [--count N]
       kafkaq-sim [group | key-lock] replay SEED [--fault NAME] [--only TROUBLE,..]

`seeds` prints a digest of everything that the machines wanted done, to compare two builds.
With `group` it is the consumer group for a log without one, with `key-lock` the lock of a key. They have no --only.";

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((group, rest)) if group == "group" => of::<GroupSim>(&Args(rest)),
        Some((key_lock, rest)) if key_lock == "key-lock" => of::<KeyLockSim>(&Args(rest)),
        _ => of_the_machine(&Args(&args)),
    }
}

struct Args<'a>(&'a [String]);

impl Args<'_> {
    fn command(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    fn seed(&self) -> Result<u64, String> {
        self.0.get(1).and_then(|s| s.parse().ok()).ok_or_else(|| USAGE.into())
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|a| a == name).and_then(|i| self.0.get(i + 1)).map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        let parse = |v: &str| v.parse().map_err(|_| format!("{name} {v}: not a number"));
        self.option(name).map_or(Ok(default), parse)
    }

    fn fault<F: Copy + Debug>(&self, all: &[F]) -> Result<Option<F>, String> {
        self.option("--fault").map(|name| named(name, "fault", all)).transpose()
    }
}

fn named<T: Copy + Debug>(name: &str, what: &str, all: &[T]) -> Result<T, String> {
    let found = all.iter().copied().find(|f| format!("{f:?}") == name);
    found.ok_or_else(|| format!("no {what} {name}; there are {all:?}"))
}

fn of_the_machine(args: &Args) -> Result<(), String> {
    let fault = args.fault(Fault::ALL)?;
    let trouble = |name: &str| named(name, "trouble", &Trouble::ALL);
    let profile = match args.option("--only") {
        None => Profile::default(),
        Some(names) => Profile::only(&names.split(',').map(trouble).collect::<Result<Vec<_>, _>>()?),
    };
    match args.command() {
        Some("seeds") => {
            let (from, count) = (args.number("--from", 0)?, args.number("--count", 10_000)?);
            let begin = Instant::now();
            let found = kafkaq_sim::search(&Search { from, count, profile, fault, stop_at_first: false });
            println!("digest {:016x}", found.digest);
            report(count, begin, &found.violations, &found.stats.list())
        }
        Some("faults") => faults(args.number("--count", 2_000)?),
        Some("replay") => {
            let seed = args.seed()?;
            let (outcome, lines) = kafkaq_sim::trace(seed, &profile, fault);
            replay(seed, &lines, outcome.violation);
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

fn of<S: Subject>(args: &Args) -> Result<(), String> {
    let fault = args.fault(S::FAULTS)?;
    match args.command() {
        Some("seeds") => {
            let (from, count) = (args.number("--from", 0)?, args.number("--count", 10_000)?);
            let begin = Instant::now();
            let found = S::search(from, count, fault, false);
            report(count, begin, &found.violations, &found.stats.list())
        }
        Some("faults") => {
            let count = args.number("--count", 5_000)?;
            let find = |fault| S::search(0, count, Some(fault), true).violations.into_iter().next();
            each_fault(S::FAULTS, find)
        }
        Some("replay") => {
            let seed = args.seed()?;
            let (played, lines) = S::play(seed, fault, true);
            replay(seed, &lines, played.violation);
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

/// Prints a trace. The last line says which rule was broken.
fn replay(seed: u64, lines: &[String], violation: Option<impl Display>) {
    lines.iter().for_each(|line| println!("{line}"));
    match violation {
        Some(violation) => println!("seed {seed}: {violation}"),
        None => println!("seed {seed}: no violation"),
    }
}

fn report(
    count: u64,
    begin: Instant,
    violations: &[(u64, impl Display)],
    stats: &[(&str, u64)],
) -> Result<(), String> {
    let took = begin.elapsed().as_secs_f64();
    for (seed, v) in violations.iter().take(40) {
        println!("seed {seed}: {v}");
    }
    for line in stats.chunks(4) {
        let cells: Vec<String> = line.iter().map(|(name, n)| format!("{name:>22} {n:>9}")).collect();
        println!("{}", cells.join(" "));
    }
    let (each, broken) = (count as f64 / took, violations.len());
    println!("{count} seeds in {took:.1} s: {each:.0} seeds/s; {broken} with a violation");
    if violations.is_empty() { Ok(()) } else { Err("there are violations".into()) }
}

fn faults(count: u64) -> Result<(), String> {
    let mut missed = Vec::new();
    header();
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        match kafkaq_sim::find(*fault, count) {
            Some((profile, seed, v)) => {
                let only = if profile.only { format!(" (only {:?})", profile.always) } else { String::new() };
                println!("{name:<32} {:>7}  {v}{only}", seed + 1);
            }
            None => {
                println!("{name:<32} {:>7}  nothing", "-");
                missed.push(name);
            }
        }
    }
    for world in WorldFault::ALL {
        let name = format!("{world:?}");
        let profile = Profile { world: Some(*world), ..Profile::default() };
        let found = kafkaq_sim::search(&Search { count, profile, stop_at_first: true, ..Search::default() });
        match found.violations.first() {
            Some((seed, v)) => println!("{name:<32} {:>7}  {v}", seed + 1),
            None => missed.push(name),
        }
    }
    all_found(&missed)
}

fn each_fault<F: Copy + Debug>(all: &[F], find: impl Fn(F) -> Option<(u64, String)>) -> Result<(), String> {
    let mut missed = Vec::new();
    header();
    for fault in all {
        let name = format!("{fault:?}");
        match find(*fault) {
            Some((seed, v)) => println!("{name:<32} {:>7}  {v}", seed + 1),
            None => missed.push(name),
        }
    }
    all_found(&missed)
}

fn header() {
    println!("{:<32} {:>7}  found by", "fault", "seeds");
}

fn all_found(missed: &[String]) -> Result<(), String> {
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(", "))) }
}
