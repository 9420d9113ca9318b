//! Whether each feature of each crate compiles alone, as `cargo hack --each-feature` would see it.

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::command::run;

use crate::cargo;
use crate::metadata::packages;

/// Ways to build librdkafka that are rdkafka's own to check, and need libraries that are not everywhere.
const NATIVE: &[&str] =
    &["cmake-build", "dynamic-linking", "gssapi", "gssapi-vendored", "sasl", "ssl", "ssl-vendored", "zstd"];

/// Checks every crate but that of the tests without features, and with each one alone.
///
/// # Errors
/// At the first that doesn't compile.
pub(crate) fn check_each() -> Result<()> {
    for (package, feature) in alone(&packages("--no-deps")?) {
        let mut check = cargo(&["check", "--quiet", "--package", &package, "--no-default-features"]);
        if let Some(feature) = &feature {
            check.args(["--features", feature]);
        }
        run(&mut check).with_context(|| {
            format!(
                "{package} with {}",
                feature.as_deref().map_or("no feature".to_owned(), |f| format!("{f} alone"))
            )
        })?;
    }
    Ok(())
}

/// What there is to check: a package, and a feature or none.
fn alone(packages: &[Value]) -> Vec<(String, Option<String>)> {
    packages
        .iter()
        .filter_map(|package| Some((package["name"].as_str()?, package["features"].as_object()?)))
        .filter(|(name, _)| *name != "kafkaq-tests")
        .flat_map(|(name, features)| {
            let checked = |f: &&String| !(name == "kafkaq-rdkafka" && NATIVE.contains(&f.as_str()));
            let each = features.keys().filter(checked).map(|f| Some(f.clone()));
            std::iter::once(None).chain(each).map(|f| (name.to_owned(), f)).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_feature_stands_alone_once_and_none_stands_for_itself() {
        let package = |name: &str, features: Value| json!({ "name": name, "features": features });
        let packages = [
            package("kafkaq-tests", json!({})),
            package("kafkaq", json!({ "full": ["redis"], "redis": [] })),
            package("kafkaq-rdkafka", json!({ "gssapi": [] })),
        ];
        let seen = alone(&packages);
        let seen: Vec<_> = seen.iter().map(|(p, f)| (p.as_str(), f.as_deref())).collect();
        let expected =
            [("kafkaq", None), ("kafkaq", Some("full")), ("kafkaq", Some("redis")), ("kafkaq-rdkafka", None)];
        assert_eq!(seen, expected);
    }
}
