//! How the cluster keeps its nodes equal: by PostgreSQL's own streaming, or by pgmend's sending every write to all.

use serde::{Deserialize, Serialize};
use std::fmt;

/// `backend_clustering_mode`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One primary that standbys follow.
    #[default]
    StreamingReplication,
    /// Every node is writable; each write goes to all live ones.
    NativeReplication,
    /// The same, and the nodes' snapshots agree.
    SnapshotIsolation,
}

impl Mode {
    /// Every mode, by its configured name.
    pub const NAMES: &[(&str, Mode)] = &[
        ("streaming_replication", Mode::StreamingReplication),
        ("native_replication", Mode::NativeReplication),
        ("snapshot_isolation", Mode::SnapshotIsolation),
    ];

    /// True when pgmend itself sends each write to every live node. There is no primary then but a *main node*, no standby,
    /// and no epoch: timelines differ by design and the view's generation fences.
    pub fn replicates(self) -> bool {
        match self {
            Mode::StreamingReplication => false,
            Mode::NativeReplication | Mode::SnapshotIsolation => true,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::StreamingReplication => "streaming_replication",
            Mode::NativeReplication => "native_replication",
            Mode::SnapshotIsolation => "snapshot_isolation",
        })
    }
}
