//! A stream whose TLS is settled, as the control plane's driver wants to have it.

use crate::net::Stream;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Tells the driver to take the stream as it is: plain, or, as if just negotiated, TLS with its channel binding.
pub fn take_as_it_is(config: &mut Config, stream: &Stream) {
    match stream.is_tls() {
        true => config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct),
        false => config.ssl_mode(SslMode::Disable),
    };
}

/// The "handshake" of a stream that has it behind itself.
pub struct Settled;

impl TlsConnect<Stream> for Settled {
    type Stream = Bound;
    type Error = io::Error;
    type Future = Ready<io::Result<Bound>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(Bound(stream)))
    }
}

/// A TLS stream that names its server's certificate, to which SCRAM binds the login.
pub struct Bound(Stream);

impl TlsStream for Bound {
    fn channel_binding(&self) -> ChannelBinding {
        self.0
            .tls_server_end_point()
            .map_or_else(ChannelBinding::none, |hash| ChannelBinding::tls_server_end_point(hash.to_vec()))
    }
}

impl AsyncRead for Bound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
