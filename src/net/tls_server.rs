//! TLS towards clients: which certificate each is shown, whose certificates are believed, and tickets to come back with.

use super::certificate::{end_point_hash, host_names};
use super::pem::{bad, certificates, private_key, revocation_lists};
use super::{CertificateSettings, NetError, Stream, TlsSettings};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use std::fmt;
use std::io;
use std::sync::Arc;

/// The ALPN name of PostgreSQL's protocol.
pub(super) const ALPN: &[u8] = b"postgresql";
/// Certificates beside the first; each is held in memory.
const MAX_CERTIFICATES: usize = 10_000;

/// Accepts TLS from clients. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor {
    acceptor: tokio_rustls::TlsAcceptor,
    shown: Arc<Shown>,
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl TlsAcceptor {
    /// Reads the files. A key under a passphrase is refused.
    pub fn load(settings: &TlsSettings) -> Result<Self, NetError> {
        let provider = Arc::new(ring::default_provider());
        let shown = Arc::new(Shown::load(settings, &provider)?);
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&settings.own.cert_file, &e))?
            .with_client_cert_verifier(client_verifier(settings, provider)?)
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No memory per session is kept here: what is needed to resume goes to the client, encrypted, in a ticket.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if settings.session_tickets {
            // The key is of this configuration alone: after a reload nobody resumes past new authorities or revocations.
            config.ticketer = ring::Ticketer::new().map_err(|e| bad(&settings.own.cert_file, &e))?;
            config.send_tls13_tickets = 1;
        }
        Ok(TlsAcceptor { acceptor: Arc::new(config).into(), shown })
    }

    /// Does the handshake on a plain stream. The caller limits the time.
    pub async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        if stream.is_tls() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS within TLS"));
        }
        let tls = self.acceptor.accept(stream).await?;
        let end_point = self.shown.for_name(tls.get_ref().1.server_name()).end_point.clone();
        Ok(Stream::tls(tls.into(), end_point))
    }
}

fn client_verifier(
    settings: &TlsSettings,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, NetError> {
    let Some(file) = &settings.client_ca_file else { return Ok(Arc::new(NoClientAuth)) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| bad(file, &e))?;
    }
    // A client may come without a certificate; only a rule that demands one may refuse it.
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
    if let Some(file) = &settings.client_crl_file {
        // As with OpenSSL in PostgreSQL: the whole chain must be covered, and by lists that are not out of date.
        builder = builder.with_crls(revocation_lists(file)?).enforce_revocation_expiration();
    }
    builder.build().map_err(|e| bad(file, &e))
}

/// A certificate with its key and its hash for channel binding.
#[derive(Debug)]
struct Own {
    key: Arc<CertifiedKey>,
    end_point: Option<Vec<u8>>,
}

impl Own {
    fn load(files: &CertificateSettings, provider: &CryptoProvider) -> Result<(Own, Vec<String>), NetError> {
        let chain = certificates(&files.cert_file)?;
        let key = private_key(&files.key_file)?;
        let first = chain.first();
        let end_point = first.and_then(|certificate| end_point_hash(certificate));
        let names = match files.server_names.as_slice() {
            [] => first.map(host_names).unwrap_or_default(),
            given => given.iter().map(|name| name.to_ascii_lowercase()).collect(),
        };
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|e| bad(&files.cert_file, &format!("certificate and key do not go together: {e}")))?;
        Ok((Own { key: Arc::new(key), end_point }, names))
    }
}

/// The certificates that clients are shown, by the name that each asks for (SNI).
#[derive(Debug)]
struct Shown {
    /// For clients that give no name, or one that no other certificate is for.
    first: Own,
    /// Names in lower case, a leading `*.` for one label.
    named: Vec<(Vec<String>, Own)>,
}

impl Shown {
    fn load(settings: &TlsSettings, provider: &CryptoProvider) -> Result<Shown, NetError> {
        let (first, _) = Own::load(&settings.own, provider)?;
        let mut named = Vec::new();
        for files in settings.others.iter().take(MAX_CERTIFICATES) {
            let (own, names) = Own::load(files, provider)?;
            if names.is_empty() {
                let why = "names no host in its subjectAltName; say for which it is with server_names = [\"...\"]";
                return Err(bad(&files.cert_file, &why));
            }
            named.push((names, own));
        }
        Ok(Shown { first, named })
    }

    fn for_name(&self, name: Option<&str>) -> &Own {
        let Some(name) = name.map(str::to_ascii_lowercase) else { return &self.first };
        let wild = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let find = |wanted: &str| self.named.iter().find(|(names, _)| names.iter().any(|n| n == wanted));
        find(&name).or_else(|| find(wild.as_deref()?)).map_or(&self.first, |(_, own)| own)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.for_name(hello.server_name()).key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SslMode;
    use crate::net::{ServerTls, ServerTlsSettings, upgrade_client};
    use std::path::{Path, PathBuf};
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
        let own = CertificateSettings { cert_file: cert_file.clone(), key_file, server_names: Vec::new() };
        TlsSettings {
            own,
            others: Vec::new(),
            client_ca_file: Some(cert_file),
            client_crl_file: None,
            session_tickets: true,
        }
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
        let files = ServerTlsSettings { ca_file: Some(settings.own.cert_file), ..ServerTlsSettings::default() };
        let config = ServerTls::load(&files).unwrap().config(mode).unwrap().own().clone();
        let plain = Stream::from(TcpStream::connect(address).await.unwrap());
        let client = upgrade_client(plain, mode, host, config).await?;
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
    }
}
