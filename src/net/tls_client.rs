//! TLS towards nodes, by libpq's `sslmode`.

use crate::cluster::SslMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

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
    let check = match mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => None,
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let (roots, known) = authorities(ca_file)?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| TlsClientError::Authorities(e.to_string()))?;
            Some(Check { chain, known, names: mode == SslMode::VerifyFull })
        }
    };
    let verifier = Arc::new(Verifier { provider, check });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// A fault of TLS in the words of who can mend it.
pub fn explain(fault: &Error) -> String {
    let Error::InvalidCertificate(fault) = fault else { return fault.to_string() };
    match fault {
        CertificateError::UnknownIssuer => "its certificate is not signed by an authority in server_ca_file; put the \
             certificate of its authority there"
            .to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "{fault}; set the node's host to a name in the certificate's subjectAltName, or sslmode = \"verify-ca\""
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{fault}; renew the server's certificate, or correct this machine's clock")
        }
        other => format!("its certificate cannot be used: {other}; X.509 version 3 with a subjectAltName is expected"),
    }
}

/// The authorities, and the same certificates as they stand in the file.
fn authorities(ca_file: Option<&Path>) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsClientError> {
    let path = ca_file.ok_or_else(|| {
        TlsClientError::Authorities(
            "sslmode verify-ca and verify-full need the servers' authorities: set server_ca_file in [tls]".into(),
        )
    })?;
    let bad = |e: &dyn std::fmt::Display| TlsClientError::Authorities(format!("{}: {e}", path.display()));
    let pem = std::fs::read(path).map_err(|e| bad(&e))?;
    let known = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
    if known.is_empty() {
        return Err(bad(&"holds no certificate"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in &known {
        roots.add(certificate.clone()).map_err(|e| bad(&e))?;
    }
    Ok((roots, known))
}

/// `require` checks nothing about who the server is; `verify-ca` checks the chain but not the name (as libpq does).
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    check: Option<Check>,
}

#[derive(Debug)]
struct Check {
    chain: Arc<WebPkiServerVerifier>,
    /// What the file of authorities holds. A server may present one of these itself: PostgreSQL's manual tells how to make
    /// a self-signed certificate, which is then its own authority; libpq takes that, webpki does not.
    known: Vec<CertificateDer<'static>>,
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(check) = &self.check else { return Ok(ServerCertVerified::assertion()) };
        let outcome = match check.known.iter().any(|known| known == end_entity) {
            true => verify_known(end_entity, server_name, now),
            false => check.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now).map(drop),
        };
        match outcome {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !check.names => Ok(ServerCertVerified::assertion()),
            other => other.map(|()| ServerCertVerified::assertion()),
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

/// A certificate that is itself in the file needs no chain, only to be valid now and to name the host.
fn verify_known(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}
