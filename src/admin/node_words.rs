//! What Pgpool-II says of a node in more than one of its surfaces: its share of reads, whether it answers, and which role it has.

use crate::cluster::{NodeView, Role, View};

/// Its part of all reads, by weight. A weight that is no number or negative counts as none.
pub(super) fn share(view: &View, node: &NodeView) -> f64 {
    let weight = |node: &NodeView| if node.spec.weight.is_finite() { node.spec.weight.max(0.0) } else { 0.0 };
    let total: f64 = view.nodes.iter().map(weight).sum();
    if total > 0.0 { weight(node) / total } else { 0.0 }
}

/// Whether its server answered last.
pub(super) fn process(node: &NodeView) -> &'static str {
    match node.reachable {
        Some(true) => "up",
        Some(false) => "down",
        None => "unknown",
    }
}

/// The role that pgmend gives it.
pub(super) fn role(view: &View, node: &NodeView) -> &'static str {
    match (view.mode.replicates(), view.primary == Some(node.spec.id)) {
        (true, true) => "main",
        (true, false) => "replica",
        (false, true) => "primary",
        (false, false) => "standby",
    }
}

/// The role that its server says it has. Where all are written, all say the same of themselves.
pub(super) fn role_of_server(view: &View, node: &NodeView) -> &'static str {
    match node.role {
        Role::Unknown => "unknown",
        Role::Primary if view.mode.replicates() => role(view, node),
        Role::Primary => "primary",
        Role::Standby => "standby",
    }
}
