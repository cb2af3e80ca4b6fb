//! What is made ready while everybody works on: slots and settings on the coming primary, checkpoints, connections to it.

use super::look::{SHORT, text};
use super::run::{Promotion, Run};
use super::standby_slots::{self, StandbySlots};
use super::sync_names::SyncNames;
use crate::cluster::{NodeStatus, Warm};
use crate::server::sql::{Sql, SqlError, literal};
use crate::workflow::Failure;
use serde_json::json;
use std::time::{Duration, Instant};

/// Bound on one checkpoint.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// Bound on opening connections to the coming primary.
const WARM: Duration = Duration::from_secs(20);
/// Bound on those that listen for clients.
const LISTENERS: Duration = Duration::from_secs(3);
/// Bound on the archiver's last segment.
const ARCHIVE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// What was changed on the coming primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Slots that were made there.
    pub slots: Vec<String>,
    /// Its `synchronous_standby_names` before they were emptied.
    pub sync_names: Option<OldSetting>,
    /// Who may lack acknowledged commits from the release on, and counted as having them until now.
    pub marked: Vec<crate::base::NodeId>,
    /// What the operator wants on the old primary; `None`: nobody is synchronous.
    pub wanted: Option<SyncNames>,
    /// Its `synchronized_standby_slots` before they were emptied.
    pub standby_slots: Option<String>,
    /// What the new primary shall have there; `None`: nothing, or an older PostgreSQL.
    pub wanted_slots: Option<StandbySlots>,
}

/// A setting before it was changed by ALTER SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldSetting {
    /// Its value.
    pub value: String,
    /// It came from `postgresql.auto.conf` and not from a file of the operator.
    pub by_system: bool,
}

impl Run {
    pub(super) async fn prepare(&mut self) -> Result<(), Failure> {
        let facts = self.facts()?.clone();
        let (Ok(primary), Ok(candidate)) = (facts.primary, facts.candidate) else {
            return Err(Failure::new("the facts are not complete"));
        };
        // Whoever comes over needs log from the moment of the change: it is held back from now on.
        let mut slots = vec![slot_of(self.from.id)];
        let of_siblings = primary.standbys.iter().filter(|s| s.name != facts.to_name).filter_map(|s| s.slot.clone());
        slots.extend(of_siblings);
        slots.dedup();
        let sql = self.primary.as_ref().ok_or_else(|| Failure::new("the primary is not connected"))?;
        let wanted = self.inner.wanted_names(sql).await;
        let wanted = wanted.map_err(|e| Failure::new("synchronous_standby_names is not known").detail(e))?;
        self.prepared.wanted = Some(wanted).filter(|w| !w.is_empty());
        let strict = self.prepared.wanted.as_ref().filter(|_| self.options.strict);
        let set = strict.map(|wanted| self.strict_names(wanted).to_string()).unwrap_or_default();
        let names = (candidate.sync_names != set)
            .then_some(OldSetting { value: candidate.sync_names, by_system: candidate.sync_names_by_system });
        self.look_at_slots().await.map_err(|e| Failure::new("synchronized_standby_slots is not known").detail(e))?;
        self.prepared.marked = self.who_will_lack();
        self.record(
            "Prepare.Candidate",
            json!({
                "slots": slots,
                "sync_names": names.as_ref().map(|n| &n.value),
                "by_system": names.as_ref().is_some_and(|n| n.by_system),
                "wanted": self.prepared.wanted.as_ref().map(ToString::to_string),
                "marked": self.prepared.marked.iter().map(|id| id.0).collect::<Vec<_>>(),
                "standby_slots": self.prepared.standby_slots,
                "wanted_slots": self.prepared.wanted_slots.as_ref().map(ToString::to_string),
                "old_slots": primary.standbys.iter().filter_map(|s| s.slot.clone()).collect::<Vec<_>>(),
                "timeline": primary.timeline,
                "system_identifier": primary.system_identifier,
            }),
        )?;
        self.mark()?;
        let bad = |e: SqlError| Failure::new("the coming primary could not be prepared").detail(e.to_string());
        self.prepared.slots.clone_from(&slots);
        for slot in &slots {
            let sql = self.candidate()?;
            make_slot(sql, slot).await.map_err(bad)?;
        }
        if let Some(names) = names {
            self.prepared.sync_names = Some(names);
            let sql = self.candidate()?;
            set_sync_names(sql, Some(&set)).await?;
        }
        if self.prepared.standby_slots.is_some() {
            // What it names there were slots on another primary: subscribers would wait for them.
            set_by_system(self.candidate()?, standby_slots::NAME, Some("")).await?;
        }
        Ok(())
    }

