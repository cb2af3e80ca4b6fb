//! What `pcp_node_info` prints of a node, in the layout of Pgpool-II 4.3.

use super::super::node_words;
use crate::cluster::{NodeView, View};

/// The client divides the weight by its `RAND_MAX`.
const WHOLE: f64 = 2_147_483_647.0;

/// The twelve fields of one node.
pub(super) fn fields(view: &View, node: &NodeView) -> [String; 12] {
    let role_code = match node_words::role(view, node) {
        "main" => "0",
        "replica" => "1",
        "primary" => "2",
        _ => "3",
    };
    [
        // The client leaves out rows without a host.
        if node.spec.host.0.is_empty() { node.spec.host.for_scripts() } else { &node.spec.host.0 }.to_owned(),
        node.spec.port.to_string(),
        node.status.code().to_string(),
        // Quarantine belongs to Pgpool-II's watchdog.
        "0".to_owned(),
        node_words::process(node).to_owned(),
        format!("{:.6}", node_words::share(view, node) * WHOLE),
        role_code.to_owned(),
        node_words::role_of_server(view, node).to_owned(),
        node.delay_bytes.unwrap_or(0).to_string(),
        node.replication_state.clone().unwrap_or_default(),
        node.sync_state.clone().unwrap_or_default(),
        node.changed_at_s.to_string(),
    ]
}
