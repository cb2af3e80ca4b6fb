//! The keeper's pure state: events in, the next view and the probes' orders out. No clock, no IO.

use super::detect::{Remark, Seen, Witness, detect};
use super::probe::ProbeReport;
use crate::base::NodeId;
use crate::cluster::{Epoch, NodeSpec, NodeStatus, NodeView, Observation, Role, View, transition};
use std::sync::Arc;

/// How the reason of a node begins that is down because its health check failed, and not because somebody ordered it.
pub const FAILED_REASON: &str = "health check failed";

/// What the core is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A round of probes ended with an answer.
    Answered(NodeId, ProbeReport),
    /// A round ended with a refusal.
    Refused(NodeId),
    /// Every try of a round failed.
    Failed(NodeId, String),
    /// Put a node in.
    Attach(NodeId, String),
    /// Take a node out.
    Detach(NodeId, String),
    /// A planned change: this node is the primary now, as the report proves.
    Switched(NodeId, ProbeReport, String),
    /// The configuration's nodes.
    Nodes(Vec<NodeSpec>),
}

/// One node.
#[derive(Debug)]
struct Node {
    spec: Arc<NodeSpec>,
    status: NodeStatus,
    reason: String,
    changed_at_s: u64,
    seen: Seen,
    /// The last report, kept while the node is not reached.
    reachable: Option<bool>,
    /// Counts changes of status or address, so that a probe that began before one is not believed after it.
    incarnation: u64,
    /// It answered at least once since this daemon runs.
    met: bool,
}

/// The state that every view is made of.
#[derive(Debug)]
pub(super) struct Core {
    nodes: Vec<Node>,
    epoch: Option<Epoch>,
    primary: Option<NodeId>,
    remarks: Vec<Remark>,
}

/// What a probing task must know; it starts a round at once when it changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    pub spec: Arc<NodeSpec>,
    pub incarnation: u64,
    /// False: unused, not probed.
    pub wanted: bool,
    /// Failures are retried.
    pub retries: bool,
    /// No primary is known: look each second.
    pub hurry: bool,
}

/// What one event changed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Status or epoch changed: must be saved before it is published.
    pub save: bool,
    /// Lines for the log, loud ones.
    pub told: Vec<String>,
}

