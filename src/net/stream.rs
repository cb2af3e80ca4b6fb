//! The one stream type of both sides: TCP, Unix socket, or TLS over either.
//!
//! A read from a plain stream is exactly one `recv`; nothing is buffered here.

use rustix::net::{RecvFlags, SendFlags};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// A connection of a client or to a server.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Plain Unix socket.
    Unix(UnixStream),
    /// TLS, of either role, over one of the plain kinds.
    Tls(Box<TlsSession>),
}

/// An established TLS session over a plain stream.
#[derive(Debug)]
pub struct TlsSession {
    io: TlsStream<Stream>,
    end_point: Option<Vec<u8>>,
}

/// A plain socket outside any runtime, for moving it from one runtime to another.
#[derive(Debug)]
pub enum StdStream {
    /// TCP, nonblocking.
    Tcp(std::net::TcpStream),
    /// Unix socket, nonblocking.
    Unix(std::os::unix::net::UnixStream),
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address (an IPv4 address mapped into IPv6 is given as IPv4); `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// Port; 0 for a Unix socket.
    pub port: u16,
}

impl Stream {
    /// Wraps an established TLS session; `end_point` is the `tls-server-end-point` hash of the server's certificate.
    pub(super) fn tls(io: TlsStream<Stream>, end_point: Option<Vec<u8>>) -> Stream {
        Stream::Tls(Box::new(TlsSession { io, end_point }))
    }

    /// Ready when the socket says that a read would give something. Always ready for TLS, whose session may hold
    /// decrypted bytes that the socket does not know of: there the read itself decides.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(socket) => socket.poll_read_ready(cx),
            Stream::Unix(socket) => socket.poll_read_ready(cx),
            Stream::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the socket says that it takes something; always for TLS.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(socket) => socket.poll_write_ready(cx),
            Stream::Unix(socket) => socket.poll_write_ready(cx),
            Stream::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// True for TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// The other end's address.
    pub fn peer(&self) -> Peer {
        match self {
            Stream::Tcp(socket) => match socket.peer_addr() {
                Ok(address) => Peer { address: Some(address.ip().to_canonical()), port: address.port() },
                // The peer is already gone. The unspecified address matches no rule but `all`, and never a `local` one.
                Err(_) => Peer { address: Some(IpAddr::from([0, 0, 0, 0])), port: 0 },
            },
            Stream::Unix(_) => Peer { address: None, port: 0 },
            Stream::Tls(session) => session.io.get_ref().0.peer(),
        }
    }

    /// The hash of the TLS server's certificate (RFC 5929): our own on the server side, the peer's on the client side.
    pub fn tls_server_end_point(&self) -> Option<&[u8]> {
        match self {
            Stream::Tls(session) => session.end_point.as_deref(),
            Stream::Tcp(_) | Stream::Unix(_) => None,
        }
    }

    /// True when the client has shown a certificate, which was checked in the handshake.
    pub fn has_client_certificate(&self) -> bool {
        match self {
            Stream::Tls(session) => session.io.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty()),
            Stream::Tcp(_) | Stream::Unix(_) => false,
        }
    }

    /// Whom the client's certificate names, which was checked in the handshake; `None` when it has shown none.
    pub fn certificate_names(&self) -> Option<super::CertificateNames> {
        match self {
            Stream::Tls(session) => {
                session.io.get_ref().1.peer_certificates()?.first().and_then(super::CertificateNames::of)
            }
            Stream::Tcp(_) | Stream::Unix(_) => None,
        }
    }

    /// The user id of the process at the other end of a Unix socket, by the kernel's word.
    pub fn peer_user_id(&self) -> Option<u32> {
        match self {
            Stream::Unix(socket) => socket.peer_cred().ok().map(|peer| peer.uid()),
            Stream::Tcp(_) | Stream::Tls(_) => None,
        }
    }

    /// True when the peers agreed on the protocol `postgresql` by ALPN, which PostgreSQL demands of direct TLS
    /// (<https://www.postgresql.org/docs/17/protocol-flow.html#PROTOCOL-FLOW-SSL>).
    pub fn has_postgresql_alpn(&self) -> bool {
        match self {
            Stream::Tls(session) => session.io.get_ref().1.alpn_protocol() == Some(super::ALPN),
            Stream::Tcp(_) | Stream::Unix(_) => false,
        }
    }

    /// Takes a plain socket out of its runtime. Not of TLS: `Unsupported`; see [`Stream::into_this_runtime`].
    pub fn into_std(self) -> io::Result<StdStream> {
        match self {
            Stream::Tcp(socket) => socket.into_std().map(StdStream::Tcp),
            Stream::Unix(socket) => socket.into_std().map(StdStream::Unix),
            Stream::Tls(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "a TLS stream stays in its runtime")),
        }
    }

    /// Registers a nonblocking socket with the current runtime.
    pub fn from_std(socket: StdStream) -> io::Result<Stream> {
        match socket {
            StdStream::Tcp(socket) => TcpStream::from_std(socket).map(Stream::Tcp),
            StdStream::Unix(socket) => UnixStream::from_std(socket).map(Stream::Unix),
        }
    }

    /// Moves the registration of the socket to the current runtime from whichever it came from. Nothing is lost: what has
    /// arrived makes the socket readable there anew, and a TLS session is mere data that goes along. On an error the
    /// connection is closed.
    pub fn into_this_runtime(self) -> io::Result<Stream> {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => Stream::from_std(self.into_std()?),
            Stream::Tls(mut session) => {
                let socket = session.io.get_mut().0;
                // The session does not let go of its socket, so a second descriptor takes the place of the first.
                *socket = socket.duplicate()?;
                Ok(Stream::Tls(session))
            }
        }
    }

    /// The same plain socket under a second descriptor, registered with the current runtime.
    fn duplicate(&self) -> io::Result<Stream> {
        let descriptor = self.as_socket().try_clone_to_owned()?;
        match self {
            Stream::Tcp(_) => Stream::from_std(StdStream::Tcp(descriptor.into())),
            Stream::Unix(_) => Stream::from_std(StdStream::Unix(descriptor.into())),
            Stream::Tls(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "TLS in TLS")),
        }
    }

    /// As a read, for who reads from one task only: `armed` says that the runtime still has that task's waker from an earlier
    /// call, so that it need not be given again, which costs a lock. False at the beginning and in every new task. 0 bytes:
    /// the peer has closed.
    ///
    /// [`Stream::poll_readable`] is the same without the reading.
    #[inline]
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, room: &mut [u8], armed: &mut bool) -> Poll<io::Result<usize>> {
        let length = room.len();
        loop {
            let mut received = None;
            let mut receive = |result: io::Result<usize>| match result {
                // Less than there was room for: nothing is left, and the runtime is told so without another call.
                Ok(count) if count > 0 && count < length => {
                    received = Some(count);
                    Err(io::ErrorKind::WouldBlock.into())
                }
                other => other,
            };
            let tried = match self {
                Stream::Tcp(socket) => socket.try_io(Interest::READABLE, || receive(recv_now(socket.as_fd(), room))),
                Stream::Unix(socket) => socket.try_io(Interest::READABLE, || receive(recv_now(socket.as_fd(), room))),
                Stream::Tls(session) => {
                    let mut buf = ReadBuf::new(room);
                    ready!(Pin::new(&mut session.io).poll_read(cx, &mut buf))?;
                    return Poll::Ready(Ok(buf.filled().len()));
                }
            };
            match (received, tried) {
                (Some(count), _) | (None, Ok(count)) => {
                    // What made the socket readable took the waker.
                    *armed = false;
                    return Poll::Ready(Ok(count));
                }
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                (None, Err(_)) if *armed => return Poll::Pending,
                (None, Err(_)) => {}
            }
            ready!(self.poll_armed(cx, armed))?;
        }
    }

    /// Ready when a read may give something; always of TLS. Who has no memory to read into asks this first.
    #[inline]
    pub fn poll_readable(&mut self, cx: &mut Context<'_>, armed: &mut bool) -> Poll<io::Result<()>> {
        let readable = match self {
            Stream::Tcp(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Stream::Unix(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Stream::Tls(_) => true,
        };
        match (readable, *armed) {
            (true, _) => Poll::Ready(Ok(())),
            (false, true) => Poll::Pending,
            (false, false) => self.poll_armed(cx, armed),
        }
    }

    /// Leaves the waker with the runtime if there is nothing.
    fn poll_armed(&mut self, cx: &mut Context<'_>, armed: &mut bool) -> Poll<io::Result<()>> {
        // A task that has used up its turn is told to come again, and leaves no waker.
        let leaves_waker = tokio::task::coop::has_budget_remaining();
        let ready = self.poll_read_ready(cx);
        *armed = ready.is_pending() && leaves_waker;
        ready
    }

    /// Writes what goes at once. A TLS session may hold it until it is flushed.
    #[inline]
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let sent = match self {
                Stream::Tcp(socket) => socket.try_io(Interest::WRITABLE, || send_now(socket.as_fd(), bytes)),
                Stream::Unix(socket) => socket.try_io(Interest::WRITABLE, || send_now(socket.as_fd(), bytes)),
                Stream::Tls(session) => return Pin::new(&mut session.io).poll_write(cx, bytes),
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_write_ready(cx))?,
                done => return Poll::Ready(done),
            }
        }
    }

    /// True when nothing has arrived that was not read: neither bytes nor the peer's end. Costs no system call unless the
    /// runtime thinks that the socket is readable, as it does after a read that took exactly what was there. What it finds
    /// in a TLS stream is lost: for connections on which nobody has anything to say.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0u8; 1];
        let nothing = |found: io::Result<usize>| found.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        match self {
            Stream::Tcp(socket) => nothing(socket.try_io(Interest::READABLE, || peek(socket.as_fd(), &mut byte))),
            Stream::Unix(socket) => nothing(socket.try_io(Interest::READABLE, || peek(socket.as_fd(), &mut byte))),
            Stream::Tls(session) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(&mut session.io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// True when the peer has closed its direction, whether or not all that it sent before has been read. Costs no system
    /// call.
    pub fn is_read_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let closed = |ready: Poll<io::Result<Ready>>| matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed());
        match self {
            Stream::Tcp(socket) => closed(pin!(socket.ready(Interest::READABLE)).poll(&mut cx)),
            Stream::Unix(socket) => closed(pin!(socket.ready(Interest::READABLE)).poll(&mut cx)),
            Stream::Tls(session) => session.io.get_ref().0.is_read_closed(),
        }
    }

    /// Takes what the kernel has, which the runtime need not know of yet: of a connection that was just accepted the first
    /// packet is there as a rule. `WouldBlock` when there is nothing, and always of TLS.
    pub fn recv_at_once(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => recv_now(self.as_socket(), room),
            Stream::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits for bytes and leaves them in the socket; gives how many of them `room` has got, 0 at end of file. For plain
    /// streams only.
    pub async fn peek(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => match peek(socket.as_fd(), room) {
                Err(nothing) if nothing.kind() == io::ErrorKind::WouldBlock => {
                    socket.async_io(Interest::READABLE, || peek(socket.as_fd(), room)).await
                }
                at_once => at_once,
            },
            Stream::Unix(socket) => match peek(socket.as_fd(), room) {
                Err(nothing) if nothing.kind() == io::ErrorKind::WouldBlock => {
                    socket.async_io(Interest::READABLE, || peek(socket.as_fd(), room)).await
                }
                at_once => at_once,
            },
            Stream::Tls(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "a TLS stream has no bytes to peek at")),
        }
    }

    /// True when the peer's bytes already wait in the socket. Does not wait. For plain streams; false for TLS.
    pub fn has_pending_bytes(&self) -> io::Result<bool> {
        let fd = match self {
            Stream::Tcp(socket) => socket.as_fd(),
            Stream::Unix(socket) => socket.as_fd(),
            Stream::Tls(_) => return Ok(false),
        };
        match peek(fd, &mut [0u8; 1]) {
            Ok(count) => Ok(count > 0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The descriptor of the socket below.
    pub fn as_socket(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(socket) => socket.as_fd(),
            Stream::Unix(socket) => socket.as_fd(),
            Stream::Tls(session) => session.io.get_ref().0.as_socket(),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Stream {
        Stream::Tcp(socket)
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Stream {
        Stream::Unix(socket)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Tls(session) => Pin::new(&mut session.io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Tls(session) => Pin::new(&mut session.io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Stream::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Stream::Tls(session) => Pin::new(&mut session.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(socket) => socket.is_write_vectored(),
            Stream::Unix(socket) => socket.is_write_vectored(),
            Stream::Tls(session) => session.io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Tls(session) => Pin::new(&mut session.io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Tls(session) => Pin::new(&mut session.io).poll_shutdown(cx),
        }
    }
}

/// One `recv`. The sockets are nonblocking; `WouldBlock` is passed on.
fn recv_now(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let (count, _) = rustix::net::recv(socket, buf, RecvFlags::empty())?;
    Ok(count)
}

/// One `send`; a peer that has gone is an error and no signal.
fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

/// One `recv` that leaves the bytes where they are. The sockets are nonblocking; `WouldBlock` is passed on.
fn peek(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let (count, _) = rustix::net::recv(socket, buf, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn peeking_leaves_the_bytes_in_a_unix_socket() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Stream::from(a), Stream::from(b));
        assert!(!b.has_pending_bytes().unwrap());
        a.write_all(b"\x16abc").await.unwrap();
        assert_eq!((b.peek(&mut [0; 1]).await.unwrap(), b.peek(&mut [0; 9]).await.unwrap()), (1, 4));
        assert!(b.has_pending_bytes().unwrap());
        let mut got = [0u8; 4];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x16abc");
        drop(a);
        assert_eq!(b.peek(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(b.peer(), Peer { address: None, port: 0 });
    }

    #[tokio::test]
    async fn a_waker_that_was_left_once_is_enough_until_it_is_called() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Stream::from(b);
        let (mut armed, mut room) = (false, [0u8; 4]);
        // Shorter than the room, as long as it, and longer.
        for (sent, parts) in [("abc", vec![3]), ("abcd", vec![4]), ("abcdef", vec![4, 2]), ("", vec![0])] {
            // What is left of a full read is found to be nothing; then the task is known.
            for _ in 0..2 {
                let waits = poll_fn(|cx| Poll::Ready(b.poll_recv(cx, &mut room, &mut armed).is_pending())).await;
                assert!(waits && armed);
            }
            let write = async {
                tokio::task::yield_now().await;
                match sent {
                    "" => a.shutdown().await.unwrap(),
                    sent => a.write_all(sent.as_bytes()).await.unwrap(),
                }
            };
            let read = async {
                let mut got = Vec::new();
                while got.len() < parts.len() {
                    got.push(poll_fn(|cx| b.poll_recv(cx, &mut room, &mut armed)).await.unwrap());
                    assert!(!armed);
                }
                got
            };
            let waited = tokio::time::timeout(std::time::Duration::from_secs(10), async { tokio::join!(write, read) });
            assert_eq!(waited.await.unwrap().1, parts);
        }
    }

    #[tokio::test]
    async fn what_does_not_go_at_once_is_waited_for() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Stream::from(b);
        let bytes = vec![7u8; 4 << 20];
        let send = async {
            let mut at = 0;
            while at < bytes.len() {
                at += poll_fn(|cx| b.poll_send(cx, &bytes[at..])).await.unwrap();
            }
            drop(b);
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(send, a.read_to_end(&mut got));
        assert_eq!((read.unwrap(), got == bytes), (bytes.len(), true));
    }

    #[tokio::test]
    async fn what_was_read_to_the_last_byte_is_quiet_and_an_end_is_not() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Stream::from(b);
        a.write_all(b"abcd").await.unwrap();
        // The runtime cannot know that there is no fifth byte.
        b.read_exact(&mut [0u8; 4]).await.unwrap();
        assert!(b.is_quiet());
        drop(a);
        // The runtime hears of it.
        poll_fn(|cx| b.poll_read_ready(cx)).await.unwrap();
        assert!(!b.is_quiet());
    }

    #[tokio::test]
    async fn what_has_come_is_taken_before_the_runtime_knows_of_it() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        let (mut a, mut b) =
            (Stream::from_std(StdStream::Unix(a)).unwrap(), Stream::from_std(StdStream::Unix(b)).unwrap());
        let mut room = [0u8; 9];
        assert_eq!(b.recv_at_once(&mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(rustix::net::send(a.as_socket(), b"abcdef", SendFlags::empty()).unwrap(), 6);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(pin!(b.peek(&mut room[..4])).poll(&mut cx), Poll::Ready(Ok(4))));
        assert_eq!((b.recv_at_once(&mut room).unwrap(), &room[..6]), (6, b"abcdef".as_slice()));
        // What the runtime hears later is found to be nothing, and the next bytes come as always.
        let next = async {
            tokio::task::yield_now().await;
            a.write_all(b"gh").await.unwrap();
        };
        let (mut armed, mut got) = (false, [0u8; 9]);
        let (_, count) = tokio::join!(next, poll_fn(|cx| b.poll_recv(cx, &mut got, &mut armed)));
        assert_eq!((count.unwrap(), &got[..2]), (2, b"gh".as_slice()));
    }

    #[tokio::test]
    async fn a_plain_stream_moves_between_runtimes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let served = Stream::from(listener.accept().await.unwrap().0);
        assert_eq!(served.peer().address, Some(IpAddr::from([127, 0, 0, 1])));
        let moved = served.into_std().unwrap();
        client.write_all(b"hi").await.unwrap();
        let got = tokio::task::spawn_blocking(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut stream = Stream::from_std(moved).unwrap();
                assert_eq!(stream.peek(&mut [0; 1]).await.unwrap(), 1);
                let mut got = [0u8; 2];
                stream.read_exact(&mut got).await.unwrap();
                got
            })
        });
        assert_eq!(&got.await.unwrap(), b"hi");
    }
}
