//! Joins folders that do not know each other: keeper and recovery with the store, the operators' ports with both.

use super::takeover::Links;
use crate::admin::{BoxFuture, CommandError, MaintenancePort, NodePort, RecoveryPort, TrafficPort};
use crate::base::NodeId;
use crate::client::{Divergences, OperateError, Pause, Plane};
use crate::cluster::{NodeSpec, Quiet, Scope, View};
use crate::keeper::{Keeper, KeeperError, Memory, Recalled, SavedNode, ServerTlsOf};
use crate::maintenance::{self, Maintenance, Plan, Planned, Rebuild, Verdict};
use crate::recovery::{Attach, RecoverOptions, Recovery};
use crate::store::{self, Saved, Store};
use crate::workflow::{JobSnapshot, Jobs, Outcome};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The keeper's memory is the store.
pub struct StoreMemory {
    /// Where.
    pub store: Store,
    /// `-D`: what was saved of the nodes counts for nothing.
    pub discard: bool,
}

impl Memory for StoreMemory {
    fn recall(&self) -> Recalled {
        let saved = self.store.all();
        if self.discard {
            return Recalled { generation: saved.generation, ..Recalled::default() };
        }
        let nodes = saved.nodes.into_iter().zip(0..).map(|(n, id)| SavedNode {
            node: NodeId(id),
            status: n.status,
            reason: n.reason,
            changed_at_s: n.changed_at_s,
            data: n.data,
        });
        let nodes = nodes.collect();
        Recalled { generation: saved.generation, epoch: saved.epoch, clean: saved.clean, nodes }
    }

    fn save(&self, view: &View) -> Result<(), String> {
        let nodes = view.nodes.iter().map(|n| store::SavedNode {
            host: n.spec.host.0.clone(),
            port: n.spec.port,
            status: n.status,
            changed_at_s: n.changed_at_s,
            reason: n.reason.clone(),
            data: n.data,
        });
        let nodes = nodes.collect();
        let saved = Saved { generation: view.generation, epoch: view.epoch.clone(), clean: false, nodes };
        self.store.save(saved).map_err(|e| e.to_string())
    }
}

/// What the data plane finds to differ is taken out by the keeper.
pub struct KeeperDivergences {
    /// Ours; it has ended when another process has taken over.
    pub keeper: Keeper,
    /// Then the other process's.
    pub links: Arc<Links>,
}

impl Divergences for KeeperDivergences {
    fn report(&self, node: NodeId, generation: u64, reason: String) -> BoxFuture<Result<u64, String>> {
        let (keeper, links) = (self.keeper.clone(), self.links.clone());
        Box::pin(async move {
            match keeper.report_diverged(node, generation, &reason).await {
                Err(KeeperError::Stopped) => links.report_on(node, generation, reason).await,
                outcome => outcome.map_err(|e| e.to_string()),
            }
        })
    }
}

/// A recovered node is attached by the keeper.
pub struct KeeperAttach(pub Keeper);

impl Attach for KeeperAttach {
    fn attach(
        &self,
        node: NodeId,
        generation: u64,
        quiet: Option<Quiet>,
        reason: String,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            self.0.attach_verified(node, generation, quiet, &reason).await.map(drop).map_err(|e| e.to_string())
        })
    }
}

/// Operators' attach and detach.
pub struct KeeperPort {
    /// Does it.
    pub keeper: Keeper,
    /// Knows which nodes are in maintenance: these stay out.
    pub maintenance: Maintenance,
}

impl NodePort for KeeperPort {
    fn attach(&self, node: NodeId, accept_data: bool, reason: String) -> BoxFuture<Result<(), String>> {
        let (keeper, kept_out) = (self.keeper.clone(), self.maintenance.kept_out(node));
        let attach = async move {
            if let Some(why) = kept_out {
                return Err(why);
            }
            let attached = match accept_data {
                true => keeper.attach_accepted(node, &reason).await,
                false => keeper.attach(node, &reason).await,
            };
            attached.map_err(|e| e.to_string())
        };
        Box::pin(attach)
    }

    fn detach(&self, node: NodeId, reason: String) -> BoxFuture<Result<(), String>> {
        let keeper = self.keeper.clone();
        Box::pin(async move { keeper.detach(node, &reason).await.map_err(|e| e.to_string()) })
    }
}

/// Operators' recoveries and jobs.
pub struct RecoveryJobs {
    /// Starts them.
    pub recovery: Recovery,
    /// Remembers them.
    pub jobs: Jobs,
    /// While it runs, nobody else begins a recovery.
    pub maintenance: Maintenance,
}

impl RecoveryPort for RecoveryJobs {
    fn start(&self, node: NodeId, overwrite: bool, accept_loss: bool) -> Result<u64, CommandError> {
        if self.maintenance.is_running() {
            return Err(CommandError {
                message: "failed to process PCP request at the moment".to_owned(),
                detail: Some("promote node operation is in progress".to_owned()),
                hint: Some("`pgmend jobs` shows it".to_owned()),
                fatal: false,
            });
        }
        let options = RecoverOptions { overwrite, accept_loss };
        self.recovery.start(node, options).map_err(|r| CommandError {
            hint: r.message.ends_with("is alive").then(|| {
                format!(
                    "only a node that is down is recovered: stop its PostgreSQL, and `pgmend detach {node}` if need be"
                )
            }),
            message: r.message,
            detail: r.detail,
            fatal: r.fatal,
        })
    }

