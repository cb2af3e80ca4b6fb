//! `maintenance finish N`: the node comes back: started as it is or rebuilt, automatic start on, streaming, caught up,
//! synchronous again, in routing. Each step is repeatable; a failure leaves it in maintenance, and the command is run again.

use super::begin::{self};
use super::comeback::Comeback;
use super::exits::Exit;
use super::look::{SHORT, text};
use super::prepare::{drop_slot, slot_of};
use super::server::{AutoStart, Server};
use super::stages::Step;
use super::{Inner, Rebuilding};
use crate::base::{Lsn, NodeId};
use crate::cluster::NodeSpec;
use crate::server::sql::{Sql, literal};
use crate::workflow::{Failure, JobHandle, Progress, Row, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);
/// It has caught up when it has replayed what there was; how long that takes, it may take, while it goes on.
const NO_PROGRESS: Duration = Duration::from_secs(60);
/// A standby that is named becomes synchronous at its next report.
const SYNC: Duration = Duration::from_secs(20);

/// The steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Precheck,
    Start,
    AutoStartOn,
    CaughtUp,
    Synchronous,
    Route,
}

pub(super) const ROWS: &[Row<Stage>] = &[
    row(Stage::Precheck, "Precheck"),
    row(Stage::Start, "Start"),
    row(Stage::AutoStartOn, "AutoStartOn"),
    row(Stage::CaughtUp, "CaughtUp"),
    row(Stage::Synchronous, "Synchronous"),
    row(Stage::Route, "Route"),
];

const fn row(stage: Stage, name: &'static str) -> Row<Stage> {
    Row { stage, name, deadline: None, repeatable: true, undo: "" }
}

/// The steps for people.
pub(super) fn steps(node: NodeId, how: Rebuilding) -> Vec<Step> {
    let step = |name: &str, what: String, takes: &str| Step {
        name: name.to_owned(),
        what,
        undo: "nothing: it stays in maintenance, and the command is run again".to_owned(),
        takes: takes.to_owned(),
        clients_wait: false,
    };
    let start = match how {
        Rebuilding::AsNeeded => "started as it is; where that is not enough, rebuilt by a recovery",
        Rebuilding::Never => "started as it is; never rebuilt",
        Rebuilding::Always => "rebuilt by a recovery",
    };
    vec![
        step("Precheck", format!("node {node} is in maintenance, and there is a primary"), "50 ms"),
        step("Start", format!("node {node} is {start}"), "0.2 s to 5 s; a copy takes as long as a recovery"),
        step(
            "AutoStartOn",
            "its autostart_on_command, if the beginning switched it off".to_owned(),
            "the command's time",
        ),
        step("CaughtUp", "it has replayed what the primary had written".to_owned(), "depends on what it missed"),
        step("Synchronous", "synchronous_standby_names names it again".to_owned(), "below 1 s"),
        step("Route", format!("node {node} is in routing"), "below 1 s"),
    ]
}

/// One node on its way back.
pub(super) struct Finish {
    pub inner: Arc<Inner>,
    pub job: JobHandle,
    pub node: Arc<NodeSpec>,
    pub how: Rebuilding,
    server: Option<Server>,
    primary: Option<(Arc<NodeSpec>, Sql)>,
    lines: Vec<String>,
    began: Instant,
}

impl Finish {
    pub fn new(inner: Arc<Inner>, job: JobHandle, node: Arc<NodeSpec>, how: Rebuilding) -> Finish {
        Finish { inner, job, node, how, server: None, primary: None, lines: Vec::new(), began: Instant::now() }
    }

    async fn precheck(&mut self) -> Result<(), Failure> {
        let id = self.node.id;
        let bad = |e: String| Failure::new(format!("the maintenance of node {id} cannot be finished")).detail(e);
        if self.inner.board.view().primary == Some(id) {
            return Err(bad("it is the primary".to_owned()));
        }
        self.server = Some(Server::find(&self.inner, &self.node, self.job.id()).await.map_err(bad)?);
        self.primary = Some(self.inner.connect_primary().await.map_err(bad)?);
        Ok(())
    }

