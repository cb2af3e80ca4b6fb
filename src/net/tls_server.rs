//! TLS towards clients, and the certificate hash of channel binding (RFC 5929).

use super::{NetError, Stream, TlsSettings};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The ALPN name of PostgreSQL's protocol.
pub(super) const ALPN: &[u8] = b"postgresql";

/// Accepts TLS from clients with one certificate. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor {
    acceptor: tokio_rustls::TlsAcceptor,
    end_point: Option<Vec<u8>>,
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl TlsAcceptor {
    /// Reads the files. A key under a passphrase is refused.
    pub fn load(settings: &TlsSettings) -> Result<Self, NetError> {
        let chain = certificates(&settings.cert_file)?;
        let end_point = chain.first().and_then(|certificate| end_point_hash(certificate));
        let key = private_key(&settings.key_file)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = match &settings.client_ca_file {
            None => Arc::new(NoClientAuth),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|e| bad(file, &e))?;
                }
                // A client may come without a certificate; only a rule that demands one may refuse it.
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| bad(file, &e))?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&settings.cert_file, &e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| bad(&settings.cert_file, &format!("certificate and key do not go together: {e}")))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // libpq never resumes a session, and PostgreSQL offers neither tickets nor a session cache.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor { acceptor: Arc::new(config).into(), end_point })
    }

    /// Does the handshake on a plain stream. The caller limits the time.
    pub async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        if stream.is_tls() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS within TLS"));
        }
        let tls = self.acceptor.accept(stream).await?;
        Ok(Stream::tls(tls.into(), self.end_point.clone()))
    }
}

/// The `tls-server-end-point` hash of a certificate: by the hash of its signature, with SHA-256 in the place of MD5 and
/// SHA-1. `None` when the signature names no hash that we know; channel binding is then not offered.
pub(super) fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm.algorithm.to_id_string();
    match algorithm.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256; DSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        // RSA and ECDSA with SHA-384.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        // RSA and ECDSA with SHA-512.
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        // Ed25519 and RSA-PSS: RFC 5929 leaves them undefined, and libpq refuses them.
        _ => None,
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let pem = std::fs::read(file).map_err(|e| bad(file, &e))?;
    let found = rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<Vec<_>, _>>().map_err(|e| bad(file, &e))?;
    if found.is_empty() {
        return Err(bad(file, &"holds no certificate"));
    }
    Ok(found)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, NetError> {
    let pem = zeroize::Zeroizing::new(std::fs::read(file).map_err(|e| bad(file, &e))?);
    let text = String::from_utf8_lossy(&pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let why = "the key is encrypted, which pgmend does not read; \
                   write it without a passphrase (openssl pkey -in KEY -out NEW) in a file of mode 0600";
        return Err(bad(file, &why));
    }
    match rustls_pemfile::private_key(&mut pem.as_slice()) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(bad(file, &"holds no private key")),
        Err(e) => Err(bad(file, &e)),
    }
}

fn bad(file: &Path, why: &dyn fmt::Display) -> NetError {
    NetError::Certificate { file: file.display().to_string(), why: why.to_string() }
}
