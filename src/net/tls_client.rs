//! TLS towards nodes, by libpq's `sslmode`.

use super::pem::{bad, certificates, private_key, revocation_lists};
use super::{NetError, ServerTlsSettings};
use crate::cluster::SslMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsClientError {
    /// A verifying mode without authorities, or an unreadable file.
    #[error("{0}")]
    Authorities(String),
    /// A file is unusable.
    #[error("{0}")]
    File(#[from] NetError),
    /// rustls refused it.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// TLS towards nodes, its files read once: what a file becomes later counts only after a reload, and only if it is good.
pub struct ServerTls {
    /// Where the files are, for programs that read them themselves.
    pub settings: ServerTlsSettings,
    unchecked: ClientTls,
    /// Chain only, chain and name; `None` without authorities.
    checked: Option<(ClientTls, ClientTls)>,
}

/// The client side of one `sslmode`, by the certificate that it shows when it is asked for one.
#[derive(Clone, Debug)]
pub struct ClientTls {
    own: Arc<ClientConfig>,
    databases: Arc<BTreeMap<String, Arc<ClientConfig>>>,
}

impl ClientTls {
    /// Pgmend's own certificate, or none.
    pub fn own(&self) -> &Arc<ClientConfig> {
        &self.own
    }

    /// The certificate of a database's section, if it has one; else pgmend's own.
    pub fn of(&self, database: Option<&str>) -> &Arc<ClientConfig> {
        database.and_then(|name| self.databases.get(name)).unwrap_or(&self.own)
    }
}

/// A certificate with its key.
type Pair<'a> = (&'a Path, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair<'a>(cert: &'a Path, key: &Path) -> Result<Pair<'a>, NetError> {
    Ok((cert, certificates(cert)?, private_key(key)?))
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.settings).finish()
    }
}

impl ServerTls {
    /// Reads the files.
    pub fn load(settings: &ServerTlsSettings) -> Result<Arc<ServerTls>, TlsClientError> {
        let provider = Arc::new(ring::default_provider());
        let own = match (&settings.cert_file, &settings.key_file) {
            (Some(cert), Some(key)) => Some(pair(cert, key)?),
            _ => None,
        };
        let mut databases: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
        for (name, (cert, key)) in &settings.databases {
            databases.insert(name, pair(cert, key)?);
        }
        let config = |verifier: &Arc<Verifier>, pair: Option<&Pair<'_>>| -> Result<Arc<ClientConfig>, TlsClientError> {
            let builder =
                ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
            let builder = builder.dangerous().with_custom_certificate_verifier(verifier.clone());
            Ok(Arc::new(match pair {
                None => builder.with_no_client_auth(),
                Some((file, chain, key)) => builder
                    .with_client_auth_cert(chain.clone(), key.clone_key())
                    .map_err(|e| bad(file, &format!("certificate and key do not go together: {e}")))?,
            }))
        };
        let side = |check: Option<Check>| -> Result<ClientTls, TlsClientError> {
            let verifier = Arc::new(Verifier { provider: provider.clone(), check });
            let named = databases.iter().map(|(name, pair)| Ok(((*name).to_owned(), config(&verifier, Some(pair))?)));
            let databases = Arc::new(named.collect::<Result<_, TlsClientError>>()?);
            Ok(ClientTls { own: config(&verifier, own.as_ref())?, databases })
        };
        let checked = match &settings.ca_file {
            None => None,
            Some(file) => {
                let (chain, known) = authorities(file, settings.crl_file.as_deref(), &provider)?;
                let check = |names| Some(Check { chain: chain.clone(), known: known.clone(), names });
                Some((side(check(false))?, side(check(true))?))
            }
        };
        Ok(Arc::new(ServerTls { settings: settings.clone(), unchecked: side(None)?, checked }))
    }

    /// The client side for an `sslmode`.
    pub fn config(&self, mode: SslMode) -> Result<ClientTls, TlsClientError> {
        let missing = || {
            TlsClientError::Authorities(
                "sslmode verify-ca and verify-full need the servers' authorities: set server_ca_file in [tls]".into(),
            )
        };
        match mode {
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Ok(self.unchecked.clone()),
            SslMode::VerifyCa => self.checked.as_ref().map(|(chain, _)| chain.clone()).ok_or_else(missing),
            SslMode::VerifyFull => self.checked.as_ref().map(|(_, full)| full.clone()).ok_or_else(missing),
        }
    }
}

/// A fault of TLS in the words of who can mend it.
pub fn explain(fault: &Error) -> String {
    let fault = match fault {
        Error::InvalidCertificate(fault) => fault,
        Error::AlertReceived(alert) => {
            return format!(
                "the server ended it with the alert {alert:?}; where that is about a certificate, the one in \
                 server_cert_file must be signed by an authority in the server's ssl_ca_file, valid and not revoked"
            );
        }
        other => return other.to_string(),
    };
    match fault {
        CertificateError::Revoked => "its certificate was revoked by a list in server_crl_file".to_owned(),
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

type Authorities = (Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>);

/// The check by the authorities of a file, and the same certificates as they stand in it.
fn authorities(
    file: &Path,
    crl_file: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Authorities, TlsClientError> {
    let known = certificates(file)?;
    let mut roots = RootCertStore::empty();
    for certificate in &known {
        roots.add(certificate.clone()).map_err(|e| bad(file, &e))?;
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Some(file) = crl_file {
        builder = builder.with_crls(revocation_lists(file)?).enforce_revocation_expiration();
    }
    Ok((builder.build().map_err(|e| TlsClientError::Authorities(e.to_string()))?, known))
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
