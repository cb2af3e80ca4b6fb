//! TLS towards nodes, by libpq's `sslmode`.

use crate::cluster::SslMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// The configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsClientError {
    /// A verifying mode without authorities, or an unreadable file.
    #[error("{0}")]
    Authorities(String),
    /// rustls refused it.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The client side for an `sslmode`. `verify-ca` and `verify-full` need `ca_file` (PEM).
pub fn tls_client_config(mode: SslMode, ca_file: Option<&Path>) -> Result<ClientConfig, TlsClientError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    match mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Lenient { provider, inner: None }))
            .with_no_client_auth()),
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let roots = Arc::new(authorities(ca_file)?);
            if mode == SslMode::VerifyFull {
                return Ok(builder.with_root_certificates(roots).with_no_client_auth());
            }
            let inner = rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|e| TlsClientError::Authorities(e.to_string()))?;
            Ok(builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Lenient { provider, inner: Some(inner) }))
                .with_no_client_auth())
        }
    }
}

fn authorities(ca_file: Option<&Path>) -> Result<RootCertStore, TlsClientError> {
    let path = ca_file.ok_or_else(|| {
        TlsClientError::Authorities("sslmode verify-ca and verify-full need a file of authorities (ca_file)".into())
    })?;
    let bad = |e: &dyn std::fmt::Display| TlsClientError::Authorities(format!("{}: {e}", path.display()));
    let pem = std::fs::read(path).map_err(|e| bad(&e))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        roots.add(cert.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    if roots.is_empty() {
        return Err(bad(&"holds no certificate"));
    }
    Ok(roots)
}

/// `require` checks nothing about who the server is; `verify-ca` checks the chain but not the name (as libpq does).
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    inner: Option<Arc<rustls::client::WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
