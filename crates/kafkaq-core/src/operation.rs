//! Operations of a backend, and their errors.

use crate::{Error, ErrorKind};

/// An operation as its errors name it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    name: &'static str,
    changes: bool,
}

impl Operation {
    /// One that changes nothing: however it fails, it had no effect.
    #[must_use]
    pub const fn read(name: &'static str) -> Self {
        Operation { name, changes: false }
    }

    /// One that changes something.
    #[must_use]
    pub const fn write(name: &'static str) -> Self {
        Operation { name, changes: true }
    }

    /// What its errors call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// An error of an operation that certainly had no effect.
    #[must_use]
    pub fn not_applied(self, kind: ErrorKind) -> Error {
        Error::not_applied(kind, self.name)
    }

    /// An error of an operation that was sent.
    #[must_use]
    pub fn after_sending(self, kind: ErrorKind) -> Error {
        if self.changes { Error::unknown(kind, self.name) } else { self.not_applied(kind) }
    }

    /// An error of an operation whose handle was closed.
    #[must_use]
    pub fn closed(self) -> Error {
        self.not_applied(ErrorKind::Closed)
    }
}
