//! The compiler's errors for common mistakes in a first handler: see `tests/cases`. The cases find kafkaq and serde
//! among the dependencies of this crate.
