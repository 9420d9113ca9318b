//! Decides what runs in parallel. Most test binaries wait for servers and leases most of the time.

use super::suites::Suite;

/// How many of those that mostly wait run concurrently, as long as the machine is not busy.
const WAITING: usize = 5;
/// How many do so even then.
pub(super) const ALWAYS: usize = 2;

/// CPU-bound suites: one at a time, beside those that wait, at a lower priority.
const BUSY: &[&str] = &[
    "clippy",
    "features",
    "documentation",
    "quickstart",
    "cost",
    "documents",
    "kafkaq-sim::group_and_key_lock",
    "kafkaq-sim::simulation",
    "kafkaq-core::lib",
    "kafkaq-compile-fail::mistakes",
];

/// The longest of the others first, so that no core is idle at the end.
const LONG: &[&str] = &[
    "kafkaq-tests::outage",
    "kafkaq-tests::conformance",
    "kafkaq-tests::recreated",
    "kafkaq-rskafka::it",
    "kafkaq-tests::matrix",
    "kafkaq-rdkafka::real",
    "kafkaq-tests::members",
    "kafkaq-conformance::file_store",
    "kafkaq-conformance::file_log",
    "kafkaq-rdkafka::mock",
    "kafkaq-conformance::broken",
];

/// Suites that are run in their order.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) suites: Vec<Suite>,
    /// How many run at a time.
    pub(super) width: usize,
    /// Whether it runs at a lower priority.
    pub(super) nice: bool,
}

/// Sorts suites into lanes.
pub(super) fn of(suites: Vec<Suite>) -> [Lane; 2] {
    let (mut busy, mut waiting): (Vec<_>, Vec<_>) =
        suites.into_iter().partition(|suite| BUSY.contains(&suite.name.as_str()));
    busy.sort_by_key(|suite| place(&suite.name, BUSY));
    waiting.sort_by_key(|suite| place(&suite.name, LONG));
    [Lane { suites: busy, width: 1, nice: true }, Lane { suites: waiting, width: WAITING, nice: false }]
}

fn place(suite: &str, list: &[&str]) -> usize {
    list.iter().position(|name| suite == *name).unwrap_or(list.len())
}

#[cfg(test)]
mod tests {
    use super::super::suites::Kind;
    use super::*;
    use std::process::Command;

    #[test]
    fn cpu_bound_suites_have_their_own_lane_and_the_longest_run_first() {
        let names =
            ["kafkaq::jobs", "kafkaq-tests::matrix", "documentation", "kafkaq-tests::outage", "clippy"];
        let suite =
            |name: &str| Suite { name: name.to_owned(), kind: Kind::Step, command: Command::new("true") };
        let [busy, waiting] = of(names.map(suite).into());
        let names = |lane: &[Suite]| lane.iter().map(|suite| suite.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&busy.suites), ["clippy", "documentation"]);
        assert_eq!(names(&waiting.suites), ["kafkaq-tests::outage", "kafkaq-tests::matrix", "kafkaq::jobs"]);
        assert!(busy.nice && !waiting.nice);
    }
}
