//! TLS with a certificate made for the occasion. Needs the `openssl` program.

use crate::{
    create, key, one,
    server::{Ports, Server},
};
use kafkaq_core::{Effect, ErrorKind, Swapped};
use kafkaq_etcd::{EtcdStore, EtcdStoreBuilder};
use std::{path::Path, process::Command};

fn self_signed(folder: &Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("tls.crt"), path("tls.key"));
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &key, "-out", &certificate])
        .stderr(std::process::Stdio::null())
        .status()
        .expect("the openssl program is not there: install it (Debian: apt-get install openssl)");
    assert!(status.success());
    (certificate, key)
}

struct Secure {
    server: Server,
    address: String,
    certificate: Vec<u8>,
    key: Vec<u8>,
    folder: std::path::PathBuf,
}

impl Secure {
    fn builder(&self) -> EtcdStoreBuilder {
        EtcdStore::builder([self.address.clone()]).root_certificates(self.certificate.clone())
    }
}

/// Speaks TLS on a second port, to everybody or to those who have the certificate too.
fn secure(asks_for_certificates: bool) -> Secure {
    let port = Ports::free().client;
    let folder = std::env::temp_dir().join(format!("kafkaq-etcd-tls-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = self_signed(&folder);
    let url = format!("https://localhost:{port}");
    let mut options = vec![
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--advertise-client-urls={url}"),
        format!("--cert-file={certificate}"),
        format!("--key-file={key}"),
    ];
    if asks_for_certificates {
        options.extend(["--client-cert-auth".to_owned(), format!("--trusted-ca-file={certificate}")]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::with(&options);
    let read = |path: &str| std::fs::read(path).unwrap();
    Secure { server, address: url, certificate: read(&certificate), key: read(&key), folder }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_trusted_certificate_opens_and_any_other_is_refused() {
    let secure = secure(false);
    let swap = create(&key("a"), "a");
    assert_eq!(one(&secure.builder().build().unwrap(), swap.clone()).await.unwrap(), Swapped::Done);

    let wary = EtcdStore::builder([secure.address.clone()]).build().unwrap();
    let e = one(&wary, swap).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    assert!(e.to_string().contains("certificate"), "{e}");

    let plain = EtcdStore::builder([format!("http://{}", secure.server.address())]);
    let plain = plain.root_certificates(secure.certificate.clone());
    assert_eq!(plain.build().unwrap_err().kind(), ErrorKind::Invalid, "certificates without TLS");
    let nonsense = EtcdStore::builder([secure.address.clone()]).client_certificate("no", "pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
    let nonsense = EtcdStore::builder([secure.address.clone()]).root_certificates("no pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let secure = secure(true);
    let swap = create(&key("a"), "a");
    let known = secure.builder().client_certificate(secure.certificate.clone(), secure.key.clone());
    assert_eq!(one(&known.build().unwrap(), swap.clone()).await.unwrap(), Swapped::Done);
    assert!(one(&secure.builder().build().unwrap(), swap).await.is_err());
}
