//! TLS with a certificate made for the occasion. Needs the `openssl` program.

use crate::{create, key, server::Server, server::free_port};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Swapped};
use kafkaq_redis::RedisStore;
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
    certificate: Vec<u8>,
    key: Vec<u8>,
    folder: std::path::PathBuf,
}

/// Which certificates the server asks for: `no` or `yes`.
fn secure(port: u16, clients: &str) -> Secure {
    let folder = std::env::temp_dir().join(format!("kafkaq-redis-tls-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = self_signed(&folder);
    let port = port.to_string();
    let server = Server::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        clients,
    ]);
    let read = |path: &str| std::fs::read(path).unwrap();
    Secure { server, certificate: read(&certificate), key: read(&key), folder }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_trusted_certificate_opens_and_any_other_is_refused() {
    let port = free_port();
    let secure = secure(port, "no");
    let url = format!("rediss://localhost:{port}/0");
    let swap = [create(&key("a"), "a")];
    let trusting = RedisStore::builder(&url).root_certificates(secure.certificate.clone()).build().unwrap();
    assert_eq!(trusting.swap(&swap).await.pop().unwrap().unwrap(), Swapped::Done);

    let wary = RedisStore::builder(&url).build().unwrap();
    let e = wary.swap(&swap).await.pop().unwrap().unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    assert!(e.to_string().contains("certificate"), "{e}");

    let plain = RedisStore::builder(secure.server.url()).root_certificates(secure.certificate.clone());
    assert_eq!(plain.build().unwrap_err().kind(), ErrorKind::Invalid, "certificates without TLS");
    let nonsense = RedisStore::builder(&url).client_certificate("no", "pem");
    assert_eq!(nonsense.build().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let port = free_port();
    let secure = secure(port, "yes");
    let builder = || {
        RedisStore::builder(format!("rediss://localhost:{port}/0"))
            .root_certificates(secure.certificate.clone())
    };
    let swap = [create(&key("a"), "a")];
    let known = builder().client_certificate(secure.certificate.clone(), secure.key.clone()).build().unwrap();
    assert_eq!(known.swap(&swap).await.pop().unwrap().unwrap(), Swapped::Done);
    assert!(builder().build().unwrap().swap(&swap).await[0].is_err());
}
