//! How server connections are shared.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// For how long a client keeps a server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// Until it disconnects.
    #[default]
    Session,
    /// Until its transaction ends.
    Transaction,
    /// Until its statement ends; transactions of several statements are refused.
    Statement,
}

/// Limits and mode; PgBouncer's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `pool_mode`.
    pub mode: PoolMode,
    /// `default_pool_size`: server connections per user and database, over all workers.
    pub size: usize,
    /// By database name, where it differs.
    pub databases: BTreeMap<String, DatabaseSettings>,
    /// `max_client_conn`.
    pub max_clients: usize,
    /// `query_wait_timeout`: longest wait for a server connection or for a primary; zero = never.
    pub wait_timeout: Duration,
    /// `max_prepared_statements`: statements of clients that one server connection holds in transaction pooling.
    pub max_prepared: usize,
    /// `share_unnamed_statements`: the unnamed statement is prepared once per server and text, too.
    pub share_unnamed: bool,
    /// `max_replication_conn`: replication connections, each with a server connection of its own.
    pub max_replication: usize,
    /// `max_pins`: clients of one pool that may be bound to their servers in transaction pooling; 0 = no limit.
    pub max_pins: usize,
}

/// What one database does differently.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DatabaseSettings {
    /// Mode.
    pub mode: Option<PoolMode>,
    /// Pool size.
    pub size: Option<usize>,
}