impl Core {
    /// From the first view.
    pub fn new(view: &View) -> Core {
        let nodes = view
            .nodes
            .iter()
            .map(|n| Node {
                spec: n.spec.clone(),
                status: n.status,
                reason: n.reason.clone(),
                changed_at_s: n.changed_at_s,
                seen: Seen::Never,
                reachable: None,
                incarnation: 0,
                met: false,
            })
            .collect();
        Core { nodes, epoch: view.epoch.clone(), primary: None, remarks: Vec::new() }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when this probe's round began after the node's last change.
    pub fn is_current(&self, id: NodeId, incarnation: u64) -> bool {
        self.nodes.get(id.index()).is_some_and(|n| n.incarnation == incarnation)
    }

    /// The node's routing state.
    pub fn status(&self, id: NodeId) -> Option<NodeStatus> {
        self.nodes.get(id.index()).map(|n| n.status)
    }

    /// Applies one event.
    pub fn apply(&mut self, event: Event, now_s: u64) -> Outcome {
        let mut out = Outcome::default();
        match event {
            Event::Answered(id, report) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    node.seen = Seen::Answered(report);
                    node.reachable = Some(true);
                    node.met = true;
                    step(node, Observation::ProbeSucceeded, "answered", now_s, &mut out);
                }
            }
            Event::Refused(id) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    node.seen = Seen::Refused;
                    node.reachable = Some(true);
                }
            }
            Event::Failed(id, why) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    node.seen = Seen::Failed;
                    node.reachable = Some(false);
                    if node.spec.allow_failover {
                        step(node, Observation::ProbeFailed, &format!("{FAILED_REASON}: {why}"), now_s, &mut out);
                    }
                }
            }
            Event::Attach(id, reason) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    step(node, Observation::Attached, &reason, now_s, &mut out);
                    if out.save {
                        // What was seen of it before may be of other data.
                        node.seen = Seen::Never;
                    }
                }
            }
            Event::Detach(id, reason) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    let was = node.status;
                    step(node, Observation::Detached, &reason, now_s, &mut out);
                    if was == NodeStatus::Down {
                        // Down by failure, and now by order too: it no longer returns by itself.
                        node.reason = reason;
                        out.save = true;
                    }
                }
                if self.primary == Some(id) {
                    out.told.push(format!("node {id} was the primary: clients wait until it is attached again"));
                }
            }
            Event::Switched(to, report, reason) => self.take_switch(to, report, &reason, now_s, &mut out),
            Event::Nodes(specs) => self.take_nodes(specs, now_s, &mut out),
        }
        self.conclude(now_s, &mut out);
        out
    }

    /// The old primary is stopped and goes out; the new one's history is the one that is written.
    fn take_switch(&mut self, to: NodeId, report: ProbeReport, reason: &str, now_s: u64, out: &mut Outcome) {
        let old = self.epoch.as_ref().map(|e| e.node).or(self.primary).filter(|old| *old != to);
        for node in &mut self.nodes {
            // Whatever a probe that began before saw is of another time.
            node.incarnation += 1;
            if Some(node.spec.id) == old {
                step(node, Observation::Detached, reason, now_s, out);
                node.seen = Seen::Never;
                node.reachable = None;
            } else if node.spec.id == to {
                step(node, Observation::Attached, reason, now_s, out);
                step(node, Observation::ProbeSucceeded, reason, now_s, out);
                node.reachable = Some(true);
                node.met = true;
            }
        }
        if let (Some(system_identifier), Some(timeline)) = (report.system_identifier, report.timeline) {
            self.epoch = Some(Epoch { system_identifier, timeline, node: to });
        }
        out.save = true;
        if let Some(node) = self.nodes.get_mut(to.index()) {
            node.seen = Seen::Answered(report);
        }
    }

    /// New configuration: known nodes keep their state, new ones are down until they are recovered or attached.
    fn take_nodes(&mut self, specs: Vec<NodeSpec>, now_s: u64, out: &mut Outcome) {
        if specs.len() < self.nodes.len() {
            self.nodes.truncate(specs.len());
            out.save = true;
        }
        for (at, spec) in specs.into_iter().enumerate() {
            match self.nodes.get_mut(at) {
                Some(node) if *node.spec == spec => {}
                Some(node) => {
                    let moved = node.spec.host != spec.host || node.spec.port != spec.port;
                    node.spec = Arc::new(spec);
                    node.incarnation += 1;
                    if moved {
                        node.seen = Seen::Never;
                        node.reachable = None;
                    }
                }
                None => {
                    out.told.push(format!("node {} {} is new: recover it or attach it", spec.id, spec.label()));
                    out.save = true;
                    self.nodes.push(Node {
                        spec: Arc::new(spec),
                        status: NodeStatus::Down,
                        reason: "new: recover it or attach it".to_owned(),
                        changed_at_s: now_s,
                        seen: Seen::Never,
                        reachable: None,
                        incarnation: 0,
                        met: false,
                    });
                }
            }
        }
    }

    /// Asks `detect` and does what it says.
    fn conclude(&mut self, now_s: u64, out: &mut Outcome) {
        let mut verdict = detect(&self.witnesses(), self.epoch.as_ref());
        if let Some(node) = verdict.returns.and_then(|id| self.nodes.get_mut(id.index())) {
            step(node, Observation::Attached, "answers again, and nobody was promoted meanwhile", now_s, out);
            step(node, Observation::ProbeSucceeded, "answers again, and nobody was promoted meanwhile", now_s, out);
            verdict = detect(&self.witnesses(), self.epoch.as_ref());
        }
        if verdict.epoch != self.epoch {
            if let Some(e) = &verdict.epoch {
                out.told.push(format!(
                    "the primary is node {}, timeline {} of system {}",
                    e.node, e.timeline, e.system_identifier
                ));
            }
            self.epoch = verdict.epoch;
            out.save = true;
        }
        if verdict.primary != self.primary {
            out.told.push(match verdict.primary {
                Some(id) => format!("statements go to node {id}"),
                None => "there is no primary: clients wait".to_owned(),
            });
            self.primary = verdict.primary;
        }
        let new = verdict.remarks.iter().filter(|r| !self.remarks.contains(r)).map(Remark::to_string);
        out.told.extend(new);
        self.remarks = verdict.remarks;
    }

    fn witnesses(&self) -> Vec<Witness> {
        self.nodes
            .iter()
            .map(|n| Witness {
                id: n.spec.id,
                status: n.status,
                down_by_failure: n.status == NodeStatus::Down && n.reason.starts_with(FAILED_REASON),
                always_primary: n.spec.always_primary,
                seen: n.seen.clone(),
            })
            .collect()
    }

    /// What the probing task of a node shall do.
    pub fn order(&self, id: NodeId) -> Option<Order> {
        let node = self.nodes.get(id.index())?;
        Some(Order {
            spec: node.spec.clone(),
            incarnation: node.incarnation,
            wanted: node.status != NodeStatus::Unused,
            // A node that never answered, in a cluster that nobody knows yet, is not there: say so at once.
            retries: node.status.is_live() && (node.met || self.epoch.is_some()),
            hurry: self.primary.is_none(),
        })
    }

    /// The view, with this generation.
    pub fn view(&self, generation: u64) -> View {
        let primary = self.primary.and_then(|id| self.nodes.get(id.index())).and_then(|n| report(&n.seen));
        let nodes = self
            .nodes
            .iter()
            .map(|n| {
                let own = report(&n.seen);
                let streaming = primary
                    .filter(|_| self.primary != Some(n.spec.id))
                    .and_then(|p| p.standbys.iter().find(|s| s.application_name == n.spec.application_name));
                let delay = match (primary.and_then(|p| p.position), own) {
                    // Seen at two moments: a standby may well be ahead of the primary's older answer.
                    (Some(written), Some(own)) if own.role == Role::Standby => {
                        own.position.map(|replayed| written.0.saturating_sub(replayed.0))
                    }
                    _ => None,
                };
                let filled = |text: &String| (!text.is_empty()).then(|| text.clone());
                NodeView {
                    spec: n.spec.clone(),
                    status: n.status,
                    role: own.map_or(Role::Unknown, |r| r.role),
                    reachable: n.reachable,
                    changed_at_s: n.changed_at_s,
                    reason: n.reason.clone(),
                    delay_bytes: delay,
                    replication_state: streaming.and_then(|s| filled(&s.state)),
                    sync_state: streaming.and_then(|s| filled(&s.sync_state)),
                    position: own.and_then(|r| r.position),
                }
            })
            .collect();
        View { generation, epoch: self.epoch.clone(), primary: self.primary, nodes }
    }
}

