//! What the operator chose for the replicating modes.

use super::verdict::Choice;
use crate::routing::Policy;
use std::time::Duration;

/// See the module. The names are Pgpool-II's where it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `replication_stop_on_mismatch` and `failover_if_affected_tuples_mismatch`.
    pub choice: Choice,
    /// What is done about statements that nodes would carry out differently, the insert lock, `replicate_select`.
    pub policy: Policy,
    /// `replication_lock_timeout`: for so long another node may still work after the main node has finished; beyond it a
    /// deadlock across nodes is assumed and the transaction is rolled back. Also the longest wait for a snapshot or commit
    /// of the others in snapshot isolation.
    pub lock_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            choice: Choice { stop_on_kind: false, stop_on_rows: false },
            policy: Policy::default(),
            lock_timeout: Duration::from_secs(10),
        }
    }
}
