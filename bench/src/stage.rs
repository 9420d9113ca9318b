//! The servers of a run and the programs that use them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::command::run;
use xtask::services::Service;

use crate::driver::{Driver, Outcome};
use crate::usage::{Servers, Usage};

/// What starts a driver: a program, and the arguments before those of a command.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) program: String,
    pub(crate) words: Vec<String>,
}

/// Dropping it ends the servers.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) servers: Servers,
    folder: PathBuf,
}

impl Stage {
    /// Starts the servers. Their data and the drivers' output are in this folder.
    pub(crate) fn start(folder: &Path) -> Result<Stage> {
        let folder = folder.join("servers");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let servers = Servers {
            kafka: Service::Kafka.start(folder.join("kafka"), None)?,
            redis: Service::Redis.start(folder.join("redis"), None)?,
        };
        Ok(Stage { servers, folder })
    }

    pub(crate) fn driver(
        &self,
        program: &Program,
        command: &str,
        queue: &str,
        numbers: &[usize],
        limit: Duration,
    ) -> Result<Driver> {
        let mut process = Command::new(&program.program);
        process.args(&program.words).args([command, queue]).args(numbers.iter().map(usize::to_string));
        process.env(Service::Kafka.env_var(), self.servers.kafka.url());
        process.env(Service::Redis.env_var(), self.servers.redis.url());
        Driver::start(&mut process, &self.folder.join(format!("{queue}-{command}.log")), limit)
    }

    /// Runs one command to its end, and returns what was used meanwhile.
    pub(crate) fn play(
        &self,
        program: &Program,
        command: &str,
        queue: &str,
        numbers: &[usize],
        limit: Duration,
    ) -> Result<(Outcome, Usage)> {
        let mut driver = self.driver(program, command, queue, numbers, limit)?;
        driver.begin()?;
        let before = self.servers.usage(Some(driver.pid()))?;
        let outcome = driver.end()?;
        let used = self.servers.usage(Some(driver.pid()))?.since(before);
        Ok((outcome, used))
    }
}

/// Builds kafkaq's driver, and returns how it is started on these backends: `BROKER,STORE[,SETTING…]`.
pub(crate) fn build_kafkaq() -> Result<impl Fn(&str) -> Program> {
    eprintln!("building kafkaq's driver");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "--package", "kafkaq-tests", "--bin", "bench"];
    // With the profile of this program, so that it is in the same folder.
    let profile = (!cfg!(debug_assertions)).then_some("--release");
    run(Command::new(cargo).args(build).args(profile).current_dir(xtask::root()))?;
    let program = std::env::current_exe()?.with_file_name("bench").display().to_string();
    Ok(move |side: &str| Program {
        program: program.clone(),
        words: vec!["drive".to_owned(), side.to_owned()],
    })
}
