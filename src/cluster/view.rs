//! One immutable picture of the cluster. Everybody reads it; only `keeper` makes a new one.

use super::{Mode, NodeSpec, NodeStatus};
use crate::base::{Lsn, NodeId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a node's PostgreSQL says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// Not known, or not to be believed.
    #[default]
    Unknown,
}

/// Identity of the primary's history. A primary that is not the epoch's is never routed to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// `system_identifier` of the cluster.
    pub system_identifier: u64,
    /// Timeline of the write position, not of the last checkpoint.
    pub timeline: u32,
    /// The node that writes it: two standbys promoted behind each other's back carry the same timeline.
    pub node: NodeId,
}

/// Whether a node's data are those of the others; asked only where pgmend itself keeps the nodes equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataState {
    /// Equal, or the only truth that there is.
    #[default]
    Trusted,
    /// Nobody knows: others may have been written while it was out, or pgmend did not end orderly. A comparison tells.
    Unverified,
    /// Known to differ. It comes back by recovery, or when an operator accepts its data as they are.
    Diverged,
}

impl std::fmt::Display for DataState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DataState::Trusted => "trusted",
            DataState::Unverified => "unverified",
            DataState::Diverged => "diverged",
        })
    }
}

/// One node as last seen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its configuration.
    pub spec: Arc<NodeSpec>,
    /// Routing state.
    pub status: NodeStatus,
    /// Role as last probed.
    pub role: Role,
    /// Whether the last probe reached it (`up`), was refused (`down`), or there was none: `None`.
    pub reachable: Option<bool>,
    /// Unix seconds of the last change of status.
    pub changed_at_s: u64,
    /// Why it has this status, for people.
    pub reason: String,
    /// Replicating modes: whether its data are those of the others.
    #[serde(default)]
    pub data: DataState,
    /// Standby: bytes of log not yet replayed.
    pub delay_bytes: Option<u64>,
    /// `pg_stat_replication.state` on the primary, e.g. `streaming`.
    pub replication_state: Option<String>,
    /// `pg_stat_replication.sync_state`.
    pub sync_state: Option<String>,
    /// Write or replay position as last probed.
    pub position: Option<Lsn>,
}

/// The whole cluster at one moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct View {
    /// Grows by one with each published view.
    pub generation: u64,
    /// How the nodes are kept equal.
    #[serde(default)]
    pub mode: Mode,
    /// The history that is being written, once known; none where timelines differ by design.
    pub epoch: Option<Epoch>,
    /// The node that statements go to; `None` while it is not known or cannot be reached. In the replicating modes it is the
    /// main node, and `None` says that no statement may be sent to anybody yet.
    pub primary: Option<NodeId>,
    /// By node id.
    pub nodes: Vec<NodeView>,
}

impl View {
    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.get(id.index())
    }
    /// The primary's configuration when one is known and not down.
    pub fn primary_spec(&self) -> Option<&Arc<NodeSpec>> {
        let node = self.node(self.primary?)?;
        node.status.is_live().then_some(&node.spec)
    }
    /// Pgpool-II's *main node*: the lowest live one. In the replicating modes nothing may be sent while there is none.
    pub fn main_node(&self) -> Option<NodeId> {
        self.live().next().map(|n| n.spec.id)
    }
    /// The live nodes, lowest first. In the replicating modes these are the ones to which every write goes: they came up
    /// together or behind a held gate, so a node that only waits does not belong to them, and there are none before it is
    /// known who belongs.
    pub fn live(&self) -> impl Iterator<Item = &NodeView> {
        let takes_part = |n: &&NodeView| match self.mode.replicates() {
            true => n.status == NodeStatus::Up && self.primary.is_some(),
            false => n.status.is_live(),
        };
        self.nodes.iter().filter(takes_part)
    }
}
