//! The keeper's pure state: events in, the next view and the probes' orders out. No clock, no IO.

use super::detect::{Remark, Seen, Witness, detect};
use super::equals::{Peer, settle};
use super::probe::ProbeReport;
use crate::base::NodeId;
use crate::cluster::{DataState, Epoch, Mode, NodeSpec, NodeStatus, NodeView, Observation, Role, View, transition};
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
    /// Its data are not those of the others: take it out, and let nobody attach it as it is.
    Diverged(NodeId, String),
    /// It came up when the gate was open already: it may have missed a write.
    TooLate(NodeId),
    /// What the comparison of a node with this main node found.
    Compared { main: NodeId, node: NodeId, found: Comparison },
    /// A planned change: this node is the primary now, as the report proves.
    Switched(NodeId, ProbeReport, String),
    /// The configuration's nodes.
    Nodes(Vec<NodeSpec>),
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// No difference.
    Equal,
    /// A difference, for people.
    Differs(String),
    /// It could not be made.
    Unknown(String),
}

/// One node.
#[derive(Debug)]
struct Node {
    spec: Arc<NodeSpec>,
    status: NodeStatus,
    reason: String,
    changed_at_s: u64,
    data: DataState,
    seen: Seen,
    /// Why the last round failed.
    failure: String,
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
    mode: Mode,
    /// Something was known of the cluster before this daemon started.
    known: bool,
    nodes: Vec<Node>,
    epoch: Option<Epoch>,
    primary: Option<NodeId>,
    compare: Option<(NodeId, Vec<NodeId>)>,
    remarks: Vec<String>,
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
                data: n.data,
                seen: Seen::Never,
                failure: String::new(),
                reachable: None,
                incarnation: 0,
                met: false,
            })
            .collect();
        let epoch = view.epoch.clone().filter(|_| !view.mode.replicates());
        let known = epoch.is_some() || (view.mode.replicates() && view.generation > 1);
        Core { mode: view.mode, known, nodes, epoch, primary: None, compare: None, remarks: Vec::new() }
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

    /// Whether the node's data are those of the others; `None` where that is not asked.
    pub fn data(&self, id: NodeId) -> Option<(DataState, &str)> {
        let node = self.nodes.get(id.index()).filter(|_| self.mode.replicates())?;
        Some((node.data, &node.reason))
    }

    /// True when this node is the last one that takes part: it has the truth.
    pub fn is_last(&self, id: NodeId) -> bool {
        self.nodes.iter().all(|n| !n.status.is_live() || n.spec.id == id)
    }

    /// True when a node that is out of it has the data that were written last: it was the last one to leave.
    pub fn truth_is_out(&self) -> bool {
        self.nodes.iter().any(|n| n.status == NodeStatus::Down && n.data == DataState::Trusted)
    }

    /// True when a node takes part, or may soon.
    pub fn any_live(&self) -> bool {
        self.nodes.iter().any(|n| n.status.is_live())
    }

    /// The main node and the nodes that must be compared with it before anything is sent to anybody.
    pub fn comparison(&self) -> Option<&(NodeId, Vec<NodeId>)> {
        self.compare.as_ref()
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
                    // Equals come up together: `settle` says when.
                    if !self.mode.replicates() {
                        step(node, Observation::ProbeSucceeded, "answered", now_s, &mut out);
                    }
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
                    // Among equals a failure counts only beside another's answer: `settle` says who leaves.
                    if node.spec.allow_failover && !self.mode.replicates() {
                        step(node, Observation::ProbeFailed, &format!("{FAILED_REASON}: {why}"), now_s, &mut out);
                    }
                    node.failure = why;
                }
            }
            Event::Attach(id, reason) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    step(node, Observation::Attached, &reason, now_s, &mut out);
                    if out.save {
                        // What was seen of it before may be of other data.
                        node.seen = Seen::Never;
                        node.data = DataState::Trusted;
                    }
                }
            }
            Event::Detach(id, reason) => {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    let was = node.status;
                    step(node, Observation::Detached, &reason, now_s, &mut out);
                    if was == NodeStatus::Down && node.data != DataState::Diverged {
                        // Down by failure, and now by order too: it no longer returns by itself.
                        node.reason = reason;
                        out.save = true;
                    }
                }
                if self.primary == Some(id) && !self.mode.replicates() {
                    out.told.push(format!("node {id} was the primary: clients wait until it is attached again"));
                }
            }
            Event::Diverged(id, reason) => self.leave(id, &reason, DataState::Diverged, now_s, &mut out),
            Event::TooLate(id) => {
                let why = "the gate was opened before it was attached";
                self.leave(id, why, DataState::Unverified, now_s, &mut out);
            }
            Event::Compared { main, node, found } => {
                let awaited = self.compare.as_ref().is_some_and(|(m, nodes)| *m == main && nodes.contains(&node));
                match found {
                    Comparison::Equal if awaited => {
                        let nodes = self.nodes.iter_mut().filter(|n| n.spec.id == node || n.spec.id == main);
                        nodes.for_each(|n| n.data = DataState::Trusted);
                        out.told.push(format!("node {node} has the data of node {main}"));
                        out.save = true;
                    }
                    Comparison::Differs(why) if awaited => {
                        let why = format!("its data are not those of node {main}: {why}");
                        self.leave(node, &why, DataState::Diverged, now_s, &mut out);
                    }
                    Comparison::Unknown(why) if awaited => {
                        let why = format!("it could not be compared with node {main}: {why}");
                        self.leave(node, &why, DataState::Unverified, now_s, &mut out);
                    }
                    // Of a main node that is none any more.
                    Comparison::Equal | Comparison::Differs(_) | Comparison::Unknown(_) => {}
                }
            }
            Event::Switched(to, report, reason) => self.take_switch(to, report, &reason, now_s, &mut out),
            Event::Nodes(specs) => self.take_nodes(specs, now_s, &mut out),
        }
        if self.mode.replicates() {
            self.conclude_equals(now_s, &mut out)
        } else {
            self.conclude(now_s, &mut out)
        }
        out
    }

    /// A node that leaves those that are kept equal, or has left them already.
    fn leave(&mut self, id: NodeId, reason: &str, data: DataState, now_s: u64, out: &mut Outcome) {
        let Some(node) = self.nodes.get_mut(id.index()) else { return };
        step(node, Observation::Detached, reason, now_s, out);
        if node.data != DataState::Diverged && node.status == NodeStatus::Down {
            node.data = data;
            node.reason = reason.to_owned();
            out.save = true;
        }
    }

    /// Asks `settle` and does what it says, until nothing changes any more.
    fn conclude_equals(&mut self, now_s: u64, out: &mut Outcome) {
        let mut settled = settle(&self.peers());
        // Each turn takes a node out or puts one in, and none of them twice.
        for _ in 0..=self.nodes.len() {
            if settled.leave.is_empty() && settled.up.is_empty() {
                break;
            }
            for (id, why) in std::mem::take(&mut settled.leave) {
                self.leave(id, &why, DataState::Unverified, now_s, out);
            }
            for id in std::mem::take(&mut settled.up) {
                if let Some(node) = self.nodes.get_mut(id.index()) {
                    step(node, Observation::ProbeSucceeded, "takes part", now_s, out);
                    node.data = DataState::Trusted;
                }
            }
            settled = settle(&self.peers());
        }
        if settled.main != self.primary {
            out.told.push(match settled.main {
                Some(id) => format!("the main node is node {id}"),
                None => "there is no main node: clients wait".to_owned(),
            });
            self.primary = settled.main;
        }
        if self.primary.is_some() {
            // From here on the others may be written without them.
            for node in self.nodes.iter_mut().filter(|n| n.status == NodeStatus::Down && n.data == DataState::Trusted) {
                node.data = DataState::Unverified;
                out.save = true;
            }
        }
        self.compare = settled.compare;
        self.remark(settled.remarks, out);
    }

    /// Tells what was not told before.
    fn remark(&mut self, remarks: Vec<String>, out: &mut Outcome) {
        out.told.extend(remarks.iter().filter(|r| !self.remarks.contains(r)).cloned());
        self.remarks = remarks;
    }

    fn peers(&self) -> Vec<Peer> {
        let peers = self.nodes.iter().map(|n| Peer {
            id: n.spec.id,
            status: n.status,
            data: n.data,
            seen: n.seen.clone(),
            failure: n.failure.clone(),
            may_leave: n.spec.allow_failover,
        });
        peers.collect()
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
                        data: if self.mode.replicates() { DataState::Unverified } else { DataState::Trusted },
                        seen: Seen::Never,
                        failure: String::new(),
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
        self.remark(verdict.remarks.iter().map(Remark::to_string).collect(), out);
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
            retries: node.status.is_live() && (node.met || self.known || self.epoch.is_some()),
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
                    data: n.data,
                    delay_bytes: delay,
                    replication_state: streaming.and_then(|s| filled(&s.state)),
                    sync_state: streaming.and_then(|s| filled(&s.sync_state)),
                    position: own.and_then(|r| r.position),
                }
            })
            .collect();
        View { generation, mode: self.mode, epoch: self.epoch.clone(), primary: self.primary, nodes }
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
        Core::new(&initial_view(&[spec(0, 5432), spec(1, 5433)], Mode::default(), &Remembered::default(), 1))
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
        let mut core = Core::new(&initial_view(&[kept], Mode::default(), &Remembered::default(), 1));
        core.apply(Event::Answered(N0, primary()), 2);
        core.apply(Event::Failed(N0, "refused".into()), 3);
        let view = core.view(1);
        assert_eq!((view.nodes[0].status, view.nodes[0].reachable), (NodeStatus::Up, Some(false)));
        assert_eq!(view.primary, Some(N0));
    }

    fn equals(live: usize) -> Core {
        let specs = [spec(0, 5432), spec(1, 5433), spec(2, 5434)];
        let mut core = Core::new(&initial_view(&specs[..live], Mode::NativeReplication, &Remembered::default(), 1));
        for id in 0..live {
            core.apply(Event::Answered(NodeId(u16::try_from(id).unwrap()), answer(Role::Primary, 1, 100)), 2);
        }
        core
    }
    fn live(core: &Core) -> Vec<u16> {
        core.view(1).live().map(|n| n.spec.id.0).collect()
    }

    #[test]
    fn equals_come_up_together_once_they_are_compared() {
        let mut core = equals(3);
        assert_eq!((live(&core), core.view(1).primary), (vec![], None));
        assert_eq!(core.comparison(), Some(&(N0, vec![N1, NodeId(2)])));
        core.apply(Event::Compared { main: N0, node: NodeId(2), found: Comparison::Differs("table t".into()) }, 3);
        assert_eq!(live(&core), [0u16; 0]);
        // Of another main node than the one that is awaited.
        core.apply(Event::Compared { main: N1, node: N1, found: Comparison::Equal }, 3);
        assert_eq!(live(&core), [0u16; 0]);
        let out = core.apply(Event::Compared { main: N0, node: N1, found: Comparison::Equal }, 4);
        assert!(out.save);
        let view = core.view(1);
        assert_eq!((live(&core), view.main_node(), view.epoch.clone()), (vec![0, 1], Some(N0), None));
        assert_eq!(view.nodes[2].data, DataState::Diverged);
        assert_eq!(view.nodes[2].reason, "its data are not those of node 0: table t");
        assert_eq!(core.comparison(), None);
    }

    #[test]
    fn a_node_that_differs_is_out_and_keeps_its_mark() {
        let mut core = equals(2);
        core.apply(Event::Compared { main: N0, node: N1, found: Comparison::Equal }, 3);
        core.apply(Event::Diverged(N0, "rows affected: 1 and 2".into()), 4);
        let view = core.view(1);
        assert_eq!(
            (live(&core), view.nodes[0].status, view.nodes[0].data),
            (vec![1], NodeStatus::Down, DataState::Diverged)
        );
        core.apply(Event::Detach(N0, "detached by an operator".into()), 5);
        assert_eq!(core.view(1).nodes[0].reason, "rows affected: 1 and 2");
        assert!(core.is_last(N1));
        core.apply(Event::Failed(N1, "refused".into()), 6);
        assert_eq!(live(&core), [1], "the last one has the truth");
        core.apply(Event::Answered(N1, answer(Role::Primary, 1, 100)), 6);
        // A recovery vouches for it: up again at its first answer.
        core.apply(Event::Attach(N0, "recovered".into()), 7);
        assert_eq!(live(&core), [1]);
        core.apply(Event::Answered(N0, answer(Role::Primary, 2, 100)), 8);
        assert_eq!((live(&core), core.view(1).main_node()), (vec![0, 1], Some(N0)));
    }

    #[test]
    fn who_is_taken_out_last_is_the_truth_until_others_serve() {
        let mut core = equals(2);
        core.apply(Event::Compared { main: N0, node: N1, found: Comparison::Equal }, 3);
        core.apply(Event::Detach(N0, "by an operator".into()), 4);
        assert_eq!(core.data(N0).unwrap().0, DataState::Unverified);
        core.apply(Event::Detach(N1, "by an operator".into()), 5);
        assert_eq!((core.data(N1).unwrap().0, core.any_live(), core.truth_is_out()), (DataState::Trusted, false, true));
        core.apply(Event::Attach(N0, "accepted".into()), 6);
        core.apply(Event::Answered(N0, answer(Role::Primary, 1, 1)), 7);
        assert_eq!((live(&core), core.data(N1).unwrap().0), (vec![0], DataState::Unverified));
    }
}
