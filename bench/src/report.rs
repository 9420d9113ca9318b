//! What was measured, as Markdown and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use xtask::services::KAFKA_VERSION;

use crate::compare::{CALLERS, Entry, HOLD_MS, PERCENTILES, RATES, pick_up};
use crate::figures::Figures;
use crate::options::Compare;
use crate::side::{HELD_JOBS, guarantees};

/// A column of figures: their name, the title, and the divisor.
pub(crate) struct Column {
    pub(crate) name: String,
    title: String,
    unit: f64,
}

pub(crate) fn column(name: impl Into<String>, title: impl Into<String>, unit: f64) -> Column {
    Column { name: name.into(), title: title.into(), unit }
}

pub(crate) fn print(options: &Compare, entries: &[Entry]) {
    println!("{}", machine());
    println!(
        "\n100-byte tasks; a backlog of {} (at most 100,000 for asynq and BullMQ, and 7,000 for apalis, whose worker \
         stops if there are more); Kafka {KAFKA_VERSION} with 6 partitions, Redis without persistence; the median of {} \
         rounds, and in brackets the range.",
        options.backlog, options.rounds
    );
    let platforms: Vec<_> = options.rivals.iter().filter_map(|rival| rival.platform()).collect();
    if !platforms.is_empty() {
        println!("The others run on {}.", platforms.join(", "));
    }
    print_guarantees(options);
    for (title, columns) in tables() {
        let rows = entries.iter().map(|entry| (entry.side.title.to_owned(), &entry.figures));
        print_table(&title, &columns, rows);
    }
}

fn print_guarantees(options: &Compare) {
    println!("\n## Guarantees with default settings\n");
    println!(
        "| | published means | executed | after a crash executed again after | duplicates |\n|---|---|---|---|---|"
    );
    for g in guarantees(&options.rivals) {
        println!(
            "| {} | {} | {} | {} | {} |",
            g.system, g.published, g.executed, g.after_crash, g.duplicates
        );
    }
}

fn tables() -> Vec<(String, Vec<Column>)> {
    let rates = vec![
        column("publish_calls", format!("published by {CALLERS} callers"), 1000.0),
        column("publish_bulk", "published in bulk", 1000.0),
        column("drain", "drained", 1000.0),
        column("drain_held", format!("drained by {HELD_JOBS} handlers of {HOLD_MS} ms"), 1000.0),
        column("executed_again", "tasks executed twice", 1.0),
    ];
    let costs = vec![
        column("bulk_cpu_client", "CPU to publish in bulk, µs: client", 1.0),
        column("bulk_cpu_kafka", "Kafka", 1.0),
        column("bulk_cpu_redis", "Redis", 1.0),
        column("drain_cpu_all", "CPU to execute, µs: all", 1.0),
        column("drain_cpu_client", "client", 1.0),
        column("drain_cpu_kafka", "Kafka", 1.0),
        column("drain_cpu_redis", "Redis", 1.0),
        column("redis_commands", "commands in Redis", 1.0),
        column("redis_reads", "reads by Redis", 1.0),
        column("redis_bytes", "bytes to Redis", 1.0),
        column("kafka_bytes", "bytes in Kafka's logs", 1.0),
        column("memory_mib", "client's peak memory, MiB", 1.0),
    ];
    let mut tables = vec![("Tasks, K/s".to_owned(), rates), ("Cost of a task".to_owned(), costs)];
    for rate in RATES {
        let columns = PERCENTILES.map(|(_, name)| column(pick_up(rate, name), name, 1.0)).into();
        tables.push((format!("Pick-up at {rate} tasks per second, ms"), columns));
    }
    tables
}

/// Prints a row for each title and its figures.
pub(crate) fn print_table<'a>(
    title: &str,
    columns: &[Column],
    rows: impl Iterator<Item = (String, &'a Figures)>,
) {
    let titles: Vec<_> = columns.iter().map(|column| column.title.as_str()).collect();
    println!("\n## {title}\n\n| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(columns.len()));
    for (row, figures) in rows {
        let cells: Vec<_> = columns.iter().map(|column| cell(column, figures)).collect();
        println!("| {row} | {} |", cells.join(" | "));
    }
}

/// The figure, and why it is missing or was missing in some round.
fn cell(column: &Column, figures: &Figures) -> String {
    let shown = figures.summary(&column.name).map(|summary| summary.divided_by(column.unit).shown());
    let why = figures.why_not(&column.name).map(|why| why.replace('|', "/"));
    match (shown, why) {
        (Some(shown), None) => shown,
        (Some(shown), Some(why)) => format!("{shown}; {why}"),
        (None, Some(why)) => why,
        (None, None) => String::new(),
    }
}

pub(crate) fn write(options: &Compare, entries: &[Entry], file: &Path) -> Result<()> {
    let json = json!({
        "machine": machine(),
        "kafka": KAFKA_VERSION,
        "rounds": options.rounds,
        "backlog": options.backlog,
        "sides": entries.iter().map(side_json).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&json)?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

fn side_json(entry: &Entry) -> Value {
    json!({ "key": entry.side.key, "title": entry.side.title, "figures": figures_json(&entry.figures) })
}

/// The figures of all rounds, and why some are missing.
pub(crate) fn figures_json(figures: &Figures) -> Value {
    let all: Map<_, _> = figures.all().map(|(name, figures)| (name.to_owned(), json!(figures))).collect();
    let notes: Map<_, _> = figures.notes().map(|(name, why)| (name.to_owned(), json!(why))).collect();
    json!({ "of": all, "missing": notes })
}

/// The machine, and what runs on it.
pub(crate) fn machine() -> String {
    format!("{}; servers and client on it", xtask::machine())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_the_figure_in_its_unit_or_the_reason() {
        let drain = column("drain", "drained", 1000.0);
        let mut figures = Figures::default();
        assert_eq!(cell(&drain, &figures), "");
        figures.add("drain", 61_300.0);
        figures.add("drain", 59_000.0);
        figures.add("drain", 66_000.0);
        assert_eq!(cell(&drain, &figures), "61.3 (59.0–66.0)");
        figures.note("drain", "failed: a | b");
        assert_eq!(cell(&drain, &figures), "61.3 (59.0–66.0); failed: a / b");
        assert_eq!(cell(&column("publish_bulk", "", 1.0), &figures), "");
    }
}
