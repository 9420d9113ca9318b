//! The rules of every store, on a server that the kit can cut off.

use kafkaq_conformance::{BoxError, Proxy, store};
use kafkaq_etcd::EtcdStore;
use std::{future::ready, process::ExitCode};
use xtask::services::Service;

fn main() -> Result<ExitCode, BoxError> {
    let server = Service::Etcd.own()?;
    let proxy = Proxy::to(server.addr())?;
    let endpoint = proxy.addr().to_string();
    let kit = store("etcd", move || ready(EtcdStore::builder([&endpoint]).build().map_err(BoxError::from)));
    Ok(kit.with_outage(proxy).run())
}
