//! `rolling-update --run CMD`: every server is patched, one after the other: the standbys, then the primary moves, then the
//! old primary; if wanted it moves back. A failure stops it where it is, and it can be resumed.

use super::server::Server;
use super::stages::Step;
use super::{Inner, LongTransactions, Maintenance, Rebuilding, SwitchOptions};
use crate::base::NodeId;
use crate::cluster::{NodeSpec, NodeStatus};
use crate::node::{self, Child, Order, Remote};
use crate::store::RollingKept;
use crate::workflow::{Failure, JobHandle, Row, Work};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Bound on the stop of a server that was started in the middle of its maintenance.
const STOP: Duration = Duration::from_secs(60);
/// Who lets a connection in within this is not stopped.
const ANSWERS: Duration = Duration::from_secs(3);

/// How a rolling update is wished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollingOptions {
    /// A shell command, run for each node while it is stopped; none: servers are only stopped and started.
    #[serde(default)]
    pub run: Option<String>,
    /// Other commands for some nodes.
    #[serde(default)]
    pub per_node: BTreeMap<u16, String>,
    /// The original primary is the primary again at the end.
    #[serde(default)]
    pub failback: bool,
    /// How nodes come back.
    #[serde(default)]
    pub rebuild: Rebuilding,
    /// Transactions that do not end.
    #[serde(default)]
    pub transactions: LongTransactions,
    /// Commits wait until they are on a synchronous standby again; refused where that cannot be.
    #[serde(default)]
    pub strict: bool,
    /// Go on where an earlier one was left: what is done is not done again.
    #[serde(default)]
    pub resume: bool,
}

impl RollingOptions {
    pub(super) fn switch(&self, to: Option<NodeId>) -> SwitchOptions {
        SwitchOptions { to, transactions: self.transactions, strict: self.strict }
    }
}

/// The steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Precheck,
    Standbys,
    Switch,
    OldPrimary,
    Failback,
}

pub(super) const ROWS: &[Row<Stage>] = &[
    row(Stage::Precheck, "Precheck"),
    row(Stage::Standbys, "Standbys"),
    row(Stage::Switch, "Switch"),
    row(Stage::OldPrimary, "OldPrimary"),
    row(Stage::Failback, "Failback"),
];

const fn row(stage: Stage, name: &'static str) -> Row<Stage> {
    Row { stage, name, deadline: None, repeatable: true, undo: "" }
}

/// A rolling update under way.
pub(super) struct Rolling {
    pub maintenance: Maintenance,
    pub job: JobHandle,
    pub options: RollingOptions,
    kept: RollingKept,
    lines: Vec<String>,
    began: Instant,
}

impl Rolling {
    pub fn new(maintenance: Maintenance, job: JobHandle, options: RollingOptions) -> Rolling {
        let kept = RollingKept::default();
        Rolling { maintenance, job, options, kept, lines: Vec::new(), began: Instant::now() }
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.maintenance.0
    }

    fn keep(&self) -> Result<(), Failure> {
        let kept = self.kept.clone();
        let saved = self.inner().store.change_upkeep(|u| u.rolling = Some(kept));
        saved.map_err(|e| Failure::new("the state directory cannot be written").detail(e.to_string()))
    }

    fn precheck(&mut self) -> Result<(), Failure> {
        let (view, upkeep) = (self.inner().board.view(), self.inner().store.upkeep());
        let primary = view.primary.ok_or_else(|| Failure::new("no primary is known"))?;
        match (upkeep.rolling, self.options.resume) {
            (Some(left), true) => self.kept = left,
            (None, true) => return Err(Failure::new("there is no rolling update to resume")),
            (Some(left), false) if !left.done.is_empty() || !upkeep.nodes.is_empty() => {
                let done: Vec<String> = left.done.iter().map(ToString::to_string).collect();
                return Err(Failure::new("an earlier rolling update was left")
                    .detail(format!("done: node {}", if done.is_empty() { "none".into() } else { done.join(", ") }))
                    .hint("--resume goes on with it; `pgmend maintenance finish` for each node that is in maintenance ends it"));
            }
            (Some(_) | None, false) => self.kept = RollingKept { primary: primary.0, ..RollingKept::default() },
        }
        let standbys = view.nodes.iter().filter(|n| n.spec.id != primary && n.status == NodeStatus::Up).count();
        let waiting = upkeep.nodes.len();
        if standbys + waiting == 0 {
            return Err(
                Failure::new("there is no standby in routing: nobody could take over").hint("recover one first")
            );
        }
        self.keep()
    }

    fn is_done(&self, node: NodeId) -> bool {
        self.kept.done.contains(&node.0)
    }