    fn comeback(&self) -> Result<Comeback<'_>, Failure> {
        let missing = || Failure::new("the precheck has not been done");
        let (primary, sql) = self.primary.as_ref().ok_or_else(missing)?;
        let server = self.server.as_ref().ok_or_else(missing)?;
        Ok(Comeback { inner: &self.inner, job: &self.job, server, primary, sql })
    }

    async fn start(&mut self) -> Result<(), Failure> {
        let come = self.comeback()?.come(self.how).await;
        let line = come.map_err(|e| {
            Failure::new(format!("node {} did not come back", self.node.id))
                .detail(e)
                .hint("it stays in maintenance; mend it and run the command again")
        })?;
        self.lines.push(line);
        Ok(())
    }

    async fn autostart_on(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        if !self.inner.store.upkeep().nodes.get(&self.node.id.0).is_some_and(|n| n.autostart_off) {
            return Ok(());
        }
        let Some(server) = &self.server else { return Ok(()) };
        let on = server.autostart(AutoStart::On, self.inner.lines_of(&self.job), stop).await;
        on.map_err(|e| Failure::new("its automatic start could not be switched on").detail(e.to_string()))?;
        let noted = self.inner.store.change_upkeep(|u| {
            if let Some(node) = u.nodes.get_mut(&self.node.id.0) {
                node.autostart_off = false;
            }
        });
        noted.map_err(|e| Failure::new("the state directory cannot be written").detail(e.to_string()))
    }

    async fn caught_up(&self) -> Result<(), Failure> {
        let Some((_, primary)) = &self.primary else { return Ok(()) };
        let bad = |e: String| Failure::new(format!("node {} does not catch up", self.node.id)).detail(e);
        let goal = primary.value("SELECT pg_current_wal_lsn()", SHORT).await.map_err(|e| bad(e.to_string()))?;
        let goal: Lsn = goal.unwrap_or_default().parse().map_err(|_| bad("no position".to_owned()))?;
        let ask = format!(
            "SELECT coalesce(replay_lsn, '0/0') FROM pg_stat_replication WHERE application_name = {}",
            literal(&self.node.application_name)
        );
        let (mut first, mut best, mut moved) = (None, Lsn::default(), Instant::now());
        loop {
            let rows = primary.rows_within(&ask, SHORT).await.map_err(|e| bad(e.to_string()))?;
            let replayed: Lsn = text(rows.first(), 0).parse().unwrap_or_default();
            if replayed >= goal {
                return Ok(());
            }
            if replayed > best {
                (best, moved) = (replayed, Instant::now());
            }
            if moved.elapsed() > NO_PROGRESS {
                return Err(bad(format!("it stands at {best}, wanted is {goal}")));
            }
            let begin = *first.get_or_insert(replayed);
            self.job.progress(Progress {
                done_bytes: replayed.0.saturating_sub(begin.0),
                total_bytes: Some(goal.0.saturating_sub(begin.0)),
                note: format!("replayed {replayed} of {goal}"),
            });
            tokio::time::sleep(POLL).await;
        }
    }

    /// Named again, and seen to be synchronous; only then it counts as eligible, and as no longer in maintenance.
    async fn synchronous(&mut self) -> Result<(), Failure> {
        let Some((_, primary)) = &self.primary else { return Ok(()) };
        let bad = |e: String| Failure::new(format!("node {} is not synchronous again", self.node.id)).detail(e);
        self.inner.keep_slots(primary).await.map_err(bad)?;
        let wanted = self.inner.wanted_names(primary).await.map_err(bad)?;
        if wanted.is_empty() {
            return self.inner.mark_eligible(self.node.id, true).map_err(bad);
        }
        let mut out = self.inner.names_out(None);
        out.retain(|name| *name != self.node.application_name);
        let now = self.inner.set_names(primary, &wanted, &out).await.map_err(bad)?;
        if now.names(&self.node.application_name) {
            let ask = format!(
                "SELECT 1 FROM pg_stat_replication WHERE application_name = {} AND sync_state <> 'async'",
                literal(&self.node.application_name)
            );
            let began = Instant::now();
            while primary.value(&ask, SHORT).await.map_err(|e| bad(e.to_string()))?.is_none() {
                if began.elapsed() > SYNC {
                    return Err(bad(format!("it is named in '{now}' and stays asynchronous")));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        self.lines.push(format!("synchronous_standby_names = '{now}'"));
        self.inner.mark_eligible(self.node.id, true).map_err(bad)
    }

    async fn route(&mut self) -> Result<(), Failure> {
        let id = self.node.id;
        let bad = |e: String| Failure::new(format!("node {id} is not in routing again")).detail(e);
        self.comeback()?.attach().await.map_err(bad)?;
        let kept = self.inner.store.upkeep().nodes.get(&id.0).cloned().unwrap_or_default();
        if let (Some(slot), Some((_, primary))) = (kept.slot.filter(|s| *s != slot_of(id)), &self.primary) {
            drop_slot(primary, &slot).await.map_err(|e| bad(e.to_string()))?;
        }
        // An old primary held back log for those that were its standbys.
        let slots: Vec<String> = self.inner.board.view().nodes.iter().map(|n| slot_of(n.spec.id)).collect();
        self.comeback()?.drop_slots(&slots).await.map_err(bad)?;
        let done = self.inner.store.change_upkeep(|u| drop(u.nodes.remove(&id.0)));
        done.map_err(|e| bad(e.to_string()))?;
        self.inner.seen_streaming(id).await;
        self.inner.exit(Exit::AfterAttach, id, &self.job).await
    }
}

impl Work for Finish {
    type Stage = Stage;

    async fn enter(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        use super::run::stoppable;
        match stage {
            Stage::Precheck => stoppable(self.precheck(), stop).await,
            Stage::Start => stoppable(self.start(), stop).await,
            Stage::AutoStartOn => self.autostart_on(stop).await,
            Stage::CaughtUp => stoppable(self.caught_up(), stop).await,
            Stage::Synchronous => stoppable(self.synchronous(), stop).await,
            Stage::Route => stoppable(self.route(), stop).await,
        }
    }

    async fn undo(&mut self, _stage: Stage) -> Option<String> {
        None
    }

    fn report(&self) -> String {
        let mut lines = vec![format!(
            "node {} is back: streaming, caught up, in routing; {:.1} s",
            self.node.id,
            self.began.elapsed().as_secs_f64()
        )];
        lines.extend(self.lines.iter().cloned());
        lines.join("\n")
    }
}

/// What stands against it.
pub(super) async fn judge(inner: &Inner, node: &NodeSpec) -> super::Judgement {
    let mut judgement = begin::judge(inner, node).await;
    judgement.against.retain(|reason| !reason.what.contains("in maintenance already"));
    if !inner.store.upkeep().nodes.contains_key(&node.id.0) {
        judgement.remarks.push(format!("node {} is not noted as in maintenance: it is checked all the same", node.id));
    }
    judgement
}
