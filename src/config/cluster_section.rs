//! `[cluster]`: how the nodes are kept equal, and what is done about what cannot be made equal.

use super::section::Section;
use crate::client::replicated::{Choice, Settings};
use crate::cluster::Mode;
use crate::routing::{Policy, Verdict};
use std::time::Duration;

const VERDICTS: &[(&str, Verdict)] = &[("refuse", Verdict::Refuse), ("warn", Verdict::Warn), ("allow", Verdict::Allow)];

/// What the section says.
pub struct Cluster {
    /// `backend_clustering_mode`.
    pub mode: Mode,
    /// `compare_timeout`.
    pub compare_timeout: Duration,
    /// The replicating modes' data plane.
    pub replication: Settings,
}

/// Reads `[cluster]`.
pub fn read(section: Section<'_>, default_compare_timeout: &str) -> Cluster {
    let verdict = |key, default| section.choice(key, default, VERDICTS).unwrap_or(Verdict::Refuse);
    let cluster = Cluster {
        mode: section.choice("backend_clustering_mode", "streaming_replication", Mode::NAMES).unwrap_or_default(),
        compare_timeout: section.duration("compare_timeout", default_compare_timeout),
        replication: Settings {
            choice: Choice {
                stop_on_kind: section.boolean("replication_stop_on_mismatch", false),
                stop_on_rows: section.boolean("failover_if_affected_tuples_mismatch", false),
            },
            policy: Policy {
                values: verdict("unequal_values", "refuse"),
                functions: verdict("unequal_functions", "warn"),
                triggers: verdict("unequal_triggers", "warn"),
                order: verdict("unequal_order", "warn"),
                insert_lock: section.boolean("insert_lock", true),
                replicate_select: section.boolean("replicate_select", false),
            },
            lock_timeout: section.duration("replication_lock_timeout", "10s"),
        },
    };
    section.finish();
    cluster
}
