//! Logs outages of brokers: one message at the beginning, one per minute, and one at the end, however many calls fail
//! meanwhile.

use crate::failure::Failure;
use kafkaq_core::lock;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(60);

/// The brokers that can't be reached, by their addresses.
#[derive(Default)]
pub(crate) struct Outages(Mutex<HashMap<Arc<str>, Outage>>);

struct Outage {
    began: Instant,
    reported: Instant,
}

impl Outages {
    /// A broker can't be reached, again or still.
    pub(crate) fn began(&self, address: &Arc<str>, failure: &Failure) {
        let now = Instant::now();
        let mut outages = lock(&self.0);
        match outages.get_mut(address) {
            None => {
                outages.insert(address.clone(), Outage { began: now, reported: now });
                tracing::warn!(
                    target: "kafkaq",
                    broker = &**address,
                    "can't be reached: {}; calls are retried until they time out",
                    failure.reason()
                );
            }
            Some(outage) if now - outage.reported >= EVERY => {
                outage.reported = now;
                tracing::warn!(
                    target: "kafkaq",
                    broker = &**address,
                    "can't be reached for {} s: {}",
                    (now - outage.began).as_secs(),
                    failure.reason()
                );
            }
            Some(_) => {}
        }
    }

    /// A broker has responded.
    pub(crate) fn ended(&self, address: &Arc<str>) {
        if let Some(outage) = lock(&self.0).remove(address) {
            let after = outage.began.elapsed().as_secs();
            tracing::info!(target: "kafkaq", broker = &**address, "responds again, after {after} s");
        }
    }
}

/// Reports at most once per minute.
pub(crate) struct OncePerMinute<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for OncePerMinute<K> {
    fn default() -> Self {
        OncePerMinute(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> OncePerMinute<K> {
    /// Whether it is time to report it.
    pub(crate) fn is_due(&self, what: &K) -> bool {
        let now = Instant::now();
        let mut reported = lock(&self.0);
        reported.retain(|_, at| now - *at < EVERY);
        let due = !reported.contains_key(what);
        if due {
            reported.insert(what.clone(), now);
        }
        due
    }
}
