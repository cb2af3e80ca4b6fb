//! A node's routing state and the table of its changes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Pgpool-II's node states; the discriminants are those of PCP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Not in use: the status file or the configuration says so.
    Unused = 0,
    /// Configured or attached, not yet probed.
    Waiting = 1,
    /// Probed and in routing.
    Up = 2,
    /// Out of routing, by failure or by an operator; comes back by attach or recovery only.
    Down = 3,
}

impl NodeStatus {
    /// Waiting or up.
    pub fn is_live(self) -> bool {
        matches!(self, NodeStatus::Waiting | NodeStatus::Up)
    }
    /// The number that PCP sends.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeStatus::Unused => "unused",
            NodeStatus::Waiting => "waiting",
            NodeStatus::Up => "up",
            NodeStatus::Down => "down",
        })
    }
}

/// Something that was learnt or ordered of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Observation {
    /// A probe logged in and got its answer.
    ProbeSucceeded,
    /// Every retry of a health check failed.
    ProbeFailed,
    /// An operator or failover took it out.
    Detached,
    /// An operator or a recovery put it in.
    Attached,
}

/// The table: what a node becomes. `None`: the observation changes nothing in that state.
pub fn transition(from: NodeStatus, seen: Observation) -> Option<NodeStatus> {
    use NodeStatus::{Down, Unused, Up, Waiting};
    use Observation::{Attached, Detached, ProbeFailed, ProbeSucceeded};
    match (from, seen) {
        (Waiting, ProbeSucceeded) => Some(Up),
        (Waiting | Up, ProbeFailed | Detached) => Some(Down),
        (Down, Attached) => Some(Waiting),
        (Up, ProbeSucceeded) => None,
        (Waiting | Up, Attached) => None,
        // A node that is down stays so whatever a probe sees: nobody knows that its data are good.
        (Down, ProbeSucceeded | ProbeFailed | Detached) => None,
        (Unused, ProbeSucceeded | ProbeFailed | Detached | Attached) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_down_node_comes_back_only_by_attach() {
        assert_eq!(transition(NodeStatus::Down, Observation::ProbeSucceeded), None);
        assert_eq!(transition(NodeStatus::Down, Observation::Attached), Some(NodeStatus::Waiting));
    }

    #[test]
    fn the_probe_moves_waiting_to_up() {
        assert_eq!(transition(NodeStatus::Waiting, Observation::ProbeSucceeded), Some(NodeStatus::Up));
        assert_eq!(transition(NodeStatus::Up, Observation::ProbeFailed), Some(NodeStatus::Down));
    }
}
