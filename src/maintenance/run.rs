//! The work behind the step table: what is known of this switchover, and which file does which stage.

use super::exits::Exit;
use super::facts::Facts;
use super::prepare::Prepared;
use super::server::Server;
use super::stages::Stage;
use super::{Inner, LongTransactions, Settings, SwitchOptions, facts};
use crate::base::Lsn;
use crate::cluster::{Hold, NodeSpec, Stalled, Warm};
use crate::keeper::Freeze;
use crate::node::{ControlData, Lines};
use crate::server::sql::Sql;
use crate::workflow::{Failure, JobHandle, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// One switchover under way.
pub(super) struct Run {
    pub inner: Arc<Inner>,
    pub job: JobHandle,
    pub options: SwitchOptions,
    /// The old primary is not brought back: its maintenance comes now.
    pub stay_down: bool,
    /// A failover: the old primary is lost.
    pub lost: bool,
    /// Its daemon died in the middle, and this one goes on with it: no client is served yet.
    pub resumed: bool,
    /// Nothing is stopped.
    pub rehearsal: bool,
    /// The job that this one is a part of.
    pub parent: Option<u64>,
    /// As they were when it began.
    pub limits: Settings,
    pub from: Arc<NodeSpec>,
    pub to: Arc<NodeSpec>,
    /// Known after Precheck.
    pub facts: Option<Facts>,
    /// To the old primary; it ends with its stop.
    pub primary: Option<Sql>,
    /// To the coming one; it outlives the promotion.
    pub candidate: Option<Sql>,
    pub old: Option<Server>,
    /// The old primary was told to stop.
    pub stop_sent: bool,
    /// What it left behind, when that was told with its stop.
    pub left: Option<ControlData>,
    pub prepared: Prepared,
    pub warm: Option<Warm>,
    pub freeze: Option<Freeze>,
    pub hold: Option<Hold>,
    /// Since when clients wait, and until when at most.
    pub held: Option<Window>,
    pub proof: Option<Proof>,
    pub promotion: Promotion,
    /// `--strict`, from the release on.
    pub strict: Option<super::strict::Watch>,
    pub told: Told,
    pub began: Instant,
}

/// The time in which clients wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub since: Instant,
    pub until: Instant,
}

/// How far the promotion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    /// Not asked for: every failure goes back to the old primary.
    NotAsked,
    /// Asked for, outcome unknown: nobody goes back.
    Asked,
    /// Asked for, and it is proven that it will not happen: the node is down and its history was not begun.
    Impossible,
    /// Done; its timeline.
    Done(u32),
}

/// Stopped and received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    pub shut_down_at: Lsn,
    pub received: Lsn,
    pub replayed: Lsn,
    pub timeline: u32,
}

/// What the report tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub window: Option<Duration>,
    pub stalled: Stalled,
    pub parts: Vec<(&'static str, Duration)>,
    /// What was done afterwards, a line each.
    pub lines: Vec<String>,
    /// What could not be done afterwards.
    pub failed: Vec<String>,
}

impl Run {
    pub fn new(
        inner: Arc<Inner>,
        job: JobHandle,
        options: SwitchOptions,
        from: Arc<NodeSpec>,
        to: Arc<NodeSpec>,
    ) -> Run {
        let limits = (inner.settings)();
        Run {
            inner,
            job,
            options,
            stay_down: false,
            lost: false,
            resumed: false,
            rehearsal: false,
            parent: None,
            limits,
            from,
            to,
            facts: None,
            primary: None,
            candidate: None,
            old: None,
            stop_sent: false,
            left: None,
            prepared: Prepared::default(),
            warm: None,
            freeze: None,
            hold: None,
            held: None,
            proof: None,
            promotion: Promotion::NotAsked,
            strict: None,
            told: Told::default(),
            began: Instant::now(),
        }
    }

    pub fn facts(&self) -> Result<&Facts, Failure> {
        self.facts.as_ref().ok_or_else(|| Failure::new("nothing was looked at yet"))
    }

    pub fn old(&self) -> Result<&Server, Failure> {
        self.old.as_ref().ok_or_else(|| Failure::new("the old primary is not under control"))
    }

    pub fn candidate(&self) -> Result<&Sql, Failure> {
        self.candidate.as_ref().ok_or_else(|| Failure::new(format!("node {} is not connected", self.to.id)))
    }

    pub fn lines(&self) -> Lines {
        let job = self.job.clone();
        Arc::new(move |line| job.output(line))
    }

    pub fn record(&self, name: &str, data: serde_json::Value) -> Result<(), Failure> {
        self.job.record(name, data).map_err(|e| Failure::new(e.to_string()))
    }

