//! Gauges: the state of a queue, published every few seconds as long as it lives.

use super::names;
use crate::{Queue, QueueStats, queue::WeakQueue};
use metrics::{Gauge, IntoF64};
use std::{cell::Cell, sync::Arc, time::Duration};
use tokio::time::sleep;

/// The longest interval between checks for a recorder.
const RARELY: Duration = Duration::from_secs(3600);

/// Starts publishing the gauges of a queue. Requires a tokio runtime.
pub(crate) fn publish_gauges(queue: &Queue, group: Arc<str>, wait_topic: Arc<str>, interval: Duration) {
    let (name, queue) = (Arc::<str>::from(queue.name()), queue.downgrade());
    let in_time = Gauges::new(&name, &group).are_recorded();
    tokio::spawn(publish((name, group), queue, wait_topic, interval, in_time));
}

/// `in_time`: there was a recorder when the queue was built.
async fn publish(
    (name, group): (Arc<str>, Arc<str>),
    queue: WeakQueue,
    wait_topic: Arc<str>,
    interval: Duration,
    mut in_time: bool,
) {
    let mut pause = interval;
    loop {
        sleep(pause).await;
        // Created each time, since a recorder may have been installed.
        let gauges = Gauges::new(&name, &group);
        let Some(queue) = queue.upgrade() else {
            return gauges.set(&QueueStats::default(), &wait_topic);
        };
        if !gauges.are_recorded() {
            // Most programs without a recorder never get one.
            pause = (pause * 2).min(RARELY);
            continue;
        }
        pause = interval;
        if !in_time {
            in_time = true;
            tracing::warn!(
                target: "kafkaq", queue = &*name,
                "a recorder of metrics was installed after the queue was built, so that only gauges are \
                 recorded. Install it earlier"
            );
        }
        gauges.set(&queue.stats().await, &wait_topic);
    }
}

struct Gauges {
    in_flight: Gauge,
    ready: Gauge,
    waiting: Gauge,
    redeliveries: Gauge,
    appending: Gauge,
    lag: Gauge,
    parked: Gauge,
    oldest: Gauge,
}

impl Gauges {
    fn new(queue: &str, group: &str) -> Self {
        // Otherwise queues with the same name and different groups would overwrite each other's.
        let labels = &[("group", group)];
        Gauges {
            in_flight: names::JOBS_IN_FLIGHT.gauge(queue, labels),
            ready: names::JOBS_READY.gauge(queue, labels),
            waiting: names::CALLERS_WAITING.gauge(queue, labels),
            redeliveries: names::REDELIVERIES_READY.gauge(queue, labels),
            appending: names::APPENDS_WAITING.gauge(queue, labels),
            lag: names::LAG.gauge(queue, labels),
            parked: names::PARKED.gauge(queue, labels),
            oldest: names::OLDEST.gauge(queue, labels),
        }
    }

    fn set(&self, stats: &QueueStats, wait_topic: &str) {
        let of = |waits: bool| stats.partitions.iter().filter(move |p| (*p.topic == *wait_topic) == waits);
        let lag = |waits| of(waits).filter_map(|p| p.lag).sum::<u64>() as f64;
        self.in_flight.set(stats.held as f64);
        self.ready.set(stats.ready as f64);
        self.waiting.set(stats.waiting as f64);
        self.redeliveries.set(stats.redeliveries as f64);
        self.appending.set(stats.appending as f64);
        self.lag.set(lag(false));
        self.parked.set(lag(true));
        self.oldest.set(of(false).filter_map(|p| p.oldest).max().unwrap_or_default());
    }

    /// Whether a recorder wants any of them. Without one, statistics aren't collected.
    fn are_recorded(&self) -> bool {
        let Gauges { in_flight, ready, waiting, redeliveries, appending, lag, parked, oldest } = self;
        [in_flight, ready, waiting, redeliveries, appending, lag, parked, oldest].into_iter().any(|gauge| {
            let looked_at = Cell::new(false);
            gauge.increment(Nothing(&looked_at));
            looked_at.get()
        })
    }
}

/// A zero that detects whether it is read: a handle without a recorder never reads it.
struct Nothing<'a>(&'a Cell<bool>);

impl IntoF64 for Nothing<'_> {
    fn into_f64(self) -> f64 {
        self.0.set(true);
        0.0
    }
}
