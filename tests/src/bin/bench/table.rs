//! A Markdown table that is printed row by row, followed by the errors.

use kafkaq_tests::{BrokerKind, StoreKind};
use std::time::Duration;

/// A table that is being printed.
pub(crate) struct Table {
    columns: usize,
    notes: Vec<String>,
}

impl Table {
    /// Prints the title and the head.
    pub(crate) fn begin(title: &str, columns: &[&str]) -> Table {
        println!("\n## {title}\n\n| {} |", columns.join(" | "));
        println!("|{}", "---|".repeat(columns.len()));
        Table { columns: columns.len(), notes: Vec::new() }
    }

    /// Prints a row; missing cells stay empty.
    pub(crate) fn row(&self, mut cells: Vec<String>) {
        cells.resize(self.columns, String::new());
        println!("| {} |", cells.join(" | "));
    }

    /// The row of a pair: its figures, or why there are none.
    pub(crate) fn pair(
        &mut self,
        broker: BrokerKind,
        store: StoreKind,
        figures: Result<Vec<String>, String>,
    ) {
        let names = [broker.name(), store.name()];
        let figures = figures.unwrap_or_else(|why| vec![self.failed(&names.join(" with "), &why)]);
        self.row([names.map(str::to_owned).to_vec(), figures].concat());
    }

    /// Records why a row has no figure, and returns the placeholder for it.
    pub(crate) fn failed(&mut self, row: &str, why: &str) -> String {
        self.notes.push(format!("{row}: {why}"));
        format!("failed ({})", self.notes.len())
    }

    /// Prints what went wrong.
    pub(crate) fn end(self) {
        for (n, note) in self.notes.iter().enumerate() {
            println!("\n({}) {note}", n + 1);
        }
    }
}

/// Formats a rate in thousands, with three digits.
pub(crate) fn thousands(a_second: f64) -> String {
    significant(a_second / 1000.0)
}

/// Three digits are more than such figures are worth.
pub(crate) fn significant(n: f64) -> String {
    match n {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// Returns the client's rate, ours, and the ratio within the same round, since a slow round slows down both.
pub(crate) fn side_by_side(client: Vec<f64>, ours: Vec<f64>) -> Vec<String> {
    let share = median(ours.iter().zip(&client).map(|(ours, client)| ours / client * 100.0).collect());
    vec![thousands(median(client)), thousands(median(ours)), format!("{share:.0} %")]
}

/// In milliseconds, what so many percent of them are not above.
pub(crate) fn percentiles(mut of: Vec<Duration>, percents: [usize; 3]) -> [String; 3] {
    of.sort_unstable();
    percents.map(|percent| {
        let one = of[(of.len() * percent / 100).min(of.len() - 1)];
        significant(one.as_secs_f64() * 1000.0)
    })
}

/// Returns the median.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}
