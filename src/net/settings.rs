//! Where clients reach pgmend, and with which certificate.

use std::collections::BTreeMap;
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

/// Certificates shown to clients, and whose certificates of theirs are believed.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// For clients that ask for no name in particular.
    pub own: CertificateSettings,
    /// Further ones, each for the names that clients ask for (SNI).
    pub others: Vec<CertificateSettings>,
    /// PEM authorities that may sign clients' certificates.
    pub client_ca_file: Option<PathBuf>,
    /// PEM lists of revoked clients' certificates.
    pub client_crl_file: Option<PathBuf>,
    /// Clients get tickets to resume their sessions with.
    pub session_tickets: bool,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateSettings {
    /// PEM chain.
    pub cert_file: PathBuf,
    /// PEM key, without a passphrase.
    pub key_file: PathBuf,
    /// Names for which it is shown; empty: those in the certificate.
    pub server_names: Vec<String>,
}

/// TLS towards nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerTlsSettings {
    /// PEM authorities, for `verify-ca` and `verify-full`.
    pub ca_file: Option<PathBuf>,
    /// PEM lists of revoked servers' certificates.
    pub crl_file: Option<PathBuf>,
    /// Our own PEM certificate, for servers that ask for one; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its PEM key.
    pub key_file: Option<PathBuf>,
    /// Certificates and keys for clients' connections to one database each, by the name of its section.
    pub databases: BTreeMap<String, (PathBuf, PathBuf)>,
}
