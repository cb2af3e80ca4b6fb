//! The work behind the step table: what is known of this recovery, and which file does which stage.

use super::gating::Gated;
use super::stages::Stage;
use super::{Inner, MARK, RecoverOptions, Settings};
use crate::base::{Lsn, NodeId};
use crate::cluster::{Mode, NodeSpec, Warm};
use crate::node::{Data, Lines, Order, Postmaster, Programs, Site};
use crate::server::sql::{Sql, SqlError, SqlTarget};
use crate::workflow::{Failure, JobHandle, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Bound on a connect and on a short question.
pub(super) const SHORT: Duration = Duration::from_secs(10);

/// One recovery under way.
pub(super) struct Run {
    pub inner: Arc<Inner>,
    pub job: JobHandle,
    pub options: RecoverOptions,
    /// How the nodes are kept equal.
    pub mode: Mode,
    /// As they were when it began; a reload in its middle changes nothing.
    pub settings: Settings,
    pub source: Arc<NodeSpec>,
    pub target: Arc<NodeSpec>,
    /// Known after Preflight.
    pub facts: Option<Facts>,
    /// What Starting may have started, so that undo stops it.
    pub started: bool,
    /// The slot that the built-in stage made.
    pub slot: Option<String>,
    /// How the first stage was done, for the report.
    pub how: String,
    /// No recovery: the node is only put in.
    pub attach_only: bool,
    /// Two stages: clients are held, or were.
    pub gated: Gated,
    /// Two stages: clients' connections to the target, opened before they go on.
    pub warm: Option<Warm>,
    /// Two stages: what the operator should know, for the report.
    pub remarks: Vec<String>,
    pub began: Instant,
}

/// What Preflight proved.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub system_identifier: u64,
    pub timeline: u32,
    pub position: Lsn,
    /// The source's own `data_directory`.
    pub source_data: String,
    /// The source runs on this machine.
    pub source_is_local: bool,
    /// Where the target is.
    pub site: Site,
    /// Its data, when pgmend can act on them.
    pub data: Option<Data>,
    /// PostgreSQL's programs of this machine; not needed for a target with a `remote_command`.
    pub programs: Option<Programs>,
    /// The source's major version.
    pub major: u32,
    /// pg_rewind would do: same system, another history, and possible.
    pub rewind: bool,
}

impl Run {
    pub fn new(
        inner: Arc<Inner>,
        job: JobHandle,
        options: RecoverOptions,
        mode: Mode,
        source: Arc<NodeSpec>,
        target: Arc<NodeSpec>,
    ) -> Run {
        let settings = (inner.settings)();
        Run {
            inner,
            job,
            options,
            mode,
            settings,
            source,
            target,
            facts: None,
            started: false,
            slot: None,
            how: String::new(),
            attach_only: false,
            gated: Gated::default(),
            warm: None,
            remarks: Vec::new(),
            began: Instant::now(),
        }
    }

    pub fn facts(&self) -> Result<&Facts, Failure> {
        self.facts.as_ref().ok_or_else(|| Failure::new("the preflight has not been done"))
    }

    /// Connects to a node as `recovery_user`.
    pub async fn connect(&self, node: &NodeSpec, database: &str) -> Result<Sql, SqlError> {
        Sql::connect(&self.address(node, database), SHORT).await
    }

    pub async fn connect_source(&self) -> Result<Sql, Failure> {
        self.connect(&self.source, &self.settings.database).await.map_err(|e| {
            Failure::new(format!("node recovery failed, unable to connect to main node: {} ", self.source.id))
                .detail(e.to_string())
        })
    }

    fn address(&self, node: &NodeSpec, database: &str) -> SqlTarget {
        let s = &self.settings;
        let mut target = SqlTarget::of(node, database, &s.user, &s.password, (self.inner.tls)());
        target.application_name = self.our_name();
        target
    }

    /// Our connections and copies for this node are known on the source by this name.
    pub fn our_name(&self) -> String {
        application_name(self.target.id)
    }

    /// Lines of programs go to the job's output.
    pub fn lines(&self) -> Lines {
        let job = self.job.clone();
        Arc::new(move |line| job.output(line))
    }

