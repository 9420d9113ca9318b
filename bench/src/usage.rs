//! The resource usage of processes and servers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::command::cpu_of;
use xtask::services::{Server, redis_answer};

/// The servers of a run, and where their figures are.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) kafka: Server,
    pub(crate) redis: Server,
}

/// Counters at one moment, of which only differences mean something, and the client's memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) client_cpu: Duration,
    /// The most memory that the client has had so far, in bytes.
    pub(crate) client_peak: f64,
    pub(crate) kafka_cpu: Duration,
    pub(crate) redis_cpu: Duration,
    /// Commands executed by Redis, including those of scripts.
    pub(crate) redis_commands: f64,
    /// How often Redis has read from a connection: about 16 KiB at most, so a large request is several, and small ones that
    /// arrive together are one.
    pub(crate) redis_reads: f64,
    /// Bytes sent to Redis.
    pub(crate) redis_bytes: f64,
    /// Bytes in the logs of all topics.
    pub(crate) kafka_bytes: f64,
}

impl Usage {
    /// What has been used since `earlier`.
    pub(crate) fn since(self, earlier: Usage) -> Usage {
        Usage {
            client_cpu: self.client_cpu.saturating_sub(earlier.client_cpu),
            client_peak: self.client_peak,
            kafka_cpu: self.kafka_cpu.saturating_sub(earlier.kafka_cpu),
            redis_cpu: self.redis_cpu.saturating_sub(earlier.redis_cpu),
            redis_commands: self.redis_commands - earlier.redis_commands,
            redis_reads: self.redis_reads - earlier.redis_reads,
            redis_bytes: self.redis_bytes - earlier.redis_bytes,
            kafka_bytes: self.kafka_bytes - earlier.kafka_bytes,
        }
    }
}

impl Servers {
    /// The counters, with those of a client if there is one.
    pub(crate) fn usage(&self, client: Option<u32>) -> Result<Usage> {
        let cpu = |pid: Option<u32>| pid.and_then(cpu_of).unwrap_or_default();
        let info = redis_answer(self.redis.addr().port(), "INFO all")?;
        Ok(Usage {
            client_cpu: cpu(client),
            client_peak: client.and_then(peak_memory).unwrap_or(0.0),
            kafka_cpu: cpu(self.kafka.pid()),
            redis_cpu: cpu(self.redis.pid()),
            redis_commands: calls(&info),
            redis_reads: field(&info, "total_reads_processed").unwrap_or(0.0),
            redis_bytes: field(&info, "total_net_input_bytes").unwrap_or(0.0),
            kafka_bytes: log_bytes(&self.kafka.data())? as f64,
        })
    }

    /// Returns the memory that Redis uses for its data, in bytes.
    pub(crate) fn redis_memory(&self) -> Result<f64> {
        let info = redis_answer(self.redis.addr().port(), "INFO memory")?;
        field(&info, "used_memory").context("Redis doesn't say how much memory it has")
    }

    /// Empties Redis, so that no side is affected by an earlier one.
    pub(crate) fn empty_redis(&self) -> Result<()> {
        redis_answer(self.redis.addr().port(), "FLUSHALL ASYNC").map(drop)
    }
}

fn peak_memory(pid: u32) -> Option<f64> {
    peak_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn peak_of(status: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

/// The value of a line `name:value`.
fn field(info: &str, name: &str) -> Option<f64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

/// The calls of all commands, from lines as `cmdstat_get:calls=21,usec=175,…`.
fn calls(info: &str) -> f64 {
    let stats = info.lines().filter(|line| line.starts_with("cmdstat_"));
    let calls = stats.filter_map(|line| line.split_once("calls=")?.1.split(',').next()?.parse::<f64>().ok());
    calls.sum()
}

/// The size of the records of all topics. Indexes are preallocated, so they are not counted.
fn log_bytes(data: &Path) -> Result<u64> {
    let mut bytes = 0;
    for partition in fs::read_dir(data).with_context(|| format!("cannot read {}", data.display()))? {
        // A topic may be deleted meanwhile.
        let Ok(files) = fs::read_dir(partition?.path()) else { continue };
        let logs = files.flatten().map(|file| file.path()).filter(|path| is_log(path));
        bytes += logs.filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum::<u64>();
    }
    Ok(bytes)
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Stats\r\ntotal_net_input_bytes:14\r\nused_memory_peak:9\r\nused_memory:5\r\n\
        # Commandstats\r\ncmdstat_get:calls=21,usec=175,usec_per_call=8.33\r\ncmdstat_client|list:calls=2,usec=1\r\n";

    #[test]
    fn the_calls_of_all_commands_are_added_up() {
        assert_eq!(calls(INFO), 23.0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        assert_eq!(field(INFO, "total_net_input_bytes"), Some(14.0));
        assert_eq!(field(INFO, "used_memory"), Some(5.0));
        assert_eq!(field(INFO, "used"), None);
    }

    #[test]
    fn the_peak_of_memory_is_in_bytes() {
        assert_eq!(peak_of("Name:\tbench\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2_097_152.0));
        assert_eq!(peak_of("Name:\tbench\n"), None);
    }

    #[test]
    fn only_records_count_as_bytes_of_the_log() {
        let data = std::env::temp_dir().join(format!("kafkaq-bench-log-{}", std::process::id()));
        fs::create_dir_all(data.join("topic-0")).unwrap();
        fs::write(data.join("meta.properties"), "four").unwrap();
        fs::write(data.join("topic-0/00000000000000000000.log"), "record").unwrap();
        fs::write(data.join("topic-0/00000000000000000000.index"), [0; 100]).unwrap();
        assert_eq!(log_bytes(&data).unwrap(), 6);
        fs::remove_dir_all(data).unwrap();
    }
}
