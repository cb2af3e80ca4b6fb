//! A primary that stays lost is replaced by the most advanced standby, if that is safe; and a standby that stays lost is no longer
//! waited for. Only where `automatic_failover` is on, nobody has disabled it, and no other job runs.
//!
//! Safe means: every acknowledged commit is known to be on one of the standbys that can be asked. Where `synchronous_standby_names`
//! waits for `n` of `m`, that is so when at least `m - n + 1` of them are there. Without synchronous standbys commits may be lost,
//! which is reported.

use super::facts::{CandidateFacts, Facts, PrimaryFacts};
use super::look::{self, SHORT, text};
use super::prepare::OldSetting;
use super::run::{Promotion, Run, Window};
use super::server::Server;
use super::stages::FAILOVER_ROWS;
use super::standby_slots::{self, StandbySlots};
use super::sync_names::SyncNames;
use super::{FAILOVER, Inner, Maintenance, SwitchOptions};
use crate::base::Lsn;
use crate::cluster::{Epoch, NodeSpec, NodeStatus, View};
use crate::keeper::FAILED_REASON;
use crate::server::sql::Sql;
use crate::workflow::{Failure, Outcome};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_secs(1);
/// The setting of a healthy primary is read so often.
const LEARN: Duration = Duration::from_secs(5);
/// While a node comes back it is read at each look, for so long.
const COMES_BACK: Duration = Duration::from_secs(15);
/// After a failover that could not be done, until the next try.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// A primary that answers within this is not lost.
const CONFIRM: Duration = Duration::from_secs(2);
/// A lost primary's machine is looked for so long.
const FENCE_LOOK: Duration = Duration::from_secs(5);
/// A server that does not obey has this long before it is killed.
const IMMEDIATE: Duration = Duration::from_secs(5);

/// When the setting of a healthy primary is read next: soon, while a node comes back, for until it is known to have everything
/// nobody could take over.
#[derive(Debug, Default)]
struct Learning {
    last: Option<Instant>,
    /// Those who come back, and since when they are waited for.
    coming: BTreeSet<u16>,
    since: Option<Instant>,
}

impl Learning {
    fn is_due(&self) -> bool {
        // One that streams and is never synchronous is not looked at each second for ever.
        let soon = !self.coming.is_empty() && self.since.is_some_and(|since| since.elapsed() < COMES_BACK);
        soon || self.last.is_none_or(|at| at.elapsed() >= LEARN)
    }

    fn learnt(&mut self, coming: BTreeSet<u16>) {
        let now = Instant::now();
        if coming != self.coming {
            self.since = Some(now);
        }
        (self.last, self.coming) = (Some(now), coming);
    }
}

/// A standby that could be asked.
#[derive(Clone, Debug)]
pub(super) struct Survivor {
    pub spec: Arc<NodeSpec>,
    pub received: Lsn,
    pub eligible: bool,
}

/// Who is promoted, or why nobody. `set`: the names that were in force; `None`: nobody knows them.
pub(super) fn elect(survivors: &[Survivor], set: Option<&SyncNames>) -> Result<Arc<NodeSpec>, String> {
    let best = survivors.iter().filter(|s| s.eligible).max_by_key(|s| (s.received, std::cmp::Reverse(s.spec.id)));
    let best = best.ok_or("no standby answers that is known to have all acknowledged commits")?;
    let set = set.ok_or("which standbys were synchronous is not known")?;
    if set.is_empty() {
        return Ok(best.spec.clone());
    }
    let there = survivors.iter().filter(|s| set.names(&s.spec.application_name)).count();
    let needed = set.needed();
    if there < needed {
        return Err(format!(
            "of the synchronous standbys {there} answer, {needed} must: one of the others may have acknowledged commits"
        ));
    }
    if survivors.iter().any(|s| s.received > best.received) {
        return Err("the most advanced standby may lack acknowledged commits of before".to_owned());
    }
    Ok(best.spec.clone())
}

