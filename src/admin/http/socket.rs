//! The socket's file: its folder, a stale one's removal, its mode, its end.

use crate::net::{Inherited, Left, Shared};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Everybody may connect; who he is decides what he may do.
const SOCKET_MODE: u32 = 0o666;
/// Of a folder that had to be made.
const FOLDER_MODE: u32 = 0o755;

/// The open socket. Its file goes with it.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    file: SocketFile,
}

impl Bound {
    /// Another descriptor of it, for a process that takes over.
    pub fn share(&self) -> io::Result<Shared> {
        let descriptor = self.listener.as_fd().try_clone_to_owned()?;
        Ok(Shared { address: self.file.path.display().to_string(), descriptor, left: self.file.left.clone() })
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Removed at drop, unless somebody else has put another in its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    left: Left,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.left.is_set() && self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing is lost when it cannot be removed: the next start finds nobody listening and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn bind(path: &Path, inherited: &mut Inherited) -> io::Result<Bound> {
    if let Some(socket) = inherited.take(&path.display().to_string()) {
        let file = SocketFile { path: path.to_owned(), identity: identity(path), left: inherited.left() };
        return Ok(Bound { listener: socket.into(), file });
    }
    open(path).map_err(|e| io::Error::new(e.kind(), format!("admin socket {}: {e}", path.display())))
}

fn open(path: &Path) -> io::Result<Bound> {
    make_folder(path)?;
    remove_when_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path), left: Left::default() };
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    Ok(Bound { listener, file })
}

fn make_folder(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    // The umask may have taken bits away; without them other users could not reach the socket.
    fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))
}

/// Only a refused connection proves that nobody listens; whatever is no socket stays.
fn remove_when_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let taken = || Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    // Nonblocking: a living listener with a full queue answers `WouldBlock` at once.
    match Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?.connect(&SockAddr::unix(path)?) {
        Ok(()) => taken(),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            io::ErrorKind::NotFound => Ok(()),
            io::ErrorKind::WouldBlock => taken(),
            _ => Err(error),
        },
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> io::Result<Bound> {
        super::bind(path, &mut Inherited::default())
    }

    #[test]
    fn the_socket_has_its_folder_and_mode_and_goes_when_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run/s.sock");
        let bound = bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o666, 0o755));
        let refused = bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(refused.to_string().ends_with("run/s.sock: another process listens there"), "{refused}");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        fs::write(&path, "text").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("is not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
