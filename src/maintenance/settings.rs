//! Limits of a planned switchover, and how servers are reached.

use super::Exits;
use crate::base::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// Limits (`[maintenance]`).
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `drain_timeout`: how long the transactions under way may take to end, at each attempt.
    pub drain_timeout: Duration,
    /// `drain_attempts`.
    pub drain_attempts: u32,
    /// `drain_pause`: clients work on between two attempts.
    pub drain_pause: Duration,
    /// `stop_timeout`: how long the old primary may take to stop.
    pub stop_timeout: Duration,
    /// `max_hold`: clients are released after this, whatever has happened.
    pub max_hold: Duration,
    /// `strict_timeout`: with `--strict` commits wait for a synchronous standby for at most so long.
    pub strict_timeout: Duration,
    /// `max_lag_mb`: the coming primary may be behind by so many bytes when it begins.
    pub max_lag_bytes: u64,
    /// `max_transaction_age`: none may be older when it begins.
    pub max_transaction_age: Duration,
    /// `wait_timeout`: bound on waiting for older ones, where that was chosen.
    pub wait_timeout: Duration,
    /// `run_timeout`: bound on one node's maintenance command.
    pub run_timeout: Duration,
    /// `automatic_failover`: a lost primary is replaced, a lost standby is no longer waited for.
    pub automatic_failover: bool,
    /// `failover_confirm`: a primary that is down by its health checks must not answer for so long again before it counts as lost.
    pub failover_confirm: Duration,
    /// The operator's own commands.
    pub exits: Exits,
    /// `prewarm`: connections to the coming primary are opened beforehand.
    pub prewarm: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            drain_timeout: Duration::from_secs(2),
            drain_attempts: 3,
            drain_pause: Duration::from_secs(2),
            stop_timeout: Duration::from_secs(10),
            max_hold: Duration::from_secs(15),
            strict_timeout: Duration::from_secs(60),
            max_lag_bytes: 16 << 20,
            max_transaction_age: Duration::from_secs(10),
            wait_timeout: Duration::from_secs(600),
            run_timeout: Duration::from_secs(3600),
            automatic_failover: false,
            failover_confirm: Duration::from_secs(2),
            exits: Exits {
                timeout: Duration::from_secs(20),
                backup_timeout: Duration::from_secs(24 * 3600),
                ..Exits::default()
            },
            prewarm: true,
        }
    }
}

/// How servers are reached; the values of `[recovery]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// A superuser on all nodes.
    pub user: String,
    /// His password.
    pub password: Secret,
    /// Database to connect to.
    pub database: String,
    /// PostgreSQL's programs; found by themselves when `None`.
    pub bin_directory: Option<PathBuf>,
    /// Bound on the start of a server.
    pub start_timeout: Duration,
}
