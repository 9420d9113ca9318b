//! Checks that each feature of each crate compiles alone, like `cargo hack --each-feature`.
//!
//! Only for published crates: nobody depends on the others, and the lints cover all of their features. A feature is
//! checked only with its own crate's dependencies: with others it would find what it forgot to request. So most
//! dependencies are checked with several sets of features, which takes a while. It shares the profile, the target
//! folder and all compiled C code with the lints, and doesn't repeat what is up to date.

use anyhow::{Result, bail};
use serde_json::Value;
use xtask::command::{run, shown};

use super::metadata::packages;
use crate::cargo;

/// Build options of librdkafka that rdkafka has to check, and that need libraries that may be missing.
const NATIVE: &[&str] = &[
    "cmake-build",
    "dynamic-linking",
    "gssapi",
    "gssapi-vendored",
    "gzip",
    "sasl",
    "ssl",
    "ssl-vendored",
    "zstd",
];

/// Checks every published crate without features and with each one alone.
///
/// # Errors
/// Lists all that don't compile, with the command to reproduce each.
pub(super) fn check_each() -> Result<()> {
    let mut failed = Vec::new();
    for (package, feature) in alone(&packages("--no-deps")?) {
        let mut check = cargo(&["check", "--quiet", "--package", &package, "--no-default-features"]);
        if let Some(feature) = &feature {
            check.args(["--features", feature]);
        }
        if run(&mut check).is_err() {
            failed.push(shown(&check));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("these fail:\n{}", failed.join("\n")) }
}

/// An item to check: a package, and a feature or none.
fn alone(packages: &[Value]) -> Vec<(String, Option<String>)> {
    packages
        .iter()
        .filter(|package| is_published(package))
        .filter_map(|package| Some((package["name"].as_str()?, package["features"].as_object()?)))
        .flat_map(|(name, features)| {
            let checked = |f: &&String| !(name == "kafkaq-rdkafka" && NATIVE.contains(&f.as_str()));
            let each = features.keys().filter(checked).map(|f| Some(f.clone()));
            std::iter::once(None).chain(each).map(|f| (name.to_owned(), f)).collect::<Vec<_>>()
        })
        .collect()
}

/// Whether it may go to a registry.
pub(super) fn is_published(package: &Value) -> bool {
    package["publish"].as_array().is_none_or(|registries| !registries.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_feature_stands_alone_once_and_none_stands_for_itself() {
        let package = |name: &str, features: Value| json!({ "name": name, "features": features });
        let packages = [
            package("kafkaq", json!({ "full": ["redis"], "redis": [] })),
            package("kafkaq-rdkafka", json!({ "gssapi": [] })),
            json!({ "name": "xtask", "features": { "containers": [] }, "publish": [] }),
        ];
        let seen = alone(&packages);
        let seen: Vec<_> = seen.iter().map(|(p, f)| (p.as_str(), f.as_deref())).collect();
        let expected =
            [("kafkaq", None), ("kafkaq", Some("full")), ("kafkaq", Some("redis")), ("kafkaq-rdkafka", None)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn crate_without_a_registry_is_not_published() {
        assert!(is_published(&json!({ "publish": null })));
        assert!(!is_published(&json!({ "publish": [] })));
    }
}
