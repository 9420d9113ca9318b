#![doc = include_str!("../README.md")]

mod builder;
mod client;
mod failure;
mod frame;
mod link;
mod nodes;
mod session;
mod store;
mod sweeper;

pub use builder::ZooKeeperStoreBuilder;
pub use store::ZooKeeperStore;
