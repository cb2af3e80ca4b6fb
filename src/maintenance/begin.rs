//! `maintenance begin N`: a standby leaves, in the order in which nobody notices: routing, synchronous names, log held back,
//! automatic start off, stop. Each step is repeatable; a failure takes back what was done.

use super::exits::Exit;
use super::look::{self, SHORT, text};
use super::prepare::{drop_slot, ensure_slot, slot_of};
use super::server::{AutoStart, Server};
use super::stages::Step;
use super::standby_slots::{self, StandbySlots};
use super::sync_names::SyncNames;
use super::{Inner, Judgement};
use crate::base::NodeId;
use crate::cluster::{NodeSpec, NodeStatus};
use crate::server::sql::{Sql, literal};
use crate::store::NodeUpkeep;
use crate::workflow::{Failure, JobHandle, Row, Work};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Bound on the stop of a standby.
const STOP: Duration = Duration::from_secs(60);

/// The steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Precheck,
    Unroute,
    Unsync,
    HoldLog,
    AutoStartOff,
    Stop,
}

pub(super) const ROWS: &[Row<Stage>] = &[
    row(Stage::Precheck, "Precheck", ""),
    row(Stage::Unroute, "Unroute", "putting the node back into routing"),
    row(Stage::Unsync, "Unsync", "naming it as synchronous again"),
    row(Stage::HoldLog, "HoldLog", "dropping its slot"),
    row(Stage::AutoStartOff, "AutoStartOff", "switching its automatic start on again"),
    row(Stage::Stop, "Stop", "starting it again"),
];

const fn row(stage: Stage, name: &'static str, undo: &'static str) -> Row<Stage> {
    Row { stage, name, deadline: None, repeatable: true, undo }
}

/// The steps for people.
pub(super) fn steps(node: NodeId) -> Vec<Step> {
    let step = |name: &str, what: String, undo: &str, takes: &str| Step {
        name: name.to_owned(),
        what,
        undo: undo.to_owned(),
        takes: takes.to_owned(),
        clients_wait: false,
    };
    vec![
        step("Precheck", format!("node {node} is a standby that pgmend can stop and start"), "nothing", "50 ms"),
        step("Unroute", format!("node {node} leaves routing"), "attached again", "10 ms"),
        step(
            "Unsync",
            format!("synchronous_standby_names without node {node}; no write waits for it"),
            "set again",
            "50 ms",
        ),
        step("HoldLog", "a slot on the primary keeps the log that it will miss".to_owned(), "dropped", "20 ms"),
        step("AutoStartOff", "its autostart_off_command".to_owned(), "its autostart_on_command", "the command's time"),
        step("Stop", format!("node {node} stops, fast"), "started again", "0.1 s to 60 s"),
    ]
}

/// One node on its way out.
pub(super) struct Begin {
    pub inner: Arc<Inner>,
    pub job: JobHandle,
    pub node: Arc<NodeSpec>,
    server: Option<Server>,
    primary: Option<Sql>,
    /// Undone only if it was done by us.
    was_up: bool,
    wanted: Option<SyncNames>,
    /// What `synchronized_standby_slots` was to have, before its slot was taken out.
    wanted_slots: Option<StandbySlots>,
    slot: Option<String>,
    autostart_off: bool,
    stopped: bool,
    lines: Vec<String>,
}

impl Begin {
    pub fn new(inner: Arc<Inner>, job: JobHandle, node: Arc<NodeSpec>) -> Begin {
        Begin {
            inner,
            job,
            node,
            server: None,
            primary: None,
            was_up: false,
            wanted: None,
            wanted_slots: None,
            slot: None,
            autostart_off: false,
            stopped: false,
            lines: Vec::new(),
        }
    }

