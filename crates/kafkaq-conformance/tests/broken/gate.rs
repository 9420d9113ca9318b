//! Simulates the network between a client and the in-memory backends.

use async_trait::async_trait;
use kafkaq_conformance::{BoxError, Outage};
use kafkaq_core::{Error, ErrorKind};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::sleep;

/// The network of all clients of a backend.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn is_cut(&self) -> bool {
        self.0.load(SeqCst)
    }
}

#[async_trait]
impl Outage for Gate {
    async fn cut(&self) -> Result<(), BoxError> {
        self.0.store(true, SeqCst);
        Ok(())
    }

    async fn restore(&self) -> Result<(), BoxError> {
        self.0.store(false, SeqCst);
        Ok(())
    }
}

/// How a client's calls fail without a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manners {
    Good,
    /// Says that nothing happened, although it did.
    Denies,
    Hangs,
    /// Never reconnects after the first outage that it noticed.
    NeverComesBack,
}

/// One client's way through the gate.
#[derive(Debug)]
pub(crate) struct Way {
    gate: Gate,
    manners: Manners,
    gone: AtomicBool,
    calls: AtomicUsize,
}

/// What the caller does with its request while the server is away.
pub(crate) enum Passage {
    Free,
    /// The request arrives and its response doesn't: execute it, and return this error.
    Arrives(Error),
    /// It does not arrive.
    Lost(Error),
}

impl Way {
    pub(crate) fn new(gate: Gate, manners: Manners) -> Self {
        Way { gate, manners, gone: AtomicBool::new(false), calls: AtomicUsize::new(0) }
    }

    pub(crate) async fn pass(&self, op: &'static str) -> Passage {
        if !self.gate.is_cut() && !self.gone.load(SeqCst) {
            return Passage::Free;
        }
        match self.manners {
            Manners::Hangs => pending().await,
            Manners::NeverComesBack => self.gone.store(true, SeqCst),
            Manners::Good | Manners::Denies => {}
        }
        sleep(Duration::from_millis(5)).await;
        // Every other request gets through.
        if self.calls.fetch_add(1, SeqCst).is_multiple_of(2) {
            Passage::Arrives(match self.manners {
                Manners::Denies => Error::not_applied(ErrorKind::Timeout, op),
                _ => Error::unknown(ErrorKind::Timeout, op),
            })
        } else {
            Passage::Lost(Error::not_applied(ErrorKind::Unavailable, op))
        }
    }
}
