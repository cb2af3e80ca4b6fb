//! Who is the primary: a pure function of what was last seen of every node and of the epoch.

use super::probe::ProbeReport;
use crate::base::NodeId;
use crate::cluster::{Epoch, NodeStatus, Role};
use std::fmt;

/// What the last whole round of probes (with its retries) learnt of a node.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Seen {
    /// No round has ended yet.
    #[default]
    Never,
    /// It answered.
    Answered(ProbeReport),
    /// A server is there but did not let the probe in (wrong password, too many connections): role unknown, not lost.
    Refused,
    /// It could not be reached, after all retries.
    Failed,
}

/// One node, as `detect` looks at it.
#[derive(Clone, Debug, PartialEq)]
pub struct Witness {
    /// Its number.
    pub id: NodeId,
    /// Its routing state.
    pub status: NodeStatus,
    /// True when it is down because probes failed, not because somebody ordered it.
    pub down_by_failure: bool,
    /// `backend_flag` ALWAYS_PRIMARY.
    pub always_primary: bool,
    /// What was last seen.
    pub seen: Seen,
}

/// Something that an operator must be told. Said once, until it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// A node writes beside the epoch's primary.
    FalsePrimary(NodeId),
    /// Several nodes are not in recovery and no epoch tells which is true: nothing is routed.
    SeveralPrimaries(Vec<NodeId>),
    /// The epoch's node answers as a primary of another system or of an older timeline.
    OtherHistory(NodeId),
    /// The epoch's node is in recovery, and no other node continues the history.
    PrimaryInRecovery(NodeId),
    /// A node belongs to another database system than the epoch.
    ForeignSystem(NodeId),
    /// ALWAYS_PRIMARY names a node that is in recovery.
    FixedPrimaryInRecovery(NodeId),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::FalsePrimary(id) => write!(
                f,
                "node {id} is not in recovery although another node is the primary: it is a false primary, nothing is routed to it; recover it"
            ),
            Remark::SeveralPrimaries(ids) => {
                let ids: Vec<String> = ids.iter().map(NodeId::to_string).collect();
                write!(
                    f,
                    "nodes {} are all not in recovery and nothing tells which is the true primary: nothing is routed; detach or stop the false ones",
                    ids.join(", ")
                )
            }
            Remark::OtherHistory(id) => write!(
                f,
                "node {id} was the primary but now has another system identifier or an older timeline: nothing is routed to it; if the cluster was made anew, restart with -D to forget the old one"
            ),
            Remark::PrimaryInRecovery(id) => {
                write!(f, "node {id} was the primary but is now in recovery, and no other node continues its history")
            }
            Remark::ForeignSystem(id) => write!(f, "node {id} belongs to another database system than the primary"),
            Remark::FixedPrimaryInRecovery(id) => {
                write!(f, "node {id} is configured as ALWAYS_PRIMARY but is in recovery")
            }
        }
    }
}

/// What `detect` concludes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Verdict {
    /// Where statements go.
    pub primary: Option<NodeId>,
    /// The history; as given, grown, or new.
    pub epoch: Option<Epoch>,
    /// A node that is down and comes back without an order: see [`detect`], rule 5.
    pub returns: Option<NodeId>,
    /// What to tell.
    pub remarks: Vec<Remark>,
}