    async fn precheck(&mut self) -> Result<(), Failure> {
        let judgement = judge(&self.inner, &self.node).await;
        if !judgement.against.is_empty() {
            let reasons: Vec<String> = judgement.against.iter().map(ToString::to_string).collect();
            return Err(Failure::new(format!("node {} cannot go into maintenance now", self.node.id))
                .detail(reasons.join("; "))
                .hint("nothing was changed"));
        }
        self.lines.extend(judgement.remarks);
        let bad = |e: String| Failure::new("the maintenance cannot begin").detail(e);
        self.server = Some(Server::find(&self.inner, &self.node, self.job.id()).await.map_err(bad)?);
        self.primary = Some(self.inner.connect_primary().await.map_err(bad)?.1);
        self.inner.exit(Exit::BeforeDetach, self.node.id, &self.job).await
    }

    fn primary(&self) -> Result<&Sql, Failure> {
        self.primary.as_ref().ok_or_else(|| Failure::new("the primary is not connected"))
    }

    fn server(&self) -> Result<&Server, Failure> {
        self.server.as_ref().ok_or_else(|| Failure::new("the node is not under control"))
    }

    /// Noted first: whoever finds the note after a crash puts the node back.
    async fn unroute(&mut self) -> Result<(), Failure> {
        let view = self.inner.board.view();
        self.was_up = view.node(self.node.id).is_some_and(|n| n.status.is_live());
        let since_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let upkeep = NodeUpkeep { since_s, ..NodeUpkeep::default() };
        self.note_upkeep(|nodes| {
            nodes.entry(self.node.id.0).or_insert(upkeep);
        })?;
        let reason = format!("in maintenance since job {}", self.job.id());
        let out = self.inner.keeper.take_out(self.node.id, &reason).await;
        out.map_err(|e| Failure::new("the node could not be taken out of routing").detail(e.to_string()))
    }

    fn note_upkeep(
        &self,
        change: impl FnOnce(&mut std::collections::BTreeMap<u16, NodeUpkeep>),
    ) -> Result<(), Failure> {
        let noted = self.inner.store.change_upkeep(|u| change(&mut u.nodes));
        noted.map_err(|e| Failure::new("the state directory cannot be written").detail(e.to_string()))
    }

    /// Recorded as not eligible first; then no write waits for it any more.
    async fn unsync(&mut self) -> Result<(), Failure> {
        let bad = |e: String| Failure::new("the node could not be taken out of synchronous_standby_names").detail(e);
        self.unname_slot().await.map_err(bad)?;
        let wanted = self.inner.wanted_names(self.primary()?).await.map_err(bad)?;
        if wanted.is_empty() {
            return Ok(());
        }
        self.inner.mark_eligible(self.node.id, false).map_err(bad)?;
        self.wanted = Some(wanted.clone());
        let now = self.inner.set_names(self.primary()?, &wanted, &self.inner.names_out(Some(&self.node))).await;
        let now = now.map_err(bad)?;
        self.inner.no_waiters(self.primary()?).await.map_err(bad)?;
        self.lines.push(format!("synchronous_standby_names = '{now}' meanwhile"));
        if now.is_empty() {
            self.lines
                .push("no standby is synchronous meanwhile: an acknowledged commit is on the primary only".to_owned());
        }
        Ok(())
    }

    /// No logical subscriber waits for it. It comes back by pgmend's own slot, whatever it has used before.
    async fn unname_slot(&mut self) -> Result<(), String> {
        let primary = self.primary().map_err(|f| f.message)?;
        let Some(wanted) = self.inner.wanted_slots(primary).await?.filter(|w| !w.is_empty()) else { return Ok(()) };
        let used = standby_slots::used_by(primary, &self.node.application_name).await.map_err(|e| e.to_string())?;
        let own = slot_of(self.node.id);
        let without = wanted.exchanged(used.as_deref().unwrap_or(&own), &own);
        self.inner.set_slots(primary, &without, &[own]).await?;
        self.wanted_slots = Some(wanted);
        Ok(())
    }

