//! A client that connects to no broker any more.

use rdkafka::{Statistics, statistics::Broker};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// It is between two brokers for a moment while it starts over from the addresses that it was given.
const IN_A_ROW: u32 = 2;
/// Microseconds. A broker that is of any use to a client without connections is connected to much sooner.
const UNUSED: i64 = 8_000_000;

/// Said of such a client.
pub(crate) const WHY: &str = "the client has forgotten all brokers, and connects to none any more";

/// Whether a client has forgotten all its brokers. librdkafka drops those that the cluster's answer doesn't name, and a
/// broker that has just started, or that stood still, may name none, itself included. The client may then be left with
/// nobody, or with one that it has dropped and still counts, so that it drops every other one, too.
#[derive(Debug, Default)]
pub(crate) struct Forsaken(AtomicU32);

impl Forsaken {
    pub(crate) fn look_at(&self, statistics: &Statistics) {
        // The others have no address of their own, such as the group's coordinator.
        let has_address = |broker: &&Broker| matches!(&*broker.source, "configured" | "learned");
        let brokers = statistics.brokers.values().filter(has_address);
        self.learn(brokers.map(|broker| (&*broker.state, broker.stateage)));
    }

    /// The state of each broker, and since when it is in it.
    fn learn<'a>(&self, brokers: impl Iterator<Item = (&'a str, i64)>) {
        let is_unused = |(state, age)| state == "INIT" && age >= UNUSED;
        let (mut known, mut used) = (false, false);
        for broker in brokers {
            (known, used) = (true, used || !is_unused(broker));
        }
        match (known, used) {
            (true, true) => self.0.store(0, SeqCst),
            (true, false) => self.0.store(IN_A_ROW, SeqCst),
            (false, _) => {
                self.0.fetch_add(1, SeqCst);
            }
        }
    }

    /// Only another client helps.
    pub(crate) fn is_certain(&self) -> bool {
        self.0.load(SeqCst) >= IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: i64 = 16_084_508;

    fn look(client: &Forsaken, brokers: &[(&'static str, i64)]) -> bool {
        client.learn(brokers.iter().copied());
        client.is_certain()
    }

    #[test]
    fn a_client_without_a_broker_twice_in_a_row_is_forsaken() {
        let client = Forsaken::default();
        assert_eq!(
            [look(&client, &[("UP", 1)]), look(&client, &[]), look(&client, &[("UP", 1)])],
            [false; 3]
        );
        assert_eq!([look(&client, &[]), look(&client, &[])], [false, true]);
        assert!(!look(&client, &[("UP", 1)]));
    }

    #[test]
    fn so_is_one_that_keeps_a_dropped_broker_and_never_connects_to_it() {
        let client = Forsaken::default();
        assert!(!look(&client, &[("INIT", 6_083_620)]), "it may be about to");
        assert!(look(&client, &[("INIT", LONG)]));
        assert!(!look(&client, &[("INIT", LONG), ("TRY_CONNECT", LONG)]), "it tries another");
        assert!(!look(&client, &[("DOWN", LONG)]));
    }
}