impl Maintenance {
    /// Watches over the cluster until the token is cancelled.
    pub async fn guard(self, token: CancellationToken) {
        let mut learning = Learning::default();
        let mut not_before: Option<Instant> = None;
        loop {
            if token.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return;
            }
            let upkeep = self.0.store.upkeep();
            let busy = self.0.jobs.list().iter().any(|j| j.outcome == Outcome::Running);
            let view = self.0.board.view();
            let off = !(self.0.settings)().automatic_failover || upkeep.failover_disabled || view.mode.replicates();
            if off || busy {
                continue;
            }
            match lost_primary(&view) {
                None if view.primary.is_some() && learning.is_due() => match self.0.keep_names().await {
                    Ok(()) => learning.learnt(self.0.coming_back()),
                    Err(why) => {
                        learning.learnt(BTreeSet::new());
                        tracing::debug!(event = "failover.names_not_kept", why);
                    }
                },
                Some((epoch, lost)) if not_before.is_none_or(|at| Instant::now() >= at) => {
                    if let Err(why) = self.fail_over(&epoch, &lost).await {
                        tracing::error!(event = "failover.impossible", node = lost.id.0, "nobody is promoted: {why}");
                        not_before = Some(Instant::now() + AFTER_FAILURE);
                    }
                }
                None | Some(_) => {}
            }
        }
    }

    /// Confirms the loss, elects, and lets the job run to its end.
    async fn fail_over(&self, epoch: &Epoch, lost: &Arc<NodeSpec>) -> Result<(), String> {
        if self.0.answers(lost).await {
            return Err(format!("node {} answers again", lost.id));
        }
        let survivors = self.0.survivors(epoch).await;
        let kept = self.0.store.upkeep().sync_names;
        let set = kept.as_ref().and_then(|k| SyncNames::parse(&k.set));
        let to = elect(&survivors, set.as_ref())?;
        // What the next daemon needs if this one dies.
        let data = json!({
            "from": lost.id.0,
            "to": to.id.0,
            "timeline": epoch.timeline,
            "system_identifier": epoch.system_identifier,
        });
        let job = self.0.jobs.begin(FAILOVER, to.id, data).map_err(|e| e.to_string())?;
        let mut run = Run::new(self.0.clone(), job.clone(), SwitchOptions::default(), lost.clone(), to);
        run.lost = true;
        // It is neither a plan nor a crash: what is checked in a plan cannot be asked of a dead server.
        run.resumed = true;
        run.facts = Some(facts(&run, epoch));
        run.prepared.wanted = kept.and_then(|k| SyncNames::parse(&k.wanted)).filter(|w| !w.is_empty());
        let slots = self.0.store.upkeep().standby_slots.map(|k| StandbySlots::parse(&k.wanted));
        let (gone, come) = (super::prepare::slot_of(run.to.id), super::prepare::slot_of(lost.id));
        run.prepared.wanted_slots = slots.filter(|w| !w.is_empty()).map(|w| w.exchanged(&gone, &come));
        run.candidate = Some(self.0.connect(&run.to).await.map_err(|e| e.to_string())?);
        // A machine that is lost too does not answer, and nobody waits for it.
        let old = tokio::time::timeout(FENCE_LOOK, Server::find(&self.0, lost, job.id())).await;
        run.old = old.ok().and_then(Result::ok);
        let since = Instant::now();
        run.held = Some(Window { since, until: since + run.limits.max_hold });
        tracing::warn!(event = "failover.begins", job = job.id(), lost = lost.id.0, to = run.to.id.0);
        let outcome = crate::workflow::run(&job, FAILOVER_ROWS, &mut run).await;
        if outcome == Outcome::Succeeded { Ok(()) } else { Err(format!("job {} failed", job.id())) }
    }
}

