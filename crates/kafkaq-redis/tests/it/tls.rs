//! TLS with a certificate created for the test.

use kafkaq_adapter_tests::{Certificate, create, key, one};
use kafkaq_core::{Effect, ErrorKind, Swapped};
use kafkaq_redis::RedisStore;
use xtask::services::{Server, Service, free_port};

/// A server that speaks TLS on a second port, to everybody or only to clients with the certificate.
fn secure(certificate: &Certificate, asks_for_certificates: bool) -> (Server, String) {
    let port = free_port().unwrap().to_string();
    let (file, key_file) = (certificate.file(), certificate.key_file());
    let asks = if asks_for_certificates { "yes" } else { "no" };
    let server = Service::Redis.own_with(
        None,
        &[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &file,
            "--tls-key-file",
            &key_file,
            "--tls-ca-cert-file",
            &file,
            "--tls-auth-clients",
            asks,
        ],
    );
    (server.unwrap(), format!("rediss://localhost:{port}/0"))
}

#[tokio::test]
async fn trusted_certificate_is_accepted_and_any_other_refused() {
    let certificate = Certificate::for_localhost();
    let (server, url) = secure(&certificate, false);
    let swap = create(&key("a"), "a");
    let trusting = RedisStore::builder(&url).root_certificates(certificate.pem()).build().unwrap();
    assert_eq!(one(&trusting, swap.clone()).await.unwrap(), Swapped::Done);

    let wary = RedisStore::builder(&url).build().unwrap();
    let e = one(&wary, swap).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    assert!(e.to_string().contains("certificate"), "{e}");

    let plain = RedisStore::builder(server.url()).root_certificates(certificate.pem());
    assert_eq!(plain.build().unwrap_err().kind(), ErrorKind::Invalid, "certificates without TLS");
    let nonsense = RedisStore::builder(&url).client_certificate("no", "pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn client_certificate_is_sent_to_a_server_that_requires_it() {
    let certificate = Certificate::for_localhost();
    let (_server, url) = secure(&certificate, true);
    let swap = create(&key("a"), "a");
    let builder = || RedisStore::builder(&url).root_certificates(certificate.pem());
    let known = builder().client_certificate(certificate.pem(), certificate.key_pem()).build().unwrap();
    assert_eq!(one(&known, swap.clone()).await.unwrap(), Swapped::Done);
    assert!(one(&builder().build().unwrap(), swap).await.is_err());
}
