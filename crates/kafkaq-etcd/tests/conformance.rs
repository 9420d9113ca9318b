//! The rules of every store, on a server that the kit can cut off.

use kafkaq_conformance::{BoxError, Proxy, store};
use kafkaq_etcd::EtcdStore;
use std::{future::ready, process::ExitCode, time::Duration};
use xtask::services::Service;

/// A server on a busy machine may take longer than the store's own two seconds for a thousand items.
const REQUEST: Duration = Duration::from_secs(10);

fn main() -> Result<ExitCode, BoxError> {
    let server = Service::Etcd.own()?;
    let proxy = Proxy::to(server.addr())?;
    let endpoint = proxy.addr().to_string();
    let kit = store("etcd", move || {
        ready(EtcdStore::builder([&endpoint]).request_timeout(REQUEST).build().map_err(BoxError::from))
    });
    Ok(kit.with_outage(proxy).run())
}
