//! Checks the contents of the published packages.
//!
//! Every published crate is packed as by `cargo publish`, in order and without a network, and the contents of the
//! packages are checked. They are not compiled (`--no-verify`): that would build every dependency with yet other
//! features, for minutes, and would only find missing files beyond what the features check finds; those are checked
//! here.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::command::{capture, run};

use super::features::is_published;
use super::metadata::{self, packages};
use super::sources;
use crate::cargo;

/// Files that every package has, and their source if they are the same in all.
const REQUIRED: &[(&str, Option<&str>)] =
    &[("README.md", None), ("LICENSE-MIT", Some("LICENSE-MIT")), ("LICENSE-APACHE", Some("LICENSE-APACHE"))];

/// # Errors
/// If a crate can't be packed, or its package lacks something.
pub(super) fn check() -> Result<()> {
    let packages = packages("--no-deps")?;
    let published: Vec<_> = packages.iter().filter(|package| is_published(package)).collect();
    let mut pack = cargo(&["package", "--no-verify", "--allow-dirty", "--offline", "--quiet"]);
    for package in &published {
        pack.args(["--package", text(&package["name"])?]);
    }
    run(&mut pack)?;

    let folder = metadata::target()?.join("package");
    let mut missing = Vec::new();
    for package in published {
        let name = format!("{}-{}", text(&package["name"])?, text(&package["version"])?);
        let unpacked = folder.join("unpacked").join(&name);
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked)?;
        }
        fs::create_dir_all(folder.join("unpacked"))?;
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(folder.join(format!("{name}.crate"))).arg("-C").arg(folder.join("unpacked"));
        capture(&mut tar)?;
        missing.extend(lacks(&unpacked, xtask::root())?.into_iter().map(|what| format!("{name}: {what}")));
    }
    ensure!(missing.is_empty(), "packages would be published incomplete:\n{}", missing.join("\n"));
    Ok(())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("`cargo metadata` in a new form")
}

/// Returns what is wrong with an unpacked package.
fn lacks(package: &Path, root: &Path) -> Result<Vec<String>> {
    let mut lacks = Vec::new();
    for (file, original) in REQUIRED {
        match (fs::read(package.join(file)), original) {
            (Err(_), _) => lacks.push(format!("has no {file}")),
            (Ok(there), Some(original)) if there != fs::read(root.join(original))? => {
                lacks.push(format!("has a different {file} than the repository"));
            }
            _ => {}
        }
    }
    for file in sources::below(&package.join("src"), "rs", &[])? {
        let text = fs::read_to_string(&file)?;
        let folder = file.parent().unwrap_or(package);
        for included in sources::included(&text) {
            let path = normal(&folder.join(&included));
            if !path.starts_with(package) || !path.is_file() {
                lacks.push(format!("{} includes {included}", file.strip_prefix(package)?.display()));
            }
        }
    }
    Ok(lacks)
}

/// A path without its `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one package, gone with this value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("xtask-package-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("package/src")).unwrap();
            let scratch = Self(root);
            for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
                scratch.write(file, file);
                scratch.write(&format!("package/{file}"), file);
            }
            scratch.write("package/README.md", "words");
            scratch.write("package/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n");
            scratch
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }

        fn lacks(&self) -> Vec<String> {
            lacks(&self.0.join("package"), &self.0).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_package_that_has_everything_lacks_nothing() {
        assert!(Scratch::new("whole").lacks().is_empty());
    }

    #[test]
    fn missing_readme_and_modified_licence_are_reported() {
        let scratch = Scratch::new("lacking");
        fs::remove_file(scratch.0.join("package/README.md")).unwrap();
        scratch.write("package/LICENSE-MIT", "../../LICENSE-MIT");
        let expected = ["has no README.md", "has a different LICENSE-MIT than the repository"];
        assert_eq!(scratch.lacks()[..2], expected);
    }

    #[test]
    fn source_that_includes_a_missing_file_is_reported() {
        let scratch = Scratch::new("includes");
        fs::create_dir_all(scratch.0.join("package/src/deep")).unwrap();
        let both =
            "include_bytes!(\"gone.bin\"); include!(\"../../../LICENSE-MIT\"); include_str!(\"../lib.rs\")";
        scratch.write("package/src/deep/mod.rs", both);
        let expected =
            ["gone.bin", "../../../LICENSE-MIT"].map(|path| format!("src/deep/mod.rs includes {path}"));
        assert_eq!(scratch.lacks(), expected);
    }
}