    /// What both servers have in `synchronized_standby_slots`.
    async fn look_at_slots(&mut self) -> Result<(), String> {
        let primary = self.primary.as_ref().ok_or("the primary is not connected")?;
        let wanted = self.inner.wanted_slots(primary).await?.filter(|w| !w.is_empty());
        let used = standby_slots::used_by(primary, &self.to.application_name).await.map_err(|e| e.to_string())?;
        let used = used.unwrap_or_else(|| slot_of(self.to.id));
        self.prepared.wanted_slots = wanted.map(|w| w.exchanged(&used, &slot_of(self.from.id)));
        let candidate = self.candidate().map_err(|f| f.message)?;
        let there = standby_slots::current(candidate).await.map_err(|e| e.to_string())?;
        self.prepared.standby_slots = there.filter(|t| !t.is_empty());
        Ok(())
    }

    /// Those who may lack acknowledged commits from the release on, until they are synchronous again; known before the journal
    /// tells of the preparation.
    pub(super) fn who_will_lack(&self) -> Vec<crate::base::NodeId> {
        if self.prepared.wanted.is_none() {
            return Vec::new();
        }
        let lack = self.inner.store.upkeep().ineligible;
        let others = self.siblings().iter().map(|s| s.id).chain([self.from.id]).collect::<Vec<_>>();
        others.into_iter().filter(|id| !lack.contains(&id.0)).collect()
    }

    /// Nobody promotes them by himself.
    pub(super) fn mark(&self) -> Result<(), Failure> {
        for node in &self.prepared.marked {
            let marked = self.inner.mark_eligible(*node, false);
            marked.map_err(|e| Failure::new("the state directory cannot be written").detail(e))?;
        }
        Ok(())
    }

