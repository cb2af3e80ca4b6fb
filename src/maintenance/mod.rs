//! Planned work on the cluster while clients go on: the primary moves to another node.
//!
//! Never touches a client: it gives the gate an order and waits for its proof that nothing goes on. Never writes the view:
//! it tells `keeper` the new primary. Read `facts` (what is known, and the judgement of it), `stages` (the table, the plan),
//! `run` (the work behind it), then `look`, `prepare`, `drain`, `window` (from the stop to the release, while clients wait)
//! and `after`; `server` is one server under our control, `sync_names` and `conninfo` are settings.

mod after;
mod conninfo;
mod crash;
mod drain;
mod facts;
mod look;
mod prepare;
mod run;
mod server;
mod settings;
mod stages;
mod sync_names;
mod window;

pub use facts::{Judgement, Reason};
pub use settings::{Access, Settings};
pub use stages::Step;

use crate::base::NodeId;
use crate::cluster::{Board, NodeSpec, NodeStatus, Role, View};
use crate::keeper::{Keeper, ServerTlsOf};
use crate::store::Store;
use crate::workflow::Jobs;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// The kind of these jobs in the registry.
pub const KIND: &str = "switchover";
/// Marks pgmend's children in their environment.
const MARK: &str = "PGMEND_JOB";

/// What becomes of transactions that do not end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongTransactions {
    /// Nothing is begun while there is an old one; after all attempts the operator tries again later.
    #[default]
    Retry,
    /// Old ones are waited for, while everybody works on.
    Wait,
    /// Those that do not end in time are ended: their clients get an error.
    End,
}

/// How an operator asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchOptions {
    /// The node that shall be the primary; `None`: the best one.
    pub to: Option<NodeId>,
    /// Transactions that do not end.
    pub transactions: LongTransactions,
}

/// What would be done, and what stands against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The primary.
    pub from: NodeId,
    /// The coming one.
    pub to: NodeId,
    /// The judgement.
    pub judgement: Judgement,
    /// The steps.
    pub steps: Vec<Step>,
}

/// Why it was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct Refused {
    /// Pgpool-II's message where it has one.
    pub message: String,
    /// Detail.
    pub detail: Option<String>,
    /// PCP closes the connection after it.
    pub fatal: bool,
}

impl Refused {
    fn new(message: impl Into<String>) -> Refused {
        Refused { message: message.into(), detail: None, fatal: false }
    }
}

/// A future of a trait's method.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What recoveries lend: `app` implements it.
pub trait Rebuild: Send + Sync {
    /// The settings that make `target` a standby of `source`.
    fn streaming(&self, source: &NodeSpec, target: &NodeSpec) -> Vec<(&'static str, String)>;
    /// Rebuilds a node that is down and attaches it; how it was done, or why not.
    fn rebuild(&self, node: NodeId) -> Boxed<'_, Result<String, String>>;
}

/// Begins planned work; clones share it.
#[derive(Clone)]
pub struct Maintenance(Arc<Inner>);

/// What planned work stands on.
pub struct Surroundings {
    /// View and gate.
    pub board: Arc<Board>,
    /// Publishes the new primary.
    pub keeper: Keeper,
    /// Its folder, for what servers say when they start.
    pub store: Store,
    /// The registry.
    pub jobs: Jobs,
    /// Limits, as they are now.
    pub settings: Arc<dyn Fn() -> Settings + Send + Sync>,
    /// How servers are reached, as it is now.
    pub access: Arc<dyn Fn() -> Access + Send + Sync>,
    /// TLS towards them.
    pub tls: ServerTlsOf,
    /// Recoveries.
    pub rebuild: Arc<dyn Rebuild>,
}

type Inner = Surroundings;

impl Maintenance {
    /// A handle; nothing runs yet.
    pub fn new(surroundings: Surroundings) -> Maintenance {
        Maintenance(Arc::new(surroundings))
    }

    /// True while a switchover runs.
    pub fn is_running(&self) -> bool {
        self.0.jobs.running(KIND).is_some()
    }

    /// What a switchover would do, and what stands against it. Changes nothing.
    pub async fn plan(&self, options: SwitchOptions) -> Result<Plan, Refused> {
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        let limits = (self.0.settings)();
        let facts = self.0.look(&from, &to, &limits, None).await;
        let judgement = facts::judge(&facts, &limits, options.transactions == LongTransactions::Retry);
        let label = |spec: &NodeSpec| format!("node {}", spec.id);
        let steps = stages::steps(&label(&from), &label(&to), &limits);
        Ok(Plan { from: from.id, to: to.id, judgement, steps })
    }

    /// Begins a switchover and returns its job. Must be called inside the control plane's runtime.
    pub fn switchover(&self, options: SwitchOptions) -> Result<u64, Refused> {
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        if let Some(other) = self.0.jobs.list().iter().find(|j| j.outcome == crate::workflow::Outcome::Running) {
            return Err(Refused {
                message: "the switchover was not begun".to_owned(),
                detail: Some(format!("job {} ({} of node {}) is running", other.id, other.kind, other.node)),
                fatal: false,
            });
        }
        let data = json!({ "from": from.id.0, "to": to.id.0, "transactions": options.transactions });
        let job = self.0.jobs.begin(KIND, to.id, data).map_err(|e| Refused {
            message: "the switchover was not begun".to_owned(),
            detail: Some(e.to_string()),
            fatal: false,
        })?;
        let id = job.id();
        let mut work = run::Run::new(self.0.clone(), job.clone(), options, from, to);
        tokio::spawn(async move {
            crate::workflow::run(&job, stages::ROWS, &mut work).await;
        });
        Ok(id)
    }

    /// Finishes or takes back what a crashed daemon left. Run once, at start, before clients are served.
    pub async fn clean_up_after_crash(&self) -> Vec<String> {
        crash::clean_up(&self.0).await
    }
}

/// The primary, and the node that shall take its place: the one that was named, else the best that streams.
fn choose(view: &View, to: Option<NodeId>) -> Result<(Arc<NodeSpec>, Arc<NodeSpec>), Refused> {
    let from = view.primary_spec().cloned().ok_or_else(|| Refused::new("no primary is known"))?;
    let chosen = match to {
        Some(id) if id == from.id => {
            return Err(Refused {
                message: "invalid promote request".to_owned(),
                detail: Some(format!("specified node is already primary node, can't promote node id {id}")),
                fatal: true,
            });
        }
        Some(id) => view.node(id).ok_or_else(|| Refused {
            message: "could not process promote request".to_owned(),
            detail: Some(format!("node id {id} is not valid")),
            fatal: false,
        })?,
        None => {
            let fits = |n: &&crate::cluster::NodeView| {
                n.spec.id != from.id && n.status == NodeStatus::Up && n.role == Role::Standby
            };
            // Synchronous before asynchronous, then who lags least; ties go to the first.
            let order = |n: &&crate::cluster::NodeView| {
                let synchronous = matches!(n.sync_state.as_deref(), Some("sync" | "quorum"));
                (!synchronous, n.replication_state.as_deref() != Some("streaming"), n.delay_bytes.unwrap_or(u64::MAX))
            };
            view.nodes
                .iter()
                .filter(fits)
                .min_by_key(order)
                .ok_or_else(|| Refused::new("there is no standby in routing that could be the primary"))?
        }
    };
    Ok((from, chosen.spec.clone()))
}
