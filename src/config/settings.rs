//! The whole configuration, checked: one `Settings` per folder.

use crate::cluster::{Mode, NodeSpec};
use std::path::PathBuf;
use std::time::Duration;

/// How long the end of a daemon may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ending {
    /// `shutdown_timeout`: a smart stop becomes a fast one after this; zero = never.
    pub shutdown_timeout: Duration,
    /// `takeover_timeout`: clients may stay this long with a process that was taken over, then it stops smartly; zero = as
    /// long as they like.
    pub takeover_timeout: Duration,
}

/// Everything a daemon is started with.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Files that it was read from; the first is the main one.
    pub sources: Vec<PathBuf>,
    /// How the nodes are kept equal.
    pub mode: Mode,
    /// What follows from that for statements.
    pub replication: crate::client::replicated::Settings,
    /// Nodes by id.
    pub nodes: Vec<NodeSpec>,
    /// Listening and TLS.
    pub listen: crate::net::Settings,
    /// Clients.
    pub client: crate::client::Settings,
    /// Pools.
    pub pool: crate::pool::Settings,
    /// Authentication.
    pub auth: crate::auth::Settings,
    /// Server connections.
    pub server: crate::server::Settings,
    /// Health checks.
    pub health: crate::keeper::Settings,
    /// Online recovery.
    pub recovery: crate::recovery::Settings,
    /// Planned work.
    pub maintenance: crate::maintenance::Settings,
    /// Operators.
    pub admin: crate::admin::Settings,
    /// State.
    pub store: crate::store::Settings,
    /// `pid_file`, written at start.
    pub pid_file: Option<PathBuf>,
    /// How the daemon ends.
    pub ending: Ending,
    /// `tracing` filter, e.g. `info`.
    pub log_level: String,
    /// Parameters that were set and are not honoured, listed at start: (name, why).
    pub not_honoured: Vec<(String, String)>,
    /// The values as given, for `SHOW POOL_STATUS`: (name, value, description).
    pub listed: Vec<(String, String, String)>,
}