    /// All that are not the primary, the ones in maintenance first: they were begun.
    async fn standbys(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let original = NodeId(self.kept.primary);
        loop {
            let (view, upkeep) = (self.inner().board.view(), self.inner().store.upkeep());
            let begun = |n: &&crate::cluster::NodeView| upkeep.nodes.contains_key(&n.spec.id.0);
            let todo = |n: &&crate::cluster::NodeView| {
                Some(n.spec.id) != view.primary
                    && n.spec.id != original
                    && !self.is_done(n.spec.id)
                    && (n.status == NodeStatus::Up || begun(n))
            };
            let next = view.nodes.iter().filter(todo).max_by_key(|n| (begun(n), std::cmp::Reverse(n.spec.id)));
            let Some(node) = next.map(|n| n.spec.clone()) else { return Ok(()) };
            self.one(&node, upkeep.nodes.contains_key(&node.id.0), stop).await?;
        }
    }

    async fn one(&mut self, node: &Arc<NodeSpec>, begun: bool, stop: &CancellationToken) -> Result<(), Failure> {
        let id = node.id;
        self.record("Node", json!({ "node": id.0 }))?;
        if !begun {
            self.job.note(format!("node {id} goes into maintenance"));
            let told = self.maintenance.nested_begin(node, &self.job, stop).await?;
            self.tell(&told);
        } else {
            self.out_of_service(node, stop).await?;
        }
        self.command(node, stop).await?;
        self.job.note(format!("node {id} comes back"));
        let told = self.maintenance.nested_finish(node, self.options.rebuild, stop).await?;
        self.tell(&told);
        self.kept.done.insert(id.0);
        self.keep()
    }

