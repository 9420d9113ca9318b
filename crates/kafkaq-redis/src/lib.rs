#![doc = include_str!("../README.md")]

mod builder;
mod failure;
mod health;
mod link;
mod request;
mod store;

pub use builder::RedisStoreBuilder;
pub use store::RedisStore;
