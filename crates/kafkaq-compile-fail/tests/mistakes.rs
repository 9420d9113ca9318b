//! The compiler errors for common mistakes in a first handler, word for word.
//!
//! `TRYBUILD=overwrite cargo test -p kafkaq-compile-fail` rewrites them; review the changes.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::{env, process::Command};

/// The wording differs between versions of the compiler. This is the expected one.
const COMPILER: &str = "rustc 1.95.";

fn main() {
    let trial = Trial::ignorable_test("mistakes", || {
        let compiler = compiler()?;
        if !compiler.starts_with(COMPILER) {
            return Ok(Completion::ignored_with(format!(
                "the errors are those of {COMPILER}*, this is {compiler}"
            )));
        }
        // Panics when dropped if an error differs.
        trybuild::TestCases::new().compile_fail("tests/cases/*.rs");
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Returns the version of the compiler that cargo uses.
fn compiler() -> Result<String, Failed> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}
