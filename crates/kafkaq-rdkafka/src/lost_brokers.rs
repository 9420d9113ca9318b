//! Detects a client that no longer connects to any broker.

use rdkafka::{Statistics, statistics::Broker};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// In how many reports in a row. A client has no broker for a moment while it starts over from its bootstrap addresses.
const IN_A_ROW: u32 = 2;
/// Microseconds. A client without connections connects to a usable broker much sooner.
const UNUSED: i64 = 8_000_000;

/// The message about such a client.
pub(crate) const WHY: &str = "the client has dropped all brokers and no longer connects to any";

/// Whether a client has forgotten all its brokers. librdkafka drops those that a metadata response doesn't contain, and
/// a broker that has just started, or was suspended, may list none, not even itself. The client may then be left with
/// no broker, or with one that it has dropped and still counts, so that it drops every other one, too.
#[derive(Debug, Default)]
pub(crate) struct LostBrokers(AtomicU32);

impl LostBrokers {
    pub(crate) fn look_at(&self, statistics: &Statistics) {
        // Others, such as the group's coordinator, have no address of their own.
        let has_address = |broker: &&Broker| matches!(&*broker.source, "configured" | "learned");
        let brokers = statistics.brokers.values().filter(has_address);
        self.learn(brokers.map(|broker| (&*broker.state, broker.stateage)));
    }

    /// The state of each broker, and since when.
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

    /// Returns whether the client has to be replaced.
    pub(crate) fn is_certain(&self) -> bool {
        self.0.load(SeqCst) >= IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: i64 = 16_084_508;

    fn look(client: &LostBrokers, brokers: &[(&'static str, i64)]) -> bool {
        client.learn(brokers.iter().copied());
        client.is_certain()
    }

    #[test]
    fn a_client_without_a_broker_twice_in_a_row_is_forsaken() {
        let client = LostBrokers::default();
        assert_eq!(
            [look(&client, &[("UP", 1)]), look(&client, &[]), look(&client, &[("UP", 1)])],
            [false; 3]
        );
        assert_eq!([look(&client, &[]), look(&client, &[])], [false, true]);
        assert!(!look(&client, &[("UP", 1)]));
    }

    #[test]
    fn so_is_one_that_keeps_a_dropped_broker_and_never_connects_to_it() {
        let client = LostBrokers::default();
        assert!(!look(&client, &[("INIT", 6_083_620)]), "it may be about to connect");
        assert!(look(&client, &[("INIT", LONG)]));
        assert!(!look(&client, &[("INIT", LONG), ("TRY_CONNECT", LONG)]), "it tries another");
        assert!(!look(&client, &[("DOWN", LONG)]));
    }
}
