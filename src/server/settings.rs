//! How pgmend treats servers for clients.

use std::path::PathBuf;

/// Connections to nodes. Their limits and times stand in the pool's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Sent between two sessions; empty sends nothing.
    pub reset_query: String,
    /// Authorities for `verify-ca` and `verify-full`.
    pub ca_file: Option<PathBuf>,
}
