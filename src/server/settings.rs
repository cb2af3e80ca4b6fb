//! How pgmend treats servers for clients.

/// Connections to nodes. Their limits and times stand in the pool's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Sent between two sessions; empty sends nothing.
    pub reset_query: String,
    /// TLS.
    pub tls: crate::net::ServerTlsSettings,
}
