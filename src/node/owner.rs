//! As whom a node's programs run: the owner of its data directory.

use super::NodeError;
use nix::unistd::{Uid, User};
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Its main group.
    pub gid: u32,
    /// Login name.
    pub name: String,
    /// Home, where `.pgpass` is.
    pub home: PathBuf,
}

impl Owner {
    /// The owner of a directory, or of the nearest one above it that exists. Root is refused: PostgreSQL does not run as root.
    pub fn of(directory: &Path) -> Result<Owner, NodeError> {
        let existing = directory.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
        let meta = std::fs::metadata(existing).map_err(NodeError::file(existing))?;
        let bad = |why: String| NodeError::File { path: existing.display().to_string(), why };
        if meta.uid() == 0 {
            return Err(bad("is owned by root, as whom PostgreSQL does not run; give it to the server's user".into()));
        }
        let user = User::from_uid(Uid::from_raw(meta.uid()))
            .map_err(|e| bad(e.to_string()))?
            .ok_or_else(|| bad(format!("is owned by user id {}, which has no account", meta.uid())))?;
        Ok(Owner { uid: meta.uid(), gid: user.gid.as_raw(), name: user.name, home: user.dir })
    }
}

/// True when a host name or address means this machine: one can bind to it. Blocks for name resolution.
pub fn is_this_machine(host: &str) -> bool {
    if host.is_empty() || host.starts_with('/') || host == "localhost" {
        return true;
    }
    let Ok(mut addresses) = (host, 0).to_socket_addrs() else { return false };
    let ours = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    addresses.any(|a| ours(a.ip()))
}

#[cfg(test)]
mod tests {
    use super::is_this_machine;

    #[test]
    fn knows_its_own_addresses() {
        assert!(is_this_machine("127.0.0.1"));
        assert!(is_this_machine("/tmp"));
        assert!(!is_this_machine("192.0.2.7"));
    }
}
