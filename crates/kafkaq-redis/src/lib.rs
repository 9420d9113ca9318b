#![doc = include_str!("../README.md")]

mod builder;
mod cluster;
mod command;
mod failure;
mod hashes;
mod health;
mod layout;
mod link;
mod node;
mod request;
mod servers;
mod slot;
mod store;

pub use builder::RedisStoreBuilder;
pub use store::RedisStore;
