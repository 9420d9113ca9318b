//! Every case on every pair of a broker and a store: `rdkafka_redis::zombie_gets_lease_lost`.
//!
//! A case runs, is ignored because `KAFKAQ_TEST_BACKENDS` names other backends, or fails, also if its server is
//! missing. At the end there is a table of the pairs, the cases and their times.

#![allow(clippy::print_stdout, reason = "the table")]

use kafkaq_tests::{BrokerKind, CASES, Case, Pair, StoreKind, not_asked_for, run};
use libtest_mimic::{Arguments, Completion, Trial};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The cases wait most of the time.
const AT_ONCE: usize = 6;

/// How long each case that passed took, by its full name.
type Times = Arc<Mutex<HashMap<String, Duration>>>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let times = Times::default();
    let all = pairs().flat_map(|(b, s)| CASES.iter().map(move |case| (b, s, *case)));
    let trials = all.map(|(b, s, case)| trial(b, s, case, times.clone())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        print(&times.lock().unwrap_or_else(PoisonError::into_inner));
    }
    conclusion.exit();
}

fn pairs() -> impl Iterator<Item = (BrokerKind, StoreKind)> {
    BrokerKind::ALL.iter().flat_map(|b| StoreKind::ALL.iter().map(|s| (*b, *s)))
}

fn pair_name(broker: BrokerKind, store: StoreKind) -> String {
    format!("{}_{}", broker.name(), store.name().replace('-', "_"))
}

fn trial(broker: BrokerKind, store: StoreKind, (name, case): Case, times: Times) -> Trial {
    let full = format!("{}::{name}", pair_name(broker, store));
    Trial::ignorable_test(full.clone(), move || {
        if let Some(why) = not_asked_for(broker, store) {
            return Ok(Completion::ignored_with(why));
        }
        let start = Instant::now();
        let pair = Pair::new(broker, store, name);
        run(case(&pair))?;
        times.lock().unwrap_or_else(PoisonError::into_inner).insert(full, start.elapsed());
        Ok(Completion::Completed)
    })
}

/// Prints seconds, one line per pair and one column per case; `-` for cases that failed or weren't run.
fn print(times: &HashMap<String, Duration>) {
    for (n, (name, _)) in CASES.iter().enumerate() {
        println!("case {}: {name}", n + 1);
    }
    let numbers: String = (1..=CASES.len()).map(|n| format!(" {n:>5} |")).collect();
    println!("\n| seconds                |{numbers}\n|{}|{}", "-".repeat(24), "------:|".repeat(CASES.len()));
    for (broker, store) in pairs() {
        let pair = pair_name(broker, store);
        let took = |name| match times.get(&format!("{pair}::{name}")) {
            Some(time) => format!(" {:>5.1} |", time.as_secs_f64()),
            None => "     - |".to_owned(),
        };
        println!("| {pair:<22} |{}", CASES.iter().map(|(name, _)| took(*name)).collect::<String>());
    }
}
