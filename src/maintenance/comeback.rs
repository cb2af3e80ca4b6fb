//! A stopped server comes back as a standby of the primary: as it is where that is enough, else rebuilt by a recovery.

use super::look::{self, SHORT, text};
use super::prepare::{drop_slot, ensure_slot, slot_of};
use super::run::milliseconds;
use super::server::Server;
use super::standby_slots;
use super::{Rebuilding, Surroundings};
use crate::cluster::NodeSpec;
use crate::node;
use crate::server::sql::Sql;
use crate::workflow::JobHandle;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether a standby streams.
const POLL: Duration = Duration::from_millis(20);
/// A standby that streams lets clients in within this.
const LETS_IN: Duration = Duration::from_secs(5);
/// Health checks see a change within this.
const SEEN: Duration = Duration::from_secs(3);
/// One that was started by somebody else streams within this, or not at all.
const STREAMS_ALREADY: Duration = Duration::from_secs(1);
/// Bound on the stop of a server that did not come back well.
const STOP: Duration = Duration::from_secs(60);
/// The view moves with every probe; each move makes the compare-and-swap fail once.
const ATTACH_TRIES: u32 = 20;

/// One server on its way back.
pub(super) struct Comeback<'a> {
    pub inner: &'a Surroundings,
    pub job: &'a JobHandle,
    pub server: &'a Server,
    pub primary: &'a NodeSpec,
    /// To the primary.
    pub sql: &'a Sql,
}