/// Armed, and ended where it hangs; false: it does not end.
async fn fenced(old: &Server) -> Result<bool, crate::node::NodeError> {
    old.arm().await?;
    if !old.runs().await? || old.immediate(false, IMMEDIATE).await? {
        return Ok(true);
    }
    old.immediate(true, IMMEDIATE).await
}

fn facts(run: &Run, epoch: &Epoch) -> Facts {
    Facts {
        from: run.from.id,
        to: run.to.id,
        to_name: run.to.application_name.clone(),
        to_is_up: true,
        fixed: false,
        jobs: Vec::new(),
        no_control: None,
        primary: Ok(PrimaryFacts {
            is_primary: true,
            system_identifier: epoch.system_identifier,
            timeline: epoch.timeline,
            ..PrimaryFacts::default()
        }),
        candidate: Ok(CandidateFacts::default()),
        epoch: Some((epoch.system_identifier, epoch.timeline)),
    }
}

/// The epoch's node, when its health checks have failed to their last retry.
fn lost_primary(view: &View) -> Option<(Epoch, Arc<NodeSpec>)> {
    let epoch = view.epoch.clone().filter(|_| view.primary.is_none())?;
    let node = view.node(epoch.node)?;
    let lost = node.status == NodeStatus::Down && node.reason.starts_with(FAILED_REASON);
    lost.then(|| (epoch, node.spec.clone()))
}

impl Inner {
    async fn answers(&self, node: &NodeSpec) -> bool {
        let began = Instant::now();
        loop {
            if self.connect(node).await.is_ok() {
                return true;
            }
            if began.elapsed() > CONFIRM {
                return false;
            }
            tokio::time::sleep(LOOK / 4).await;
        }
    }

    /// The standbys in routing that can be asked and belong to the epoch's history.
    async fn survivors(&self, epoch: &Epoch) -> Vec<Survivor> {
        let (view, upkeep) = (self.board.view(), self.store.upkeep());
        let mut survivors = Vec::new();
        for node in view.nodes.iter().filter(|n| n.status == NodeStatus::Up && n.spec.id != epoch.node) {
            let Ok(sql) = self.connect(&node.spec).await else { continue };
            let ask = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                       greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
            let Ok(rows) = sql.rows_within(ask, SHORT).await else { continue };
            let same = text(rows.first(), 1) == epoch.system_identifier.to_string();
            if text(rows.first(), 0) == "t" && same && node.spec.allow_failover {
                let received = text(rows.first(), 2).parse().unwrap_or_default();
                let eligible = !upkeep.ineligible.contains(&node.spec.id.0);
                survivors.push(Survivor { spec: node.spec.clone(), received, eligible });
            }
        }
        survivors
    }

    /// Learns the names that are in force, takes those out that are lost, and names those again that stream.
    async fn keep_names(&self) -> Result<(), String> {
        let (_, sql) = self.connect_primary().await?;
        let wanted = self.wanted_names(&sql).await?;
        let view = self.board.view();
        let lost = view.nodes.iter().filter(|n| n.status == NodeStatus::Down && wanted.names(&n.spec.application_name));
        let mut out = self.names_out(None);
        for node in lost {
            if !out.contains(&node.spec.application_name) {
                // Recorded before it is no longer waited for.
                self.mark_eligible(node.spec.id, false)?;
                out.push(node.spec.application_name.clone());
            }
        }
        let now = self.set_names(&sql, &wanted, &out).await?;
        self.keep_slots(&sql).await?;
        self.eligible_again(&sql, &now).await
    }

    /// Nodes in routing that may still lack acknowledged commits.
    fn coming_back(&self) -> BTreeSet<u16> {
        let (view, ineligible) = (self.board.view(), self.store.upkeep().ineligible);
        let live = view.nodes.iter().filter(|n| n.status.is_live() && Some(n.spec.id) != view.primary);
        live.map(|n| n.spec.id.0).filter(|id| ineligible.contains(id)).collect()
    }

