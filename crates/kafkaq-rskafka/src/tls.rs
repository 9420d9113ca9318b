//! Trusted certificates, and the client's certificate.

use crate::builder::invalid;
use kafkaq_core::Result;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::sync::Arc;

/// In PEM, as the user has given it.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    pub(crate) roots: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    pub(crate) fn config(self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        match &self.roots {
            Some(pem) => {
                for certificate in certificates(pem)? {
                    roots.add(certificate).map_err(unreadable)?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(invalid("There is no certificate to trust: install the system's, or set some"));
        }
        // Set explicitly: the process may have another provider, or two, and then there is no default.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unreadable)?
            .with_root_certificates(roots);
        let config = match &self.identity {
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(unreadable)?;
                config.with_client_auth_cert(certificates(chain)?, key).map_err(unreadable)?
            }
            None => config.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<_, _>>().map_err(unreadable)
}

fn unreadable(e: impl std::error::Error + Send + Sync + 'static) -> kafkaq_core::Error {
    invalid("Certificates and their keys must be in PEM").with_source(e)
}

#[cfg(test)]
mod tests {
    use crate::RsKafka;
    use kafkaq_core::ErrorKind;

    #[test]
    fn a_certificate_that_cannot_be_read_is_refused_before_anything_connects() {
        for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let e = RsKafka::builder("a:1").root_certificates(pem).build().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{pem}: {e}");
        }
        let e = RsKafka::builder("a:1").client_certificate("x", "secret").build().unwrap_err();
        assert!(!format!("{e:?}").contains("secret"), "{e:?}");
    }
}
