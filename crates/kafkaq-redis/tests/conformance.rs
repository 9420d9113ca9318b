//! The rules of every store, on a server and on a cluster.

use async_trait::async_trait;
use kafkaq_conformance::{BoxError, Outage, Proxy, Suite, store};
use kafkaq_redis::RedisStore;
use std::{future::ready, process::ExitCode, time::Duration};
use xtask::services::{Server, Service};

/// A server on a busy machine may take longer than the store's own two seconds for a thousand items.
const REQUEST: Duration = Duration::from_secs(10);

fn main() -> Result<ExitCode, BoxError> {
    let (one, three) = (Service::Redis.own()?, Service::RedisCluster.own()?);
    let proxy = Proxy::to(one.addr())?;
    let url = format!("redis://{}", proxy.addr());
    let single = store("redis", move || {
        ready(RedisStore::builder(&url).request_timeout(REQUEST).build().map_err(BoxError::from))
    });
    let urls = three.url();
    let cluster = store("redis_cluster", move || {
        ready(RedisStore::cluster(urls.split(',')).request_timeout(REQUEST).build().map_err(BoxError::from))
    });
    Ok(Suite::from(single.with_outage(proxy)).and(cluster.with_outage(StandsStill(three))).run())
}

/// The nodes of a cluster tell clients their own addresses, so that no proxy can stand before them.
struct StandsStill(Server);

#[async_trait]
impl Outage for StandsStill {
    async fn cut(&self) -> Result<(), BoxError> {
        Ok(self.0.pause()?)
    }

    async fn restore(&self) -> Result<(), BoxError> {
        Ok(self.0.resume()?)
    }
}
