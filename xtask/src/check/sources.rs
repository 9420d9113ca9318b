//! The files of the workspace, and their includes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders whose files are generated.
pub(super) const NOT_OURS: &[&str] = &["target", ".services", ".git"];

/// Returns all files with an extension below a folder, except in folders with these names.
pub(super) fn below(folder: &Path, extension: &str, but: &[&str]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !but.iter().any(|name| entry.file_name() == *name) {
                found.extend(below(&path, extension, but)?);
            }
        } else if path.extension().is_some_and(|is| is == extension) {
            found.insert(path);
        }
    }
    Ok(found)
}

/// The paths in `include_str!` and its like.
pub(super) fn included(text: &str) -> Vec<String> {
    let after = text.match_indices("include").filter_map(|(at, _)| {
        let call = text.get(at..)?.split_once("!(\"")?;
        matches!(call.0, "include" | "include_str" | "include_bytes").then_some(call.1)
    });
    after.filter_map(|path| Some(path.split_once('"')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_included_is_found() {
        let text =
            "#![doc = include_str!(\"../README.md\")] // include!\nconst A: &[u8] = include_bytes!(\"a\");";
        assert_eq!(included(text), ["../README.md", "a"]);
    }
}
