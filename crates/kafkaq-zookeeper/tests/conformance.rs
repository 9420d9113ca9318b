//! The rules of every store, on a server that the kit can cut off.

use kafkaq_conformance::{BoxError, Proxy, store};
use kafkaq_zookeeper::ZooKeeperStore;
use std::{future::ready, process::ExitCode, time::Duration};
use xtask::services::Service;

/// A server on a busy machine may take longer than the store's own two seconds for a thousand items.
const REQUEST: Duration = Duration::from_secs(10);

fn main() -> Result<ExitCode, BoxError> {
    let server = Service::ZooKeeper.own()?;
    let proxy = Proxy::to(server.addr())?;
    let address = proxy.addr().to_string();
    let kit = store("zookeeper", move || {
        ready(ZooKeeperStore::builder(&address).request_timeout(REQUEST).build().map_err(BoxError::from))
    });
    Ok(kit.with_outage(proxy).run())
}
