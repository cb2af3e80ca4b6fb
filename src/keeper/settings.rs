//! Health checks.

use crate::base::Secret;
use std::time::Duration;

/// How nodes are probed; Pgpool-II's names (`health_check_*`).
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who probes; a role that may log in. `pg_monitor` lets it see replication states.
    pub user: String,
    /// Its password; empty: from the secret stores, then none.
    pub password: Secret,
    /// Database.
    pub database: String,
    /// Between two checks; zero = only at start and on demand.
    pub period: Duration,
    /// Bound on one check.
    pub timeout: Duration,
    /// Further tries before a node counts as failed.
    pub max_retries: u32,
    /// Between tries.
    pub retry_delay: Duration,
    /// `compare_timeout`, in the replicating modes: bound on the comparison of two nodes at the start, while clients wait.
    pub compare_timeout: Duration,
}
