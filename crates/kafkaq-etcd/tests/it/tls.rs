//! TLS with a certificate created for the test.

use crate::own_at;
use kafkaq_adapter_tests::{Certificate, create, key, one};
use kafkaq_core::{Effect, ErrorKind, Swapped};
use kafkaq_etcd::EtcdStore;
use xtask::services::{Server, free_port};

/// A server that speaks TLS on a second port, to everybody or only to clients with the certificate.
fn secure(certificate: &Certificate, asks_for_certificates: bool) -> (Server, String) {
    let [plain, port] = [(); 2].map(|()| free_port().unwrap());
    let url = format!("https://localhost:{port}");
    let mut options = vec![
        format!("--listen-client-urls=http://127.0.0.1:{plain},https://127.0.0.1:{port}"),
        format!("--advertise-client-urls={url}"),
        format!("--cert-file={}", certificate.file()),
        format!("--key-file={}", certificate.key_file()),
    ];
    if asks_for_certificates {
        options.push("--client-cert-auth".to_owned());
        options.push(format!("--trusted-ca-file={}", certificate.file()));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    (own_at(Some(plain), &options), url)
}

#[tokio::test]
async fn trusted_certificate_is_accepted_and_any_other_refused() {
    let certificate = Certificate::for_localhost();
    let (server, url) = secure(&certificate, false);
    let swap = create(&key("a"), "a");
    let trusting = EtcdStore::builder([&*url]).root_certificates(certificate.pem()).build().unwrap();
    assert_eq!(one(&trusting, swap.clone()).await.unwrap(), Swapped::Done);

    let wary = EtcdStore::builder([&*url]).build().unwrap();
    let e = one(&wary, swap).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    assert!(e.to_string().contains("certificate"), "{e}");

    let plain = EtcdStore::builder([server.url()]).root_certificates(certificate.pem());
    assert_eq!(plain.build().unwrap_err().kind(), ErrorKind::Invalid, "certificates without TLS");
    let nonsense = EtcdStore::builder([&*url]).client_certificate("no", "pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
    let nonsense = EtcdStore::builder([&*url]).root_certificates("no pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn client_certificate_is_sent_to_a_server_that_requires_it() {
    let certificate = Certificate::for_localhost();
    let (_server, url) = secure(&certificate, true);
    let swap = create(&key("a"), "a");
    let builder = || EtcdStore::builder([&*url]).root_certificates(certificate.pem());
    let known = builder().client_certificate(certificate.pem(), certificate.key_pem()).build().unwrap();
    assert_eq!(one(&known, swap.clone()).await.unwrap(), Swapped::Done);
    assert!(one(&builder().build().unwrap(), swap).await.is_err());
}
