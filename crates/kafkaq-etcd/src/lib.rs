#![doc = include_str!("../README.md")]

mod builder;
mod connector;
mod failure;
mod health;
mod lease;
mod link;
mod request;
mod store;

pub use builder::EtcdStoreBuilder;
pub use store::EtcdStore;
