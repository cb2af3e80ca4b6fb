//! After the release: the other standbys follow, the old primary comes back as a standby, and what is synchronous again is
//! named. Nothing of it is taken back, and what fails does not keep the rest from being done.

use super::conninfo;
use super::look::{self, SHORT};
use super::prepare::{drop_slot, set_sync_names, slot_of};
use super::run::Run;
use super::server::Server;
use super::sync_names::SyncNames;
use crate::cluster::NodeSpec;
use crate::node;
use crate::server::sql::{Sql, SqlError, literal};
use crate::workflow::Failure;
use std::time::{Duration, Instant};

/// Between two looks whether a standby streams.
const POLL: Duration = Duration::from_millis(20);
/// A standby that follows by a reload has this long; `wal_retrieve_retry_interval` is 5 s by default.
const FOLLOW: Duration = Duration::from_secs(20);
/// The view moves with every probe; each move makes the compare-and-swap fail once.
const ATTACH_TRIES: u32 = 20;

impl Run {
    /// The others stream from the new primary: by a reload, without a restart.
    pub(super) async fn follow(&mut self) -> Result<(), Failure> {
        // The connections are in use now.
        self.warm = None;
        self.primary = None;
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

    fn failed(&mut self, what: String) {
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
        self.streams(sibling, FOLLOW).await
    }

    /// Waits until the new primary lists a node as streaming.
    async fn streams(&self, node: &NodeSpec, within: Duration) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let seen = match &self.candidate {
                Some(sql) => look::who_streams(sql).await.map_err(|e| e.to_string())?,
                None => return Err("the new primary is not connected".to_owned()),
            };
            if seen.contains(&node.application_name) {
                return Ok(());
            }
            if began.elapsed() > within {
                return Err(format!("it does not stream under the name {} within {within:?}", node.application_name));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// As it is, else by a recovery.
    pub(super) async fn rejoin(&mut self) -> Result<(), Failure> {
        if self.candidate.is_none() {
            self.candidate = self.inner.connect(&self.to).await.ok();
        }
        let began = Instant::now();
        let id = self.from.id;
        self.job.note(format!("node {id} comes back as a standby"));
        match self.as_it_is().await {
            Ok(()) => self.told.lines.push(format!(
                "node {id} came back as it was, streaming after {:.0} ms",
                super::run::milliseconds(began.elapsed())
            )),
            Err(why) => {
                self.job.output(&format!("node {id} did not come back as it was, it is rebuilt: {why}"));
                if let Ok(old) = self.old() {
                    let deadline = Instant::now() + FOLLOW;
                    let stopped =
                        old.stop_by(deadline, self.lines(), &tokio_util::sync::CancellationToken::new()).await;
                    // A server with standby.signal that was stopped uncleanly cannot be rewound; nobody starts it meanwhile.
                    drop(stopped.and_then(|_| old.disarm()));
                }
                match self.inner.rebuild.rebuild(id).await {
                    Ok(how) => self.told.lines.push(how),
                    Err(error) => {
                        if let Ok(old) = self.old() {
                            drop(old.arm());
                        }
                        self.failed(format!("node {id} is not back: {error}; `pgmend recover {id}` rebuilds it"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Its log ends where the new primary's history begins, as was proven: it needs nothing but the right settings.
    async fn as_it_is(&self) -> Result<(), String> {
        let old = self.old.as_ref().ok_or("it is not under control")?;
        let mut settings = self.inner.rebuild.streaming(&self.to, &self.from);
        // A name left there would keep all writes waiting if it ever became the primary again.
        settings.push(("synchronous_standby_names", String::new()));
        node::set_streaming(&old.directory.0, &old.owner, &settings).map_err(|e| e.to_string())?;
        let within = (self.inner.access)().start_timeout;
        old.start(within, self.lines()).await.map_err(|e| e.to_string())?;
        self.streams(&self.from, within).await?;
        self.attach(old).await?;
        self.drop_old_slots(old).await
    }

    async fn attach(&self, old: &Server) -> Result<(), String> {
        let (id, mut last) = (old.spec.id, String::new());
        for _ in 0..ATTACH_TRIES {
            let view = self.inner.board.view();
            if view.primary != Some(self.to.id) {
                return Err(format!("node {} is no longer the primary", self.to.id));
            }
            let reason = format!("standby since job {}", self.job.id());
            match self.inner.keeper.attach_verified(id, view.generation, None, &reason).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// What it held back for its standbys, it would hold back for ever.
    async fn drop_old_slots(&self, old: &Server) -> Result<(), String> {
        let Some(Ok(primary)) = self.facts.as_ref().map(|f| &f.primary) else { return Ok(()) };
        let sql = self.inner.connect(&old.spec).await.map_err(|e| e.to_string())?;
        for slot in primary.standbys.iter().filter_map(|s| s.slot.as_deref()) {
            drop_slot(&sql, slot).await.map_err(|e| format!("slot {slot} was left on it: {e}"))?;
        }
        drop_slot(&sql, &slot_of(self.to.id)).await.map_err(|e| e.to_string())
    }

    /// The operator's names with the roles exchanged, as far as they stream.
    pub(super) async fn synchronous(&mut self) -> Result<(), Failure> {
        // Whoever waited at the gate has gone on long since.
        self.told.stalled = self.inner.board.stalls.take();
        let wanted = self.facts()?.primary.as_ref().map(|p| p.sync_names.clone()).unwrap_or_default();
        if !wanted.trim().is_empty() {
            match self.name_them(&wanted).await {
                Ok(line) => self.told.lines.push(line),
                Err(why) => self.failed(format!("synchronous_standby_names: {why}")),
            }
        }
        if self.told.failed.is_empty() {
            return Ok(());
        }
        let report = crate::workflow::Work::report(self);
        Err(Failure::new(format!("node {} is the primary, but: {}", self.to.id, self.told.failed.join("; ")))
            .detail(report))
    }

    async fn name_them(&self, wanted: &str) -> Result<String, String> {
        let sql: &Sql = self.candidate.as_ref().ok_or("the new primary is not connected")?;
        let names = SyncNames::parse(wanted).ok_or_else(|| format!("\"{wanted}\" is not understood"))?;
        let names = names.exchanged(&self.to.application_name, &self.from.application_name);
        let streaming = look::who_streams(sql).await.map_err(|e| e.to_string())?;
        let now = names.only(&streaming);
        set_sync_names(sql, Some(&now.to_string())).await.map_err(|f| f.detail.unwrap_or(f.message))?;
        let synchronous = format!("synchronous_standby_names = '{now}'");
        if now == names { Ok(synchronous) } else { Err(format!("{synchronous}: not all of '{names}' stream")) }
    }
}