    fn attach(&self, node: NodeId, accept_data: bool) -> Result<u64, CommandError> {
        let refused = |r: crate::recovery::Refused| CommandError {
            message: r.message,
            detail: r.detail,
            hint: None,
            fatal: r.fatal,
        };
        self.recovery.attach(node, accept_data).map_err(refused)
    }

    fn job(&self, id: u64) -> Option<JobSnapshot> {
        self.jobs.get(id)
    }

    fn jobs(&self) -> Vec<JobSnapshot> {
        self.jobs.list()
    }

    fn cancel(&self, id: u64) -> Result<(), String> {
        self.jobs.cancel(id).map_err(|e| e.to_string())
    }

    fn wait(&self, id: u64) -> BoxFuture<Option<JobSnapshot>> {
        let jobs = self.jobs.clone();
        Box::pin(async move { jobs.wait(id).await })
    }
}

/// What a switchover needs of recoveries.
pub struct RebuildByRecovery {
    /// Rebuilds.
    pub recovery: Recovery,
    /// Where it is seen.
    pub jobs: Jobs,
    /// How servers log in to each other.
    pub settings: Arc<dyn Fn() -> crate::recovery::Settings + Send + Sync>,
    /// Authorities and certificates, for their connections.
    pub tls: ServerTlsOf,
}

impl Rebuild for RebuildByRecovery {
    fn streaming(&self, source: &NodeSpec, target: &NodeSpec) -> Vec<(&'static str, String)> {
        crate::recovery::streaming(&(self.settings)(), source, target, &(self.tls)().settings)
    }

    fn rebuild(&self, node: NodeId) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async move {
            let id = self.recovery.start(node, RecoverOptions::default()).map_err(|e| e.to_string())?;
            match self.jobs.wait(id).await {
                Some(job) if job.outcome == Outcome::Succeeded => Ok(job.message),
                Some(job) => Err(job.message),
                None => Err(format!("job {id} is not remembered")),
            }
        })
    }
}

/// Operators' planned work.
pub struct MaintenanceJobs(pub Maintenance);

impl MaintenancePort for MaintenanceJobs {
    fn begin(&self, work: Planned) -> Result<u64, CommandError> {
        self.0.begin(work).map_err(not_begun)
    }

    fn verdict(&self) -> Option<Verdict> {
        Some(self.0.verdict())
    }

    fn set_failover(&self, enabled: bool) -> Result<String, String> {
        self.0.set_failover(enabled)
    }

    fn backed_up(&self) -> Result<String, String> {
        self.0.backed_up()
    }

    fn plan(&self, work: Planned) -> BoxFuture<Result<Plan, CommandError>> {
        let maintenance = self.0.clone();
        Box::pin(async move { maintenance.plan(work).await.map_err(not_begun) })
    }
}

fn not_begun(refused: maintenance::Refused) -> CommandError {
    let maintenance::Refused { message, detail, fatal } = refused;
    CommandError {
        message,
        detail,
        hint: Some("`pgmend nodes` and `pgmend jobs` tell how things stand".to_owned()),
        fatal,
    }
}

/// Operators' orders to the data plane.
pub struct PlanePort(pub Arc<Plane>);

impl TrafficPort for PlanePort {
    fn pause(&self, pause: Pause) -> BoxFuture<Result<String, CommandError>> {
        let (plane, scope) = (self.0.clone(), pause.scope.clone());
        Box::pin(async move {
            let took = plane.pause(pause).await.map_err(refused)?;
            tracing::info!(event = "gate.paused", %scope, took_ms = took.as_millis());
            Ok(format!("{scope} is paused: no server connection is open, after {}", milliseconds(took)))
        })
    }

    fn resume(&self, scope: Scope) -> Result<String, CommandError> {
        self.0.resume(&scope).map_err(refused)?;
        tracing::info!(event = "gate.resumed", %scope);
        Ok(format!("{scope}: resumed"))
    }

    fn reconnect(&self, scope: Scope) -> String {
        self.0.reconnect(&scope);
        tracing::info!(event = "pool.reconnect", %scope);
        format!("{scope}: each server connection is closed as soon as nobody uses it")
    }

    fn kill(&self, scope: Scope) -> BoxFuture<Result<String, CommandError>> {
        let plane = self.0.clone();
        Box::pin(async move {
            tracing::info!(event = "gate.killed", %scope);
            let took = plane.kill(&scope).await.map_err(refused)?;
            let took = milliseconds(took);
            Ok(format!("{scope}: clients and servers are gone, after {took}; new clients wait until `pgmend resume`"))
        })
    }

    fn disable(&self, database: String, disabled: bool) -> Result<String, CommandError> {
        let changed = self.0.disable(&database, disabled).map_err(refused)?;
        let what = if disabled { "disabled" } else { "enabled" };
        tracing::info!(event = "database.switched", %database, what);
        Ok(format!("database {database} {} {what}", if changed { "is" } else { "was already" }))
    }
}

fn milliseconds(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

fn refused(error: OperateError) -> CommandError {
    let hint = match &error {
        OperateError::Held(Scope::All, _) => Some("`pgmend resume` takes it back".to_owned()),
        OperateError::Held(scope, _) => {
            let name = scope.to_string().replace("database ", "");
            Some(format!("`pgmend resume {name}` takes it back"))
        }
        OperateError::NotPaused(_) | OperateError::HeldOtherwise(..) => {
            Some("`pgmend status` tells what is held; `resume` names what `pause` named".to_owned())
        }
        OperateError::NotQuiet { .. } => Some("a longer --timeout waits longer; `kill` does not wait".to_owned()),
        OperateError::Gate(_) => None,
    };
    CommandError { message: error.to_string(), detail: None, hint, fatal: false }
}
