//! What `pcp_node_info` prints of a node, in the layout of Pgpool-II 4.3.

use crate::cluster::{NodeView, Role, View};

/// The client divides the weight by its `RAND_MAX`.
const WHOLE: f64 = 2_147_483_647.0;

/// The twelve fields of one node.
pub(super) fn fields(view: &View, node: &NodeView) -> [String; 12] {
    let total: f64 = view.nodes.iter().map(|n| n.spec.weight).filter(|w| *w > 0.0).sum();
    let share = if total > 0.0 { node.spec.weight.max(0.0) / total } else { 0.0 };
    let is_primary = view.primary == Some(node.spec.id);
    let role_code = match (view.mode.replicates(), is_primary) {
        (true, true) => "0",
        (true, false) => "1",
        (false, true) => "2",
        (false, false) => "3",
    };
    [
        // The client leaves out rows without a host.
        if node.spec.host.0.is_empty() { node.spec.host.for_scripts() } else { &node.spec.host.0 }.to_owned(),
        node.spec.port.to_string(),
        node.status.code().to_string(),
        // Quarantine belongs to Pgpool-II's watchdog.
        "0".to_owned(),
        match node.reachable {
            Some(true) => "up",
            Some(false) => "down",
            None => "unknown",
        }
        .to_owned(),
        format!("{:.6}", share * WHOLE),
        role_code.to_owned(),
        match (view.mode.replicates(), node.role) {
            (_, Role::Unknown) => "unknown",
            (true, Role::Primary) => {
                if is_primary {
                    "main"
                } else {
                    "replica"
                }
            }
            (false, Role::Primary) => "primary",
            (_, Role::Standby) => "standby",
        }
        .to_owned(),
        node.delay_bytes.unwrap_or(0).to_string(),
        node.replication_state.clone().unwrap_or_default(),
        node.sync_state.clone().unwrap_or_default(),
        node.changed_at_s.to_string(),
    ]
}
