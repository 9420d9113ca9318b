//! A typed task for workers.

use kafkaq::worker::TaskType;
use serde::{Deserialize, Serialize};

/// A task that takes this many milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Hold {
    /// Milliseconds.
    pub ms: u64,
}

impl Hold {
    /// It ends the process that executes it.
    pub const POISON: Hold = Hold { ms: u64::MAX };
}

impl TaskType for Hold {
    const KIND: &'static str = "hold";
}
