//! Which test binaries run beside which others.

use super::suites::Suite;

/// How many of those that mostly wait run at once.
const WAITING: usize = 3;

/// These measure how soon something happens, so nothing else runs beside them.
const ALONE: &[&str] = &["kafkaq-tests::members"];

/// These keep both cores busy: one of them at a time, beside those that wait.
const BUSY: &[&str] = &[
    "kafkaq-sim::simulation",
    "kafkaq-sim::group",
    "kafkaq-core::lib",
    "kafkaq-tests::volume",
    "workspace::documents",
];

/// The longest first, so that no core is idle at the end. The order of all others doesn't matter.
const LONG: &[&str] = &["kafkaq-tests::outage", "kafkaq-tests::matrix", "kafkaq-conformance::broken"];

pub(super) fn is_alone(suite: &str) -> bool {
    ALONE.contains(&suite)
}

/// Sorts suites into lanes, each with the number of suites that may run at once in it.
pub(super) fn of(mut suites: Vec<Suite>) -> Vec<(usize, Vec<Suite>)> {
    suites.sort_by_key(|suite| {
        let name = suite.name();
        LONG.iter().position(|long| name == *long).unwrap_or(LONG.len())
    });
    let (busy, waiting): (Vec<_>, Vec<_>) =
        suites.into_iter().partition(|suite| BUSY.contains(&suite.name().as_str()));
    vec![(WAITING, waiting), (1, busy)]
}
