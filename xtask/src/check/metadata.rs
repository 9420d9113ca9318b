//! What cargo knows about the workspace and its dependencies.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::command::capture;

use crate::cargo;

/// Checks that no dependency requires a newer Rust than the workspace states.
///
/// # Errors
/// Lists the dependencies that require more.
pub(super) fn check_rust_version() -> Result<()> {
    let too_new = too_new(&packages("--all-features")?)?;
    ensure!(too_new.is_empty(), "these need a newer Rust than rust-version states: {}", too_new.join(", "));
    Ok(())
}

/// The packages that `cargo metadata` names with this option.
pub(super) fn packages(option: &str) -> Result<Vec<Value>> {
    match metadata(option)?["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => bail!("`cargo metadata` names no packages"),
    }
}

/// The names of the integration tests of some packages.
pub(super) fn integration_tests(of: &[&str]) -> Result<Vec<String>> {
    let packages = packages("--no-deps")?;
    let packages =
        packages.iter().filter(|package| package["name"].as_str().is_some_and(|n| of.contains(&n)));
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|target| target["kind"][0] == "test");
    Ok(tests.filter_map(|test| Some(test["name"].as_str()?.to_owned())).collect())
}

/// Where cargo puts what it builds.
pub(super) fn target() -> Result<PathBuf> {
    let metadata = metadata("--no-deps")?;
    let target = metadata["target_directory"].as_str();
    Ok(target.context("`cargo metadata` names no target directory")?.into())
}

fn metadata(option: &str) -> Result<Value> {
    let said = capture(&mut cargo(&["metadata", "--format-version", "1", option]))?;
    serde_json::from_str(&said).context("`cargo metadata` in a new form")
}

fn too_new(packages: &[Value]) -> Result<Vec<String>> {
    let ours = packages.iter().find(|package| package["name"] == "xtask").and_then(rust_version);
    let ours = ours.context("the workspace states no rust-version")?;
    let newer = packages.iter().filter(|package| rust_version(package) > Some(ours));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(newer
        .map(|p| format!("{} {} ({})", text(&p["name"]), text(&p["version"]), text(&p["rust_version"])))
        .collect())
}

/// Major, minor, patch; none for a package that does not say.
fn rust_version(package: &Value) -> Option<[u32; 3]> {
    let mut version = [0; 3];
    let parts = package["rust_version"].as_str()?.split('.');
    for (number, part) in version.iter_mut().zip(parts) {
        *number = part.parse().ok()?;
    }
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dependency_that_needs_a_newer_rust_is_found() {
        let package =
            |name: &str, rust: &str| json!({ "name": name, "version": "1.0.0", "rust_version": rust });
        let silent = json!({ "name": "silent", "version": "1.0.0", "rust_version": null });
        let ours = package("xtask", "1.89");
        let packages =
            [ours, silent, package("old", "1.9"), package("same", "1.89.0"), package("newer", "1.90")];
        assert_eq!(too_new(&packages).unwrap(), ["newer 1.0.0 (1.90)"]);
    }
}
