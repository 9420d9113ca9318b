//! kafkaq at growing sizes: backlogs, waiting tasks, jobs at once, processes, partitions.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::command::check_interrupt;

use crate::compare::MIB;
use crate::driver::Driver;
use crate::figures::Figures;
use crate::options::Growth;
use crate::plots::{self, Line};
use crate::report::{Column, column, figures_json, machine, print_table};
use crate::stage::{Program, Stage, build_kafkaq};

/// Jobs at once where something else grows.
const JOBS: usize = 500;
/// Longer than a run takes.
const DELAY_SECONDS: usize = 6 * 3600;
const LIMIT: Duration = Duration::from_secs(3600);
const POLL: Duration = Duration::from_millis(5);

/// Figures that have a size.
struct Part {
    key: &'static str,
    title: String,
    /// What grows.
    size: &'static str,
    columns: Vec<Column>,
    rows: Vec<Row>,
}

struct Row {
    backends: String,
    size: usize,
    figures: Figures,
}

pub(crate) fn growth(options: &Growth) -> Result<()> {
    let folder = options.out.as_path();
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kafkaq = build_kafkaq()?;
    let stage = Stage::start(folder)?;
    println!("{}", machine());
    println!("\n100-byte tasks, 6 partitions and {JOBS} jobs at once unless stated otherwise.");
    let drained = || {
        vec![column("drain", "drained, K/s", 1000.0), column("memory_mib", "worker's peak memory, MiB", 1.0)]
    };
    let mut parts = Vec::new();
    let mut measure =
        |key, title: String, size, columns, sizes: &[usize], one: &dyn Fn(&str, usize) -> Result<Figures>| {
            let mut part = Part { key, title, size, columns, rows: Vec::new() };
            for backends in &options.backends {
                for &size in sizes {
                    check_interrupt()?;
                    eprintln!("{}: {backends}, {size}", part.title);
                    // A later part must not be affected by what this one leaves.
                    stage.servers.empty_redis()?;
                    let figures = one(backends, size).or_else(|error| {
                        check_interrupt()?;
                        let mut figures = Figures::default();
                        figures.note(&part.columns[0].name, format!("failed: {error:#}"));
                        Ok::<_, anyhow::Error>(figures)
                    })?;
                    part.rows.push(Row { backends: backends.clone(), size, figures });
                }
            }
            part.print();
            parts.push(part);
            Ok::<_, anyhow::Error>(())
        };

    let backlog = vec![
        column("publish_bulk", "published, K/s", 1000.0),
        column("drain", "drained, K/s", 1000.0),
        column("memory_mib", "worker's peak memory, MiB", 1.0),
        column("redis_bytes", "Redis's memory per finished task, bytes", 1.0),
        column("formula_bytes", "by the formula without Redis's own, bytes", 1.0),
    ];
    measure("backlog", "Backlog".into(), "tasks", backlog, &options.backlogs, &|backends, tasks| {
        backlog_of(&stage, &kafkaq(backends), &name(backends, "backlog", tasks), tasks)
    })?;
    let waiting = || {
        vec![
            column("wait", "parked, K/s", 1000.0),
            column("memory_mib", "worker's peak memory, MiB", 1.0),
            column("redis_bytes", "Redis's memory per task, bytes", 1.0),
            column("kafka_bytes", "bytes in Kafka's logs per task", 1.0),
        ]
    };
    measure("delayed", "Delayed tasks".into(), "tasks", waiting(), &options.waiting, &|backends, tasks| {
        let queue = name(backends, "delayed", tasks);
        waiting_tasks(
            &stage,
            &kafkaq(backends),
            &queue,
            tasks,
            ("delay", &[tasks, DELAY_SECONDS]),
            ("park", &[tasks]),
        )
    })?;
    measure(
        "parked",
        "Tasks that were started and snoozed".into(),
        "tasks",
        waiting(),
        &options.waiting,
        &|backends, tasks| {
            let queue = name(backends, "parked", tasks);
            let snooze = [tasks, JOBS, DELAY_SECONDS];
            waiting_tasks(&stage, &kafkaq(backends), &queue, tasks, ("fill", &[tasks]), ("snooze", &snooze))
        },
    )?;
    let tasks = options.tasks;
    let of = |what| format!("{what}, for {tasks} tasks");
    measure("jobs", of("Jobs at once"), "jobs", drained(), &options.jobs, &|backends, jobs| {
        // One job at a time does a few thousand tasks per second at most.
        let tasks = tasks.min(jobs * 20_000);
        drain(&stage, &kafkaq(backends), &name(backends, "jobs", jobs), tasks, jobs)
    })?;
    measure(
        "partitions",
        of("Partitions"),
        "partitions",
        drained(),
        &options.partitions,
        &|backends, partitions| {
            let program = kafkaq(&format!("{backends},partitions={partitions}"));
            drain(&stage, &program, &name(backends, "partitions", partitions), tasks, JOBS)
        },
    )?;
    let shared = vec![column("drain", "drained, K/s", 1000.0)];
    measure(
        "processes",
        of("Processes"),
        "processes",
        shared,
        &options.processes,
        &|backends, processes| {
            share(&stage, &kafkaq(backends), &name(backends, "processes", processes), tasks, processes)
        },
    )?;
    drop(stage);
    write(&parts, folder)
}

