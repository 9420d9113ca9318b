//! Tests of the kit: each planted fault is caught by the case that names the rule it breaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faulty_broker;
mod faulty_log;
mod faulty_store;
mod gate;

use kafkaq_conformance::{Outcome, Report, Suite};
use std::{collections::BTreeSet, fmt, sync::Mutex, thread};

/// The cases that failed, without the backend's name.
fn failed(reports: &[Report]) -> BTreeSet<&str> {
    let name = |report: &Report| matches!(report.outcome, Outcome::Failed(_));
    let failed = reports.iter().filter(|report| name(report));
    failed.filter_map(|report| Some(report.name.split_once("::")?.1)).collect()
}

/// A fault, the case that has to find it, and the cases that may fail because of it as well.
struct Planted<F> {
    fault: F,
    caught_by: &'static str,
    also: &'static [&'static str],
}

fn planted<F>(fault: F, caught_by: &'static str, also: &'static [&'static str]) -> Planted<F> {
    Planted { fault, caught_by, also }
}

/// Runs every fault through its kit, and compares what fails with the table. The kits have paused clocks, so no limit
/// of a case is too short for the machine.
fn prove<F: Copy + fmt::Debug + Sync>(kit: impl Fn(F) -> Suite + Sync, table: &[Planted<F>]) {
    let (next, wrong) = (Mutex::new(table.iter()), Mutex::new(Vec::new()));
    let work = || {
        while let Some(planted) = { next.lock().unwrap().next() } {
            wrong.lock().unwrap().extend(judge(planted, &kit(planted.fault).results()));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn judge<F: fmt::Debug>(planted: &Planted<F>, reports: &[Report]) -> Option<String> {
    let (failed, Planted { fault, caught_by, also }) = (failed(reports), planted);
    for name in also.iter().chain([caught_by]) {
        let known = reports.iter().any(|report| report.name.ends_with(&format!("::{name}")));
        assert!(known, "there is no case {name}");
    }
    if !failed.contains(caught_by) {
        return Some(format!("{fault:?}: not caught by {caught_by}, but by {failed:?}"));
    }
    let surprising: Vec<_> =
        failed.iter().filter(|name| *name != caught_by && !also.contains(name)).collect();
    (!surprising.is_empty()).then(|| format!("{fault:?}: also caught by {surprising:?}"))
}

/// Without a fault nothing fails, and nothing is ignored.
fn passes(reports: Vec<Report>) {
    let bad: Vec<_> = reports.iter().filter(|report| report.outcome != Outcome::Passed).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
