//! What cargo knows about the workspace and its dependencies.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::command::capture;

use crate::cargo;

/// Sees to it that no dependency asks for a newer Rust than the workspace states: else its statement is untrue.
///
/// # Errors
/// Names the dependencies that ask for more.
pub(crate) fn check_rust_version() -> Result<()> {
    let too_new = too_new(&packages("--all-features")?)?;
    ensure!(too_new.is_empty(), "these need a newer Rust than rust-version states: {}", too_new.join(", "));
    Ok(())
}

/// The packages that `cargo metadata` names with this option.
pub(crate) fn packages(option: &str) -> Result<Vec<Value>> {
    let said = capture(&mut cargo(&["metadata", "--format-version", "1", option]))?;
    let mut metadata: Value = serde_json::from_str(&said).context("`cargo metadata` in a new form")?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => bail!("`cargo metadata` names no packages"),
    }
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
