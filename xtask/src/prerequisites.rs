//! Programs that building and testing need: finds them, installs them if allowed, or says exactly what is missing.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{capture, run};

/// A program, and its Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name, or its full path if the package puts it outside of `PATH`.
    program: &'static str,
    package: &'static str,
    /// Kafka 4 runs on Java 17 and later.
    java: bool,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package, java: false }
}

/// The tools to compile librdkafka.
const C_BUILD: &[Tool] = &[tool("cc", "gcc"), tool("c++", "g++"), tool("make", "make")];
/// The compiler for etcd's protocol. Debian has the files that come with it in a separate package.
const PROTOC: Tool = tool("protoc", "protobuf-compiler");
const PROTOC_FILES: Tool = tool("/usr/include/google/protobuf/empty.proto", "libprotobuf-dev");
/// A Kafka client that knows nothing about kafkaq, for tests of foreign records.
pub const KCAT: Tool = tool("kcat", "kcat");
/// Counts instructions.
pub const VALGRIND: Tool = tool("valgrind", "valgrind");
/// Runs Kafka without a container.
pub const JAVA: Tool = Tool { program: "java", package: "default-jre-headless", java: true };
/// Fetches Kafka.
pub const MAVEN: Tool = tool("mvn", "maven");
/// Redis without a container.
pub const REDIS: Tool = tool("redis-server", "redis-server");
/// etcd without a container.
pub const ETCD: Tool = tool("etcd", "etcd-server");
/// ZooKeeper without a container. Debian keeps its script out of `PATH`.
pub const ZOOKEEPER: Tool = tool("/usr/share/zookeeper/bin/zkServer.sh", "zookeeper");

/// With less, a linker or a server will soon fail with a misleading message.
const LEAST_SPACE_GB: f64 = 2.0;

/// Checks that there is enough disk space to build.
///
/// # Errors
/// If there is too little, with what a build from scratch takes.
pub fn ensure_space(dir: &Path) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(dir).with_context(|| format!("ask how full {dir:?} is"))?;
    refuse_less(disk.blocks_available() as f64 * disk.fragment_size() as f64 / 1e9, dir)
}

fn refuse_less(free_gb: f64, dir: &Path) -> Result<()> {
    ensure!(
        free_gb >= LEAST_SPACE_GB,
        "only {free_gb:.1} GB are free on the disk of {dir:?}: building and testing everything from scratch \
         takes about 7 GB. Please make room, or name another disk in CARGO_TARGET_DIR"
    );
    Ok(())
}

/// What building the whole workspace needs besides Rust.
#[must_use]
pub fn build_tools() -> Vec<Tool> {
    let mut tools = C_BUILD.to_vec();
    tools.push(PROTOC);
    if on_path("apt-get") {
        tools.push(PROTOC_FILES);
    }
    tools
}

impl Tool {
    /// Returns what to start: the program's name if it is in `PATH`, and otherwise where the package puts it.
    pub(crate) fn program(self) -> &'static str {
        let name = self.program.rsplit('/').next().unwrap_or(self.program);
        if on_path(name) { name } else { self.program }
    }

    fn is_there(self) -> bool {
        on_path(self.program()) && (!self.java || java_version().is_some_and(|version| version >= 17))
    }
}

/// Ensures that all `tools` are present. As root on a Debian system it installs missing ones.
///
/// # Errors
/// When something is missing that we may not install, with the command that would; when the installation fails.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    if !on_path("apt-get") {
        let programs: Vec<_> = missing.iter().map(|tool| tool.program()).collect();
        bail!("please install: {}{}", programs.join(", "), java_hint(&missing));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("please install what is missing:\n  {}{}", advice(&packages), java_hint(&missing));
    }
    eprintln!("installing {}", packages.join(", "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run(command.stdout(std::io::stderr()))
    };
    static UPDATED: OnceLock<()> = OnceLock::new();
    if UPDATED.set(()).is_ok() {
        apt(&["update"])?;
    }
    apt(&[&["install", "-y", "--no-install-recommends"], &packages[..]].concat())?;
    let still = self::missing(tools);
    if !still.is_empty() {
        let programs: Vec<_> = still.iter().map(|tool| tool.program()).collect();
        bail!("still missing after the installation: {}{}", programs.join(", "), java_hint(&still));
    }
    Ok(())
}

fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().copied().filter(|tool| !tool.is_there()).collect()
}

fn advice(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}")
}

fn java_hint(missing: &[Tool]) -> &'static str {
    if missing.contains(&JAVA) { " (Java 17 or later)" } else { "" }
}

/// Whether a program can be found in `PATH`, or is where its whole path says.
#[must_use]
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}

fn java_version() -> Option<u32> {
    // `java --version` prints to standard output; before Java 9 it is an error, which has the same result.
    let said = capture(Command::new("java").arg("--version")).ok()?;
    parse_java_version(&said)
}

/// `openjdk 17.0.15 2025-04-15` and the like.
fn parse_java_version(said: &str) -> Option<u32> {
    let version = said.split_whitespace().nth(1)?;
    version.split(['.', '-', '+']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_are_read() {
        assert_eq!(parse_java_version("openjdk 17.0.15 2025-04-15\nOpenJDK Runtime"), Some(17));
        assert_eq!(parse_java_version("java 21 2023-09-19 LTS"), Some(21));
        assert_eq!(parse_java_version("openjdk 25-ea 2025-09-16"), Some(25));
        assert_eq!(parse_java_version("The operation couldn't be completed."), None);
    }

    #[test]
    fn a_full_disk_is_named() {
        let dir = std::env::temp_dir();
        assert!(refuse_less(LEAST_SPACE_GB, &dir).is_ok());
        let said = refuse_less(0.3, &dir).unwrap_err().to_string();
        assert!(said.contains("0.3 GB") && said.contains(&format!("{dir:?}")), "{said}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_missing_and_sh_is_not() {
        let nowhere = tool("/no/such/folder/program-of-nobody", "none");
        let tools =
            [tool("sh", "dash"), tool("/bin/sh", "dash"), tool("no-such-program-here", "none"), nowhere];
        assert_eq!(missing(&tools), tools[2..]);
    }
}
