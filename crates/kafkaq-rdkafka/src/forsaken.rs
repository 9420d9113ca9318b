//! A client that knows no broker any more.

use rdkafka::Statistics;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// It is between two brokers for a moment while it starts over from the addresses that it was given.
const IN_A_ROW: u32 = 2;

/// Said of such a client.
pub(crate) const WHY: &str = "the client has forgotten all brokers, and connects to none any more";

/// Whether a client has forgotten all its brokers. librdkafka drops those that the cluster's answer doesn't name, and a
/// broker that has just started may name none, itself included. Then nobody is left to ask, for good.
#[derive(Debug, Default)]
pub(crate) struct Forsaken(AtomicU32);

impl Forsaken {
    pub(crate) fn look_at(&self, statistics: &Statistics) {
        self.learn(statistics.brokers.values().map(|broker| &*broker.source));
    }

    fn learn<'a>(&self, mut sources: impl Iterator<Item = &'a str>) {
        // The others have no address of their own, such as the group's coordinator.
        if sources.any(|source| matches!(source, "configured" | "learned")) {
            self.0.store(0, SeqCst);
        } else {
            self.0.fetch_add(1, SeqCst);
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

    #[test]
    fn a_client_without_a_broker_twice_in_a_row_is_forsaken() {
        let client = Forsaken::default();
        let look = |sources: &[&'static str]| {
            client.learn(sources.iter().copied());
            client.is_certain()
        };
        assert_eq!([look(&["configured"]), look(&["internal", "logical"]), look(&["learned"])], [false; 3]);
        assert_eq!([look(&["logical"]), look(&[])], [false, true]);
        assert!(!look(&["logical", "learned"]));
    }
}