    /// Who is synchronous, or streams where nobody is waited for, has all acknowledged commits.
    async fn eligible_again(&self, sql: &Sql, now: &SyncNames) -> Result<(), String> {
        let ineligible = self.store.upkeep().ineligible;
        if ineligible.is_empty() {
            return Ok(());
        }
        let ask =
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' AND sync_state <> 'async'";
        let rows = sql.rows_within(ask, SHORT).await.map_err(|e| e.to_string())?;
        let synchronous: Vec<String> = rows.iter().map(|r| text(Some(r), 0)).collect();
        let streaming = look::who_streams(sql).await.map_err(|e| e.to_string())?;
        for node in self.board.view().nodes.iter().filter(|n| ineligible.contains(&n.spec.id.0)) {
            let name = &node.spec.application_name;
            if synchronous.contains(name) || (now.is_empty() && streaming.contains(name)) {
                self.mark_eligible(node.spec.id, true)?;
            }
        }
        Ok(())
    }
}

impl Run {
    /// The lost primary writes nothing any more: armed, and ended where it hangs. Elsewhere the epoch keeps clients away.
    pub(super) async fn fence(&mut self) -> Result<(), Failure> {
        // Beside all that follows: clients wait, and their connections and listeners are ready when they go on.
        self.warm = Some(self.stand_ready());
        let Some(old) = self.old.clone() else {
            self.told
                .lines
                .push(format!("node {} is out of reach: only the epoch keeps clients from it", self.from.id));
            return self.prepare_lost().await;
        };
        let bad = |why: String| Failure::new("the lost primary could not be fenced").detail(why);
        match fenced(&old).await {
            Ok(true) => {}
            Ok(false) => return Err(bad("its process does not end".to_owned())),
            Err(error @ crate::node::NodeError::Unknown { .. }) => {
                let id = self.from.id;
                self.told.lines.push(format!("node {id}: only the epoch keeps clients from it for certain: {error}"));
            }
            Err(error) => return Err(bad(error.to_string())),
        }
        self.prepare_lost().await
    }

    /// The coming primary's slots, and no name on it that nobody answers to: it would keep all writes waiting.
    async fn prepare_lost(&mut self) -> Result<(), Failure> {
        let others = self.siblings();
        let nodes = others.iter().map(|s| s.id).chain([self.from.id]);
        let slots: Vec<String> = nodes.map(super::prepare::slot_of).collect();
        let sql = self.candidate()?;
        let was = look::candidate(sql).await;
        let was = was.map_err(|e| Failure::new("the coming primary does not answer").detail(e.to_string()))?;
        let named = standby_slots::current(sql).await.ok().flatten().filter(|slots| !slots.is_empty());
        // Fenced once more after a crash, those who were marked before are marked still.
        let marked = self.who_will_lack();
        self.prepared.marked.extend(marked);
        let (old, wanted) = (self.facts()?.primary.as_ref().ok(), self.prepared.wanted.as_ref());
        self.record(
            "Fence.Candidate",
            json!({
                "slots": slots,
                "sync_names": Some(&was.sync_names).filter(|names| !names.is_empty()),
                "by_system": was.sync_names_by_system,
                "wanted": wanted.map(ToString::to_string),
                "standby_slots": named,
                "wanted_slots": self.prepared.wanted_slots.as_ref().map(ToString::to_string),
                "marked": self.prepared.marked.iter().map(|id| id.0).collect::<Vec<_>>(),
                "timeline": old.map(|p| p.timeline),
                "system_identifier": old.map(|p| p.system_identifier),
            }),
        )?;
        self.mark()?;
        self.prepared.slots.clone_from(&slots);
        self.prepared.standby_slots.clone_from(&named);
        if !was.sync_names.is_empty() {
            self.prepared.sync_names = Some(OldSetting { value: was.sync_names, by_system: was.sync_names_by_system });
        }
        let sql = self.candidate()?;
        for slot in &slots {
            if let Err(error) = super::prepare::ensure_slot(sql, slot).await {
                self.job.output(&format!("slot {slot}: {error}"));
            }
        }
        super::prepare::set_sync_names(sql, Some("")).await?;
        if named.is_some() {
            super::prepare::set_by_system(sql, standby_slots::NAME, Some("")).await?;
        }
        if self.prepared.wanted.is_none() {
            self.told.lines.push("no standby was synchronous: commits of the last moment may be lost".to_owned());
        }
        Ok(())
    }

