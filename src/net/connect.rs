//! Connections to servers: resolve, connect within a time limit, and go over to TLS as `sslmode` says.

use super::tls_client::explain;
use super::{NetError, Stream, end_point_hash, tcp_options};
use crate::cluster::SslMode;
use rustls::pki_types::ServerName;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// PostgreSQL's socket directory on Debian, for an empty host name.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// `SSLRequest`: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Connects to a host name, an address, or (starting with `/`, or empty) the directory of a Unix socket.
/// `timeout` covers the name lookup and all addresses; each address gets an equal share of what is left, so that one
/// dead address cannot hide a living one.
pub async fn connect(host: &str, port: u16, timeout: Duration, keepalive: Duration) -> Result<Stream, NetError> {
    let deadline = Instant::now() + timeout;
    if is_unix(host) {
        return connect_unix(host, port, timeout, deadline).await;
    }
    let address = format!("{host}:{port}");
    let late = || NetError::ConnectTimeout { address: address.clone(), timeout_ms: timeout.as_millis() };
    let found = timeout_at(deadline, tokio::net::lookup_host((host, port))).await.map_err(|_| late())?;
    let found = found.map_err(|why| NetError::Connect { address: address.clone(), why })?.collect::<Vec<_>>();
    let mut last = late();
    if found.is_empty() {
        let why = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        last = NetError::Connect { address: address.clone(), why };
    }
    for (tried, target) in found.iter().enumerate() {
        let shares = u32::try_from(found.len() - tried).unwrap_or(u32::MAX).max(1);
        let share = deadline.saturating_duration_since(Instant::now()) / shares;
        match timeout_at(Instant::now() + share, TcpStream::connect(*target)).await {
            Ok(Ok(socket)) => match tcp_options(&socket, keepalive) {
                Ok(()) => return Ok(Stream::Tcp(socket)),
                Err(why) => last = NetError::Connect { address: address.clone(), why },
            },
            Ok(Err(why)) => last = NetError::Connect { address: address.clone(), why },
            Err(_) => last = late(),
        }
    }
    Err(last)
}

async fn connect_unix(directory: &str, port: u16, timeout: Duration, deadline: Instant) -> Result<Stream, NetError> {
    let directory = if directory.is_empty() { DEFAULT_SOCKET_DIRECTORY } else { directory };
    let path = Path::new(directory).join(format!(".s.PGSQL.{port}"));
    let address = path.display().to_string();
    match timeout_at(deadline, UnixStream::connect(&path)).await {
        Ok(Ok(socket)) => Ok(Stream::Unix(socket)),
        Ok(Err(why)) => Err(NetError::Connect { address, why }),
        Err(_) => Err(NetError::ConnectTimeout { address, timeout_ms: timeout.as_millis() }),
    }
}

/// Goes over to TLS as the mode says; call it before anything else is sent. As in libpq, a Unix socket stays plain in
/// every mode, and `disable` asks for nothing; nor does `allow`, whose second way is `require`.
pub async fn upgrade_client(
    mut stream: Stream,
    mode: SslMode,
    host: &str,
    cfg: Arc<rustls::ClientConfig>,
) -> Result<Stream, NetError> {
    let optional = match mode {
        SslMode::Disable | SslMode::Allow => return Ok(stream),
        SslMode::Prefer => true,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => false,
    };
    if !matches!(stream, Stream::Tcp(_)) {
        return Ok(stream);
    }
    stream.write_all(&SSL_REQUEST).await?;
    // Exactly one byte: whatever follows it belongs to the TLS handshake.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if optional => return Ok(stream),
        b'N' => {
            let why = "it offers none, but sslmode requires it; set ssl = on at the server, or sslmode = \"prefer\"";
            return Err(NetError::Tls(why.to_owned()));
        }
        b'E' => return Err(bad_data("an error in answer to the TLS request".to_owned())),
        other => return Err(bad_data(format!("unexpected answer 0x{other:02x} to the TLS request"))),
    }
    // In TLS the client speaks first, so bytes that are here already were put in by somebody else (CVE-2021-23222).
    if stream.has_pending_bytes()? {
        return Err(bad_data("unencrypted bytes after the answer to the TLS request".to_owned()));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| NetError::Tls(format!("host \"{host}\": {e}")))?;
    let tls = tokio_rustls::TlsConnector::from(cfg).connect(name, stream).await.map_err(tls_fault)?;
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let end_point = certificate.and_then(|certificate| end_point_hash(certificate));
    Ok(Stream::tls(tls.into(), end_point))
}

/// True for a directory of Unix sockets, also the default one that an empty name means.
pub fn is_unix(host: &str) -> bool {
    host.is_empty() || host.starts_with('/')
}

/// The handshake's own faults are about TLS; others are of the connection below, and pass.
/// With TLS 1.3 a server refuses our certificate only when the handshake seems done, so the first read may tell it.
pub fn tls_fault(error: io::Error) -> NetError {
    match tls_words(&error) {
        Some(words) => NetError::Tls(words),
        None => NetError::Broken(error),
    }
}

/// The fault of TLS among an error's causes, in the words of who can mend it.
pub fn tls_words(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // What an `io::Error` wraps is not among its sources.
        let wrapped = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let fault = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(fault) = fault.or_else(|| error.downcast_ref::<rustls::Error>()) {
            return Some(explain(fault));
        }
        cause = error.source();
    }
    None
}

fn bad_data(why: String) -> NetError {
    NetError::Broken(io::Error::new(io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ServerTls;
    use tokio::net::TcpListener;

    async fn answer(mode: SslMode, reply: &'static [u8]) -> Result<Stream, NetError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0u8; 8];
            socket.read_exact(&mut request).await.unwrap();
            assert_eq!(request, SSL_REQUEST);
            socket.write_all(reply).await.unwrap();
            socket
        });
        let second = Duration::from_secs(1);
        let stream = connect("127.0.0.1", port, second, second).await.unwrap();
        let _socket = server; // keeps the server's end open until the client has finished
        upgrade_client(
            stream,
            mode,
            "127.0.0.1",
            ServerTls::load(&Default::default()).unwrap().config(mode).unwrap().own().clone(),
        )
        .await
    }

    #[tokio::test]
    async fn prefer_stays_plain_where_require_fails() {
        assert!(!answer(SslMode::Prefer, b"N").await.unwrap().is_tls());
        assert!(answer(SslMode::Require, b"N").await.unwrap_err().to_string().contains("requires it"));
        assert!(answer(SslMode::Prefer, b"E").await.is_err());
        assert!(answer(SslMode::Prefer, b"?").await.is_err());
    }

    #[tokio::test]
    async fn bytes_before_the_handshake_are_refused() {
        let why = answer(SslMode::Prefer, b"SZ\0\0\0\x05I").await.unwrap_err().to_string();
        assert!(why.contains("unencrypted bytes"), "{why}");
    }

    #[tokio::test]
    async fn a_refused_connection_says_so() {
        let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
        let second = Duration::from_secs(1);
        let why = connect("127.0.0.1", port, second, second).await.unwrap_err().to_string();
        assert!(why.starts_with(&format!("could not connect to 127.0.0.1:{port}")), "{why}");
        let why = connect("/nonexistent", 5432, second, second).await.unwrap_err().to_string();
        assert!(why.starts_with("could not connect to /nonexistent/.s.PGSQL.5432"), "{why}");
    }
}
