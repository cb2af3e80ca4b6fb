//! After the release: the other standbys follow, the old primary comes back as a standby, and what is synchronous again is
//! named. Nothing of it is taken back, and what fails does not keep the rest from being done.

use super::Rebuilding;
use super::comeback::{Comeback, streams};
use super::conninfo;
use super::exits::Exit;
use super::look::{self, SHORT};
use super::prepare::slot_of;
use super::run::Run;
use super::sync_names::SyncNames;
use crate::cluster::NodeSpec;
use crate::server::sql::{SqlError, literal};
use crate::store::NodeUpkeep;
use crate::workflow::Failure;
use std::time::{Duration, Instant};

/// A standby that follows by a reload has this long; `wal_retrieve_retry_interval` is 5 s by default.
const FOLLOW: Duration = Duration::from_secs(20);

impl Run {
    /// The others stream from the new primary: by a reload, without a restart.
    pub(super) async fn follow(&mut self) -> Result<(), Failure> {
        // The connections are in use now.
        self.warm = None;
        self.primary = None;
        let now_s = unix_seconds();
        if let Err(error) = self.inner.store.change_upkeep(|u| u.backup_due_since_s = Some(now_s)) {
            self.failed(format!("that a backup is due could not be noted: {error}"));
        }
        // It cannot veto any more.
        drop(self.inner.exit(Exit::AfterSwitch, self.to.id, &self.job).await);
        if self.candidate.is_none() {
            self.candidate = self.inner.connect(&self.to).await.ok();
        }
        for sibling in self.siblings() {
            self.job.note(format!("node {} follows", sibling.id));
            let began = Instant::now();
            match self.repoint(&sibling).await {
                Ok(()) => self.told.lines.push(format!(
                    "node {} follows without a restart, streaming after {:.0} ms",
                    sibling.id,
                    super::run::milliseconds(began.elapsed())
                )),
                Err(why) => self.failed(format!("node {} does not follow: {why}", sibling.id)),
            }
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, what: String) {
        tracing::warn!(event = "maintenance.degraded", job = self.job.id(), "{what}");
        self.job.output(&what);
        self.told.failed.push(what);
    }

    async fn repoint(&self, sibling: &NodeSpec) -> Result<(), String> {
        let words = |e: SqlError| e.to_string();
        let sql = self.inner.connect(sibling).await.map_err(words)?;
        let old = sql.value("SELECT current_setting('primary_conninfo')", SHORT).await.map_err(words)?;
        let new = conninfo::repointed(&old.unwrap_or_default(), &self.to.host.0, self.to.port)
            .ok_or("its primary_conninfo is not in the form of keywords and values")?;
        let set = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(&new));
        sql.rows_within(&set, SHORT).await.map_err(words)?;
        sql.rows_within("SELECT pg_reload_conf()", SHORT).await.map_err(words)?;
        streams(self.candidate().map_err(|f| f.message)?, sibling, FOLLOW).await
    }

    /// As it is, else by a recovery. In a rolling update it stays down: its maintenance comes now.
    pub(super) async fn rejoin(&mut self) -> Result<(), Failure> {
        let id = self.from.id;
        if self.stay_down {
            let upkeep = NodeUpkeep { since_s: unix_seconds(), ..NodeUpkeep::default() };
            if let Err(error) = self.inner.store.change_upkeep(|u| drop(u.nodes.insert(id.0, upkeep))) {
                self.failed(format!("node {id} could not be noted as under maintenance: {error}"));
            }
            self.told.lines.push(format!("node {id} stays stopped, for its maintenance"));
            return Ok(());
        }
        self.job.note(format!("node {id} comes back as a standby"));
        let outcome = self.comeback().await;
        match outcome {
            Ok(how) => self.told.lines.push(how),
            Err(why) => self.failed(format!("node {id} is not back: {why}")),
        }
        Ok(())
    }

    async fn comeback(&self) -> Result<String, String> {
        let words = |f: Failure| f.message;
        let comeback = Comeback {
            inner: &self.inner,
            job: &self.job,
            server: self.old().map_err(words)?,
            primary: &self.to,
            sql: self.candidate().map_err(words)?,
        };
        let how = comeback.come(Rebuilding::AsNeeded).await?;
        comeback.attach().await?;
        comeback.drop_slots(&self.old_slots()).await?;
        Ok(how)
    }

    /// The slots that the old primary had for its standbys.
    fn old_slots(&self) -> Vec<String> {
        let Some(Ok(primary)) = self.facts.as_ref().map(|f| &f.primary) else { return Vec::new() };
        let used = primary.standbys.iter().filter_map(|s| s.slot.clone());
        used.chain([slot_of(self.to.id)]).collect()
    }

    /// The operator's names with the roles exchanged, as far as they stream.
    pub(super) async fn synchronous(&mut self) -> Result<(), Failure> {
        self.end_strict().await;
        // Whoever waited at the gate has gone on long since.
        self.told.stalled = self.inner.board.stalls.take();
        if let Some(wanted) = self.prepared.wanted.clone() {
            match self.name_them(&wanted).await {
                Ok(line) => self.told.lines.push(line),
                Err(why) => self.failed(format!("synchronous_standby_names: {why}")),
            }
        }
        if let Err(why) = self.name_slots().await {
            self.failed(format!("{}: {why}", super::standby_slots::NAME));
        }
        if !self.stay_down && !self.lost && self.told.failed.is_empty() {
            self.inner.seen_streaming(self.from.id).await;
        }
        if self.parent.is_none() {
            let line = self.inner.backup(&self.job).await;
            self.told.lines.push(line);
        }
        if self.told.failed.is_empty() {
            return Ok(());
        }
        let report = crate::workflow::Work::report(self);
        Err(Failure::new(format!("node {} is the primary, but: {}", self.to.id, self.told.failed.join("; ")))
            .detail(report))
    }

    async fn name_slots(&self) -> Result<(), String> {
        let Some(wanted) = &self.prepared.wanted_slots else { return Ok(()) };
        self.inner.set_slots(self.candidate().map_err(|f| f.message)?, wanted, &[]).await
    }

    async fn name_them(&self, wanted: &SyncNames) -> Result<String, String> {
        let sql = self.candidate().map_err(|f| f.message)?;
        let names = wanted.exchanged(&self.to.application_name, &self.from.application_name);
        let now = self.inner.set_names(sql, &names, &self.inner.names_out(None)).await?;
        let streaming = look::who_streams(sql).await.map_err(|e| e.to_string())?;
        for node in self.inner.board.view().nodes.iter().filter(|n| streaming.contains(&n.spec.application_name)) {
            self.inner.mark_eligible(node.spec.id, true)?;
        }
        let line = format!("synchronous_standby_names = '{now}'");
        if now == names || self.stay_down || self.lost {
            Ok(line)
        } else {
            Err(format!("{line}: not all of '{names}' stream"))
        }
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
