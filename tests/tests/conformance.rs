//! The conformance kit on the logs: `rdkafka::appended_offsets_ascend`. Each store runs it in its own crate.
//!
//! So that the kit can cut it off, each has a Kafka of its own behind a proxy: Kafka tells its clients where to connect.

use async_trait::async_trait;
use kafkaq::{LeasedGroup, rdkafka::RdKafka, redis::RedisStore, rskafka::RsKafka};
use kafkaq_conformance::{BoxError, Outage, Proxy, Suite, broker, log};
use kafkaq_tests::{delete_topic, own_kafka_behind, redis};
use std::{future::ready, pin::Pin, process::ExitCode, sync::OnceLock, time::Duration};
use xtask::services::{Server, free_port};

/// A group settles in steps of a tenth of it.
const MEMBER: Duration = Duration::from_secs(5);

fn main() -> Result<ExitCode, BoxError> {
    let kafka = OwnKafka::new()?;
    let (proxy, deletion) = (kafka.proxy.clone(), kafka.topic_deletion());
    let rdkafka = broker("rdkafka", move || {
        let rdkafka = RdKafka::builder(kafka.address());
        ready(rdkafka.build().map_err(Into::into))
    })
    .with_outage(proxy)
    .with_topic_deletion(deletion);

    let kafka = OwnKafka::new()?;
    let proxy = kafka.proxy.clone();
    let browsed = log("rdkafka_browsed", move || {
        let rdkafka = RdKafka::builder(kafka.address());
        ready(rdkafka.build().map_err(Into::into))
    })
    .with_outage(proxy);

    let kafka = OwnKafka::new()?;
    let proxy = kafka.proxy.clone();
    let rskafka = log("rskafka", move || ready(kafka.rskafka())).with_outage(proxy);

    // Cut off from both, as by the network.
    let (kafka, store_proxy) = (OwnKafka::new()?, Proxy::to(redis().trim_start_matches("redis://"))?);
    let both = Both(kafka.proxy.clone(), store_proxy.clone());
    let deletion = kafka.topic_deletion();
    let url = format!("redis://{}", store_proxy.addr());
    let leased = broker("rskafka_redis", move || {
        let group = || {
            let group = LeasedGroup::new(kafka.rskafka()?, RedisStore::builder(&url).build()?);
            Ok(group.with_member_timeout(MEMBER))
        };
        ready(group())
    })
    .with_outage(both)
    .with_topic_deletion(deletion);

    Ok(Suite::from(rdkafka).and(browsed).and(rskafka).and(leased).run())
}

type Deleting = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A kit's own Kafka, which sends its clients to the proxy. It starts when it is first needed.
struct OwnKafka {
    proxy: Proxy,
    port: u16,
    server: OnceLock<Server>,
}

impl OwnKafka {
    fn new() -> Result<OwnKafka, BoxError> {
        let port = free_port()?;
        Ok(OwnKafka { proxy: Proxy::to(("127.0.0.1", port))?, port, server: OnceLock::new() })
    }

    fn address(&self) -> String {
        let proxy = self.proxy.addr();
        self.server.get_or_init(|| own_kafka_behind(proxy.port(), self.port));
        proxy.to_string()
    }

    /// Deletes a topic as an operator does.
    fn topic_deletion(&self) -> impl Fn(String) -> Deleting + use<> {
        let address = self.proxy.addr().to_string();
        move |topic| {
            let address = address.clone();
            Box::pin(async move { Ok(delete_topic(&address, &topic).await?) })
        }
    }

    fn rskafka(&self) -> Result<RsKafka, BoxError> {
        Ok(RsKafka::builder(self.address()).build()?)
    }
}

/// The log and the store.
struct Both(Proxy, Proxy);

#[async_trait]
impl Outage for Both {
    async fn cut(&self) -> Result<(), BoxError> {
        self.0.cut().await?;
        self.1.cut().await
    }

    async fn restore(&self) -> Result<(), BoxError> {
        self.0.restore().await?;
        self.1.restore().await
    }
}
