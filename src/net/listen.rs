//! Listening sockets: TCP, and Unix sockets that never take the place of a living one.

use super::{NetError, Settings, StdStream};
use rustix::net::{SocketFlags, accept_with};
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A nonblocking listening socket, not yet in any runtime.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix socket with its file, which is removed when the `SocketFile` is dropped.
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket; removed at drop, unless somebody else has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    left: Left,
}

/// Says of a socket's file that another process has the socket now, so that it stays.
#[derive(Clone, Debug, Default)]
pub struct Left(Arc<AtomicBool>);

impl Left {
    /// It stays from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// It is ours again, or for the first time: it goes with its listener.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// True when it stays.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Another descriptor of a listening socket, for a process that takes over.
#[derive(Debug)]
pub struct Shared {
    /// Its address: `host:port` or the path of its file.
    pub address: String,
    /// The descriptor.
    pub descriptor: OwnedFd,
    /// To be set when it has been handed over.
    pub left: Left,
}

/// Listening sockets that the process before us has handed over, by address.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(String, OwnedFd)>,
    left: Left,
}

impl Inherited {
    /// Their files are still those of the process before, until [`Left::clear`] is called of what `left` gives.
    pub fn new(sockets: Vec<(String, OwnedFd)>) -> Inherited {
        let left = Left::default();
        left.set();
        Inherited { sockets, left }
    }

    /// One for all their files.
    pub fn left(&self) -> Left {
        self.left.clone()
    }

    /// The socket of this address, if there is one.
    pub fn take(&mut self, address: &str) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(of, _)| of == address)?;
        Some(self.sockets.swap_remove(at).1)
    }
}

impl Listener {
    /// Another descriptor of it.
    pub fn share(&self) -> io::Result<Shared> {
        Ok(match self {
            Listener::Tcp(socket) => Shared {
                address: socket.local_addr()?.to_string(),
                descriptor: socket.as_fd().try_clone_to_owned()?,
                left: Left::default(),
            },
            Listener::Unix(socket, file) => Shared {
                address: file.path.display().to_string(),
                descriptor: socket.as_fd().try_clone_to_owned()?,
                left: file.left.clone(),
            },
        })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Tcp(socket) => socket.as_raw_fd(),
            Listener::Unix(socket, _) => socket.as_raw_fd(),
        }
    }
}

impl Deref for SocketFile {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.left.is_set() && self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing is lost when it cannot be removed: the next start finds nobody listening and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens every address of the settings, or none: the first failure closes the others.
pub fn bind(settings: &Settings) -> Result<Vec<Listener>, NetError> {
    bind_after(settings, &mut Inherited::default())
}

/// The same after another process: its sockets go on where the addresses are the same, with whoever waits in their queues.
pub fn bind_after(settings: &Settings, inherited: &mut Inherited) -> Result<Vec<Listener>, NetError> {
    let mut addresses = tcp_addresses(settings)?;
    let (mut listeners, mut inherited_tcp) = (Vec::new(), Vec::new());
    for group in &mut addresses {
        group.addresses.retain(|address| match inherited.take(&address.to_string()) {
            Some(socket) => {
                inherited_tcp.push(TcpListener::from(socket));
                false
            }
            None => true,
        });
    }
    for socket in inherited_tcp {
        // The process before us may have had another keepalive.
        let address = || socket.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string());
        tcp_options(&socket, settings.keepalive).map_err(|e| failed(address(), &e))?;
        listeners.push(Listener::Tcp(socket));
    }
    listeners.extend(listen_all(&addresses, settings)?);
    for directory in &settings.unix_socket_directories {
        let path = socket_path(directory, settings.port);
        listeners.push(match inherited.take(&path.display().to_string()) {
            Some(socket) => {
                let file = SocketFile { identity: identity(&path), path, left: inherited.left() };
                Listener::Unix(socket.into(), file)
            }
            None => bind_unix(directory, settings)?,
        });
    }
    Ok(listeners)
}

fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// Accepts one connection, nonblocking from its first moment. Of TCP it has the options of its listener, as Linux hands them
/// on. `WouldBlock` when nobody waits.
pub fn accept(listener: &Listener) -> io::Result<StdStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(match listener {
        Listener::Tcp(socket) => StdStream::Tcp(accept_with(socket, flags)?.into()),
        Listener::Unix(socket, _) => StdStream::Unix(accept_with(socket, flags)?.into()),
    })
}

/// Sets `TCP_NODELAY` and keepalive (idle time before the first probe; zero = the system's default) of a TCP socket, or of
/// all that a listening one will accept.
pub fn tcp_options(socket: &impl AsFd, keepalive: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let mut options = TcpKeepalive::new();
    if !keepalive.is_zero() {
        options = options.with_time(keepalive);
    }
    socket.set_tcp_keepalive(&options)
}

/// The addresses of one entry of `listen_addresses`.
struct Group {
    name: String,
    addresses: Vec<SocketAddr>,
}

fn tcp_addresses(settings: &Settings) -> Result<Vec<Group>, NetError> {
    let mut groups: Vec<Group> = Vec::new();
    for name in &settings.addresses {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = if bare == "*" {
            vec![(Ipv4Addr::UNSPECIFIED, settings.port).into(), (Ipv6Addr::UNSPECIFIED, settings.port).into()]
        } else {
            (bare, settings.port)
                .to_socket_addrs()
                .map_err(|e| failed(format!("{name}:{}", settings.port), &e))?
                .collect()
        };
        // A name may resolve to one address twice, and two names to the same one; it can be bound only once.
        let mut fresh: Vec<SocketAddr> = Vec::new();
        for address in addresses {
            let known = settings.port != 0 && groups.iter().any(|g| g.addresses.contains(&address));
            if !known && !fresh.contains(&address) {
                fresh.push(address);
            }
        }
        groups.push(Group { name: name.clone(), addresses: fresh });
    }
    Ok(groups)
}

fn listen_all(groups: &[Group], settings: &Settings) -> Result<Vec<Listener>, NetError> {
    let mut listeners = Vec::new();
    for group in groups {
        let before = listeners.len();
        let mut last = None;
        for address in &group.addresses {
            match listen_tcp(address, settings) {
                Ok(listener) => listeners.push(Listener::Tcp(listener)),
                // A host without IPv6 still resolves `localhost` and `*` to it; one working address is enough.
                Err(e) if is_absent(&e) => last = Some(failed(address.to_string(), &e)),
                Err(e) => return Err(failed(address.to_string(), &e)),
            }
        }
        if listeners.len() == before && !group.addresses.is_empty() {
            let none = || NetError::Listen { address: group.name.clone(), why: "no address".into() };
            return Err(last.unwrap_or_else(none));
        }
    }
    Ok(listeners)
}

fn listen_tcp(address: &SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(*address))?;
    tcp_options(&socket, settings.keepalive)?;
    socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// The address or its whole family does not exist on this host.
fn is_absent(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::AddrNotAvailable || e.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

fn bind_unix(directory: &Path, settings: &Settings) -> Result<Listener, NetError> {
    let path = socket_path(directory, settings.port);
    let bad = |e: &dyn std::fmt::Display| failed(path.display().to_string(), e);
    let address = SockAddr::unix(&path).map_err(|e| bad(&e))?;
    remove_when_stale(&path, &address).map_err(|e| bad(&e))?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(|e| bad(&e))?;
    socket.bind(&address).map_err(|e| bad(&e))?;
    let file = SocketFile { identity: identity(&path), path: path.clone(), left: Left::default() };
    // The mode comes before `listen`, so nobody can connect under the umask's mode.
    let mode = fs::Permissions::from_mode(settings.unix_socket_permissions);
    fs::set_permissions(&path, mode).map_err(|e| bad(&e))?;
    socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX)).map_err(|e| bad(&e))?;
    Ok(Listener::Unix(socket.into(), file))
}

