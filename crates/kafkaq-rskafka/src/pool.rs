//! Connections to the leaders of partitions that nobody uses just now.

use crate::locked;
use kafkaq_core::Partition;
use rskafka::client::partition::PartitionClient;
use std::{collections::HashMap, sync::Arc, sync::Mutex};
use tokio::time::Instant;

/// What a partition may have lying idle. More are under way only in bursts.
const IDLE_OF_ONE: usize = 4;
/// What may lie idle in all, so that partitions that went to other processes don't hold on to theirs.
const IDLE: usize = 1024;

/// A connection to a partition's leader, and the [epoch](crate::link) of the client that made it.
pub(crate) struct Connection {
    pub(crate) client: Arc<PartitionClient>,
    pub(crate) epoch: u64,
}

/// A connection is taken out for one request and put back when the server has answered. The server works on one
/// request of a connection at a time, so a fetch that waits for records would hold up whatever comes after it.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    of: HashMap<Partition, Vec<(Instant, Connection)>>,
    count: usize,
}

impl Pool {
    pub(crate) fn take(&self, partition: &Partition) -> Option<Connection> {
        let mut idle = locked(&self.0);
        let (_, connection) = idle.of.get_mut(partition)?.pop()?;
        idle.count -= 1;
        Some(connection)
    }

    pub(crate) fn put(&self, partition: &Partition, connection: Connection) {
        let mut idle = locked(&self.0);
        let of_one = idle.of.entry(partition.clone()).or_default();
        if of_one.len() >= IDLE_OF_ONE {
            return;
        }
        of_one.push((Instant::now(), connection));
        idle.count += 1;
        if idle.count > IDLE {
            idle.close_longest_idle();
        }
    }

    /// Those that are left of a partition whose leader has failed.
    pub(crate) fn forget(&self, partition: &Partition) {
        let mut idle = locked(&self.0);
        idle.count -= idle.of.remove(partition).map_or(0, |gone| gone.len());
    }

    pub(crate) fn clear(&self) {
        *locked(&self.0) = Idle::default();
    }
}

impl Idle {
    fn close_longest_idle(&mut self) {
        // The last of a list is taken first, so its first has been idle for longest.
        let oldest = self.of.iter().filter_map(|(p, of_one)| Some((of_one.first()?.0, p.clone()))).min();
        let Some((_, partition)) = oldest else { return };
        if let Some(of_one) = self.of.get_mut(&partition) {
            of_one.remove(0);
            self.count -= 1;
        }
        self.of.retain(|_, of_one| !of_one.is_empty());
    }
}
