//! The listening sockets of PCP, and one task per connection.

use super::packet::{self, Severity};
use super::session::{self, Context};
use super::{Operator, login};
use crate::admin::PcpSettings;
use crate::net::{self, Inherited, Listener, Shared, SocketFile};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections at one time; operators need a few, and each may cost memory.
pub const MAX_CONNECTIONS: usize = 64;

/// How long sessions may take to finish their answers when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long to wait after a failed `accept` (no file descriptors left), which would otherwise fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Sockets that listen; the files of Unix sockets go when this is dropped.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<Listener>,
    password_file: PathBuf,
}

/// Listens on every address of the settings, or on none. A stale socket file is removed, a living one never.
pub fn bind(settings: &PcpSettings) -> io::Result<Bound> {
    bind_after(settings, &mut Inherited::default())
}

/// The same after another process, whose sockets go on where the addresses are the same.
pub fn bind_after(settings: &PcpSettings, inherited: &mut Inherited) -> io::Result<Bound> {
    let settings_of_net = net::Settings {
        addresses: settings.addresses.clone(),
        port: settings.port,
        unix_socket_directories: settings.socket_directory.iter().cloned().collect(),
        // The password decides who may do what, as it does over TCP.
        unix_socket_permissions: 0o777,
        backlog: 64,
        keepalive: Duration::ZERO,
        workers: 1,
        tls: None,
    };
    let listeners = net::bind_after(&settings_of_net, inherited).map_err(io::Error::other)?;
    Ok(Bound { listeners, password_file: settings.password_file.clone() })
}

/// Binds, then serves until `stop`.
pub async fn serve(operator: Arc<dyn Operator>, settings: PcpSettings, stop: CancellationToken) -> io::Result<()> {
    bind(&settings)?.serve(operator, stop).await
}

impl Bound {
    /// More descriptors of the same sockets, for a process that takes over.
    pub fn share(&self) -> io::Result<Vec<Shared>> {
        self.listeners.iter().map(Listener::share).collect()
    }

    /// Serves until `stop`; then sessions get a moment to finish.
    pub async fn serve(self, operator: Arc<dyn Operator>, stop: CancellationToken) -> io::Result<()> {
        let until = stop.clone();
        let context = Context { operator, password_file: Arc::new(self.password_file), stop };
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut acceptors = JoinSet::new();
        for listener in self.listeners {
            let socket = Socket::from_std(listener)?;
            acceptors.spawn(accept_until_stop(socket, context.clone(), slots.clone()));
        }
        while acceptors.join_next().await.is_some() {}
        // With no address at all there is nothing to accept, but the end of this is still the end of the daemon.
        until.cancelled().await;
        Ok(())
    }
}

/// A listener in this runtime.
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "it is held for its drop")] SocketFile),
}

impl Socket {
    fn from_std(listener: Listener) -> io::Result<Socket> {
        Ok(match listener {
            Listener::Tcp(socket) => Socket::Tcp(TcpListener::from_std(socket)?),
            Listener::Unix(socket, file) => Socket::Unix(UnixListener::from_std(socket)?, file),
        })
    }

    async fn accept(&self) -> io::Result<net::Stream> {
        Ok(match self {
            Socket::Tcp(socket) => net::Stream::from(socket.accept().await?.0),
            Socket::Unix(socket, _) => net::Stream::from(socket.accept().await?.0),
        })
    }
}

async fn accept_until_stop(socket: Socket, context: Context, slots: Arc<Semaphore>) {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = context.stop.cancelled() => break,
            Some(_) = sessions.join_next() => continue,
            accepted = socket.accept() => accepted,
        };
        match (accepted, slots.clone().try_acquire_owned()) {
            (Ok(stream), Ok(slot)) => {
                sessions.spawn(one_session(stream, context.clone(), slot));
            }
            (Ok(stream), Err(_)) => refuse(stream).await,
            (Err(error), _) => {
                tracing::warn!(%error, "PCP: could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // No new connections from here on; the socket's file goes first.
    drop(socket);
    let _ = tokio::time::timeout(FAREWELL, async { while sessions.join_next().await.is_some() {} }).await;
}

async fn one_session(stream: net::Stream, context: Context, slot: OwnedSemaphorePermit) {
    let peer = stream.peer();
    let deadline = tokio::time::Instant::now() + login::DEADLINE;
    match session::run(stream, &context, deadline).await {
        Ok(()) => {}
        Err(error) => tracing::debug!(?peer, %error, "PCP: connection lost"),
    }
    drop(slot);
}

/// The new socket's send buffer takes these few bytes at once, so one write that must not wait is enough.
async fn refuse(mut stream: net::Stream) {
    let mut out = Vec::new();
    let detail = format!("at most {MAX_CONNECTIONS} PCP connections are served at one time");
    packet::error(&mut out, Severity::Fatal, "too many PCP connections", Some(&detail));
    let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(&out)).await;
}
