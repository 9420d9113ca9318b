//! Compares kafkaq with other queues: all sides in each round, one after the other.
//!
//! 100-byte tasks, 6 partitions if there are any, handlers that do nothing unless stated; one client process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::command::check_interrupt;

use crate::driver::Outcome;
use crate::figures::{Figures, percentile};
use crate::options::Compare;
use crate::rival;
use crate::side::{HELD_JOBS, Player, Side, sides};
use crate::stage::{Program, Stage, build_kafkaq};
use crate::usage::Usage;
use crate::{plots, report};

/// Tasks per second whose pick-up is measured.
pub(crate) const RATES: [usize; 3] = [200, 2_000, 20_000];
pub(crate) const PERCENTILES: [(f64, &str); 4] =
    [(50.0, "p50"), (95.0, "p95"), (99.0, "p99"), (99.9, "p99.9")];
pub(crate) const CALLERS: usize = 64;
/// How long a task takes where handlers take a while.
pub(crate) const HOLD_MS: usize = 5;
const WARM_UP_SECONDS: usize = 2;
/// A pace is kept if the run takes at most this many times as long as planned.
const KEPT: f64 = 1.1;
/// With `Tracking::Slow`, this many tasks at the start of a queue get a lease anyway.
const LEASED_FIRST: usize = 6 * 8_192;
/// The time limit of one figure.
const LIMIT: Duration = Duration::from_secs(300);
pub(crate) const MIB: f64 = 1_048_576.0;

/// A side, how its program is started, and its figures.
pub(crate) struct Entry {
    pub(crate) side: Side,
    program: Program,
    pub(crate) figures: Figures,
}

pub(crate) fn compare(options: &Compare) -> Result<()> {
    rival::ensure_tools(&options.rivals)?;
    let folder = options.out.as_path();
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut entries = entries(options, folder)?;

    let stage = Stage::start(folder)?;
    for round in 0..options.rounds {
        // No side is always first.
        let rotated = round * entries.len() / options.rounds;
        let (last, first) = entries.split_at_mut(rotated);
        for entry in first.iter_mut().chain(last) {
            check_interrupt()?;
            eprintln!("round {} of {}: {}", round + 1, options.rounds, entry.side.title);
            Measured { entry, stage: &stage, options, round }.everything()?;
        }
        // After each round: a run takes long, and may be interrupted.
        report::write(options, &entries, &folder.join("figures.json"))?;
        plots::draw(&entries, folder)?;
    }
    drop(stage);
    report::print(options, &entries);
    eprintln!("figures.json and plots are in {}", folder.display());
    Ok(())
}

/// Builds the programs of the sides.
fn entries(options: &Compare, folder: &Path) -> Result<Vec<Entry>> {
    let kafkaq = build_kafkaq()?;
    let mut built = Vec::new();
    for rival in &options.rivals {
        eprintln!("building {}", rival.name());
        built.push((*rival, rival.build(&folder.join("rivals"))?));
    }
    let entry = |side: Side| {
        let program = match side.player {
            Player::Kafkaq(backends) => kafkaq(backends),
            Player::Rival(rival) => {
                let found = built.iter().find(|(built, _)| *built == rival);
                found.map(|(_, program)| program.clone()).context("a rival that was not built")?
            }
        };
        Ok(Entry { side, program, figures: Figures::default() })
    };
    sides(&options.rivals).into_iter().map(entry).collect()
}

/// One side in one round.
struct Measured<'a> {
    entry: &'a mut Entry,
    stage: &'a Stage,
    options: &'a Compare,
    round: usize,
}

