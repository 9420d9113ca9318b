//! The `redis` crate: one connection per caller, and one pipeline per batch.
//!
//! A creation is one `SET NX GET PX`. Replacements are a script that compares and sets, over as many keys as kafkaq's
//! store gives to its own. Each lease has its own key: sharing hashes among neighbours is an optimization of the store.
//! In a cluster a command has one key, and each node gets its part of a batch as a pipeline; the nodes are looked up
//! beforehand.

use super::{Swaps, Used, all_done, full};
use crate::{
    Outcome,
    stores::{TTL, UNDER_WAY},
};
use futures_util::future::try_join_all;
use kafkaq::backend::Swap;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, Pipeline, Value, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use std::time::Duration;

const KEYS_A_SCRIPT: usize = 128;
const SCRIPT: &str = "
    local done = {}
    for i, key in ipairs(KEYS) do
        done[i] = 0
        if redis.call('GET', key) == ARGV[2 * i] then
            redis.call('SET', key, ARGV[2 * i + 1], 'PX', ARGV[1])
            done[i] = 1
        end
    end
    return done";

pub(crate) struct Redis {
    /// One per caller.
    connections: Vec<MultiplexedConnection>,
    script: String,
}

impl Redis {
    pub(crate) async fn connect(url: &str) -> Outcome<Redis> {
        let info = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info)?;
        let mut connections = Vec::new();
        for _ in 0..UNDER_WAY {
            // A machine that stalls for a moment is not a failure.
            let patient = AsyncConnectionConfig::new().set_response_timeout(None);
            connections.push(client.get_multiplexed_async_connection_with_config(&patient).await?);
        }
        let script = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut connections[0]).await?;
        Ok(Redis { connections, script })
    }

    async fn send(&self, caller: usize, swaps: &[Swap], keys_a_script: usize) -> Outcome<()> {
        let ttl = TTL.as_millis() as u64;
        let mut pipeline = Pipeline::with_capacity(swaps.len());
        for chunk in swaps.chunks(keys_a_script) {
            if chunk[0].expect.is_none() {
                for swap in chunk {
                    let set = pipeline.cmd("SET").arg(full(&swap.key)).arg(swap.new.as_deref());
                    set.arg("NX").arg("GET").arg("PX").arg(ttl);
                }
                continue;
            }
            let run = pipeline.cmd("EVALSHA").arg(&self.script).arg(chunk.len());
            chunk.iter().for_each(|swap| {
                run.arg(full(&swap.key));
            });
            run.arg(ttl);
            chunk.iter().for_each(|swap| {
                run.arg(swap.expect.as_deref()).arg(swap.new.as_deref());
            });
        }
        let answers: Vec<Value> = pipeline.query_async(&mut self.connections[caller].clone()).await?;
        all_done(answers.iter().map(|answer| match answer {
            Value::Array(done) => done.iter().all(|one| *one == Value::Int(1)),
            answer => *answer == Value::Nil,
        }))
    }
}

impl Swaps for Redis {
    type Batch = Vec<Swap>;

    async fn prepare(&self, swaps: Vec<Swap>) -> Outcome<Vec<Swap>> {
        Ok(swaps)
    }

    async fn swap(&self, caller: usize, batch: &Vec<Swap>) -> Outcome<()> {
        self.send(caller, batch, KEYS_A_SCRIPT).await
    }

    async fn used(&self) -> Outcome<Option<Used>> {
        let info: String = redis::cmd("INFO").query_async(&mut self.connections[0].clone()).await?;
        let figure = |name: &str| -> Outcome<f64> {
            let figure = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            Ok(figure.ok_or("INFO without a figure")?.trim().parse()?)
        };
        let cpu = Duration::from_secs_f64(figure("used_cpu_user")? + figure("used_cpu_sys")?);
        Ok(Some(Used { cpu, bytes: figure("used_memory")? }))
    }
}

pub(crate) struct Cluster {
    nodes: Vec<Redis>,
    /// The first and the last slot of a range, and the place of the node that has it.
    ranges: Vec<(u16, u16, usize)>,
}

impl Cluster {
    pub(crate) async fn connect(urls: impl Iterator<Item = &str>) -> Outcome<Cluster> {
        let (mut nodes, mut ports) = (Vec::new(), Vec::new());
        for url in urls {
            nodes.push(Redis::connect(url).await?);
            ports.push(url.rsplit_once(':').ok_or("a URL with a port")?.1.parse::<u16>()?);
        }
        // First and last slot, then the only node that has them: host, port, id, and more.
        type Range = (u16, u16, (Value, u16, Value, Value));
        let slots: Vec<Range> =
            redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut nodes[0].connections[0]).await?;
        let mut ranges = Vec::new();
        for (first, last, (_, port, ..)) in slots {
            let node = ports.iter().position(|p| *p == port).ok_or("an unknown node")?;
            ranges.push((first, last, node));
        }
        Ok(Cluster { nodes, ranges })
    }
}

impl Swaps for Cluster {
    /// Each node's part.
    type Batch = Vec<Vec<Swap>>;

    async fn prepare(&self, swaps: Vec<Swap>) -> Outcome<Vec<Vec<Swap>>> {
        let mut pipeline = Pipeline::with_capacity(swaps.len());
        swaps.iter().for_each(|swap| {
            pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(full(&swap.key));
        });
        let slots: Vec<u16> = pipeline.query_async(&mut self.nodes[0].connections[0].clone()).await?;
        let mut parts = vec![Vec::new(); self.nodes.len()];
        for (swap, slot) in swaps.into_iter().zip(slots) {
            let range = self.ranges.iter().find(|(first, last, _)| (first..=last).contains(&&slot));
            parts[range.ok_or("a slot without a node")?.2].push(swap);
        }
        Ok(parts)
    }

    async fn swap(&self, caller: usize, batch: &Vec<Vec<Swap>>) -> Outcome<()> {
        let parts = self.nodes.iter().zip(batch).filter(|(_, part)| !part.is_empty());
        try_join_all(parts.map(|(node, part)| node.send(caller, part, 1))).await.map(drop)
    }
}
