//! TLS towards clients, and the certificate hash of channel binding (RFC 5929).

use super::{NetError, Stream, TlsSettings};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
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
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| bad(file, &e))?;
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
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound => bad(file, &"holds no private key"),
        error => bad(file, &error),
    })
}

fn bad(file: &Path, why: &dyn fmt::Display) -> NetError {
    NetError::Certificate { file: file.display().to_string(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SslMode;
    use crate::net::{tls_client_config, upgrade_client};
    use std::path::PathBuf;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Self-signed for `localhost`, P-256 with SHA-384, valid for a century.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBlDCCATugAwIBAgIUFBsQpV5KwuXU5Uoy9bPg0+d3aAkwCgYIKoZIzj0EAwMw\n\
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTE0NTMyMVoYDzIxMjYxMDI4\n\
MTQ1MzIxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO\n\
PQMBBwNCAARZP+sev/3xgL1d9Q2lguHRIBNfXPjK22CDWFg9FJrgePQczyeLAwh3\n\
0IzVltDSPnPdkgWJrzi3+HhFkR5D8Deuo2kwZzAdBgNVHQ4EFgQUqkmETo2zEs5L\n\
xscArj5ETel6IAQwHwYDVR0jBBgwFoAUqkmETo2zEs5LxscArj5ETel6IAQwDwYD\n\
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwMD\n\
RwAwRAIgYJ7P2nF8PL+dX7CGRELW8t3kmjedCiAIi2TjYOffuLcCIBDbbLS/4EHx\n\
ytnWO3r+7b2Ku9AiKBYnc+NqykGp+1VY\n\
-----END CERTIFICATE-----\n\
";
    const KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQge96QGtl4rQvVB4kP\n\
a2eSS1Rc+QCPwXlPwPNG6jvuNh2hRANCAARZP+sev/3xgL1d9Q2lguHRIBNfXPjK\n\
22CDWFg9FJrgePQczyeLAwh30IzVltDSPnPdkgWJrzi3+HhFkR5D8Deu\n\
-----END PRIVATE KEY-----\n\
";
    /// SHA-384 of the certificate, by sha384sum.
    const HASH: &str =
        "07bb7721cc7834f8ad3b83ebdc44650a080e394953a8772cd1e69991ef38009f41ebdc519503a27e00712483ca641455";

    fn settings(dir: &Path, key: &str) -> TlsSettings {
        let file = |name: &str, text: &str| -> PathBuf {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        let (cert_file, key_file) = (file("cert", CERTIFICATE), file("key", key));
        TlsSettings { client_ca_file: Some(cert_file.clone()), cert_file, key_file }
    }

    /// Both ends of a connection whose server has said "hello".
    async fn ends(mode: SslMode, host: &str) -> Result<(Stream, Stream), NetError> {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), KEY);
        let acceptor = TlsAcceptor::load(&settings).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut stream = Stream::from(listener.accept().await.unwrap().0);
            let mut request = [0u8; 8];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"S").await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.flush().await.unwrap();
            stream
        });
        let config = tls_client_config(mode, Some(&settings.cert_file)).unwrap();
        let plain = Stream::from(TcpStream::connect(address).await.unwrap());
        let client = upgrade_client(plain, mode, host, Arc::new(config)).await?;
        Ok((client, serving.await.unwrap()))
    }

    #[tokio::test]
    async fn both_ends_talk_and_know_the_same_certificate() {
        let (mut client, server) = ends(SslMode::Require, "localhost").await.unwrap();
        let mut got = [0u8; 5];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        let hex: String = client.tls_server_end_point().unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, HASH);
        assert_eq!(server.tls_server_end_point(), client.tls_server_end_point());
        assert!(server.is_tls() && !server.has_postgresql_alpn());
        assert_eq!(server.peer().address, Some([127, 0, 0, 1].into()));
        assert!(server.into_std().is_err());
    }

    #[tokio::test]
    async fn a_self_signed_certificate_in_the_file_of_authorities_is_its_own_authority() {
        ends(SslMode::VerifyFull, "localhost").await.unwrap();
        ends(SslMode::VerifyCa, "127.0.0.1").await.unwrap();
        let why = ends(SslMode::VerifyFull, "127.0.0.1").await.unwrap_err().to_string();
        assert!(why.contains("subjectAltName") && why.contains("verify-ca"), "{why}");
    }

    #[tokio::test]
    async fn a_tls_session_moves_between_runtimes_with_what_it_has_read() {
        let (mut client, mut server) = ends(SslMode::Require, "localhost").await.unwrap();
        let mut first = [0u8; 1];
        client.read_exact(&mut first).await.unwrap();
        let moved = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = client.into_this_runtime().unwrap();
                let mut got = [0u8; 8];
                client.read_exact(&mut got).await.unwrap();
                (got, client.is_quiet())
            })
        });
        server.write_all(b"more").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(moved.await.unwrap(), (*b"ellomore", true));
    }

    #[tokio::test]
    async fn the_end_of_an_idle_tls_connection_is_noticed() {
        let (mut client, mut server) = ends(SslMode::Require, "localhost").await.unwrap();
        let mut got = [0u8; 5];
        client.read_exact(&mut got).await.unwrap();
        assert!(client.is_quiet());
        server.shutdown().await.unwrap();
        // One turn of the driver, as the worker makes before each task.
        let seen = async {
            while client.is_quiet() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), seen).await.unwrap();
    }

    #[test]
    fn unusable_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let load = |key: &str| TlsAcceptor::load(&settings(dir.path(), key)).unwrap_err().to_string();
        assert!(load("-----BEGIN ENCRYPTED PRIVATE KEY-----\n").contains("the key is encrypted"));
        assert!(load("nothing").contains("holds no private key"));
        assert_eq!(end_point_hash(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
