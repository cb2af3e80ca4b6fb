//! The lock on the folder: one daemon at a time, also on other ports.

use super::StoreError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Held while it lives; the system frees it when the process dies, however it dies. The lock belongs to the open file, which
/// a takeover passes on: then both processes hold the same lock, and there is no moment in which nobody does.
#[derive(Debug)]
pub(super) struct Lock {
    file: Mutex<Option<Flock<File>>>,
}

impl Lock {
    /// Takes the lock and writes our process id into it.
    pub(super) fn take(directory: &Path) -> Result<Lock, StoreError> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(StoreError::io(&path))?;
        Lock::of(file, &path, directory)
    }

    /// The lock of the process before us, which has let go of it.
    pub(super) fn inherit(descriptor: OwnedFd, directory: &Path) -> Result<Lock, StoreError> {
        Lock::of(descriptor.into(), &directory.join("lock"), directory)
    }

    /// Another descriptor of the same open file. Closing it frees nothing.
    pub(super) fn share(&self) -> std::io::Result<OwnedFd> {
        match self.file.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(file) => file.as_fd().try_clone_to_owned(),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// Another process has the lock now. It must not be freed by us, who share it: the descriptor stays open until we end.
    pub(super) fn leave(&self) {
        std::mem::forget(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn of(file: File, path: &Path, directory: &Path) -> Result<Lock, StoreError> {
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = super::files::read(path)?.unwrap_or_default();
                let pid = text.trim().parse::<u32>().map_or_else(|_| "unknown".to_owned(), |p| p.to_string());
                return Err(StoreError::Locked { directory: directory.to_owned(), pid });
            }
            Err((_, errno)) => return Err(StoreError::io(path)(errno.into())),
        };
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(StoreError::io(path))?;
        Ok(Lock { file: Mutex::new(Some(file)) })
    }
}
