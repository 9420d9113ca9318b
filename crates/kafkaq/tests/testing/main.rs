//! Tests of the test helpers.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;
mod perform;
mod torture;

use kafkaq::{TaskId, worker::TaskType};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) to: String,
}

impl TaskType for Charge {
    const KIND: &'static str = "charge";
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Receipt(pub(crate) u32);

impl TaskType for Receipt {
    const KIND: &'static str = "receipt";
}

pub(crate) fn charge(to: &str) -> Charge {
    Charge { to: to.to_owned() }
}

pub(crate) fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

/// The outside world: what was charged, and for which tasks.
#[derive(Default)]
pub(crate) struct World {
    charges: Mutex<Vec<String>>,
    known: Mutex<BTreeMap<TaskId, u32>>,
    pub(crate) flag: AtomicBool,
    pub(crate) mutex: tokio::sync::Mutex<()>,
}

impl World {
    pub(crate) fn charge(&self, what: impl Into<String>) {
        self.charges.lock().unwrap().push(what.into());
    }

    pub(crate) fn is_known(&self, id: &TaskId) -> bool {
        self.known.lock().unwrap().contains_key(id)
    }

    /// Notes an id. Returns whether it is new.
    pub(crate) fn note(&self, id: &TaskId) -> bool {
        self.known.lock().unwrap().insert(id.clone(), 1).is_none()
    }

    pub(crate) fn charges(&self) -> Vec<String> {
        self.charges.lock().unwrap().clone()
    }
}
