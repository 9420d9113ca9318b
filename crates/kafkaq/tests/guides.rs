//! Checks the guides and their picture against the code.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every text between `open` and the next `close`.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| Some(rest.split_once(close)?.0))
}

/// Every text between a pair of marks.
fn quoted(text: &str, mark: char) -> impl Iterator<Item = &str> {
    text.split(mark).skip(1).step_by(2)
}

#[test]
fn picture_and_its_source_have_the_same_labels() {
    let source = include_str!("../docs/architecture.mmd");
    let mut written: BTreeSet<_> = quoted(source, '|').collect();
    written.extend(between(source, "[", "]").map(|label| label.trim_matches(['(', ')'])));
    let drawn: BTreeSet<_> = between(include_str!("../docs/architecture.svg"), "<text", "</text>")
        .map(|text| text.split_once('>').unwrap().1)
        .collect();
    assert_eq!(drawn, written);
    assert!(drawn.len() > 15, "{drawn:?}");
}

#[test]
fn log_messages_in_the_guide_exist_in_the_sources() {
    let guide = include_str!("../docs/operations.md");
    let table = guide.split("## What log messages mean").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows =
        table.lines().filter(|row| ["| error |", "| warn |", "| info |"].iter().any(|l| row.starts_with(l)));
    let mut lines = Vec::new();
    for row in rows {
        let cell = row.split(" | ").nth(1).unwrap();
        lines.extend(quoted(cell, '`'));
    }
    assert!(lines.len() > 25, "{lines:?}");
    let sources = sources();
    let missing: Vec<_> = lines.iter().filter(|line| !sources.contains(*line)).collect();
    assert!(missing.is_empty(), "no source says {missing:?}: has a message changed?");
}

/// All sources of the published crates.
fn sources() -> String {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders: Vec<PathBuf> =
        fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path().join("src")).collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|is| is == "rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}
