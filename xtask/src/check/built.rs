//! Executables that cargo has built: the test binaries, and the quickstart.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::command::run;

use super::metadata::packages;
use super::suites::{self, Kind, Suite};

/// librdkafka 2.12.1 reads uninitialized memory when a response contains partitions both with and without a leader:
/// while a topic is recreated or a broker comes back (confluentinc/librdkafka#5280). With this filling, it reads a
/// partition number that no topic has, which the client ignores; otherwise it may crash the process. The small blocks
/// that glibc caches per thread are not filled, but this one is larger. It is set only for packages that use librdkafka:
/// it makes growing vectors slow, since all free memory behind them may be filled each time.
const FILLED_MEMORY: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_max=256:glibc.malloc.perturb=128");

#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) suites: Vec<Suite>,
    pub(super) quickstart: Option<PathBuf>,
}

impl Built {
    /// Runs a cargo build. Even if it fails, what could be built is available.
    ///
    /// # Errors
    /// If not everything could be built.
    pub(super) fn build(&mut self, cargo: &mut Command, messages: &Path) -> Result<()> {
        // Into a file: reading a pipe to its end would wait for every process that holds it.
        let file = File::create(messages).with_context(|| format!("cannot write {}", messages.display()))?;
        let result = run(cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::from(file)));
        *self = Self::of(&fs::read_to_string(messages)?, &packages("--no-deps")?);
        result
    }

    fn of(messages: &str, packages: &[Value]) -> Self {
        let names = packages.iter().filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)));
        let names: HashMap<_, _> = names.collect();
        let mut built = Self::default();
        for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let target = &message["target"];
            if target["name"] == "quickstart" && target["kind"][0] == "example" {
                built.quickstart = message["executable"].as_str().map(PathBuf::from);
            }
            built.suites.extend(suite(&message, &names));
        }
        built
    }
}

/// Returns the test binary that a message describes.
fn suite(message: &Value, names: &HashMap<&str, &str>) -> Option<Suite> {
    if message["profile"]["test"] != true {
        return None;
    }
    let package = *names.get(message["package_id"].as_str()?)?;
    let target = match message["target"]["kind"][0].as_str()? {
        "bin" | "test" => message["target"]["name"].as_str()?,
        // Whatever kind of library it is.
        _ => "lib",
    };
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let mut command = Command::new(message["executable"].as_str()?);
    // As under `cargo test`.
    command.env("CARGO_MANIFEST_DIR", folder).current_dir(folder);
    if suites::share_servers(package) {
        command.env(FILLED_MEMORY.0, FILLED_MEMORY.1);
    }
    let kind = Kind::Tests { package: package.to_owned(), unit: message["target"]["kind"][0] != "test" };
    Some(Suite { name: format!("{package}::{target}"), kind, command })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn test_binaries_and_the_quickstart_are_found() {
        let artifact = |package: &str, kind: &str, target: &str, test: bool, executable: Value| {
            json!({
                "reason": "compiler-artifact",
                "package_id": format!("path+file:///here/{package}#0.1.0"),
                "manifest_path": format!("/here/{package}/Cargo.toml"),
                "target": { "kind": [kind], "name": target },
                "profile": { "test": test },
                "executable": executable,
            })
            .to_string()
        };
        let said = [
            artifact("kafkaq-core", "lib", "kafkaq_core", true, json!("/target/core-1")),
            artifact("kafkaq-core", "lib", "kafkaq_core", false, Value::Null),
            artifact("kafkaq-core", "example", "quickstart", false, json!("/target/quickstart")),
            artifact("kafkaq-tests", "bin", "agent", false, json!("/target/agent")),
            artifact("kafkaq-tests", "test", "outage", true, json!("/target/outage-2")),
            artifact("elsewhere", "lib", "elsewhere", true, json!("/target/elsewhere-3")),
            "{\"reason\":\"build-finished\"}".to_owned(),
            "no JSON".to_owned(),
        ];
        let package = |name: &str| json!({ "id": format!("path+file:///here/{name}#0.1.0"), "name": name });
        let built = Built::of(&said.join("\n"), &[package("kafkaq-core"), package("kafkaq-tests")]);
        let seen: Vec<_> = built.suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(seen, ["kafkaq-core::lib", "kafkaq-tests::outage"]);
        assert_eq!(built.suites[0].kind, Kind::Tests { package: "kafkaq-core".to_owned(), unit: true });
        assert_eq!(built.suites.iter().map(Suite::shares_servers).collect::<Vec<_>>(), [false, true]);
        assert_eq!(built.suites[1].command.get_current_dir(), Some(Path::new("/here/kafkaq-tests")));
        assert_eq!(built.quickstart, Some("/target/quickstart".into()));
    }
}
