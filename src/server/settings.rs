//! How pgmend connects to nodes for clients.

use std::time::Duration;

/// Connections to nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Bound on TCP connect, TLS and login together.
    pub connect_timeout: Duration,
    /// Sent between two sessions; empty sends nothing.
    pub reset_query: String,
    /// TLS.
    pub tls: crate::net::ServerTlsSettings,
    /// An idle connection is closed after this; zero = never.
    pub idle_timeout: Duration,
    /// A connection is not reused after this; zero = never.
    pub lifetime: Duration,
}