    /// Only where nothing was promoted: afterwards all of it is needed.
    pub(super) async fn undo_prepare(&mut self) -> Option<String> {
        if !matches!(self.promotion, Promotion::NotAsked | Promotion::Impossible) {
            return None;
        }
        let prepared = std::mem::take(&mut self.prepared);
        if prepared == Prepared::default() {
            return None;
        }
        let sql = match self.inner.connect(&self.to).await {
            Ok(sql) => sql,
            Err(error) => return Some(format!("node {} could not be cleaned up: {error}", self.to.id)),
        };
        let mut words = Vec::new();
        for node in prepared.marked {
            words.extend(self.inner.mark_eligible(node, true).err());
        }
        for slot in &prepared.slots {
            if let Err(error) = drop_slot(&sql, slot).await {
                words.push(format!("slot {slot} on node {} was left: {error}", self.to.id));
            }
        }
        if let Some(old) = prepared.sync_names {
            let value = old.by_system.then_some(old.value.as_str());
            if let Err(error) = set_sync_names(&sql, value).await {
                words.push(format!("synchronous_standby_names of node {} was not restored: {error}", self.to.id));
            }
        }
        if let Some(old) = prepared.standby_slots
            && let Err(failure) = set_by_system(&sql, standby_slots::NAME, Some(&old)).await
        {
            words.push(format!("{} of node {} was not restored: {failure}", standby_slots::NAME, self.to.id));
        }
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// On both: the stop of the one and the promotion of the other have little left to write.
    pub(super) async fn checkpoint(&mut self) -> Result<(), Failure> {
        let bad = |e: SqlError| Failure::new("a checkpoint failed").detail(e.to_string());
        let primary = self.primary.as_ref().ok_or_else(|| Failure::new("the primary is not connected"))?;
        self.job.note(format!("checkpoint of node {}", self.from.id));
        primary.rows_within("CHECKPOINT", CHECKPOINT).await.map_err(bad)?;
        self.job.note(format!("checkpoint of node {}", self.to.id));
        self.candidate()?.rows_within("CHECKPOINT", CHECKPOINT).await.map_err(bad)?;
        if matches!(&self.facts()?.primary, Ok(p) if p.archive_waiting.is_some()) {
            self.archive(primary).await?;
        }
        Ok(())
    }

    /// The stop archives the last segment, and clients would wait for that: it is seen to now how long one takes.
    async fn archive(&self, primary: &Sql) -> Result<(), Failure> {
        let bad = |e: SqlError| Failure::new("the archive could not be looked at").detail(e.to_string());
        self.job.note("waiting for the archive");
        let began = Instant::now();
        let ask = "SELECT pg_walfile_name(pg_switch_wal())";
        let file = primary.value(ask, SHORT).await.map_err(bad)?.unwrap_or_default();
        let waits = format!(
            "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name <= {} || '.ready' AND name LIKE '%.ready'",
            literal(&file)
        );
        while primary.value(&waits, SHORT).await.map_err(bad)?.as_deref() != Some("0") {
            if began.elapsed() > ARCHIVE.min(self.limits.stop_timeout) {
                return Err(Failure::new(format!(
                    "archiving a segment of log takes longer than {:?}",
                    began.elapsed()
                ))
                .detail("the stop of the primary would wait for its archive_command, and clients with it")
                .hint("see pg_stat_archiver and archive_command"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// What would fail after the switch fails now.
    pub(super) async fn warm_up(&mut self) -> Result<(), Failure> {
        let warm = self.stand_ready();
        let began = Instant::now();
        loop {
            let seen = warm.look();
            if seen.failed > 0 {
                return Err(Failure::new(format!("clients' connections to node {} fail", self.to.id))
                    .detail(seen.why.unwrap_or_default())
                    .hint("its pg_hba.conf and its limits must let in what the primary's let in"));
            }
            // A listener that cannot be made ready in time is no reason to leave the primary where it is.
            if seen.settled && (warm.listeners_ready() || began.elapsed() > LISTENERS) {
                self.job.output(&format!("{} connections to node {} are open", seen.open, self.to.id));
                break;
            }
            if began.elapsed() > WARM {
                return Err(Failure::new(format!("connections to node {} take longer than {WARM:?}", self.to.id)));
            }
            tokio::time::sleep(POLL).await;
        }
        self.warm = Some(warm);
        Ok(())
    }

    /// Who listens for clients does so on the coming primary before they go on there; and connections for the clients
    /// themselves, where they are wished for.
    pub(super) fn stand_ready(&self) -> Warm {
        let board = &self.inner.board;
        if self.limits.prewarm { board.warm(self.to.id) } else { board.warm_listeners(self.to.id) }
    }

    /// Names of standbys in routing other than the two.
    pub(super) fn siblings(&self) -> Vec<std::sync::Arc<crate::cluster::NodeSpec>> {
        let view = self.inner.board.view();
        let other = |n: &&crate::cluster::NodeView| {
            n.spec.id != self.from.id && n.spec.id != self.to.id && n.status == NodeStatus::Up
        };
        view.nodes.iter().filter(other).map(|n| n.spec.clone()).collect()
    }
}

/// The slot of a node on its primary; recoveries use the same name.
pub(super) fn slot_of(node: crate::base::NodeId) -> String {
    format!("pgmend_{node}")
}

/// A physical slot that holds log back from now on; one that is in use is left as it is.
pub(super) async fn make_slot(sql: &Sql, slot: &str) -> Result<(), SqlError> {
    let quoted = literal(slot);
    let drop = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {quoted} \
         AND slot_type = 'physical' AND NOT active"
    );
    sql.rows_within(&drop, SHORT).await?;
    ensure_slot(sql, slot).await
}

fn drop_rows(_: Vec<crate::server::sql::Row>) {}

/// The same, and one that is there keeps what it holds back.
pub(super) async fn ensure_slot(sql: &Sql, slot: &str) -> Result<(), SqlError> {
    let quoted = literal(slot);
    let make = format!(
        "SELECT pg_create_physical_replication_slot({quoted}, true) \
         WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = {quoted})"
    );
    sql.rows_within(&make, SHORT).await.map(drop_rows)
}

/// Drops a physical slot that nobody uses.
pub(super) async fn drop_slot(sql: &Sql, slot: &str) -> Result<(), SqlError> {
    let drop = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} \
         AND slot_type = 'physical' AND NOT active",
        literal(slot)
    );
    sql.rows_within(&drop, SHORT).await.map(drop_rows)
}

/// Sets `synchronous_standby_names`, as [`set_by_system`].
pub(super) async fn set_sync_names(sql: &Sql, value: Option<&str>) -> Result<(), Failure> {
    set_by_system(sql, "synchronous_standby_names", value).await
}

/// Sets a setting by ALTER SYSTEM (`None`: takes ours back) and waits until it is in force.
pub(super) async fn set_by_system(sql: &Sql, name: &str, value: Option<&str>) -> Result<(), Failure> {
    let bad = |e: SqlError| Failure::new(format!("{name} could not be set")).detail(e.to_string());
    let statement = match value {
        Some(value) => format!("ALTER SYSTEM SET {name} = {}", literal(value)),
        None => format!("ALTER SYSTEM RESET {name}"),
    };
    sql.rows_within(&statement, SHORT).await.map_err(bad)?;
    sql.rows_within("SELECT pg_reload_conf()", SHORT).await.map_err(bad)?;
    let Some(value) = value else { return Ok(()) };
    let began = Instant::now();
    let ask = format!("SELECT setting, source FROM pg_settings WHERE name = '{name}'");
    loop {
        let rows = sql.rows_within(&ask, SHORT).await.map_err(bad)?;
        if text(rows.first(), 0) == value {
            return Ok(());
        }
        if began.elapsed() > SHORT {
            return Err(Failure::new(format!("{name} did not become \"{value}\""))
                .detail(format!("it is set by {}", text(rows.first(), 1))));
        }
        tokio::time::sleep(POLL).await;
    }
}