impl Measured<'_> {
    fn everything(&mut self) -> Result<()> {
        let publish = self.publish_by_calls();
        self.noted("publish_calls", publish)?;
        let drain = self.drain();
        let drained = self.noted("drain", drain)?;
        if self.entry.side.is_held {
            let held = self.drain_held();
            self.noted("drain_held", held)?;
        }
        for rate in RATES {
            if self.all_are_leased(rate) {
                let why = "as without Slow: all of so few tasks get a lease anyway";
                self.entry.figures.note(pick_up(rate, "p50"), why.to_owned());
                continue;
            }
            match drained {
                Some(drained) if drained < rate as f64 => {
                    let why = format!("too fast: it drains {:.1} K/s", drained / 1000.0);
                    self.entry.figures.note(pick_up(rate, "p50"), why);
                }
                _ => {
                    let picked_up = self.pick_up(rate);
                    self.noted(&pick_up(rate, "p50"), picked_up)?;
                }
            }
        }
        Ok(())
    }

    /// Records a missing figure instead of failing; an interrupt still fails.
    fn noted<T>(&mut self, name: &str, outcome: Result<T>) -> Result<Option<T>> {
        check_interrupt()?;
        match outcome {
            Ok(outcome) => Ok(Some(outcome)),
            Err(error) => {
                eprintln!("{}, {name}: {error:#}", self.entry.side.title);
                self.entry.figures.note(name, format!("failed: {error:#}"));
                Ok(None)
            }
        }
    }

    fn publish_by_calls(&mut self) -> Result<()> {
        self.stage.servers.empty_redis()?;
        let (outcome, _) = self.drive("call", &self.queue("calls"), &[self.options.calls, CALLERS])?;
        self.entry.figures.add("publish_calls", outcome.per_second());
        Ok(())
    }

    /// Returns the tasks per second.
    fn drain(&mut self) -> Result<f64> {
        let (tasks, jobs) = (self.backlog(), self.entry.side.jobs);
        let queue = self.queue("drain");
        self.stage.servers.empty_redis()?;
        let before = self.stage.servers.usage(None)?;
        let (filled, used) = self.drive("fill", &queue, &[tasks])?;
        if self.entry.side.publishes_in_bulk {
            self.entry.figures.add("publish_bulk", filled.per_second());
            self.add_cpu("bulk", used, filled.tasks);
        } else {
            self.entry.figures.note("publish_bulk", "it has no call for that");
        }
        let (drained, used) = self.drive("drain", &queue, &[tasks, jobs, 0])?;
        let all = self.stage.servers.usage(None)?.since(before);

        let rate = drained.per_second();
        let again = drained.executions - drained.tasks;
        let side = &self.entry.side;
        let (uses_kafka, uses_redis) = (side.uses_kafka, side.uses_redis);
        self.add_cpu("drain", used, drained.tasks);
        let figures = &mut self.entry.figures;
        figures.add("drain", rate);
        figures.add("executed_again", again);
        figures.add("memory_mib", used.client_peak / MIB);
        if uses_redis {
            figures.add("redis_commands", all.redis_commands / drained.tasks);
            figures.add("redis_reads", all.redis_reads / drained.tasks);
            figures.add("redis_bytes", all.redis_bytes / drained.tasks);
        }
        if uses_kafka {
            figures.add("kafka_bytes", all.kafka_bytes / drained.tasks);
        }
        Ok(rate)
    }

    fn drain_held(&mut self) -> Result<()> {
        let queue = self.queue("held");
        self.stage.servers.empty_redis()?;
        let tasks = self.backlog();
        self.drive("fill", &queue, &[tasks])?;
        let (drained, _) = self.drive("drain", &queue, &[tasks, HELD_JOBS, HOLD_MS])?;
        self.entry.figures.add("drain_held", drained.per_second());
        Ok(())
    }

    /// Whether `Tracking::Slow` makes no difference, since the queue ends before it does.
    fn all_are_leased(&self, rate: usize) -> bool {
        let is_slow = matches!(self.entry.side.player, Player::Kafkaq(backends) if backends.contains("slow"));
        is_slow && rate * (WARM_UP_SECONDS + self.options.seconds) <= LEASED_FIRST
    }

    fn pick_up(&mut self, rate: usize) -> Result<()> {
        self.stage.servers.empty_redis()?;
        let (uncounted, counted) = (rate * WARM_UP_SECONDS, rate * self.options.seconds);
        let numbers = [rate, uncounted, counted, self.entry.side.jobs];
        let (outcome, _) = self.drive("pace", &self.queue(&format!("pace-{rate}")), &numbers)?;
        let planned = outcome.tasks / rate as f64;
        if outcome.seconds > planned * KEPT {
            let why = format!("too fast: it does {:.1} K/s", outcome.per_second() / 1000.0);
            self.entry.figures.note(pick_up(rate, "p50"), why);
            return Ok(());
        }
        let mut late = outcome.late_us;
        late.sort_by(f64::total_cmp);
        for (percent, name) in PERCENTILES {
            let late = percentile(&late, percent).context("no task was counted")?;
            self.entry.figures.add(pick_up(rate, name), late / 1000.0);
        }
        Ok(())
    }

    fn drive(&self, command: &str, queue: &str, numbers: &[usize]) -> Result<(Outcome, Usage)> {
        self.stage.play(&self.entry.program, command, queue, numbers, LIMIT)
    }

    fn add_cpu(&mut self, what: &str, used: Usage, tasks: f64) {
        let side = &self.entry.side;
        let processes = [
            ("client", used.client_cpu, true),
            ("kafka", used.kafka_cpu, side.uses_kafka),
            ("redis", used.redis_cpu, side.uses_redis),
        ];
        let mut all = 0.0;
        for (process, cpu, _) in processes.into_iter().filter(|(_, _, is_used)| *is_used) {
            let cpu = cpu.as_secs_f64() * 1e6 / tasks;
            self.entry.figures.add(format!("{what}_cpu_{process}"), cpu);
            all += cpu;
        }
        self.entry.figures.add(format!("{what}_cpu_all"), all);
    }

    fn backlog(&self) -> usize {
        self.options.backlog.min(self.entry.side.largest_backlog.unwrap_or(usize::MAX))
    }

    fn queue(&self, what: &str) -> String {
        format!("{}-{}-{what}", self.entry.side.key, self.round)
    }
}

/// The name of a figure.
pub(crate) fn pick_up(rate: usize, percentile: &str) -> String {
    format!("pick_up_{rate}_{percentile}")
}
