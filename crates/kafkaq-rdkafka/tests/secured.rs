//! Listeners that require authentication. Starts its own server, if `KAFKAQ_TEST_KAFKA` shows that servers are
//! available.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use kafkaq_core::*;
use kafkaq_rdkafka::{Builder, RdKafka};
use std::time::Duration;
use xtask::services::{Service, free_port};

const USER: &str = "emails";
const PASSWORD: &str = "secret";

fn with_user(at: &str, password: &str) -> Builder {
    let sasl = RdKafka::builder(at).set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "PLAIN");
    sasl.set("sasl.username", USER).set("sasl.password", password)
}

async fn fails(builder: Builder, how: &str) {
    // The client tries again until the time is up. On a busy machine, being refused takes a while too.
    let kafka = builder.request_timeout(Duration::from_secs(15)).build().unwrap();
    let (topics, to, records) = (["t".into()], Partition::new("t", 0), [record("x")]);
    let (looked, mut appended) = tokio::join!(kafka.describe_topics(&topics), kafka.append(&to, &records));
    let (looked, appended) = (looked.unwrap_err(), appended.remove(0).unwrap_err());
    assert_eq!((looked.kind(), looked.effect()), (ErrorKind::Denied, Effect::NotApplied), "{how}: {looked}");
    for e in [looked, appended] {
        println!("{how}: {e}");
        assert_eq!(e.kind(), ErrorKind::Denied, "{how}: {e}");
        assert!(e.advice().unwrap().contains("sasl.mechanism"), "{e}");
    }
    let _ = kafka.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valid_user_is_accepted_and_wrong_or_missing_credentials_are_denied() {
    if std::env::var("KAFKAQ_TEST_KAFKA").is_err() {
        return println!("not tested: no servers");
    }
    let [plain, inner, sasl] = [(); 3].map(|()| free_port().unwrap());
    let login = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
    );
    let options = [
        format!(
            "listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{inner},SASL://127.0.0.1:{sasl}"
        ),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl}"),
        format!("controller.quorum.voters=1@127.0.0.1:{inner}"),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT".into(),
        "sasl.enabled.mechanisms=PLAIN".into(),
        format!("listener.name.sasl.plain.sasl.jaas.config={login}"),
    ];
    let options: Vec<&str> = options.iter().flat_map(|option| ["--override", option]).collect();
    let start = || Service::Kafka.own_with(Some(plain), &options).unwrap();
    let _server = tokio::task::block_in_place(start);
    let at = format!("127.0.0.1:{sasl}");

    let kafka = with_user(&at, PASSWORD).build().unwrap();
    let mut spec = TopicSpec::new("t");
    spec.partitions = Some(1);
    kafka.ensure_topics(&[spec]).await.unwrap();
    let of = Partition::new("t", 0);
    kafka.append(&of, &[record("x")]).await.remove(0).unwrap();
    let from = Position { partition: of, offset: 0 };
    assert_eq!(kafka.fetch(&from, FetchLimit::new(LONG, 1000)).await.unwrap().records.len(), 1);
    kafka.close().await.unwrap();

    tokio::join!(
        fails(with_user(&at, "guessed"), "another password"),
        fails(RdKafka::builder(&at), "without a user"),
        fails(with_user(&format!("127.0.0.1:{plain}"), PASSWORD), "a user where none is expected"),
    );
}