/// Who is the primary.
///
/// 1. A live ALWAYS_PRIMARY node is, whatever it says.
/// 2. With an epoch: its node, while it is live and is not known to be anything else than a primary of that system with at
///    least that timeline. A primary that is failing but not yet down, or that refuses the probe, is left alone: the data
///    plane meets its errors itself and waits.
/// 3. When the epoch's node is lost (down or unreachable), or in recovery, another live node that writes the same system
///    on a *higher* timeline was promoted by somebody: it is the primary of a new epoch. Two such: none.
/// 4. Without an epoch: the only node that is not in recovery, once every live node was looked at. Several: none.
/// 5. The epoch's node that went down by failed probes, not by an order, returns when it answers as the primary of the
///    same system and timeline: nobody was promoted meanwhile (rule 3 would have moved the epoch), so its data are the truth.
///    The same holds for the chosen node of rule 4, of which nobody has read or written anything through us.
pub fn detect(nodes: &[Witness], epoch: Option<&Epoch>) -> Verdict {
    let mut verdict = Verdict { epoch: epoch.cloned(), ..Verdict::default() };
    if let Some(fixed) = nodes.iter().find(|n| n.always_primary && n.status.is_live()) {
        verdict.primary = Some(fixed.id);
        match &fixed.seen {
            Seen::Answered(r) if r.role == Role::Standby => {
                verdict.remarks.push(Remark::FixedPrimaryInRecovery(fixed.id));
            }
            Seen::Answered(r) => verdict.epoch = epoch_of(fixed.id, r).or(verdict.epoch),
            Seen::Never | Seen::Refused | Seen::Failed => {}
        }
    } else {
        match epoch.and_then(|e| Some((e, nodes.iter().find(|n| n.id == e.node)?))) {
            Some((epoch, holder)) => by_epoch(nodes, epoch, holder, &mut verdict),
            None => without_epoch(nodes, &mut verdict),
        }
    }
    remark_others(nodes, &mut verdict);
    verdict
}

/// Rules 2, 3 and 5.
fn by_epoch(nodes: &[Witness], epoch: &Epoch, holder: &Witness, verdict: &mut Verdict) {
    let lost = match &holder.seen {
        Seen::Answered(r) if r.role == Role::Primary => {
            if !continues(r, epoch) {
                // Its data are not those that clients worked with: as good as lost, and never routed to.
                verdict.remarks.push(Remark::OtherHistory(holder.id));
                true
            } else if holder.status.is_live() {
                verdict.primary = Some(holder.id);
                verdict.epoch = epoch_of(holder.id, r).or_else(|| Some(epoch.clone()));
                return;
            } else if holder.status == NodeStatus::Down && holder.down_by_failure && same_timeline(r, epoch) {
                // A promoted node would be the truth if there is one: it was promoted while this one was lost.
                if heir(nodes, epoch).is_none() {
                    verdict.primary = Some(holder.id);
                    verdict.returns = Some(holder.id);
                    return;
                }
                true
            } else {
                true
            }
        }
        Seen::Answered(_) => {
            verdict.remarks.push(Remark::PrimaryInRecovery(holder.id));
            true
        }
        Seen::Never | Seen::Refused => {
            // At start nothing is routed before the node has proved what it is; the data plane waits meanwhile.
            if holder.status == NodeStatus::Up {
                verdict.primary = Some(holder.id);
            }
            !holder.status.is_live()
        }
        Seen::Failed => {
            // Not yet down (or failover is not allowed on it): left as it is unless somebody was promoted.
            if holder.status == NodeStatus::Up {
                verdict.primary = Some(holder.id);
            }
            true
        }
    };
    if lost && let Some((heir, report)) = heir(nodes, epoch) {
        verdict.primary = Some(heir);
        verdict.epoch = epoch_of(heir, report);
        verdict.remarks.retain(|r| !matches!(r, Remark::PrimaryInRecovery(_)));
    }
}

/// The one live node, other than the epoch's, that writes the same system on a higher timeline.
fn heir<'a>(nodes: &'a [Witness], epoch: &Epoch) -> Option<(NodeId, &'a ProbeReport)> {
    let mut heirs = nodes.iter().filter(|n| n.id != epoch.node && n.status.is_live()).filter_map(|n| match &n.seen {
        Seen::Answered(r)
            if r.role == Role::Primary
                && r.system_identifier == Some(epoch.system_identifier)
                && r.timeline.is_some_and(|t| t > epoch.timeline) =>
        {
            Some((n.id, r))
        }
        Seen::Answered(_) | Seen::Never | Seen::Refused | Seen::Failed => None,
    });
    let only = heirs.next()?;
    heirs.next().is_none().then_some(only)
}

