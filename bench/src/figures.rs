//! Figures of several rounds, and their summaries.

use std::collections::BTreeMap;

/// The figures of one side: by name, those of all rounds, and why some are missing.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    of: BTreeMap<String, Vec<f64>>,
    notes: BTreeMap<String, String>,
}

impl Figures {
    pub(crate) fn add(&mut self, name: impl Into<String>, figure: f64) {
        self.of.entry(name.into()).or_default().push(figure);
    }

    /// Says why there is no figure of that name, or not in every round.
    pub(crate) fn note(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.notes.insert(name.into(), why.into());
    }

    pub(crate) fn summary(&self, name: &str) -> Option<Summary> {
        Summary::of(self.of.get(name)?)
    }

    pub(crate) fn why_not(&self, name: &str) -> Option<&str> {
        self.notes.get(name).map(String::as_str)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.of.iter().map(|(name, figures)| (name.as_str(), figures.as_slice()))
    }

    pub(crate) fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.notes.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }
}

/// The median and the range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    fn of(figures: &[f64]) -> Option<Summary> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary { median, least, most })
    }

    pub(crate) fn divided_by(self, unit: f64) -> Summary {
        Summary { median: self.median / unit, least: self.least / unit, most: self.most / unit }
    }

    /// Formats it for a table: the median, and the range if there is one.
    pub(crate) fn shown(&self) -> String {
        let (least, most) = (significant(self.least), significant(self.most));
        let median = significant(self.median);
        if least == most { median } else { format!("{median} ({least}–{most})") }
    }
}

/// Three digits are more than such figures are worth.
pub(crate) fn significant(n: f64) -> String {
    match n {
        n if n > 0.0 && n < 0.1 => format!("{n:.3}"),
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// Returns the percentile.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(figures: &[f64]) -> String {
        let mut all = Figures::default();
        figures.iter().for_each(|figure| all.add("rate", *figure));
        all.summary("rate").map_or_else(String::new, |summary| summary.shown())
    }

    #[test]
    fn the_median_comes_with_its_range() {
        assert_eq!(summary(&[3.0, 100.0, 20.0]), "20.0 (3.00–100)");
        assert_eq!(summary(&[1.0, 4.0, 2.0, 400.0]), "3.00 (1.00–400)");
        assert_eq!(summary(&[7.0]), "7.00");
        assert_eq!(summary(&[]), "");
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let sorted: Vec<_> = (1..=1000).map(f64::from).collect();
        let of = |percent| percentile(&sorted, percent).unwrap();
        assert_eq!([of(50.0), of(95.0), of(99.9), of(100.0)], [500.0, 950.0, 999.0, 1000.0]);
        assert_eq!(percentile(&[7.0], 50.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn a_missing_figure_has_its_reason() {
        let mut figures = Figures::default();
        figures.note("rate", "too slow");
        assert_eq!((figures.summary("rate"), figures.why_not("rate")), (None, Some("too slow")));
    }
}