/// What the node last said, if that is still the last thing known of it.
fn report(seen: &Seen) -> Option<&ProbeReport> {
    match seen {
        Seen::Answered(report) => Some(report),
        Seen::Never | Seen::Refused | Seen::Failed => None,
    }
}

/// The one place where a node's status changes.
fn step(node: &mut Node, seen: Observation, reason: &str, now_s: u64, out: &mut Outcome) {
    let Some(next) = transition(node.status, seen) else { return };
    out.told.push(format!("node {} {} is {next} (was {}): {reason}", node.spec.id, node.spec.label(), node.status));
    node.status = next;
    node.reason = reason.to_owned();
    node.changed_at_s = now_s;
    // A probe's own result does not make the probe outdated; an order does.
    if matches!(seen, Observation::Attached | Observation::Detached) {
        node.incarnation += 1;
    }
    out.save = true;
}

#[cfg(test)]
mod tests {
    use super::super::memory::initial_view;
    use super::super::memory::tests::{Remembered, spec};
    use super::super::probe::StandbyReport;
    use super::*;
    use crate::base::Lsn;

    fn core() -> Core {
        Core::new(&initial_view(&[spec(0, 5432), spec(1, 5433)], &Remembered::default(), 1))
    }
    fn answer(role: Role, timeline: u32, position: u64) -> ProbeReport {
        ProbeReport {
            role,
            system_identifier: Some(7),
            timeline: Some(timeline),
            position: Some(Lsn(position)),
            ..ProbeReport::default()
        }
    }
    fn primary() -> ProbeReport {
        let standby = StandbyReport {
            application_name: "pgmend_1".into(),
            state: "streaming".into(),
            sync_state: "async".into(),
        };
        ProbeReport { standbys: vec![standby], ..answer(Role::Primary, 1, 100) }
    }
    const N0: NodeId = NodeId(0);
    const N1: NodeId = NodeId(1);

    #[test]
    fn a_healthy_pair_comes_up_with_delay_and_state() {
        let mut core = core();
        core.apply(Event::Answered(N0, primary()), 2);
        let out = core.apply(Event::Answered(N1, answer(Role::Standby, 1, 90)), 3);
        assert!(out.save);
        let view = core.view(9);
        assert_eq!((view.primary, view.nodes[1].status), (Some(N0), NodeStatus::Up));
        assert_eq!(view.nodes[1].delay_bytes, Some(10));
        assert_eq!(view.nodes[1].replication_state.as_deref(), Some("streaming"));
        assert_eq!(view.nodes[0].replication_state, None);
        assert_eq!(view.nodes[1].changed_at_s, 3);
        assert_eq!(core.apply(Event::Answered(N0, primary()), 4), Outcome::default());
    }

