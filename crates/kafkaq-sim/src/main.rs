//! Runs seeds, looks for planted faults, and replays a seed as a readable trace.
#![allow(clippy::print_stdout)]

use kafkaq_core::machine::Fault;
use kafkaq_sim::{Profile, Search, Stats, Trouble, WorldFault};
use std::time::Instant;

const USAGE: &str = "usage: kafkaq-sim seeds [--from N] [--count N] [--fault NAME] [--only TROUBLE,..]
       kafkaq-sim faults [--count N]
       kafkaq-sim replay SEED [--fault NAME] [--only TROUBLE,..]";

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let number = |name: &str, default: u64| {
        option(name).map_or(Ok(default), |v| v.parse().map_err(|_| format!("{name} {v}: not a number")))
    };
    let fault = match option("--fault") {
        None => None,
        Some(name) => Some(
            Fault::ALL
                .iter()
                .copied()
                .find(|f| format!("{f:?}") == *name)
                .ok_or_else(|| format!("no fault {name}; there are {:?}", Fault::ALL))?,
        ),
    };
    let trouble = |name: &str| {
        let found = Trouble::ALL.into_iter().find(|t| format!("{t:?}") == name);
        found.ok_or_else(|| format!("no trouble {name}; there are {:?}", Trouble::ALL))
    };
    let profile = match option("--only") {
        None => Profile::default(),
        Some(names) => Profile::only(&names.split(',').map(trouble).collect::<Result<Vec<_>, _>>()?),
    };
    match args.first().map(String::as_str) {
        Some("seeds") => seeds(&Search {
            from: number("--from", 0)?,
            count: number("--count", 10_000)?,
            profile,
            fault,
            stop_at_first: false,
        }),
        Some("faults") => faults(number("--count", 20_000)?),
        Some("replay") => {
            let seed = args.get(1).and_then(|s| s.parse().ok()).ok_or(USAGE)?;
            let (outcome, lines) = kafkaq_sim::trace(seed, &profile, fault);
            lines.iter().for_each(|line| println!("{line}"));
            if outcome.violation.is_none() {
                println!("seed {seed}: no violation");
            }
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

fn seeds(wanted: &Search) -> Result<(), String> {
    let begin = Instant::now();
    let found = kafkaq_sim::search(wanted);
    let took = begin.elapsed().as_secs_f64();
    for (seed, v) in found.violations.iter().take(40) {
        println!("seed {seed}: {v}");
    }
    coverage(&found.stats);
    println!(
        "{} seeds in {took:.1} s: {:.0} seeds/s; {} with a violation",
        wanted.count,
        wanted.count as f64 / took,
        found.violations.len()
    );
    if found.violations.is_empty() { Ok(()) } else { Err("there are violations".into()) }
}

fn coverage(stats: &Stats) {
    for line in stats.list().chunks(4) {
        let cells: Vec<String> = line.iter().map(|(name, n)| format!("{name:>22} {n:>9}")).collect();
        println!("{}", cells.join(" "));
    }
}

fn faults(count: u64) -> Result<(), String> {
    let mut missed = Vec::new();
    println!("{:<32} {:>7}  found by", "fault", "seeds");
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
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(", "))) }
}
