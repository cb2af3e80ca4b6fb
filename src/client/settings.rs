//! What a client may take: time to log in, packet sizes.

use std::time::Duration;

/// Clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `authentication_timeout` / `client_login_timeout`.
    pub login_timeout: Duration,
    /// `max_concurrent_logins`: clients that may log in at once; further ones wait. Zero = no limit.
    pub max_logins: usize,
    /// Largest protocol message that must be held whole (Parse, Bind, Query that is looked at), bytes.
    pub max_message: usize,
    /// `admin_users`: who may lengthen a limit of his own session.
    pub admin_users: Vec<String>,
    /// Answer `SHOW POOL_*` in ordinary sessions, as Pgpool-II does.
    pub pool_commands: bool,
}
