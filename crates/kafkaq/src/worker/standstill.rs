//! Notices partitions that make no progress although jobs are requested.

use crate::{PartitionStats, Queue, QueueStats};
use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How often it checks. A check costs more the more records are unfinished.
const EVERY: Duration = Duration::from_secs(10);
/// Whatever its handler does, a task that was handed out is parked or done long before.
const LEASES: u32 = 3;
/// How many checks must have found requested jobs: while all slots are taken, a partition may wait for a long time.
const ASKED: u32 = 3;

/// Watches the queue's partitions of the task topic until it is aborted. In the wait topic, records stay until they are
/// due.
pub(super) async fn watch(queue: Queue) -> Infallible {
    let topic = queue.publisher().topic();
    let mut watch = Watch { patience: LEASES * queue.lease_duration(), partitions: HashMap::new() };
    loop {
        sleep(EVERY).await;
        let stats = queue.stats().await;
        for (told, partition) in watch.look(&topic, &stats, Instant::now()) {
            let PartitionStats { topic, partition, position, lag, oldest, queued, in_flight, .. } = partition;
            let queue = queue.name();
            match told {
                Told::Stands(duration) => tracing::warn!(
                    target: "kafkaq", queue, %topic, partition, position, lag, ?oldest, queued, in_flight, ?duration,
                    "a partition makes no progress although jobs are requested"
                ),
                Told::Moves(duration) => tracing::info!(
                    target: "kafkaq", queue, %topic, partition, ?duration, "the partition makes progress again"
                ),
            }
        }
    }
}

struct Watch {
    patience: Duration,
    partitions: HashMap<i32, Standing>,
}

/// A partition with an unfinished oldest record.
struct Standing {
    position: i64,
    since: Instant,
    asked: u32,
    tell_after: Duration,
    is_told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// For this long. Repeated each time the duration has doubled.
    Stands(Duration),
    /// After this long.
    Moves(Duration),
}

impl Watch {
    fn look<'a>(
        &mut self,
        topic: &Arc<str>,
        stats: &'a QueueStats,
        now: Instant,
    ) -> Vec<(Told, &'a PartitionStats)> {
        let (mut told, mut before) = (Vec::new(), std::mem::take(&mut self.partitions));
        for partition in stats.partitions.iter().filter(|partition| partition.topic == *topic) {
            let was = before.remove(&partition.partition);
            let position = partition.position.filter(|_| partition.oldest.is_some());
            let mut standing = match was {
                Some(was) if Some(was.position) == position => was,
                was => {
                    told.extend(
                        was.filter(|was| was.is_told).map(|was| (Told::Moves(now - was.since), partition)),
                    );
                    let begun = position.map(|position| (partition.partition, self.begin(position, now)));
                    self.partitions.extend(begun);
                    continue;
                }
            };
            standing.asked += u32::from(stats.waiting > 0);
            let stands = now - standing.since;
            if standing.asked >= ASKED && stands >= standing.tell_after {
                told.push((Told::Stands(stands), partition));
                (standing.is_told, standing.tell_after) = (true, 2 * stands);
            }
            self.partitions.insert(partition.partition, standing);
        }
        told
    }

    fn begin(&self, position: i64, now: Instant) -> Standing {
        Standing { position, since: now, asked: 0, tell_after: self.patience, is_told: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Site {
        watch: Watch,
        begun: Instant,
    }

    impl Site {
        fn new() -> Self {
            let watch = Watch { patience: 30 * SECOND, partitions: HashMap::new() };
            Site { watch, begun: Instant::now() }
        }

        /// Returns what is logged about partition 0 at that second.
        fn look(&mut self, at: u32, position: Option<i64>, waiting: usize) -> Option<Told> {
            let of = |topic: &str, position: Option<i64>| PartitionStats {
                topic: topic.into(),
                partition: 0,
                position,
                lag: Some(1),
                oldest: position.map(|_| SECOND),
                queued: 0,
                in_flight: 0,
                paused: false,
            };
            let partitions = vec![of("tasks", position), of("tasks.wait", Some(7))];
            let stats = QueueStats { partitions, waiting, ..QueueStats::default() };
            let mut told = self.watch.look(&"tasks".into(), &stats, self.begun + at * SECOND);
            assert!(told.len() < 2 && told.iter().all(|(_, partition)| &*partition.topic == "tasks"));
            told.pop().map(|(told, _)| told)
        }
    }

    #[test]
    fn stalled_partition_is_logged_with_growing_intervals_and_when_it_recovers() {
        let mut site = Site::new();
        let told: Vec<_> =
            (0..=13).filter_map(|n| site.look(10 * n, Some(5), 1).map(|told| (10 * n, told))).collect();
        let stands = |seconds| (seconds, Told::Stands(seconds * SECOND));
        assert_eq!(told, [stands(30), stands(60), stands(120)]);
        assert_eq!(site.look(140, Some(6), 1), Some(Told::Moves(140 * SECOND)));
        assert_eq!(site.look(150, Some(7), 1), None);
    }

    #[test]
    fn finished_moving_and_unrequested_partitions_are_not_logged() {
        let mut site = Site::new();
        assert!((0..20).all(|n| site.look(10 * n, None, 1).is_none()), "all is finished");
        assert!((20..40).all(|n| site.look(10 * n, Some(n.into()), 1).is_none()), "it moves");
        assert!((40..60).all(|n| site.look(10 * n, Some(40), 0).is_none()), "no job is requested");
        assert!((60..62).all(|n| site.look(10 * n, Some(40), 1).is_none()), "jobs are requested");
        assert!(site.look(620, Some(40), 1).is_some());
    }

    #[test]
    fn partition_that_was_lost_and_returns_starts_over() {
        let mut site = Site::new();
        assert!((0..3).all(|n| site.look(10 * n, Some(5), 1).is_none()));
        assert!(
            site.watch.look(&"tasks".into(), &QueueStats::default(), site.begun + 30 * SECOND).is_empty()
        );
        assert!((4..7).all(|n| site.look(10 * n, Some(5), 1).is_none()));
    }
}