impl Comeback<'_> {
    /// Streaming again, by the least that is enough. Tells how.
    pub async fn come(&self, how: Rebuilding) -> Result<String, String> {
        let (id, began) = (self.server.spec.id, Instant::now());
        if how == Rebuilding::Always {
            self.make_ready_for_rebuild().await;
            return self.rebuild().await;
        }
        match self.as_it_is().await {
            Ok(()) => {
                Ok(format!("node {id} came back as it was, streaming after {:.0} ms", milliseconds(began.elapsed())))
            }
            Err(why) if how == Rebuilding::Never => {
                Err(format!("node {id} does not come back as it is, and it may not be rebuilt: {why}"))
            }
            Err(why) => {
                self.job.output(&format!("node {id} did not come back as it was, it is rebuilt: {why}"));
                self.make_ready_for_rebuild().await;
                self.rebuild().await
            }
        }
    }

    async fn rebuild(&self) -> Result<String, String> {
        let id = self.server.spec.id;
        let rebuilt = self.inner.rebuild.rebuild(id).await;
        if rebuilt.is_err() {
            // Whoever starts it gets no second primary.
            drop(self.server.arm().await);
        }
        rebuilt.map_err(|e| format!("{e}; `pgmend recover {id}` rebuilds it"))
    }

    /// A recovery wants it stopped; and one that was stopped uncleanly cannot be rewound while it carries
    /// `standby.signal`. Nobody starts it meanwhile.
    async fn make_ready_for_rebuild(&self) {
        let stop = CancellationToken::new();
        match self.server.stop_by(Instant::now() + STOP, self.lines(), &stop).await {
            Ok(true) => {}
            Ok(false) => self.job.output("it does not stop"),
            Err(error) => self.job.output(&format!("it could not be stopped: {error}")),
        }
        drop(self.server.disarm(LETS_IN).await);
    }

    /// It needs nothing but the right settings.
    async fn as_it_is(&self) -> Result<(), String> {
        let server = self.server;
        if server.runs().await.map_err(|e| e.to_string())? {
            if self.streams(STREAMS_ALREADY).await.is_ok() {
                return self.lets_in().await;
            }
            // Somebody has started it, with the settings of before.
            self.job.output(&format!("node {} runs and does not stream: it is stopped", server.spec.id));
            let stopped = server.stop_by(Instant::now() + STOP, self.lines(), &CancellationToken::new()).await;
            if !stopped.map_err(|e| e.to_string())? {
                return Err(format!("it does not stop within {STOP:?}"));
            }
        }
        let data = server.control_data().await.map_err(|e| e.to_string())?;
        if !matches!(data.state.as_str(), "shut down" | "shut down in recovery") {
            return Err(format!("it was not stopped cleanly: its state is \"{}\"", data.state));
        }
        let ask =
            "SELECT system_identifier, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()";
        let rows = self.sql.rows_within(ask, SHORT).await.map_err(|e| e.to_string())?;
        if text(rows.first(), 0) != data.system_identifier.to_string() {
            return Err("its data belong to another system".to_owned());
        }
        if u32::from_str_radix(&text(rows.first(), 1), 16).is_ok_and(|timeline| data.timeline > timeline) {
            return Err(format!("its timeline {} is newer than the primary's", data.timeline));
        }
        let slot = slot_of(server.spec.id);
        ensure_slot(self.sql, &slot).await.map_err(|e| format!("slot {slot}: {e}"))?;
        let mut settings = self.inner.rebuild.streaming(self.primary, &server.spec);
        // A name left there would keep all writes waiting if it ever became the primary again.
        settings.push(("synchronous_standby_names", String::new()));
        if standby_slots::current(self.sql).await.map_err(|e| e.to_string())?.is_some() {
            // Only versions that know it start with it, and standbys have their primary's version.
            settings.push((standby_slots::NAME, String::new()));
        }
        server.data.set_streaming(&settings).await.map_err(|e| e.to_string())?;
        let within = (self.inner.access)().start_timeout;
        server.start(within, self.lines()).await.map_err(|e| e.to_string())?;
        self.streams(within).await?;
        self.lets_in().await
    }

    /// A standby may stream with half of its files gone; it does not let anybody in.
    async fn lets_in(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            match self.inner.connect(&self.server.spec).await {
                Ok(sql) => {
                    let recovery = sql.value("SELECT pg_is_in_recovery()", SHORT).await.map_err(|e| e.to_string())?;
                    let is_standby = recovery.as_deref() == Some("t");
                    return if is_standby { Ok(()) } else { Err("it is not in recovery".to_owned()) };
                }
                Err(error) if began.elapsed() > LETS_IN => return Err(error.to_string()),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn lines(&self) -> node::Lines {
        let job = self.job.clone();
        std::sync::Arc::new(move |line| job.output(line))
    }

    /// Waits until the primary lists it as streaming.
    pub async fn streams(&self, within: Duration) -> Result<(), String> {
        streams(self.sql, &self.server.spec, within).await
    }

    /// Into routing, unless the primary has changed.
    pub async fn attach(&self) -> Result<(), String> {
        let (id, mut last) = (self.server.spec.id, String::new());
        for _ in 0..ATTACH_TRIES {
            let view = self.inner.board.view();
            if view.primary != Some(self.primary.id) {
                return Err(format!("node {} is no longer the primary", self.primary.id));
            }
            let reason = format!("standby since job {}", self.job.id());
            match self.inner.keeper.attach_verified(id, view.generation, None, &reason).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// What it held back for its standbys when it was the primary, it would hold back for ever.
    pub async fn drop_slots(&self, slots: &[String]) -> Result<(), String> {
        if slots.is_empty() {
            return Ok(());
        }
        let sql = self.inner.connect(&self.server.spec).await.map_err(|e| e.to_string())?;
        for slot in slots {
            drop_slot(&sql, slot).await.map_err(|e| format!("slot {slot} was left on it: {e}"))?;
        }
        Ok(())
    }
}

impl Surroundings {
    /// The health checks have seen what was done: who asks for the status after a job sees it too.
    pub(super) async fn seen_streaming(&self, node: crate::base::NodeId) {
        let began = Instant::now();
        let mut changes = self.board.watch();
        self.keeper.probe_now();
        while began.elapsed() < SEEN {
            let state = self.board.view().node(node).and_then(|n| n.replication_state.clone());
            if state.as_deref() == Some("streaming") {
                return;
            }
            drop(tokio::time::timeout(POLL * 10, changes.changed()).await);
            self.keeper.probe_now();
        }
    }
}

/// Waits until a primary lists a node as streaming.
pub(super) async fn streams(primary: &Sql, node: &NodeSpec, within: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let seen = look::who_streams(primary).await.map_err(|e| e.to_string())?;
        if seen.contains(&node.application_name) {
            return Ok(());
        }
        if began.elapsed() > within {
            return Err(format!("it does not stream under the name {} within {within:?}", node.application_name));
        }
        tokio::time::sleep(POLL).await;
    }
}
