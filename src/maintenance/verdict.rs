//! The cluster in one word, with the reasons: what a monitor asks for, and what a person looks at first.

use crate::base::NodeId;
use crate::cluster::{NodeStatus, NodeView, Role, View};
use crate::store::Upkeep;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// A standby could take over now.
    Switchable,
    /// A change of the primary is under way.
    Switching,
    /// The primary has changed, and nobody could take over from the new one yet.
    Switched,
    /// No standby could take over.
    NotSwitchable,
    /// One could, but nobody does so by himself: an operator has said so.
    FailoverDisabled,
    /// There is no primary, or nobody knows.
    Unknown,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Word::Switchable => "switchable",
            Word::Switching => "switching",
            Word::Switched => "switched",
            Word::NotSwitchable => "not-switchable",
            Word::FailoverDisabled => "failover-disabled",
            Word::Unknown => "unknown",
        })
    }
}

/// A node, for people and monitors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    /// Which.
    pub node: NodeId,
    /// `primary`, `standby`, `none (inactivated primary)`, `none (inactivated standby)`, `unknown`.
    pub role: String,
    /// host(port).
    pub host: String,
    /// Its server: `answers`, `does not answer`, `unknown`.
    pub process: String,
    /// Room where its data are: `12.3 GiB free`, `unknown`.
    pub disk: String,
}

/// The word and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// In one word.
    pub word: Word,
    /// Why it is not better.
    pub reasons: Vec<String>,
    /// What should be known besides.
    pub remarks: Vec<String>,
    /// A line per node.
    pub nodes: Vec<NodeLine>,
}

/// Judges by what was last seen. `switching`: a job that changes the primary is running.
pub(super) fn verdict(view: &View, upkeep: &Upkeep, switching: bool, disks: &[Option<u64>]) -> Verdict {
    let nodes = view.nodes.iter().enumerate().map(|(at, n)| line(n, view, disks.get(at).copied().flatten())).collect();
    let mut reasons = Vec::new();
    let word = word(view, upkeep, switching, &mut reasons);
    Verdict { word, reasons, remarks: remarks(upkeep), nodes }
}

fn word(view: &View, upkeep: &Upkeep, switching: bool, reasons: &mut Vec<String>) -> Word {
    if switching {
        return Word::Switching;
    }
    let Some(primary) = view.primary else {
        reasons.push("no node is known to be the primary".to_owned());
        return Word::Unknown;
    };
    if view.mode.replicates() {
        // Every node has every write: whoever is left serves.
        if view.nodes.iter().filter(|n| n.status == NodeStatus::Up).count() > 1 {
            return Word::Switchable;
        }
        reasons.push(format!("only node {primary} is up"));
        return Word::NotSwitchable;
    }
    let others: Vec<&NodeView> =
        view.nodes.iter().filter(|n| n.spec.id != primary && n.status != NodeStatus::Unused).collect();
    if others.is_empty() {
        reasons.push("there is no other node".to_owned());
    }
    let why_not: Vec<Option<String>> = others.iter().map(|n| why_not(n, upkeep)).collect();
    let able = why_not.iter().any(Option::is_none);
    if !able {
        reasons.extend(why_not.into_iter().flatten());
        let was_primary =
            |n: &&&NodeView| n.reason.starts_with(super::SWITCHOVER) || n.reason.starts_with(super::FAILOVER);
        return if others.iter().find(was_primary).is_some() { Word::Switched } else { Word::NotSwitchable };
    }
    if upkeep.failover_disabled {
        reasons.push("`pgmend failover disable` is in force".to_owned());
        return Word::FailoverDisabled;
    }
    Word::Switchable
}

/// Why a standby could not take over; `None`: it could.
fn why_not(node: &NodeView, upkeep: &Upkeep) -> Option<String> {
    let id = node.spec.id;
    if upkeep.nodes.contains_key(&id.0) {
        return Some(format!("node {id} is in maintenance"));
    }
    match node.status {
        NodeStatus::Down => return Some(format!("node {id} is down: {}", node.reason)),
        NodeStatus::Unused => return Some(format!("node {id} is not in use")),
        NodeStatus::Waiting => return Some(format!("node {id} was not probed yet")),
        NodeStatus::Up => {}
    }
    if node.role != Role::Standby {
        return Some(format!("node {id} is no standby"));
    }
    match node.replication_state.as_deref() {
        Some("streaming") => None,
        Some(state) => Some(format!("node {id} is in state {state}")),
        None => {
            Some(format!("node {id} does not stream from the primary under the name {}", node.spec.application_name))
        }
    }
}

