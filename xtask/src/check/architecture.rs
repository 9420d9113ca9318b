//! Checks that what ARCHITECTURE.md names exists: the document is only useful if it can be followed in the editor.
//!
//! In backticks, `name()` is a function, which a row of a table places in one of the files that it names; a word with
//! `/` or an extension is a path, shortened from the left; every other identifier occurs in the sources.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::sources::{self, NOT_OURS};

/// # Errors
/// Lists the names that are missing.
pub(super) fn check() -> Result<()> {
    let root = xtask::root();
    let mut files = HashMap::new();
    for extension in ["rs", "md", "toml", "lua"] {
        for path in sources::below(root, extension, NOT_OURS)? {
            let text = if extension == "rs" { fs::read_to_string(&path)? } else { String::new() };
            files.insert(path.strip_prefix(root)?.to_owned(), text);
        }
    }
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let missing = missing(&document, &files);
    ensure!(missing.is_empty(), "ARCHITECTURE.md names things that don't exist:\n{}", missing.join("\n"));
    Ok(())
}

fn missing(document: &str, files: &HashMap<PathBuf, String>) -> Vec<String> {
    let mut missing = Vec::new();
    for (number, line) in (1..).zip(document.lines()) {
        let names: Vec<_> = line.split('`').skip(1).step_by(2).collect();
        let is_row = line.starts_with('|');
        let named = |path: &&PathBuf| {
            is_row && names.iter().any(|name| name.ends_with(".rs") && path.ends_with(name))
        };
        let mut here: Vec<_> = files.keys().filter(named).map(|path| files[path].as_str()).collect();
        if here.is_empty() {
            here.extend(files.values().map(String::as_str));
        }
        let exists = |name: &str| match name.strip_suffix("()") {
            Some(path) => {
                let function = format!("fn {}", path.rsplit("::").next().unwrap_or(path));
                here.iter().any(|text| has_word(text, &function))
            }
            None if name.contains('/') || Path::new(name).extension().is_some() => {
                files.keys().any(|path| path.ancestors().any(|part| part.ends_with(name)))
            }
            None => name.split("::").all(|word| files.values().any(|text| has_word(text, word))),
        };
        let is_name = |name: &str| {
            let name = name.trim_end_matches("()");
            let is_path = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
            name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_path)
        };
        let absent = names.iter().filter(|name| is_name(name) && !exists(name));
        missing.extend(absent.map(|name| format!("line {number}: {name}")));
    }
    missing
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_function_type_and_file_are_reported_with_their_line() {
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let files = HashMap::from([
            file("crates/a/src/one.rs", "fn go() {}\nfn gone() {}\nconst MAX: u8 = 1;"),
            file("crates/a/src/two/one.rs", "struct Two;"),
            file("crates/a/src/three.rs", "impl Two { fn stop() {} }"),
        ]);
        let good = "`go()` in `a/src/one.rs`, `crates/a`\n`Two::stop()` `MAX` `cargo test` `4^k`\n";
        assert_eq!(missing(good, &files), Vec::<String>::new());
        let bad = "`one.rs` `stop()`\n| `one.rs` `stop()`\n`on()` `Tw` `four.rs` `a/src/stop`\n";
        let expected =
            ["line 2: stop()", "line 3: on()", "line 3: Tw", "line 3: four.rs", "line 3: a/src/stop"];
        assert_eq!(missing(bad, &files), expected);
    }
}
