//! The worker's features, each on two pairs of real servers: `rdkafka_redis::batch`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod handlers;
mod keys;
mod layers;
mod letters;
mod publishing;
mod queues;
#[path = "../../../crates/kafkaq/tests/recorder/mod.rs"]
#[allow(dead_code)]
mod recorder;
mod shared;
mod telemetry;
mod times;

use kafkaq_tests::{BrokerKind, Case, Pair, StoreKind, not_asked_for, run};
use libtest_mimic::{Arguments, Completion, Trial};

/// The cases mostly wait.
const AT_ONCE: usize = 4;

const PAIRS: [(BrokerKind, StoreKind); 2] =
    [(BrokerKind::RdKafka, StoreKind::Redis), (BrokerKind::RsKafka, StoreKind::Etcd)];

const CASES: [&[Case]; 8] = [
    handlers::CASES,
    keys::CASES,
    layers::CASES,
    letters::CASES,
    publishing::CASES,
    queues::CASES,
    telemetry::CASES,
    times::CASES,
];

fn main() {
    telemetry::record();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let cases = PAIRS.iter().flat_map(|pair| CASES.concat().into_iter().map(|case| trial(*pair, case)));
    libtest_mimic::run(&arguments, cases.collect()).exit();
}

fn trial((broker, store): (BrokerKind, StoreKind), (name, case): Case) -> Trial {
    Trial::ignorable_test(format!("{}_{}::{name}", broker.name(), store.name()), move || {
        if let Some(why) = not_asked_for(broker, store) {
            return Ok(Completion::ignored_with(why));
        }
        let pair = Pair::new(broker, store, name);
        run(case(&pair))?;
        Ok(Completion::Completed)
    })
}