    async fn hold_log(&mut self) -> Result<(), Failure> {
        let bad = |e: String| Failure::new("its log could not be held back").detail(e);
        let slot = slot_of(self.node.id);
        let there = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = {}", literal(&slot));
        let primary = self.primary()?;
        let was_there = primary.value(&there, SHORT).await.map_err(|e| bad(e.to_string()))?.is_some();
        self.record("HoldLog.Slot", json!({ "slot": slot, "was_there": was_there }))?;
        ensure_slot(primary, &slot).await.map_err(|e| bad(e.to_string()))?;
        let keep = primary.value("SELECT current_setting('max_slot_wal_keep_size')", SHORT).await;
        if !was_there {
            self.slot = Some(slot.clone());
            self.note_upkeep(|nodes| nodes.entry(self.node.id.0).or_default().slot = Some(slot))?;
        }
        if keep.ok().flatten().as_deref() == Some("-1") {
            self.lines.push(
                "the primary keeps all log for it, whatever that takes of its disk: max_slot_wal_keep_size is not set"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Noted first: a command that was broken off may have done it.
    async fn autostart_off(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        if self.node.maintain.autostart_off_command.is_none() {
            self.lines.push("it has no autostart_off_command: nothing was switched off".to_owned());
            return Ok(());
        }
        self.autostart_off = true;
        self.note_upkeep(|nodes| nodes.entry(self.node.id.0).or_default().autostart_off = true)?;
        let done = self.server()?.autostart(AutoStart::Off, self.inner.lines_of(&self.job), stop).await;
        done.map(drop).map_err(|e| Failure::new("its automatic start could not be switched off").detail(e.to_string()))
    }

    async fn stop_it(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        self.stopped = true;
        let server = self.server()?;
        let bad = |e: String| Failure::new(format!("node {} could not be stopped", self.node.id)).detail(e);
        // Whoever starts it in the middle of its maintenance gets a standby.
        let lines = self.inner.lines_of(&self.job);
        match server.halt(Instant::now() + STOP, lines, stop).await {
            Ok(halted) if halted.stopped => Ok(()),
            Ok(_) => Err(bad(format!("it still runs after {STOP:?}"))),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    fn record(&self, name: &str, data: serde_json::Value) -> Result<(), Failure> {
        self.job.record(name, data).map_err(|e| Failure::new(e.to_string()))
    }

    async fn undo_stop(&self) -> Option<String> {
        let server = self.server.as_ref().filter(|_| self.stopped)?;
        let within = (self.inner.access)().start_timeout;
        server.start(within, self.inner.lines_of(&self.job)).await.err().map(|e| format!("it was not started: {e}"))
    }

    async fn undo_unroute(&self) -> Option<String> {
        if let Err(failure) = self.note_upkeep(|nodes| drop(nodes.remove(&self.node.id.0))) {
            return Some(failure.message);
        }
        if !self.was_up {
            return None;
        }
        let attached = self.inner.keeper.attach(self.node.id, "its maintenance was not begun").await;
        attached.err().map(|e| format!("it was not attached: {e}"))
    }

    async fn undo_unsync(&self) -> Option<String> {
        let primary = self.primary.as_ref()?;
        let slots = match &self.wanted_slots {
            Some(wanted) => self.inner.set_slots(primary, wanted, &[]).await.err(),
            None => None,
        };
        let Some(wanted) = self.wanted.as_ref() else { return slots };
        let restored = self.inner.set_names(primary, wanted, &self.inner.names_out(None)).await;
        let marked = self.inner.mark_eligible(self.node.id, true);
        restored.map(drop).and(marked).err().or(slots)
    }

    async fn undo_hold_log(&self) -> Option<String> {
        let (slot, primary) = (self.slot.as_ref()?, self.primary.as_ref()?);
        drop_slot(primary, slot).await.err().map(|e| format!("slot {slot} was left: {e}"))
    }
}

impl Work for Begin {
    type Stage = Stage;

    async fn enter(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        use super::run::stoppable;
        match stage {
            Stage::Precheck => stoppable(self.precheck(), stop).await,
            Stage::Unroute => self.unroute().await,
            Stage::Unsync => stoppable(self.unsync(), stop).await,
            Stage::HoldLog => stoppable(self.hold_log(), stop).await,
            Stage::AutoStartOff => self.autostart_off(stop).await,
            Stage::Stop => self.stop_it(stop).await,
        }
    }

    async fn undo(&mut self, stage: Stage) -> Option<String> {
        match stage {
            Stage::Precheck => None,
            Stage::Unroute => self.undo_unroute().await,
            Stage::Unsync => self.undo_unsync().await,
            Stage::HoldLog => self.undo_hold_log().await,
            Stage::AutoStartOff => {
                let server = self.server.as_ref().filter(|_| self.autostart_off)?;
                let on =
                    server.autostart(AutoStart::On, self.inner.lines_of(&self.job), &CancellationToken::new()).await;
                on.err().map(|e| format!("its automatic start stays off: {e}"))
            }
            Stage::Stop => self.undo_stop().await,
        }
    }

    fn report(&self) -> String {
        let id = self.node.id;
        let mut lines =
            vec![format!("node {id} is stopped, for its maintenance; `pgmend maintenance finish {id}` brings it back")];
        lines.extend(self.lines.iter().cloned());
        lines.join("\n")
    }
}

/// May the node go into maintenance now.
pub(super) async fn judge(inner: &Inner, node: &NodeSpec) -> Judgement {
    let mut j = Judgement::default();
    let view = inner.board.view();
    let id = node.id;
    let mut no = |what: String, hint: &str| j.against.push(super::Reason { what, hint: hint.to_owned() });
    if view.primary == Some(id) {
        no(format!("node {id} is the primary"), "`pgmend switchover` moves it first");
    }
    if view.node(id).is_some_and(|n| n.status == NodeStatus::Unused) {
        no(format!("node {id} is not in use"), "");
    }
    if inner.store.upkeep().nodes.contains_key(&id.0) {
        no(format!("node {id} is in maintenance already"), "`pgmend maintenance finish` ends it");
    }
    if let Err(why) = Server::find(inner, node, 0).await {
        no(format!("node {id} could not be stopped and started again: {why}"), "");
    }
    match inner.connect_primary().await {
        Err(why) => no(format!("the primary does not answer: {why}"), "there must be one without the node"),
        Ok((_, sql)) => match look::who_streams(&sql).await {
            Err(error) => no(format!("the primary does not answer: {error}"), ""),
            Ok(streaming) if streaming.iter().all(|name| *name == node.application_name) => {
                j.remarks.push("there is no other standby: until it is back nothing replaces the primary".to_owned())
            }
            Ok(_) => {}
        },
    }
    j
}

impl Inner {
    /// The primary in force, and a connection to it.
    pub(super) async fn connect_primary(&self) -> Result<(Arc<NodeSpec>, Sql), String> {
        let spec = self.board.view().primary_spec().cloned().ok_or("no primary is known")?;
        let sql = self.connect(&spec).await.map_err(|e| e.to_string())?;
        let recovery = sql.rows_within("SELECT pg_is_in_recovery()", SHORT).await.map_err(|e| e.to_string())?;
        if text(recovery.first(), 0) != "f" {
            return Err(format!("node {} is in recovery", spec.id));
        }
        Ok((spec, sql))
    }

    /// The names of those in maintenance, and of one more.
    pub(super) fn names_out(&self, also: Option<&NodeSpec>) -> Vec<String> {
        let (view, upkeep) = (self.board.view(), self.store.upkeep());
        let out = view.nodes.iter().filter(|n| upkeep.nodes.contains_key(&n.spec.id.0));
        out.map(|n| n.spec.application_name.clone()).chain(also.map(|n| n.application_name.clone())).collect()
    }

    /// Lines of programs go to a job's output.
    pub(super) fn lines_of(&self, job: &JobHandle) -> crate::node::Lines {
        let job = job.clone();
        Arc::new(move |line| job.output(line))
    }
}