/// Rule 4.
fn without_epoch(nodes: &[Witness], verdict: &mut Verdict) {
    if nodes.iter().any(|n| n.status.is_live() && n.seen == Seen::Never) {
        return;
    }
    let may_serve = |n: &&Witness| n.status.is_live() || (n.status == NodeStatus::Down && n.down_by_failure);
    let claims: Vec<(&Witness, &ProbeReport)> = nodes
        .iter()
        .filter(may_serve)
        .filter_map(|n| match &n.seen {
            Seen::Answered(r) if r.role == Role::Primary => Some((n, r)),
            Seen::Answered(_) | Seen::Never | Seen::Refused | Seen::Failed => None,
        })
        .collect();
    match claims.as_slice() {
        [] => {}
        [(node, report)] => {
            verdict.primary = Some(node.id);
            verdict.epoch = epoch_of(node.id, report);
            verdict.returns = (!node.status.is_live()).then_some(node.id);
        }
        several => verdict.remarks.push(Remark::SeveralPrimaries(several.iter().map(|(n, _)| n.id).collect())),
    }
}

/// Nodes that do not fit to the primary's history.
fn remark_others(nodes: &[Witness], verdict: &mut Verdict) {
    let Some(epoch) = verdict.epoch.clone() else { return };
    for node in nodes.iter().filter(|n| n.id != epoch.node && n.status != NodeStatus::Unused) {
        let Seen::Answered(report) = &node.seen else { continue };
        if report.system_identifier.is_some_and(|s| s != epoch.system_identifier) {
            verdict.remarks.push(Remark::ForeignSystem(node.id));
        } else if report.role == Role::Primary && verdict.primary != Some(node.id) {
            verdict.remarks.push(Remark::FalsePrimary(node.id));
        }
    }
}

/// An epoch needs both marks; where a permission is missing there is none, and rule 4 decides each time.
fn epoch_of(node: NodeId, report: &ProbeReport) -> Option<Epoch> {
    Some(Epoch { system_identifier: report.system_identifier?, timeline: report.timeline?, node })
}

/// Same system, timeline not behind; what could not be read is not held against it.
fn continues(report: &ProbeReport, epoch: &Epoch) -> bool {
    report.system_identifier.is_none_or(|s| s == epoch.system_identifier)
        && report.timeline.is_none_or(|t| t >= epoch.timeline)
}