    #[test]
    fn a_lost_standby_stays_down_and_a_lost_primary_returns() {
        let mut core = core();
        core.apply(Event::Answered(N0, primary()), 2);
        core.apply(Event::Answered(N1, answer(Role::Standby, 1, 90)), 2);
        core.apply(Event::Failed(N1, "refused".into()), 3);
        core.apply(Event::Answered(N1, answer(Role::Standby, 1, 90)), 4);
        assert_eq!(core.status(N1), Some(NodeStatus::Down));
        core.apply(Event::Failed(N0, "refused".into()), 5);
        assert_eq!(core.view(1).primary, None);
        core.apply(Event::Answered(N0, primary()), 6);
        assert_eq!((core.view(1).primary, core.status(N0)), (Some(N0), Some(NodeStatus::Up)));
    }

    #[test]
    fn a_detached_primary_comes_back_by_attach_only() {
        let mut core = core();
        core.apply(Event::Answered(N0, primary()), 2);
        core.apply(Event::Answered(N1, answer(Role::Standby, 1, 90)), 2);
        let out = core.apply(Event::Detach(N0, "ordered".into()), 3);
        assert!(out.told.iter().any(|t| t.contains("was the primary")));
        core.apply(Event::Answered(N0, primary()), 4);
        assert_eq!((core.view(1).primary, core.status(N0)), (None, Some(NodeStatus::Down)));
        core.apply(Event::Attach(N0, "ordered".into()), 5);
        assert_eq!(core.status(N0), Some(NodeStatus::Waiting));
        core.apply(Event::Answered(N0, primary()), 6);
        assert_eq!(core.view(1).primary, Some(N0));
    }

    #[test]
    fn an_order_outdates_the_probes_that_began_before_it() {
        let mut core = core();
        core.apply(Event::Failed(N1, "refused".into()), 2);
        let before = core.order(N1).unwrap().incarnation;
        core.apply(Event::Attach(N1, "ordered".into()), 3);
        assert!(!core.is_current(N1, before));
        assert!(core.is_current(N1, core.order(N1).unwrap().incarnation));
    }

    #[test]
    fn a_planned_switch_moves_the_epoch_and_outdates_every_probe() {
        let mut core = core();
        core.apply(Event::Answered(N0, primary()), 2);
        core.apply(Event::Answered(N1, answer(Role::Standby, 1, 90)), 2);
        let before = core.order(N1).unwrap().incarnation;
        let out = core.apply(Event::Switched(N1, answer(Role::Primary, 2, 200), "planned".into()), 3);
        assert!(out.save && !core.is_current(N1, before));
        let view = core.view(5);
        assert_eq!(
            (view.primary, core.status(N0), core.status(N1)),
            (Some(N1), Some(NodeStatus::Down), Some(NodeStatus::Up))
        );
        assert_eq!(view.epoch, Some(Epoch { system_identifier: 7, timeline: 2, node: N1 }));
        // The old primary comes back by itself as what it was: it is not believed.
        core.apply(Event::Answered(N0, primary()), 6);
        assert_eq!((core.view(6).primary, core.status(N0)), (Some(N1), Some(NodeStatus::Down)));
    }

    #[test]
    fn a_node_added_by_reload_is_down() {
        let mut core = core();
        let out = core.apply(Event::Nodes(vec![spec(0, 5432), spec(1, 5433), spec(2, 5434)]), 2);
        assert!(out.save);
        assert_eq!((core.len(), core.status(NodeId(2))), (3, Some(NodeStatus::Down)));
        core.apply(Event::Nodes(vec![spec(0, 5432)]), 3);
        assert_eq!(core.len(), 1);
    }

    #[test]
    fn a_node_that_may_not_fail_over_stays() {
        let mut kept = spec(0, 5432);
        kept.allow_failover = false;
        let mut core = Core::new(&initial_view(&[kept], &Remembered::default(), 1));
        core.apply(Event::Answered(N0, primary()), 2);
        core.apply(Event::Failed(N0, "refused".into()), 3);
        let view = core.view(1);
        assert_eq!((view.nodes[0].status, view.nodes[0].reachable), (NodeStatus::Up, Some(false)));
        assert_eq!(view.primary, Some(N0));
    }
}