fn remarks(upkeep: &Upkeep) -> Vec<String> {
    let mut remarks = Vec::new();
    if upkeep.backup_due_since_s.is_some() {
        remarks.push("a backup is due: the timeline is new (`pgmend backed-up` when it is made)".to_owned());
    }
    if let Some(rolling) = &upkeep.rolling {
        let done: Vec<String> = rolling.done.iter().map(ToString::to_string).collect();
        remarks.push(format!("a rolling update was left, done: node {}; --resume goes on", done.join(", ")));
    }
    for node in &upkeep.ineligible {
        remarks.push(format!("node {node} may lack acknowledged commits until it is synchronous again"));
    }
    remarks
}

fn line(node: &NodeView, view: &View, free: Option<u64>) -> NodeLine {
    let inactive = !node.status.is_live();
    let was_primary = view.epoch.as_ref().is_some_and(|e| e.node == node.spec.id)
        || node.reason.starts_with(super::SWITCHOVER)
        || node.reason.starts_with(super::FAILOVER);
    let role = match (inactive, node.role, was_primary) {
        (true, _, true) => "none (inactivated primary)",
        (true, _, false) => "none (inactivated standby)",
        (false, Role::Primary, _) => "primary",
        (false, Role::Standby, _) => "standby",
        (false, Role::Unknown, _) => "unknown",
    };
    let process = match node.reachable {
        Some(true) => "answers",
        Some(false) => "does not answer",
        None => "unknown",
    };
    let gib = |bytes: u64| format!("{}.{} GiB free", bytes >> 30, ((bytes >> 20) & 1023) * 10 / 1024);
    NodeLine {
        node: node.spec.id,
        role: role.to_owned(),
        host: node.spec.label(),
        process: process.to_owned(),
        disk: free.map_or_else(|| "unknown".to_owned(), gib),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{DataState, Epoch, Mode, NodeSpec};
    use crate::store::NodeUpkeep;
    use std::sync::Arc;

    fn node(id: u16, status: NodeStatus, role: Role) -> NodeView {
        NodeView {
            spec: Arc::new(NodeSpec::sample(id)),
            status,
            role,
            reachable: Some(status == NodeStatus::Up),
            changed_at_s: 0,
            reason: "r".into(),
            data: DataState::default(),
            delay_bytes: None,
            replication_state: (role == Role::Standby).then(|| "streaming".into()),
            sync_state: None,
            position: None,
        }
    }

    fn pair() -> View {
        let nodes = vec![node(0, NodeStatus::Up, Role::Primary), node(1, NodeStatus::Up, Role::Standby)];
        let epoch = Some(Epoch { system_identifier: 1, timeline: 1, node: NodeId(0) });
        View { generation: 1, mode: Mode::default(), epoch, primary: Some(NodeId(0)), nodes }
    }

    fn word_of(change: impl FnOnce(&mut View, &mut Upkeep)) -> (Word, Vec<String>) {
        let (mut view, mut upkeep) = (pair(), Upkeep::default());
        change(&mut view, &mut upkeep);
        let verdict = verdict(&view, &upkeep, false, &[Some(3 << 29)]);
        (verdict.word, verdict.reasons)
    }

    #[test]
    fn one_word_and_why() {
        assert_eq!(word_of(|_, _| ()), (Word::Switchable, vec![]));
        assert_eq!(word_of(|_, u| u.failover_disabled = true).0, Word::FailoverDisabled);
        assert_eq!(word_of(|v, _| v.primary = None).0, Word::Unknown);
        let (word, why) = word_of(|_, u| drop(u.nodes.insert(1, NodeUpkeep::default())));
        assert_eq!((word, why[0].as_str()), (Word::NotSwitchable, "node 1 is in maintenance"));
        let (word, why) = word_of(|v, _| v.nodes[1].replication_state = None);
        assert!(word == Word::NotSwitchable && why[0].contains("does not stream"), "{why:?}");
        let (word, _) = word_of(|v, _| {
            v.nodes[1] = NodeView { reason: "switchover by job 3".into(), ..node(1, NodeStatus::Down, Role::Unknown) };
        });
        assert_eq!(word, Word::Switched);
        assert_eq!(verdict(&pair(), &Upkeep::default(), true, &[]).word, Word::Switching);
        let replicating = |v: &mut View| v.mode = Mode::NativeReplication;
        assert_eq!(word_of(|v, _| replicating(v)).0, Word::Switchable);
        let (word, _) = word_of(|v, _| {
            replicating(v);
            v.nodes[1].status = NodeStatus::Down;
        });
        assert_eq!(word, Word::NotSwitchable);
        assert_eq!(serde_json::to_string(&Word::NotSwitchable).unwrap(), "\"not-switchable\"");
    }

    #[test]
    fn a_line_per_node() {
        let mut view = pair();
        view.nodes[1].status = NodeStatus::Down;
        let lines = verdict(&view, &Upkeep::default(), false, &[Some(3 << 29), None]).nodes;
        assert_eq!((lines[0].role.as_str(), lines[0].disk.as_str()), ("primary", "1.5 GiB free"));
        assert_eq!((lines[1].role.as_str(), lines[1].disk.as_str()), ("none (inactivated standby)", "unknown"));
    }
}
