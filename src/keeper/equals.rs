//! Who takes part where pgmend itself keeps the nodes equal: a pure function of what was last seen of every node.

use super::FAILED_REASON;
use super::detect::Seen;
use super::probe::ProbeReport;
use crate::base::NodeId;
use crate::cluster::{DataState, NodeStatus, Role};

/// One node, as `settle` looks at it.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Its routing state.
    pub status: NodeStatus,
    /// Whether its data are those of the others.
    pub data: DataState,
    /// What was last seen.
    pub seen: Seen,
    /// Why, when it failed.
    pub failure: String,
    /// False: `backend_flag` DISALLOW_TO_FAILOVER, a failed health check does not take it out.
    pub may_leave: bool,
}

/// What `settle` concludes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Settled {
    /// The main node, to which and to whose peers statements go.
    pub main: Option<NodeId>,
    /// Nodes that come up now, together.
    pub up: Vec<NodeId>,
    /// Nodes that leave, and why.
    pub leave: Vec<(NodeId, String)>,
    /// Nodes that must be compared with this main node before anything is sent to anybody.
    pub compare: Option<(NodeId, Vec<NodeId>)>,
    /// Told once, until it changes.
    pub remarks: Vec<String>,
}

/// Who takes part.
///
/// 1. While a node is up, the up nodes are those that take part; the lowest is the main node. A node that waits comes up as
///    soon as it answered: it was attached behind a held gate, or there was nobody to differ from.
/// 2. An up node leaves when it is in recovery, is of another major version than the main node, or failed its health check
///    while another up node answers. The last one never leaves: it has the truth, and clients wait for it or meet its errors.
/// 3. While no node is up (a start) nothing is sent to anybody until every live node has answered or failed, and one at
///    least answered: a node that came later would have missed writes. Those that failed or cannot take part leave.
/// 4. Of those that are left the lowest trusted one is the main node, else the lowest. Unverified ones are compared with
///    it first. Then all of them come up together.
pub fn settle(nodes: &[Peer]) -> Settled {
    let mut settled = Settled::default();
    let of_status = |status| nodes.iter().filter(move |n: &&Peer| n.status == status);
    if of_status(NodeStatus::Up).next().is_some() {
        serving(nodes, &mut settled);
    } else {
        starting(&of_status(NodeStatus::Waiting).collect::<Vec<_>>(), &mut settled);
    }
    settled
}

/// Rules 1 and 2.
fn serving(nodes: &[Peer], settled: &mut Settled) {
    let up: Vec<&Peer> = nodes.iter().filter(|n| n.status == NodeStatus::Up).collect();
    let healthy: Vec<&&Peer> = up.iter().filter(|n| answered(n).is_some() && unfit(n).is_none()).collect();
    let major = healthy.iter().find_map(|n| major_of(n));
    let mut left = Vec::new();
    for node in &up {
        let why = failed(node).or_else(|| unfit(node)).or_else(|| other_major(node, major));
        match why {
            Some(why) if healthy.iter().any(|other| other.id != node.id) => settled.leave.push((node.id, why)),
            // Nobody else is known to answer: it stays, and when it cannot be reached clients meet its errors.
            Some(why) if unfit(node).is_some() => {
                settled.remarks.push(format!("node {} cannot be written to: {why}", node.id));
            }
            Some(_) | None => left.push(node.id),
        }
    }
    for node in nodes.iter().filter(|n| n.status == NodeStatus::Waiting && answered(n).is_some()) {
        match unfit(node).or_else(|| other_major(node, major)) {
            None if node.data == DataState::Trusted => settled.up.push(node.id),
            None => settled.leave.push((node.id, "it was not compared with the others".to_owned())),
            Some(why) => settled.leave.push((node.id, why)),
        }
    }
    settled.main = left.first().map(|main| settled.up.iter().fold(*main, |least, id| least.min(*id)));
}

/// Rules 3 and 4.
fn starting(waiting: &[&Peer], settled: &mut Settled) {
    let unknown: Vec<&&Peer> = waiting.iter().filter(|n| matches!(n.seen, Seen::Never | Seen::Refused)).collect();
    for node in unknown.iter().filter(|n| n.seen == Seen::Refused) {
        let id = node.id;
        settled
            .remarks
            .push(format!("node {id} refuses the health check: nothing is sent to any node before it answers"));
    }
    let fit: Vec<&&Peer> = waiting.iter().filter(|n| answered(n).is_some() && unfit(n).is_none()).collect();
    if !unknown.is_empty() {
        return;
    }
    let Some(main) = fit.iter().find(|n| n.data == DataState::Trusted).or_else(|| fit.first()) else {
        for node in waiting {
            if let Some(why) = unfit(node) {
                settled.remarks.push(format!("node {} cannot be written to: {why}", node.id));
            }
        }
        return;
    };
    let major = major_of(main);
    let mut compare = Vec::new();
    for node in waiting {
        // Also a node that may not fail over: it would miss what is written from now on.
        let failed = (node.seen == Seen::Failed).then(|| format!("{FAILED_REASON}: {}", node.failure));
        if let Some(why) = failed.or_else(|| unfit(node)).or_else(|| other_major(node, major)) {
            settled.leave.push((node.id, why));
        } else if node.id == main.id || node.data == DataState::Trusted {
            settled.up.push(node.id);
        } else {
            compare.push(node.id);
        }
    }
    if compare.is_empty() {
        settled.main = settled.up.first().copied();
    } else {
        settled.compare = Some((main.id, compare));
        settled.up.clear();
    }
}

