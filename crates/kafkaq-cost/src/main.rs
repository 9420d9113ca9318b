//! Takes a number of tasks through a part of kafkaq, for a tool that counts instructions: `cargo xtask test --only cost`.
//!
//! All of it runs on one thread, so that a count is the same each time.

mod machine;
mod queue;

use std::{error::Error, process::exit};

const USAGE: &str = "usage: kafkaq-cost machine|publish|publish-many|one-worker|workers TASKS";

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let mut args = std::env::args().skip(1);
    let (Some(part), Some(tasks)) = (args.next(), args.next()) else { return Err(USAGE.into()) };
    let tasks = tasks.parse()?;
    match part.as_str() {
        "machine" => machine::run(tasks),
        "publish" => queue::publish(tasks),
        "publish-many" => queue::publish_many(tasks),
        "one-worker" => queue::drain(tasks, 1),
        "workers" => queue::drain(tasks, 50),
        _ => Err(USAGE.into()),
    }
}

/// The tool counts from here to the end of the program.
#[inline(never)]
fn counted(work: Box<dyn FnOnce() -> Outcome + '_>) -> Outcome {
    work()?;
    exit(0)
}
