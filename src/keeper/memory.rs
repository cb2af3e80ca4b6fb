//! What the keeper remembers over a restart, as a trait that the composition root implements over the store.

use crate::base::NodeId;
use crate::cluster::{Epoch, NodeSpec, NodeStatus, NodeView, Role, View};
use std::sync::Arc;

/// A node's state as it was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedNode {
    /// Which.
    pub node: NodeId,
    /// Its status then.
    pub status: NodeStatus,
    /// Why; a text that starts with [`super::FAILED_REASON`] says that no operator took the node out.
    pub reason: String,
    /// Unix seconds of the last change; 0 when it was not saved.
    pub changed_at_s: u64,
}

/// Everything that was saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recalled {
    /// Generation of the last saved view; 0 when there is none.
    pub generation: u64,
    /// The history that was being written.
    pub epoch: Option<Epoch>,
    /// The nodes' states, in any order.
    pub nodes: Vec<SavedNode>,
}

/// The part of the store that the keeper needs.
pub trait Memory: Send + Sync {
    /// Reads what was saved. Called once, at start.
    fn recall(&self) -> Recalled;
    /// Saves generation, epoch and the nodes' states and reasons durably. May block: it is called on a blocking thread,
    /// before a view with a changed status or epoch is published.
    fn save(&self, view: &View) -> Result<(), String>;
}

/// The view that a daemon starts with. Nodes saved as live start as waiting, and when none is live every node does, since
/// such a file tells nothing (Pgpool-II's rule for `pgpool_status`). Nodes that were not saved start as waiting.
pub fn initial_view(nodes: &[NodeSpec], memory: &dyn Memory, now_s: u64) -> View {
    let recalled = memory.recall();
    let any_live = recalled.nodes.iter().any(|n| n.status.is_live());
    let nodes: Vec<NodeView> = nodes
        .iter()
        .map(|spec| {
            let saved = recalled.nodes.iter().find(|n| n.node == spec.id).filter(|_| any_live);
            let (status, reason, changed_at_s) = match saved {
                Some(SavedNode {
                    status: status @ (NodeStatus::Down | NodeStatus::Unused),
                    reason,
                    changed_at_s,
                    ..
                }) => (*status, reason.clone(), *changed_at_s),
                Some(_) | None => (NodeStatus::Waiting, "not yet probed".to_owned(), 0),
            };
            NodeView {
                spec: Arc::new(spec.clone()),
                status,
                role: Role::Unknown,
                reachable: None,
                changed_at_s: if changed_at_s == 0 { now_s } else { changed_at_s },
                reason,
                delay_bytes: None,
                replication_state: None,
                sync_state: None,
                position: None,
            }
        })
        .collect();
    let epoch = recalled.epoch.filter(|e| e.node.index() < nodes.len());
    View { generation: recalled.generation.saturating_add(1), epoch, primary: None, nodes }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::{Host, SslMode};
    use std::sync::Mutex;

    /// A memory in a variable.
    #[derive(Default)]
    pub(crate) struct Remembered(pub Mutex<Recalled>);

    impl Memory for Remembered {
        fn recall(&self) -> Recalled {
            self.0.lock().unwrap().clone()
        }
        fn save(&self, view: &View) -> Result<(), String> {
            *self.0.lock().unwrap() = Recalled {
                generation: view.generation,
                epoch: view.epoch.clone(),
                nodes: view
                    .nodes
                    .iter()
                    .map(|n| SavedNode {
                        node: n.spec.id,
                        status: n.status,
                        reason: n.reason.clone(),
                        changed_at_s: n.changed_at_s,
                    })
                    .collect(),
            };
            Ok(())
        }
    }

    pub(crate) fn spec(id: u16, port: u16) -> NodeSpec {
        NodeSpec {
            id: NodeId(id),
            host: Host("127.0.0.1".into()),
            port,
            data_directory: None,
            weight: 1.0,
            application_name: format!("pgmend_{id}"),
            allow_failover: true,
            always_primary: false,
            start_command: None,
            stop_command: None,
            status_command: None,
            sslmode: SslMode::Disable,
            maintain: crate::cluster::MaintainCommands::default(),
        }
    }

    fn saved(states: &[NodeStatus]) -> Remembered {
        let nodes = states
            .iter()
            .zip(0..)
            .map(|(s, i)| SavedNode { node: NodeId(i), status: *s, reason: "r".into(), changed_at_s: 7 })
            .collect();
        Remembered(Mutex::new(Recalled { generation: 4, epoch: None, nodes }))
    }

    #[test]
    fn a_saved_down_stays_and_a_file_without_a_live_node_is_not_believed() {
        let specs = [spec(0, 1), spec(1, 2), spec(2, 3)];
        let view = initial_view(&specs, &saved(&[NodeStatus::Up, NodeStatus::Down]), 99);
        let states: Vec<_> = view.nodes.iter().map(|n| n.status).collect();
        assert_eq!(states, [NodeStatus::Waiting, NodeStatus::Down, NodeStatus::Waiting]);
        assert_eq!((view.generation, view.nodes[1].changed_at_s, view.nodes[0].changed_at_s), (5, 7, 99));
        let view = initial_view(&specs, &saved(&[NodeStatus::Down, NodeStatus::Down]), 99);
        assert!(view.nodes.iter().all(|n| n.status == NodeStatus::Waiting));
    }
}
