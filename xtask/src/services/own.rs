//! The servers of tests: each in a new folder, and removed when its handle is dropped.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Result;

use super::{Group, Server, Service};

impl Service {
    /// Starts a server for one test, which may stop it or change its settings.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn own(self) -> Result<Server> {
        self.start(self.new_folder(), None)
    }

    /// Like [`own`](Self::own), for a server behind a proxy: it listens on `port`, and if it tells its clients where to
    /// connect (as Kafka does), that is `proxy`.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn own_behind(self, proxy: u16, port: u16) -> Result<Server> {
        Server::start(self, &self.new_folder(), Some((port, proxy)), Group::Ours, None)
    }

    /// Like [`own`](Self::own), with further options on each node's command line. It is always a plain process: options
    /// may name files of this machine, and ports that no container publishes.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn own_with(self, port: Option<u16>, options: &[&str]) -> Result<Server> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let ports = port.map(|port| (port, port));
        Server::start(self, &self.new_folder(), ports, Group::Ours, Some(options))
    }

    /// The server shared by all tests of this process that don't disturb it, each with unique names. It ends with the
    /// last of them.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn shared(self) -> Result<Arc<Server>> {
        static SHARED: Mutex<Vec<(Service, Weak<Server>)>> = Mutex::new(Vec::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, server)| server.strong_count() > 0);
        let there = shared.iter().find(|(service, _)| *service == self);
        if let Some(server) = there.and_then(|(_, server)| server.upgrade()) {
            return Ok(server);
        }
        let server = Arc::new(self.own()?);
        shared.push((self, Arc::downgrade(&server)));
        Ok(server)
    }

    fn new_folder(self) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("kafkaq-{self}-{}-{number}", process::id()))
    }
}