    /// It was begun before, and whatever may have happened since: the command finds it out of routing, armed and stopped.
    async fn out_of_service(&self, node: &Arc<NodeSpec>, stop: &CancellationToken) -> Result<(), Failure> {
        let id = node.id;
        let bad = |why: String| {
            Failure::new(format!("node {id} is noted as in maintenance and could not be made ready for it"))
                .detail(why)
                .hint(format!("nothing was run; `pgmend maintenance finish {id}` brings the node back"))
        };
        if self.inner().board.view().node(id).is_some_and(|n| n.status.is_live()) {
            let reason = format!("in maintenance since job {}", self.job.id());
            self.inner().keeper.take_out(id, &reason).await.map_err(|e| bad(e.to_string()))?;
        }
        let server = match Server::find(self.inner(), node, self.job.id()).await {
            Ok(server) => server,
            // A command that failed may have left half of a data directory.
            Err(why) if !node::answers(node, ANSWERS).await => {
                self.job.output(&format!("node {id} does not answer, and cannot be looked at: {why}"));
                return Ok(());
            }
            Err(why) => return Err(bad(why)),
        };
        server.arm().await.map_err(|e| bad(e.to_string()))?;
        if !server.runs().await.map_err(|e| bad(e.to_string()))? {
            return Ok(());
        }
        self.job.output(&format!("node {id} was started by somebody meanwhile, and is stopped again"));
        let lines = self.inner().lines_of(&self.job);
        match server.stop_by(Instant::now() + STOP, lines, stop).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(bad(format!("it still runs after {STOP:?}"))),
            Err(error) => Err(bad(error.to_string())),
        }
    }

    fn tell(&mut self, told: &str) {
        for line in told.lines() {
            self.job.output(line);
        }
        self.lines.extend(told.lines().next().map(str::to_owned));
    }

    fn record(&self, name: &str, data: serde_json::Value) -> Result<(), Failure> {
        self.job.record(name, data).map_err(|e| Failure::new(e.to_string()))
    }

    /// The operator's command, while the server is stopped.
    async fn command(&mut self, node: &NodeSpec, stop: &CancellationToken) -> Result<(), Failure> {
        let id = node.id;
        let Some(command) = self.options.per_node.get(&id.0).or(self.options.run.as_ref()).cloned() else {
            return Ok(());
        };
        self.record("Node.Run", json!({ "node": id.0 }))?;
        self.job.note(format!("the command runs for node {id}"));
        let began = Instant::now();
        let limit = (self.inner().settings)().run_timeout;
        let child = self.child(node, &command, limit);
        let inner = stop.child_token();
        let lines = self.inner().lines_of(&self.job);
        let work = node::run(child, lines, |_| (), &inner);
        tokio::pin!(work);
        let ended = match tokio::time::timeout(limit, &mut work).await {
            Ok(ended) => ended,
            Err(_) => {
                inner.cancel();
                drop(work.await);
                return Err(self.stays(id, format!("it did not end within {limit:?}")));
            }
        };
        let finished = ended.and_then(|f| f.success("the command"));
        finished.map_err(|e| self.stays(id, format!("{e}: {}", e.words().unwrap_or_default())))?;
        self.lines.push(format!("the command for node {id} took {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// At the node's machine where there is a way, else here; a template of the node takes it where it wants.
    fn child(&self, node: &NodeSpec, command: &str, limit: Duration) -> Child {
        let line = node.maintain.run_command.as_deref().unwrap_or(command);
        let mark = format!("{}:{}", self.inner().store.directory().display(), self.job.id());
        let order = Order::of(self.job.id(), Some((super::MARK, mark.clone())));
        let spec = Arc::new(node.clone());
        if let Some(remote) = Remote::of(&spec, order.clone()) {
            return remote.own_work("run", line, limit, &[("PGMEND_RUN", command)]).env(super::MARK, mark);
        }
        let child = Child::new(["sh", "-c", line], None).env(super::MARK, mark).env("PGMEND_RUN", command);
        order.told(node, "run", limit).into_iter().fold(child, |child, (name, value)| child.env(name, value))
    }

    fn stays(&self, id: NodeId, why: String) -> Failure {
        Failure::new(format!("the command for node {id} failed; the node stays in maintenance, nothing else was begun"))
            .detail(why)
            .hint(format!(
                "`pgmend rolling-update --resume` tries it again; `pgmend maintenance finish {id}` brings the node back as it is"
            ))
    }

    async fn switch(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let original = NodeId(self.kept.primary);
        if self.inner().board.view().primary != Some(original) {
            return Ok(());
        }
        let options = self.options.switch(None);
        self.job.note("the primary moves");
        let told = self.maintenance.nested_switch(options, true, &self.job, stop).await?;
        self.lines.extend(told.lines().filter(|l| l.contains("primary") || l.contains("clients")).map(str::to_owned));
        self.tell(&told);
        Ok(())
    }

    async fn old_primary(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let original = NodeId(self.kept.primary);
        if self.is_done(original) {
            return Ok(());
        }
        let node = self.inner().board.view().node(original).map(|n| n.spec.clone()).ok_or_else(gone)?;
        let begun = self.inner().store.upkeep().nodes.contains_key(&original.0);
        self.one(&node, begun, stop).await
    }

    async fn failback(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let original = NodeId(self.kept.primary);
        if self.options.failback && self.inner().board.view().primary != Some(original) {
            let options = self.options.switch(Some(original));
            self.job.note(format!("back to node {original}"));
            let told = self.maintenance.nested_switch(options, false, &self.job, stop).await?;
            self.lines
                .extend(told.lines().filter(|l| l.contains("primary") || l.contains("clients")).map(str::to_owned));
            self.tell(&told);
        }
        let line = self.inner().backup(&self.job).await;
        self.lines.push(line);
        let ended = self.inner().store.change_upkeep(|u| u.rolling = None);
        ended.map_err(|e| Failure::new("the state directory cannot be written").detail(e.to_string()))
    }
}

fn gone() -> Failure {
    Failure::new("the node is no longer configured")
}

impl Work for Rolling {
    type Stage = Stage;

    async fn enter(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        match stage {
            Stage::Precheck => self.precheck(),
            Stage::Standbys => self.standbys(stop).await,
            Stage::Switch => self.switch(stop).await,
            Stage::OldPrimary => self.old_primary(stop).await,
            Stage::Failback => self.failback(stop).await,
        }
    }

    async fn undo(&mut self, _stage: Stage) -> Option<String> {
        None
    }

    fn report(&self) -> String {
        let primary = self.inner().board.view().primary.map_or("none".to_owned(), |id| id.to_string());
        let mut lines = vec![format!(
            "every node was maintained in {:.1} s; the primary is node {primary}",
            self.began.elapsed().as_secs_f64()
        )];
        lines.extend(self.lines.iter().cloned());
        lines.join("\n")
    }
}

/// The steps for people.
pub(super) fn steps(inner: &Inner, options: &RollingOptions) -> Vec<Step> {
    let view = inner.board.view();
    let limits = (inner.settings)();
    let mut steps = Vec::new();
    let of_node = |spec: &NodeSpec, steps: &mut Vec<Step>| {
        let named = |mut step: Step| {
            step.name = format!("node {}: {}", spec.id, step.name);
            step
        };
        let command = options.per_node.get(&spec.id.0).or(options.run.as_ref());
        let run = Step {
            name: "Run".to_owned(),
            what: command.map_or("nothing".to_owned(), |c| format!("`{c}` while it is stopped")),
            undo: "none; it stays in maintenance when this fails".to_owned(),
            takes: format!("at most {:?}", limits.run_timeout),
            clients_wait: false,
        };
        steps.push(named(run));
        steps.extend(super::finish::steps(spec.id, options.rebuild).into_iter().map(named));
    };
    for node in view.nodes.iter().filter(|n| Some(n.spec.id) != view.primary && n.status == NodeStatus::Up) {
        let begin = super::begin::steps(node.spec.id).into_iter();
        steps.extend(begin.map(|s| Step { name: format!("node {}: {}", node.spec.id, s.name), ..s }));
        of_node(&node.spec, &mut steps);
    }
    if let Some(primary) = view.primary_spec() {
        steps.extend(super::stages::steps(
            &format!("node {}", primary.id),
            "the best standby",
            options.strict,
            &limits,
        ));
        of_node(primary, &mut steps);
        if options.failback {
            steps.extend(super::stages::steps("it", &format!("node {}", primary.id), options.strict, &limits));
        }
    }
    steps
}