/// Removes a socket file that a crash left behind. Only a refused connection proves that nobody listens; any other
/// answer, and any file that is not a socket, stays as it is.
fn remove_when_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::other("the path exists and is not a socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    // Nonblocking: a living listener with a full queue answers `WouldBlock` at once.
    match Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?.connect(address) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
        }
        Err(e) => Err(e),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn failed(address: String, why: &dyn std::fmt::Display) -> NetError {
    NetError::Listen { address, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(addresses: &[&str], port: u16, directories: &[&Path]) -> Settings {
        Settings {
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            port,
            unix_socket_directories: directories.iter().map(|d| d.to_path_buf()).collect(),
            unix_socket_permissions: 0o700,
            backlog: 16,
            keepalive: Duration::from_secs(60),
            workers: 1,
            tls: None,
        }
    }

    #[test]
    fn a_unix_socket_has_its_mode_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let listeners = bind(&settings(&[], 6432, &[dir.path()])).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(listeners);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_unix_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let living = UnixListener::bind(&path).unwrap();
        let refused = bind(&settings(&[], 6432, &[dir.path()])).unwrap_err().to_string();
        assert!(refused.contains("another process listens there"), "{refused}");
        assert!(path.exists());
        drop(living);
        bind(&settings(&[], 6432, &[dir.path()])).unwrap();
        fs::write(&path, "text").unwrap();
        assert!(bind(&settings(&[], 6432, &[dir.path()])).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn a_taken_port_is_refused_and_an_address_that_is_named_twice_is_one() {
        let first = bind(&settings(&["127.0.0.1"], 0, &[])).unwrap();
        let port = first_tcp(&first).local_addr().unwrap().port();
        let refused = bind(&settings(&["127.0.0.1"], port, &[])).unwrap_err().to_string();
        assert!(refused.contains(&format!("127.0.0.1:{port}")) && refused.contains("in use"), "{refused}");
        drop(first);
        assert_eq!(bind(&settings(&["127.0.0.1", "127.0.0.1"], port, &[])).unwrap().len(), 1);
    }

    #[test]
    fn a_socket_that_is_handed_over_keeps_its_queue_and_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let of = settings(&[], 6432, &[dir.path()]);
        let first = bind(&of).unwrap();
        let shared = first[0].share().unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        shared.left.set();
        drop(first);
        assert!(path.exists());
        let again = (shared.address.clone(), shared.descriptor.try_clone().unwrap());
        drop(bind_after(&of, &mut Inherited::new(vec![again])).unwrap());
        assert!(path.exists(), "who gives up leaves it");
        let mut inherited = Inherited::new(vec![(shared.address, shared.descriptor)]);
        let second = bind_after(&of, &mut inherited).unwrap();
        inherited.left().clear();
        let Some(Listener::Unix(socket, _)) = second.first() else { panic!("no Unix listener") };
        socket.accept().unwrap();
        drop(second);
        assert!(!path.exists());
    }

    fn first_tcp(listeners: &[Listener]) -> &TcpListener {
        let Some(Listener::Tcp(socket)) = listeners.first() else { panic!("no TCP listener") };
        socket
    }

    #[test]
    fn accepted_connections_have_the_options_of_their_listener() {
        let mut of = settings(&["127.0.0.1"], 0, &[]);
        let first = bind(&of).unwrap();
        of.port = first_tcp(&first).local_addr().unwrap().port();
        let shared = first[0].share().unwrap();
        of.keepalive = Duration::from_secs(77);
        let second = bind_after(&of, &mut Inherited::new(vec![(shared.address, shared.descriptor)])).unwrap();
        drop(first);
        let _client = std::net::TcpStream::connect(first_tcp(&second).local_addr().unwrap()).unwrap();
        let Ok(StdStream::Tcp(accepted)) = accept(&second[0]) else { panic!("nobody came") };
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap() && socket.nonblocking().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(accept(&second[0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
