//! What the compiler says to the usual mistakes of a first handler: see `tests/cases`. The cases find kafkaq and serde
//! among the dependencies of this crate.
