//! Every case on every pair of a broker and a store: `rdkafka_redis::zombie_gets_lease_lost`.
//!
//! A case runs, is ignored because `KAFKAQ_TEST_BACKENDS` asks for others, or fails, also if its server isn't there.

use kafkaq_tests::{BrokerKind, CASES, Case, Pair, StoreKind, not_asked_for, run};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let pairs = BrokerKind::ALL.iter().flat_map(|b| StoreKind::ALL.iter().map(|s| (*b, *s)));
    let trials = pairs.flat_map(|(b, s)| CASES.iter().map(move |case| trial(b, s, *case))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(broker: BrokerKind, store: StoreKind, (name, case): Case) -> Trial {
    let full = format!("{}_{}::{name}", broker.name(), store.name().replace('-', "_"));
    Trial::ignorable_test(full, move || {
        if let Some(why) = not_asked_for(broker, store) {
            return Ok(Completion::ignored_with(why));
        }
        let pair = Pair::new(broker, store, name);
        run(case(&pair))?;
        Ok(Completion::Completed)
    })
}
