//! `cargo xtask bench compare` and `growth`: kafkaq compared with other queues and at growing sizes, as Markdown, JSON
//! and plots.
//!
//! It has no thresholds and never fails because of a figure. Servers and clients share the machine, so compare only
//! within one run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the figures are its purpose")]

mod compare;
mod driver;
mod figures;
mod growth;
mod options;
mod plots;
mod report;
mod rival;
mod side;
mod stage;
mod usage;

use std::process::ExitCode;

use anyhow::{Result, bail};
use lexopt::{Arg, Parser, ValueExt};
use options::{Compare, Growth, HELP};
use xtask::command::catch_interrupts;

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    catch_interrupts()?;
    let mut args = Parser::from_env();
    match args.next()? {
        Some(Arg::Value(part)) if part == "compare" => match Compare::parse(&mut args)? {
            Some(options) => compare::compare(&options),
            None => help(),
        },
        Some(Arg::Value(part)) if part == "growth" => match Growth::parse(&mut args)? {
            Some(options) => growth::growth(&options),
            None => help(),
        },
        None | Some(Arg::Long("help") | Arg::Short('h')) => help(),
        Some(Arg::Value(other)) => bail!("`{}` is neither compare nor growth\n{HELP}", other.string()?),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn help() -> Result<()> {
    print!("{HELP}");
    Ok(())
}
