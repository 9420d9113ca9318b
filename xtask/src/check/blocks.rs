//! Checks that every Rust block in a document is compiled by the tests, since otherwise it would become stale.
//!
//! Rustdoc turns the blocks of a document into tests if a crate includes it as documentation. Blocks that it ignores
//! belong to a test that includes the document, to build what a reader would build from it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::sources::{self, NOT_OURS};

/// # Errors
/// Names the documents with blocks that no test compiles.
pub(super) fn check() -> Result<()> {
    let untried = untried(xtask::root())?;
    ensure!(untried.is_empty(), "blocks of Rust that no test compiles:\n{}", untried.join("\n"));
    Ok(())
}

fn untried(root: &Path) -> Result<Vec<String>> {
    let crates = root.join("crates");
    let included = included_documents(&crates, |_| true)?;
    let by_tests = included_documents(&crates, |file| file.iter().any(|part| part == "tests"))?;
    let mut untried = Vec::new();
    for document in sources::below(root, "md", NOT_OURS)? {
        let name = document.strip_prefix(root)?.display();
        // One document may have several names.
        let canonical = document.canonicalize()?;
        let (tried, by_test) = (included.contains(&canonical), by_tests.contains(&canonical));
        for (number, info) in blocks(&fs::read_to_string(&document)?) {
            let words: Vec<_> = info.split(',').map(str::trim).collect();
            if words.contains(&"rust") && (!tried || (words.contains(&"ignore") && !by_test)) {
                untried.push(format!("{name}:{number}: {info}"));
            }
        }
    }
    Ok(untried)
}

/// Returns the first line of each block, and its info string.
fn blocks(text: &str) -> Vec<(usize, &str)> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            if !inside {
                blocks.push((number, info.trim()));
            }
            inside = !inside;
        }
    }
    blocks
}

/// The documents that files of the crates include.
fn included_documents(crates: &Path, of: impl Fn(&Path) -> bool) -> Result<HashSet<PathBuf>> {
    let mut documents = HashSet::new();
    for file in sources::below(crates, "rs", NOT_OURS)?.into_iter().filter(|file| of(file)) {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let folder = file.parent().unwrap_or(crates);
        let included = sources::included(&text).into_iter().filter(|path| path.ends_with(".md"));
        documents.extend(included.filter_map(|path| folder.join(path).canonicalize().ok()));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_rust_that_no_crate_includes_is_told_with_its_line() {
        let root = std::env::temp_dir().join(format!("xtask-blocks-{}", std::process::id()));
        fs::create_dir_all(root.join("crates/one/src")).unwrap();
        let write = |file: &str, text: &str| fs::write(root.join(file), text).unwrap();
        write("crates/one/src/lib.rs", "#![doc = include_str!(\"../README.md\")]");
        write("crates/one/README.md", "```rust\n```\n```sh\n```\n```rust,ignore\n```\n```\n```\n");
        write("GUIDE.md", "# Guide\n\n```text\n```\n```rust,no_run\nlet x = 1;\n```\n");
        write("PLAIN.md", "```\nno language\n```\n");
        let mut untried = untried(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        untried.sort();
        assert_eq!(untried, ["GUIDE.md:5: rust,no_run", "crates/one/README.md:5: rust,ignore"]);
    }
}
