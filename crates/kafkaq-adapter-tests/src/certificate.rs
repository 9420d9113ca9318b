//! A temporary certificate. Requires the `openssl` program.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// For `localhost`, self-signed. Its files are deleted with it.
#[derive(Debug)]
pub struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// Creates a certificate.
    #[must_use]
    pub fn for_localhost() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kafkaq-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let certificate = Certificate { folder: std::env::temp_dir().join(name) };
        std::fs::create_dir_all(&certificate.folder).unwrap();
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &certificate.key_file(), "-out", &certificate.file()])
            .stderr(Stdio::null())
            .status()
            .expect("the openssl program is missing: install it (Debian: apt-get install openssl)");
        assert!(status.success());
        certificate
    }

    /// The path of the certificate.
    #[must_use]
    pub fn file(&self) -> String {
        self.path("tls.crt")
    }

    /// The path of its key.
    #[must_use]
    pub fn key_file(&self) -> String {
        self.path("tls.key")
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    /// Its key in PEM.
    #[must_use]
    pub fn key_pem(&self) -> Vec<u8> {
        std::fs::read(self.key_file()).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
