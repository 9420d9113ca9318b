//! Servers that outlive the process that started them: `cargo xtask services`.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Group, Server, Service};
use crate::prerequisites;

/// One server of each kind, in a folder that remembers them.
#[derive(Debug)]
pub struct Services {
    dir: PathBuf,
    for_tests: bool,
}

impl Services {
    /// The servers of a folder.
    #[must_use]
    pub fn of(dir: PathBuf) -> Self {
        Self { dir, for_tests: false }
    }

    /// Starts them for tests only, with cheaper settings.
    #[must_use]
    pub fn for_tests(self) -> Self {
        Self { for_tests: true, ..self }
    }

    /// Starts those of `which` that do not answer yet, and returns where each is, in the same order. They keep running
    /// when this process ends.
    ///
    /// # Errors
    /// If something is missing that may not be installed, or a server does not start.
    pub fn up(&self, which: &[Service]) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        prerequisites::ensure(&which.iter().flat_map(|service| service.tools()).collect::<Vec<_>>())?;
        which.iter().map(|&service| self.up_one(service)).collect()
    }

    fn up_one(&self, service: Service) -> Result<String> {
        let dir = self.dir.join(service.name());
        if let Some(server) = Server::find(service, &dir)
            && server.is_running()
            && server.answers()
        {
            return Ok(server.url());
        }
        let server = Server::start(service, &dir, None, Group::Own { for_tests: self.for_tests }, None)?;
        let url = server.url();
        server.keep_running();
        Ok(url)
    }

    /// Ends those of `which` that run, and removes their data. Downloads stay.
    ///
    /// # Errors
    /// If one cannot be ended; the others are ended anyway.
    pub fn down(&self, which: &[Service]) -> Result<()> {
        let _lock = self.lock()?;
        let down = |service: &Service| match Server::find(*service, &self.dir.join(service.name())) {
            Some(mut server) => server.stop().and_then(|()| server.remove_data()),
            None => Ok(()),
        };
        // All of them first, then the first error.
        which.iter().map(down).collect::<Vec<_>>().into_iter().collect()
    }

    /// Describes the state of each of `which`, in the same order.
    #[must_use]
    pub fn status(&self, which: &[Service]) -> Vec<String> {
        let status = |service: &Service| match Server::find(*service, &self.dir.join(service.name())) {
            None => "down".to_owned(),
            Some(server) => server.status(),
        };
        which.iter().map(status).collect()
    }

    /// Two commands at once would start a server twice.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let lock = File::create(self.dir.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}