    /// Nobody was promoted: the lost one is what it was, should it come back.
    pub(super) async fn undo_fence(&mut self) -> Option<String> {
        self.warm = None;
        if !matches!(self.promotion, Promotion::NotAsked | Promotion::Impossible) {
            return None;
        }
        let armed = match &self.old {
            Some(old) => old.disarm(IMMEDIATE).await.err(),
            None => None,
        };
        let mut words: Vec<String> =
            armed.map(|e| format!("node {} could not be disarmed: {e}", self.from.id)).into_iter().collect();
        words.extend(self.undo_prepare().await);
        (!words.is_empty()).then(|| words.join("; "))
    }

    pub(super) fn failed_over(&self) -> String {
        let id = self.from.id;
        let mut lines = vec![format!(
            "node {} is the primary, node {id} was lost; {:.1} s from its confirmed loss",
            self.to.id,
            self.began.elapsed().as_secs_f64()
        )];
        lines.extend(self.told.lines.iter().cloned());
        lines.push(format!("`pgmend recover {id}` brings the lost node back as a standby"));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivor(id: u16, received: u64, eligible: bool) -> Survivor {
        let spec = NodeSpec { application_name: format!("n{id}"), ..NodeSpec::sample(id) };
        Survivor { spec: Arc::new(spec), received: Lsn(received), eligible }
    }

    fn elected(survivors: &[Survivor], set: Option<&str>) -> Option<u16> {
        let set = set.map(|s| SyncNames::parse(s).unwrap());
        elect(survivors, set.as_ref()).ok().map(|spec| spec.id.0)
    }

    #[test]
    fn the_most_advanced_is_promoted_where_nothing_can_be_lost() {
        let (one, two) = (survivor(1, 100, true), survivor(2, 200, true));
        let both = [one.clone(), two.clone()];
        assert_eq!(elected(&both, Some("")), Some(2), "nobody was synchronous");
        assert_eq!(elected(&both, Some("ANY 1 (n1, n2)")), Some(2));
        assert_eq!(
            elected(std::slice::from_ref(&one), Some("ANY 1 (n1, n2)")),
            None,
            "the other may have what this one has not"
        );
        assert_eq!(elected(std::slice::from_ref(&one), Some("ANY 2 (n1, n2)")), Some(1));
        assert_eq!(elected(std::slice::from_ref(&one), Some("n1")), Some(1));
        assert_eq!(elected(std::slice::from_ref(&two), Some("n1")), None);
        assert_eq!(elected(&both, None), None, "nobody knows who was synchronous");
        assert_eq!(elected(&[], Some("")), None);
    }

    #[test]
    fn who_comes_back_is_looked_at_soon() {
        let mut learning = Learning::default();
        assert!(learning.is_due(), "nothing is known");
        learning.learnt(BTreeSet::new());
        assert!(!learning.is_due());
        learning.learnt(BTreeSet::from([1]));
        assert!(learning.is_due());
        learning.since = Instant::now().checked_sub(COMES_BACK);
        assert!(!learning.is_due(), "it never comes");
        learning.learnt(BTreeSet::from([1, 2]));
        assert!(learning.is_due(), "another one");
    }

    #[test]
    fn who_may_lack_commits_is_passed_over() {
        let (one, two) = (survivor(1, 100, true), survivor(2, 200, false));
        assert_eq!(elected(&[one.clone(), two.clone()], Some("")), Some(1));
        assert_eq!(elected(&[two], Some("")), None);
    }
}