fn name(backends: &str, part: &str, size: usize) -> String {
    format!("{}-{part}-{size}", backends.replace(',', "-"))
}

fn drain(stage: &Stage, kafkaq: &Program, queue: &str, tasks: usize, jobs: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    let (filled, _) = stage.play(kafkaq, "fill", queue, &[tasks], LIMIT)?;
    figures.add("publish_bulk", filled.per_second());
    let (drained, used) = stage.play(kafkaq, "drain", queue, &[tasks, jobs, 0], LIMIT)?;
    figures.add("drain", drained.per_second());
    figures.add("memory_mib", used.client_peak / MIB);
    figures.add("executed_again", drained.executions - drained.tasks);
    Ok(figures)
}

fn backlog_of(stage: &Stage, kafkaq: &Program, queue: &str, tasks: usize) -> Result<Figures> {
    let before = stage.servers.redis_memory()?;
    let mut figures = drain(stage, kafkaq, queue, tasks, JOBS)?;
    figures.add("redis_bytes", (stage.servers.redis_memory()? - before) / tasks as f64);
    figures.add("formula_bytes", finished_bytes(queue) as f64);
    Ok(figures)
}

/// The size of a finished task's key and value, by crates/kafkaq/docs/sizing.md.
fn finished_bytes(queue: &str) -> usize {
    let (group, id, token) = ("kafkaq".len(), 36, 3);
    32 + queue.len() + group + id + token
}

/// One command publishes the tasks, another parks them.
fn waiting_tasks(
    stage: &Stage,
    kafkaq: &Program,
    queue: &str,
    tasks: usize,
    publish: (&str, &[usize]),
    wait: (&str, &[usize]),
) -> Result<Figures> {
    let mut figures = Figures::default();
    let (memory, before) = (stage.servers.redis_memory()?, stage.servers.usage(None)?);
    stage.play(kafkaq, publish.0, queue, publish.1, LIMIT)?;
    let (waiting, used) = stage.play(kafkaq, wait.0, queue, wait.1, LIMIT)?;
    figures.add("wait", waiting.per_second());
    figures.add("memory_mib", used.client_peak / MIB);
    figures.add("redis_bytes", (stage.servers.redis_memory()? - memory) / tasks as f64);
    let all = stage.servers.usage(None)?.since(before);
    figures.add("kafka_bytes", all.kafka_bytes / tasks as f64);
    Ok(figures)
}

/// Several processes share a backlog: from the first execution of any to the last.
fn share(stage: &Stage, kafkaq: &Program, queue: &str, tasks: usize, processes: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    stage.play(kafkaq, "fill", queue, &[tasks], LIMIT)?;
    let start = || stage.driver(kafkaq, "work", queue, &[JOBS], LIMIT);
    let mut drivers = (0..processes).map(|_| start()).collect::<Result<Vec<Driver>>>()?;
    let (mut executed, mut first) = (vec![0; processes], None);
    loop {
        check_interrupt()?;
        for (driver, executed) in drivers.iter_mut().zip(&mut executed) {
            *executed = driver.executed()?.unwrap_or(*executed);
        }
        let all: usize = executed.iter().sum();
        if all > 0 && first.is_none() {
            first = Some((Instant::now(), all));
        }
        if let Some((first, already)) = first
            && all >= tasks
        {
            figures.add("drain", (all - already) as f64 / first.elapsed().as_secs_f64());
            return Ok(figures);
        }
        thread::sleep(POLL);
    }
}

impl Part {
    fn print(&self) {
        let rows = self
            .rows
            .iter()
            .map(|row| (format!("{}, {} {}", row.backends, row.size, self.size), &row.figures));
        print_table(&self.title, &self.columns, rows);
    }

    fn json(&self) -> Value {
        let row = |row: &Row| json!({ "backends": row.backends, "size": row.size, "figures": figures_json(&row.figures) });
        json!({ "key": self.key, "title": self.title, "size": self.size, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }

    /// How the first figure grows with the size, in a line per pair of backends.
    fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for row in &self.rows {
            let Some(summary) = row.figures.summary("drain") else { continue };
            let point = (row.size as f64, summary.median / 1000.0);
            match lines.iter_mut().find(|line| line.title == row.backends) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { title: row.backends.clone(), points: vec![point] }),
            }
        }
        lines
    }
}

fn write(parts: &[Part], folder: &Path) -> Result<()> {
    let file = folder.join("growth.json");
    let json = json!({ "machine": machine(), "parts": parts.iter().map(Part::json).collect::<Vec<_>>() });
    fs::write(&file, serde_json::to_string_pretty(&json)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("written: {}", file.display());
    for part in parts.iter().filter(|part| ["jobs", "partitions", "processes"].contains(&part.key)) {
        let file = folder.join(format!("growth-{}.svg", part.key));
        let title = format!("Drained, thousand tasks per second, by {}", part.size);
        plots::draw_lines(&file, &title, &part.lines())?;
        eprintln!("written: {}", file.display());
    }
    Ok(())
}
