//! Where operators reach pgmend.

use std::path::PathBuf;

/// Operators' surfaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Unix socket of the JSON API.
    pub socket: PathBuf,
    /// Operating system users (names or numbers) who may change things, besides root and the daemon's own.
    pub admin_os_users: Vec<String>,
    /// PCP; `None` = off.
    pub pcp: Option<PcpSettings>,
}

/// Pgpool-II's control protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct PcpSettings {
    /// `pcp_listen_addresses`.
    pub addresses: Vec<String>,
    /// `pcp_port`.
    pub port: u16,
    /// `pcp_socket_dir`.
    pub socket_directory: Option<PathBuf>,
    /// `pcp.conf`: `user:md5hash` lines.
    pub password_file: PathBuf,
}
