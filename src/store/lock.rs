//! The lock on the folder: one daemon at a time. `SO_REUSEPORT` would let a second one bind without a word.

use super::StoreError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Held while it lives; the system frees it when the process dies, however it dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock and writes our process id into it.
    pub(super) fn take(directory: &Path) -> Result<Lock, StoreError> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(StoreError::io(&path))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = super::files::read(&path)?.unwrap_or_default();
                let pid = text.trim().parse::<u32>().map_or_else(|_| "unknown".to_owned(), |p| p.to_string());
                return Err(StoreError::Locked { directory: directory.to_owned(), pid });
            }
            Err((_, errno)) => return Err(StoreError::io(&path)(errno.into())),
        };
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(StoreError::io(&path))?;
        Ok(Lock { _file: file })
    }
}
