//! Listeners that require a user, TLS, or both. Needs the `openssl` program, and a Kafka that runs as a process.

use crate::*;
use kafkaq_adapter_tests::Certificate;
use kafkaq_rskafka::Builder;
use std::{fmt::Write as _, fs, path::Path};
use xtask::services::free_port;

const USER: &str = "emails";
const PASSWORD: &str = "secret";

/// What a server stores instead of a password: PBKDF2 of `secret` with this salt and 4096 iterations.
const SALT: &[u8] = b"of a test's user";
const SHA_256: &str = "b2a04cf7291a7fbfd45db8aa376cce51df87fdd5ff5b0b5be6bd324b1d42e376";
const SHA_512: &str = "4b6951829fc02691f5f204a1d6758db1c73a28b4cdbdfafe552e736b6874e8f7\
                       a9cde76950d0a816f25b67925c69ac9c16058747a1ddbd2ebbd15209cc60b49e";

struct Secured {
    _server: Server,
    sasl: String,
    #[cfg(feature = "tls")]
    tls: String,
    #[cfg(feature = "tls")]
    both: String,
    #[cfg(feature = "tls")]
    certificate: Vec<u8>,
}

/// `None` if the server is a container, whose settings are not in a file.
fn secured() -> Option<Secured> {
    let dir = std::env::temp_dir().join(unique("kafkaq-rskafka-secured"));
    let mut server = Service::Kafka.start(&dir, None).unwrap();
    let settings = dir.join("server.properties");
    if !settings.exists() {
        println!("not tested: Kafka runs in a container");
        return None;
    }
    server.stop().unwrap();
    let certificate = Certificate::for_localhost();
    let identity = dir.join("identity.pem");
    fs::write(&identity, [certificate.key_pem(), certificate.pem()].concat()).unwrap();
    let [sasl, tls, both] = [(); 3].map(|()| free_port().unwrap());
    let more = fs::read_to_string(&settings).unwrap().lines().fold(String::new(), |mut all, line| {
        let listeners = |host: &str| {
            format!(",SASL_PLAINTEXT://{host}:{sasl},SSL://{host}:{tls},SASL_SSL://{host}:{both}")
        };
        let tail = match line.split_once('=').map_or(line, |(name, _)| name) {
            "listeners" => listeners("127.0.0.1"),
            "advertised.listeners" => listeners("localhost"),
            "listener.security.protocol.map" => {
                ",SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL".into()
            }
            _ => String::new(),
        };
        writeln!(all, "{line}{tail}").unwrap();
        all
    });
    fs::write(&settings, more + &security(&identity)).unwrap();
    server.start_again().unwrap();
    for (mechanism, derived) in [(1, SHA_256), (2, SHA_512)] {
        wire::set_password(&server.url(), USER, mechanism, SALT, &bytes(derived));
    }
    Some(Secured {
        _server: server,
        sasl: format!("localhost:{sasl}"),
        #[cfg(feature = "tls")]
        tls: format!("localhost:{tls}"),
        #[cfg(feature = "tls")]
        both: format!("localhost:{both}"),
        #[cfg(feature = "tls")]
        certificate: certificate.pem(),
    })
}

fn security(identity: &Path) -> String {
    let mut lines = format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\nssl.keystore.type=PEM\nssl.keystore.location={}\n",
        identity.display()
    );
    let module = "org.apache.kafka.common.security";
    for listener in ["sasl_plaintext", "sasl_ssl"] {
        for (mechanism, login) in [
            ("plain", format!("plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\"")),
            ("scram-sha-256", "scram.ScramLoginModule required".into()),
            ("scram-sha-512", "scram.ScramLoginModule required".into()),
        ] {
            writeln!(lines, "listener.name.{listener}.{mechanism}.sasl.jaas.config={module}.{login};")
                .unwrap();
        }
    }
    lines
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Exercises the client library's connections and our own.
async fn works(builder: Builder, how: &str) {
    let kafka = builder.request_timeout(PATIENCE).build().unwrap();
    let mut spec = TopicSpec::new(unique("secured"));
    spec.partitions = Some(1);
    spec.retention = Some(Duration::from_secs(3600));
    let made = kafka.ensure_topics(&[spec.clone()]).await.unwrap_or_else(|e| panic!("{how}: {e}"));
    assert_eq!(made[0].retention, spec.retention, "{how}");
    let to = Partition::new(spec.name, 0);
    kafka.append(&to, &[record("x")]).await.remove(0).unwrap_or_else(|e| panic!("{how}: {e}"));
    let from = Position { partition: to, offset: 0 };
    let batch = kafka.fetch(&from, FetchLimit::new(PATIENCE, 1000)).await.unwrap();
    assert_eq!(batch.records.len(), 1, "{how}");
    kafka.close().await.unwrap();
}

/// Returns the error of creating a topic.
async fn fails(builder: Builder) -> Error {
    let kafka = builder.request_timeout(millis(12_000)).build().unwrap();
    let e = kafka.ensure_topics(&[TopicSpec::new(unique("refused"))]).await.unwrap_err();
    println!("{e}");
    assert_eq!(e.effect(), Effect::NotApplied, "{e}");
    assert!(e.advice().is_some(), "{e}");
    e
}

type SignIn = fn(Builder, &str) -> Builder;
const MECHANISMS: [(&str, SignIn); 3] = [
    ("PLAIN", |builder, password| builder.sasl_plain(USER, password)),
    ("SCRAM-SHA-256", |builder, password| builder.sasl_scram_sha_256(USER, password)),
    ("SCRAM-SHA-512", |builder, password| builder.sasl_scram_sha_512(USER, password)),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valid_user_is_accepted_by_each_mechanism_and_over_tls_and_others_are_denied() {
    let Some(server) = tokio::task::spawn_blocking(secured).await.unwrap() else { return };
    let sasl = || RsKafka::builder(&server.sasl);
    for (mechanism, sign_in) in MECHANISMS {
        works(sign_in(sasl(), PASSWORD), mechanism).await;
        let e = fails(sign_in(sasl(), "guessed")).await;
        assert_eq!(e.kind(), ErrorKind::Denied, "{mechanism}: {e}");
    }
    assert_eq!(fails(sasl()).await.kind(), ErrorKind::Unavailable, "without a user");
    #[cfg(feature = "tls")]
    over_tls(&server).await;
}

#[cfg(feature = "tls")]
async fn over_tls(server: &Secured) {
    let trusting = |address: &str| RsKafka::builder(address).root_certificates(server.certificate.clone());
    works(trusting(&server.tls), "TLS").await;
    for (mechanism, sign_in) in MECHANISMS {
        works(sign_in(trusting(&server.both), PASSWORD), &format!("TLS and {mechanism}")).await;
    }
    let wary = fails(RsKafka::builder(&server.tls).tls()).await;
    assert!(wary.kind() == ErrorKind::Unavailable && wary.to_string().contains("certificate"), "{wary}");
    let plain = fails(RsKafka::builder(&server.tls)).await;
    assert!(plain.kind() == ErrorKind::Unavailable && plain.to_string().contains("TLS"), "{plain}");
}