    async fn precheck(&mut self) -> Result<(), Failure> {
        let own: Vec<u64> = self.parent.into_iter().chain([self.job.id()]).collect();
        let facts = self.inner.look(&self.from, &self.to, &self.limits, &own).await;
        let old_matter = self.options.transactions == LongTransactions::Retry;
        let mut judgement = facts::judge(&facts, &self.limits, old_matter);
        if self.options.strict {
            self.inner.judge_strict(&self.from, self.to.id, self.stay_down, &mut judgement).await;
        }
        judgement.remarks.iter().for_each(|remark| self.job.output(&format!("remark: {remark}")));
        if !judgement.against.is_empty() {
            let reasons: Vec<String> = judgement.against.iter().map(ToString::to_string).collect();
            return Err(Failure::new(format!("node {} cannot take over from node {} now", self.to.id, self.from.id))
                .detail(reasons.join("; "))
                .hint("nothing was changed; `pgmend switchover --dry-run` tells the same without trying"));
        }
        self.told.lines.extend(judgement.remarks);
        self.facts = Some(facts);
        let bad = |e: &dyn std::fmt::Display| Failure::new("no connection for the switchover").detail(e.to_string());
        self.primary = Some(self.inner.connect(&self.from).await.map_err(|e| bad(&e))?);
        self.candidate = Some(self.inner.connect(&self.to).await.map_err(|e| bad(&e))?);
        self.old = Some(Server::find(&self.inner, &self.from, self.job.id()).await.map_err(|e| bad(&e))?);
        if self.rehearsal {
            return Ok(());
        }
        self.inner.exit(Exit::BeforeSwitch, self.to.id, &self.job).await
    }
}

impl Work for Run {
    type Stage = Stage;

    async fn enter(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        match stage {
            Stage::Precheck => stoppable(self.precheck(), stop).await,
            Stage::Prepare => stoppable(self.prepare(), stop).await,
            Stage::Checkpoint => stoppable(self.checkpoint(), stop).await,
            Stage::Warm => stoppable(self.warm_up(), stop).await,
            Stage::Drain => stoppable(self.drain(), stop).await,
            // From here on it is a matter of seconds, and half a stop cannot be left: an operator's wish to end it comes too
            // late until the next stage.
            Stage::Stop => self.stop_old(stop).await,
            Stage::Fence => self.fence().await,
            Stage::Verify => self.verify().await,
            Stage::Promote => self.promote().await,
            Stage::Release => self.release().await,
            Stage::Open => self.open().await,
            Stage::Follow => self.follow().await,
            Stage::Rejoin => self.rejoin().await,
            Stage::Synchronous => self.synchronous().await,
        }
    }

    async fn undo(&mut self, stage: Stage) -> Option<String> {
        match stage {
            Stage::Prepare => self.undo_prepare().await,
            Stage::Warm => {
                self.warm = None;
                None
            }
            Stage::Drain => self.undo_drain(),
            Stage::Stop => self.undo_stop().await,
            Stage::Promote => self.undo_promote(),
            Stage::Fence => self.undo_fence().await,
            Stage::Precheck
            | Stage::Checkpoint
            | Stage::Verify
            | Stage::Release
            | Stage::Open
            | Stage::Follow
            | Stage::Rejoin
            | Stage::Synchronous => None,
        }
    }

    /// Clients wait, and soon there is no way back: an operator's wish to end it would only make both worse.
    fn is_past_cancel(&self, stage: Stage) -> bool {
        matches!(
            stage,
            Stage::Stop
                | Stage::Fence
                | Stage::Verify
                | Stage::Promote
                | Stage::Release
                | Stage::Follow
                | Stage::Rejoin
                | Stage::Synchronous
        )
    }

    fn report(&self) -> String {
        if self.rehearsal {
            return self.rehearsed();
        }
        if self.lost {
            return self.failed_over();
        }
        let mut lines = vec![format!(
            "node {} is the primary, node {} was it; {:.1} s in all",
            self.to.id,
            self.from.id,
            self.began.elapsed().as_secs_f64()
        )];
        if let Some(window) = self.told.window {
            let parts: Vec<String> =
                self.told.parts.iter().map(|(name, took)| format!("{name} {:.1}", milliseconds(*took))).collect();
            lines.push(format!("clients were held for {:.1} ms ({})", milliseconds(window), parts.join(", ")));
        }
        lines.push(self.told.stalled.to_string());
        if let (Some(proof), Promotion::Done(timeline)) = (self.proof, self.promotion) {
            lines.push(format!(
                "proof: node {} shut down at {}, node {} had received up to {} and replayed up to {}; timeline {} -> {timeline}",
                self.from.id, proof.shut_down_at, self.to.id, proof.received, proof.replayed, proof.timeline
            ));
        }
        lines.extend(self.told.lines.iter().cloned());
        lines.join("\n")
    }
}

pub(super) fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
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