/// Proven to be the very history that was lost.
fn same_timeline(report: &ProbeReport, epoch: &Epoch) -> bool {
    report.system_identifier == Some(epoch.system_identifier) && report.timeline == Some(epoch.timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: u64 = 7;

    fn report(role: Role, system: u64, timeline: u32) -> Seen {
        Seen::Answered(ProbeReport {
            role,
            system_identifier: Some(system),
            timeline: Some(timeline),
            ..ProbeReport::default()
        })
    }
    fn primary(timeline: u32) -> Seen {
        report(Role::Primary, SYSTEM, timeline)
    }
    fn standby() -> Seen {
        report(Role::Standby, SYSTEM, 1)
    }
    fn node(id: u16, status: NodeStatus, seen: Seen) -> Witness {
        Witness { id: NodeId(id), status, down_by_failure: status == NodeStatus::Down, always_primary: false, seen }
    }
    fn epoch(timeline: u32, node: u16) -> Epoch {
        Epoch { system_identifier: SYSTEM, timeline, node: NodeId(node) }
    }
    use NodeStatus::{Down, Up, Waiting};

    #[test]
    fn without_an_epoch_the_only_primary_is_chosen_after_all_were_looked_at() {
        let early = detect(&[node(0, Up, primary(1)), node(1, Waiting, Seen::Never)], None);
        assert_eq!(early, Verdict::default());
        let both = detect(&[node(0, Up, primary(1)), node(1, Up, standby())], None);
        assert_eq!((both.primary, both.epoch, both.remarks), (Some(NodeId(0)), Some(epoch(1, 0)), vec![]));
    }

    #[test]
    fn two_claims_without_an_epoch_route_nowhere() {
        let v = detect(&[node(0, Up, primary(1)), node(1, Up, primary(1))], None);
        assert_eq!(v.primary, None);
        assert_eq!(v.remarks, [Remark::SeveralPrimaries(vec![NodeId(0), NodeId(1)])]);
    }

    #[test]
    fn a_false_primary_is_named_and_never_routed_to() {
        let v = detect(&[node(0, Up, primary(1)), node(1, Up, primary(2))], Some(&epoch(1, 0)));
        assert_eq!(v.primary, Some(NodeId(0)));
        assert_eq!(v.epoch, Some(epoch(1, 0)));
        assert_eq!(v.remarks, [Remark::FalsePrimary(NodeId(1))]);
    }

    #[test]
    fn the_epochs_timeline_grows_with_its_node() {
        let v = detect(&[node(0, Up, primary(3))], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.epoch), (Some(NodeId(0)), Some(epoch(3, 0))));
    }

    #[test]
    fn a_node_promoted_by_hand_becomes_the_primary_once_the_old_one_is_lost() {
        let v = detect(&[node(0, Down, Seen::Failed), node(1, Up, primary(2))], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.epoch, v.remarks), (Some(NodeId(1)), Some(epoch(2, 1)), vec![]));
        let v = detect(&[node(0, Up, Seen::Failed), node(1, Up, primary(2))], Some(&epoch(1, 0)));
        assert_eq!(v.primary, Some(NodeId(1)), "unreachable after all retries counts as lost");
        let v = detect(&[node(0, Down, Seen::Failed), node(1, Up, primary(1))], Some(&epoch(1, 0)));
        assert_eq!(v.primary, None, "the same timeline proves nothing");
        let foreign = report(Role::Primary, 8, 2);
        let v = detect(&[node(0, Down, Seen::Failed), node(1, Up, foreign)], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.remarks), (None, vec![Remark::ForeignSystem(NodeId(1))]));
        let two = [node(0, Down, Seen::Failed), node(1, Up, primary(2)), node(2, Up, primary(2))];
        assert_eq!(detect(&two, Some(&epoch(1, 0))).primary, None, "two heirs: nobody knows");
    }

    #[test]
    fn a_failing_primary_is_left_until_it_is_down() {
        let v = detect(&[node(0, Up, Seen::Failed), node(1, Up, standby())], Some(&epoch(1, 0)));
        assert_eq!(v.primary, Some(NodeId(0)));
        let v = detect(&[node(0, Down, Seen::Failed), node(1, Up, standby())], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.epoch), (None, Some(epoch(1, 0))));
        let v = detect(&[node(0, Waiting, Seen::Never), node(1, Up, standby())], Some(&epoch(1, 0)));
        assert_eq!(v.primary, None, "after a restart the primary must first prove itself");
    }

    #[test]
    fn a_primary_that_failed_returns_by_itself_when_nobody_was_promoted() {
        let v = detect(&[node(0, Down, primary(1)), node(1, Up, standby())], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.returns), (Some(NodeId(0)), Some(NodeId(0))));
        let mut ordered = node(0, Down, primary(1));
        ordered.down_by_failure = false;
        let v = detect(&[ordered, node(1, Up, standby())], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.returns), (None, None), "an operator took it out");
        let v = detect(&[node(0, Down, primary(1)), node(1, Up, primary(2))], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.returns, v.epoch), (Some(NodeId(1)), None, Some(epoch(2, 1))));
        assert_eq!(v.remarks, [Remark::FalsePrimary(NodeId(0))]);
        let v = detect(&[node(0, Down, report(Role::Primary, 8, 1))], Some(&epoch(1, 0)));
        assert_eq!((v.primary, v.returns), (None, None));
        assert_eq!(v.remarks, [Remark::OtherHistory(NodeId(0))]);
        let v = detect(&[node(0, Down, primary(1)), node(1, Down, Seen::Failed)], None);
        assert_eq!(v.returns, Some(NodeId(0)), "at the very first start");
    }

    #[test]
    fn an_older_timeline_on_the_epochs_node_is_not_routed_to() {
        let v = detect(&[node(0, Up, primary(1))], Some(&epoch(2, 0)));
        assert_eq!((v.primary, v.remarks), (None, vec![Remark::OtherHistory(NodeId(0))]));
    }

    #[test]
    fn a_refusing_primary_stays() {
        let v = detect(&[node(0, Up, Seen::Refused)], Some(&epoch(1, 0)));
        assert_eq!(v.primary, Some(NodeId(0)));
    }

    #[test]
    fn always_primary_wins() {
        let mut fixed = node(1, Up, standby());
        fixed.always_primary = true;
        let v = detect(&[node(0, Up, primary(1)), fixed], Some(&epoch(1, 0)));
        assert_eq!(v.primary, Some(NodeId(1)));
        assert!(v.remarks.contains(&Remark::FixedPrimaryInRecovery(NodeId(1))));
    }
}