    pub fn record(&self, name: &str, data: serde_json::Value) -> Result<(), Failure> {
        self.job.record(name, data).map_err(|e| Failure::new(e.to_string()))
    }

    pub fn postmaster(&self) -> Option<Postmaster> {
        self.facts.as_ref().map(|facts| self.postmaster_of(facts))
    }

    pub fn postmaster_of(&self, facts: &Facts) -> Postmaster {
        Postmaster {
            spec: self.target.clone(),
            site: facts.site.clone(),
            programs: facts.programs.clone(),
            log_directory: self.inner.store.directory().to_owned(),
            order: self.order(),
        }
    }

    pub fn order(&self) -> Order {
        Order::of(self.job.id(), Some((MARK, self.inner.mark(self.job.id()))))
    }

    /// The target's data; pgmend can act on them.
    pub fn data(&self) -> Result<&Data, Failure> {
        self.facts()?.data.as_ref().ok_or_else(|| Failure::new("the target's data are out of reach"))
    }

    pub fn target_directory(&self) -> String {
        self.target.data_directory.as_ref().map(|d| d.display().to_string()).unwrap_or_default()
    }
}

impl Work for Run {
    type Stage = Stage;

    async fn enter(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        if self.mode.replicates() && stage.is_gated() {
            self.behind_the_gate(stage, stop).await
        } else {
            self.effect(stage, stop).await
        }
    }

    async fn undo(&mut self, stage: Stage) -> Option<String> {
        match stage {
            Stage::First => {
                // With two stages the first one has started it already.
                let told = [self.undo_starting().await, self.undo_first_stage().await];
                let told: Vec<String> = told.into_iter().flatten().collect();
                (!told.is_empty()).then(|| told.join("; "))
            }
            Stage::Second => self.end_scripts().await,
            Stage::Starting => self.undo_starting().await,
            Stage::Preflight
            | Stage::Gating
            | Stage::CatchingUp
            | Stage::Verifying
            | Stage::Comparing
            | Stage::Attaching => None,
        }
    }

    fn report(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let (target, source, how) = (self.target.id, self.source.id, &self.how);
        let verb = if self.attach_only { "attached beside" } else { "recovered from" };
        let begin = format!("node {target} {verb} node {source} in {seconds:.1} s: {how}");
        if !self.mode.replicates() {
            return format!("{begin}; streaming, verified, attached");
        }
        let held = self.gated.held().as_secs_f64();
        let mut text = format!("{begin}; clients were held for {held:.3} s");
        if !self.attach_only {
            text.push_str("; verified, attached");
        }
        for remark in &self.remarks {
            text.push_str("; ");
            text.push_str(remark);
        }
        text
    }
}

impl Run {
    /// Does a stage.
    pub(super) async fn effect(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        let two = self.mode.replicates();
        match stage {
            Stage::Preflight => self.preflight(stop).await,
            Stage::First => self.first_stage(stop).await,
            Stage::Gating => stoppable(self.gating(), stop).await,
            Stage::Second => self.second_stage(stop).await,
            Stage::Starting => self.starting(stop).await,
            Stage::CatchingUp if two => stoppable(self.even_out(), stop).await,
            Stage::CatchingUp => stoppable(self.catch_up(), stop).await,
            Stage::Verifying if two => stoppable(self.verify_equal(), stop).await,
            Stage::Verifying => stoppable(self.verify(), stop).await,
            Stage::Comparing => stoppable(self.compare(), stop).await,
            Stage::Attaching => stoppable(self.attach(), stop).await,
        }
    }
}

/// `application_name` of everything that is done for a node's recovery.
pub(super) fn application_name(target: NodeId) -> String {
    format!("pgmend_recovery_{target}")
}

/// Ends at once when `stop` is cancelled; for effects that only wait and ask.
pub(super) async fn stoppable<T>(
    effect: impl Future<Output = Result<T, Failure>>,
    stop: &CancellationToken,
) -> Result<T, Failure> {
    tokio::select! {
        result = effect => result,
        () = stop.cancelled() => Err(Failure::new("stopped")),
    }
}
