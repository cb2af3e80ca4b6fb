//! Where clients reach pgmend, and with which certificate.

use std::path::PathBuf;
use std::time::Duration;

/// Listening and TLS towards clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `listen_addresses`: host names or addresses; `*` for all; empty for no TCP.
    pub addresses: Vec<String>,
    /// `port`, also in the name of the Unix socket.
    pub port: u16,
    /// `unix_socket_directories`; a socket `.s.PGSQL.<port>` is made in each.
    pub unix_socket_directories: Vec<PathBuf>,
    /// Mode of the Unix sockets.
    pub unix_socket_permissions: u32,
    /// Length of the listen queue.
    pub backlog: u32,
    /// TCP keepalive: idle time before the first probe.
    pub keepalive: Duration,
    /// Threads of the data plane.
    pub workers: usize,
    /// TLS towards clients; `None` = off.
    pub tls: Option<TlsSettings>,
}

/// Server certificate and, for `cert`, the authority of client certificates.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// PEM chain.
    pub cert_file: PathBuf,
    /// PEM key, without a passphrase.
    pub key_file: PathBuf,
    /// PEM authorities that may sign clients' certificates.
    pub client_ca_file: Option<PathBuf>,
}
