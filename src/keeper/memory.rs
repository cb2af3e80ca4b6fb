//! What the keeper remembers over a restart, as a trait that the composition root implements over the store.

use crate::base::NodeId;
use crate::cluster::{DataState, Epoch, Mode, NodeSpec, NodeStatus, NodeView, Role, View};
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
    /// Whether its data were those of the others.
    pub data: DataState,
}

/// Everything that was saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recalled {
    /// Generation of the last saved view; 0 when there is none.
    pub generation: u64,
    /// The history that was being written.
    pub epoch: Option<Epoch>,
    /// The last daemon ended orderly, in a replicating mode: no statement was under way on several nodes.
    pub clean: bool,
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
///
/// In the replicating modes the live nodes besides the main one are unverified after anything else than an orderly end.
pub fn initial_view(nodes: &[NodeSpec], mode: Mode, memory: &dyn Memory, now_s: u64) -> View {
    let recalled = memory.recall();
    let trusted = |n: &SavedNode| n.data == DataState::Trusted && n.status != NodeStatus::Unused;
    let any_live = recalled.nodes.iter().any(|n| n.status.is_live());
    // Among equals the one that was taken out last has what was written last; that must not be forgotten.
    let truth_is_out = mode.replicates() && recalled.generation > 0 && recalled.nodes.iter().any(trusted);
    let saved_of =
        |spec: &NodeSpec| recalled.nodes.iter().find(|n| n.node == spec.id).filter(|_| any_live || truth_is_out);
    let main = match any_live || truth_is_out {
        true => recalled.nodes.iter().filter(|n| n.status.is_live() && trusted(n)).map(|n| n.node).min(),
        false => nodes.first().map(|n| n.id),
    };
    let nodes: Vec<NodeView> = nodes
        .iter()
        .map(|spec| {
            let saved = saved_of(spec);
            let (status, reason, changed_at_s) = match saved {
                Some(SavedNode {
                    status: status @ (NodeStatus::Down | NodeStatus::Unused),
                    reason,
                    changed_at_s,
                    ..
                }) => (*status, reason.clone(), *changed_at_s),
                Some(_) | None => (NodeStatus::Waiting, "not yet probed".to_owned(), 0),
            };
            // Only what an orderly end left is believed. The main node is the measure, so it needs no proof.
            let data = match saved {
                _ if !mode.replicates() || main == Some(spec.id) => DataState::Trusted,
                Some(saved) if !saved.status.is_live() || recalled.clean => saved.data,
                Some(_) | None => DataState::Unverified,
            };
            NodeView {
                spec: Arc::new(spec.clone()),
                status,
                role: Role::Unknown,
                reachable: None,
                changed_at_s: if changed_at_s == 0 { now_s } else { changed_at_s },
                reason,
                data,
                delay_bytes: None,
                replication_state: None,
                sync_state: None,
                position: None,
            }
        })
        .collect();
    let epoch = recalled.epoch.filter(|e| e.node.index() < nodes.len() && !mode.replicates());
    View { generation: recalled.generation.saturating_add(1), mode, epoch, primary: None, nodes }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::Host;
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
                clean: false,
                nodes: view
                    .nodes
                    .iter()
                    .map(|n| SavedNode {
                        node: n.spec.id,
                        status: n.status,
                        reason: n.reason.clone(),
                        changed_at_s: n.changed_at_s,
                        data: n.data,
                    })
                    .collect(),
            };
            Ok(())
        }
    }

    pub(crate) fn spec(id: u16, port: u16) -> NodeSpec {
        NodeSpec { host: Host("127.0.0.1".into()), port, ..NodeSpec::sample(id) }
    }

    fn saved(states: &[NodeStatus]) -> Remembered {
        let nodes = states
            .iter()
            .zip(0..)
            .map(|(s, i)| SavedNode {
                node: NodeId(i),
                status: *s,
                reason: "r".into(),
                changed_at_s: 7,
                data: DataState::Trusted,
            })
            .collect();
        Remembered(Mutex::new(Recalled { generation: 4, epoch: None, clean: false, nodes }))
    }

    #[test]
    fn a_saved_down_stays_and_a_file_without_a_live_node_is_not_believed() {
        let specs = [spec(0, 1), spec(1, 2), spec(2, 3)];
        let view = initial_view(&specs, Mode::default(), &saved(&[NodeStatus::Up, NodeStatus::Down]), 99);
        let states: Vec<_> = view.nodes.iter().map(|n| n.status).collect();
        assert_eq!(states, [NodeStatus::Waiting, NodeStatus::Down, NodeStatus::Waiting]);
        assert_eq!((view.generation, view.nodes[1].changed_at_s, view.nodes[0].changed_at_s), (5, 7, 99));
        let view = initial_view(&specs, Mode::default(), &saved(&[NodeStatus::Down, NodeStatus::Down]), 99);
        assert!(view.nodes.iter().all(|n| n.status == NodeStatus::Waiting));
    }

    #[test]
    fn after_an_unclean_end_all_but_the_main_node_are_unverified() {
        use DataState::{Trusted, Unverified};
        use NodeStatus::{Down, Up, Waiting};
        let specs = [spec(0, 1), spec(1, 2), spec(2, 3)];
        let data = |memory: &Remembered| -> Vec<_> {
            let view = initial_view(&specs, Mode::NativeReplication, memory, 99);
            view.nodes.iter().map(|n| (n.status, n.data)).collect()
        };
        let memory = saved(&[Down, Up, Up]);
        memory.0.lock().unwrap().nodes[0].data = DataState::Diverged;
        assert_eq!(data(&memory), [(Down, DataState::Diverged), (Waiting, Trusted), (Waiting, Unverified)]);
        memory.0.lock().unwrap().clean = true;
        assert_eq!(data(&memory), [(Down, DataState::Diverged), (Waiting, Trusted), (Waiting, Trusted)]);
        // Node 1 was taken out last: it is the truth, and nobody comes up beside it by himself.
        let memory = saved(&[Down, Down, Down]);
        memory.0.lock().unwrap().nodes[0].data = Unverified;
        assert_eq!(data(&memory)[..2], [(Down, Unverified), (Down, Trusted)]);
        // Nothing is known at the very first start, or with -D.
        let nothing = [(Waiting, Trusted), (Waiting, Unverified), (Waiting, Unverified)];
        assert_eq!(data(&Remembered::default()), nothing);
    }
}