/// Why a node leaves whose health check failed.
fn failed(node: &Peer) -> Option<String> {
    (node.seen == Seen::Failed && node.may_leave).then(|| format!("{FAILED_REASON}: {}", node.failure))
}

/// Why a node that answered cannot take part.
fn unfit(node: &Peer) -> Option<String> {
    let in_recovery = answered(node)?.role == Role::Standby;
    in_recovery.then(|| "it is in recovery (a standby), so nothing can be written to it".to_owned())
}

fn other_major(node: &Peer, main: Option<u32>) -> Option<String> {
    let (own, main) = (major_of(node)?, main?);
    (own != main).then(|| format!("it is PostgreSQL {own}, the main node is PostgreSQL {main}"))
}

fn major_of(node: &Peer) -> Option<u32> {
    answered(node)?.major
}

fn answered(node: &Peer) -> Option<&ProbeReport> {
    match &node.seen {
        Seen::Answered(report) => Some(report),
        Seen::Never | Seen::Refused | Seen::Failed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataState::{Trusted, Unverified};
    use NodeStatus::{Down, Up, Waiting};

    fn answer(role: Role, major: u32) -> Seen {
        Seen::Answered(ProbeReport { role, major: Some(major), ..ProbeReport::default() })
    }
    fn ok() -> Seen {
        answer(Role::Primary, 17)
    }
    fn peer(id: u16, status: NodeStatus, data: DataState, seen: Seen) -> Peer {
        Peer { id: NodeId(id), status, data, seen, failure: "refused".into(), may_leave: true }
    }
    fn ids(nodes: &[NodeId]) -> Vec<u16> {
        nodes.iter().map(|n| n.0).collect()
    }

    #[test]
    fn nothing_is_sent_before_every_node_is_known() {
        let mut nodes = vec![peer(0, Waiting, Trusted, Seen::Never), peer(1, Waiting, Trusted, ok())];
        assert_eq!(settle(&nodes), Settled::default());
        nodes[0].seen = Seen::Refused;
        let settled = settle(&nodes);
        assert_eq!((settled.main, settled.up.len(), settled.remarks.len()), (None, 0, 1));
        nodes[0].seen = Seen::Failed;
        let settled = settle(&nodes);
        assert_eq!((settled.main, ids(&settled.up)), (Some(NodeId(1)), vec![1]));
        assert_eq!(settled.leave, [(NodeId(0), "health check failed: refused".to_owned())]);
    }

    #[test]
    fn all_that_fail_at_the_start_are_waited_for() {
        let nodes = vec![peer(0, Waiting, Trusted, Seen::Failed), peer(1, Waiting, Trusted, Seen::Failed)];
        assert_eq!(settle(&nodes), Settled::default());
    }

    #[test]
    fn the_unverified_are_compared_before_anything_is_sent() {
        let nodes = [
            peer(0, Waiting, Unverified, ok()),
            peer(1, Waiting, Trusted, ok()),
            peer(2, Waiting, Unverified, ok()),
            peer(3, Down, Unverified, ok()),
        ];
        let settled = settle(&nodes);
        assert_eq!(settled.compare, Some((NodeId(1), vec![NodeId(0), NodeId(2)])));
        assert_eq!((settled.main, settled.up), (None, vec![]));
        let nodes = [peer(0, Waiting, Trusted, ok()), peer(1, Waiting, Trusted, ok())];
        let settled = settle(&nodes);
        assert_eq!((settled.main, ids(&settled.up), settled.compare), (Some(NodeId(0)), vec![0, 1], None));
    }

    #[test]
    fn a_failed_node_leaves_only_while_another_answers() {
        let mut nodes = vec![peer(0, Up, Trusted, Seen::Failed), peer(1, Up, Trusted, ok())];
        let settled = settle(&nodes);
        assert_eq!((settled.main, settled.leave.len()), (Some(NodeId(1)), 1));
        nodes[1].seen = Seen::Failed;
        let settled = settle(&nodes);
        assert_eq!((settled.main, settled.leave.len()), (Some(NodeId(0)), 0));
        nodes[1].seen = ok();
        nodes[0].may_leave = false;
        assert_eq!(settle(&nodes).leave, []);
    }

    #[test]
    fn a_standby_and_another_major_version_do_not_take_part() {
        let nodes = [
            peer(0, Up, Trusted, ok()),
            peer(1, Up, Trusted, answer(Role::Standby, 17)),
            peer(2, Waiting, Trusted, answer(Role::Primary, 16)),
        ];
        let settled = settle(&nodes);
        let left: Vec<u16> = settled.leave.iter().map(|(id, _)| id.0).collect();
        assert_eq!((settled.main, left, settled.up), (Some(NodeId(0)), vec![1, 2], vec![]));
        // The last one stays, but nobody is sent to it.
        let settled = settle(&nodes[1..2]);
        assert_eq!((settled.main, settled.leave.len(), settled.remarks.len()), (None, 0, 1));
    }

    #[test]
    fn an_attached_node_joins_those_that_serve() {
        let nodes = [peer(0, Waiting, Trusted, ok()), peer(1, Up, Trusted, ok())];
        let settled = settle(&nodes);
        assert_eq!((settled.main, ids(&settled.up)), (Some(NodeId(0)), vec![0]));
    }
}
