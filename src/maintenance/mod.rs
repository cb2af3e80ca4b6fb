//! Planned work on the cluster while clients go on: the primary moves to another node, nodes are taken out for maintenance and
//! brought back, one after the other for all of them.
//!
//! Never touches a client: it gives the gate an order and waits for its proof that nothing goes on. Never writes the view:
//! it tells `keeper` the new primary. Read `facts` (what is known, and the judgement of it), `stages` (the table, the plan),
//! `run` (the work behind it), then `look`, `prepare`, `drain`, `window` (from the stop to the release, while clients wait)
//! and `after`; then `begin` and `finish` (the maintenance of one node, with `comeback`) and `rolling` (of all). `server` is one
//! server under our control; `sync` with `sync_names` owns `synchronous_standby_names`, `standby_slots` owns `synchronized_standby_slots`,
//! `strict` lets commits wait for a standby; `nested` starts the jobs; `failover` is what is done without an order; `verdict` is the cluster in one word,
//! with `rooms` on their disks, `exits` are the operator's own commands, `crash`, `resolve` (the table) and `resume` are what the next daemon does.

mod after;
mod begin;
mod comeback;
mod conninfo;
mod crash;
mod drain;
mod exits;
mod facts;
mod failover;
mod finish;
mod look;
mod nested;
mod plan;
mod prepare;
mod resolve;
mod resume;
mod rolling;
mod rooms;
mod run;
mod server;
mod settings;
#[cfg(test)]
mod sim;
mod stages;
mod standby_slots;
mod strict;
mod sync;
mod sync_names;
mod verdict;
mod watch;
mod window;

pub use exits::Exits;
pub use facts::{Judgement, Reason};
pub use rolling::RollingOptions;
pub use settings::{Access, Settings};
pub use stages::Step;
pub use verdict::{NodeLine, Verdict, Word};

use crate::base::NodeId;
use crate::cluster::{Board, NodeSpec, NodeStatus, Role, View};
use crate::keeper::{Keeper, ServerTlsOf};
use crate::store::Store;
use crate::workflow::Jobs;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// The kinds of these jobs in the registry.
const SWITCHOVER: &str = "switchover";
const REHEARSAL: &str = "rehearsal";
const BEGIN: &str = "maintenance-begin";
const FINISH: &str = "maintenance-finish";
const ROLLING: &str = "rolling-update";
const FAILOVER: &str = "failover";
const KINDS: [&str; 6] = [SWITCHOVER, REHEARSAL, BEGIN, FINISH, ROLLING, FAILOVER];
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

/// How nodes come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rebuilding {
    /// As they are; where that is not enough, rebuilt by a recovery.
    #[default]
    AsNeeded,
    /// As they are, or not at all.
    Never,
    /// Rebuilt by a recovery.
    Always,
}

/// How a switchover is wished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SwitchOptions {
    /// The node that shall be the primary; `None`: the best one.
    to: Option<NodeId>,
    /// Transactions that do not end.
    transactions: LongTransactions,
    /// Commits wait until they are on a synchronous standby again.
    strict: bool,
}

/// Planned work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Planned {
    /// The primary moves.
    Switchover {
        /// Where to; else the best standby.
        #[serde(default)]
        node: Option<NodeId>,
        /// Transactions that do not end.
        #[serde(default)]
        transactions: LongTransactions,
        /// Commits wait until they are on a synchronous standby again.
        #[serde(default)]
        strict: bool,
    },
    /// Clients are held and released as for a switchover, and nothing is stopped.
    Rehearse {
        /// Where it would go.
        #[serde(default)]
        node: Option<NodeId>,
        /// Transactions that do not end.
        #[serde(default)]
        transactions: LongTransactions,
    },
    /// A standby is stopped, without anybody noticing.
    Begin {
        /// Which.
        node: NodeId,
    },
    /// It comes back.
    Finish {
        /// Which.
        node: NodeId,
        /// How.
        #[serde(default)]
        rebuild: Rebuilding,
    },
    /// All of it for every node.
    RollingUpdate(RollingOptions),
}

/// What would be done, and what stands against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In a few words.
    pub title: String,
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
pub struct Maintenance(Arc<Inner>, rooms::Rooms);

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
        Maintenance(Arc::new(surroundings), rooms::Rooms::default())
    }

    /// True while planned work runs.
    pub fn is_running(&self) -> bool {
        KINDS.iter().any(|kind| self.0.jobs.running(kind).is_some())
    }

    /// Begins planned work and returns its job. Must be called inside the control plane's runtime.
    pub fn begin(&self, work: Planned) -> Result<u64, Refused> {
        self.refuse_where_all_are_written()?;
        let running = self.0.jobs.list().into_iter().find(|j| j.outcome == crate::workflow::Outcome::Running);
        if let Some(other) = running {
            let detail = format!("job {} ({} of node {}) is running", other.id, other.kind, other.node);
            return Err(Refused { message: "nothing was begun".to_owned(), detail: Some(detail), fatal: false });
        }
        match work {
            Planned::Switchover { node, transactions, strict } => {
                self.start_switch(SwitchOptions { to: node, transactions, strict }, false, None)
            }
            Planned::Rehearse { node, transactions } => {
                self.start_rehearsal(SwitchOptions { to: node, transactions, strict: false })
            }
            Planned::Begin { node } => self.start_begin(&self.known(node)?, None),
            Planned::Finish { node, rebuild } => self.start_finish(&self.known(node)?, rebuild),
            Planned::RollingUpdate(options) => self.start_rolling(options),
        }
    }

    /// In the replicating modes there is no primary that could move, and a node that leaves loses writes.
    fn refuse_where_all_are_written(&self) -> Result<(), Refused> {
        let mode = self.0.board.view().mode;
        if !mode.replicates() {
            return Ok(());
        }
        Err(Refused {
            message: "invalid pgpool mode for process promote request".to_owned(),
            detail: Some(format!("planned work is for streaming replication; in {mode} detach a node and recover it")),
            fatal: true,
        })
    }

    fn known(&self, node: NodeId) -> Result<Arc<NodeSpec>, Refused> {
        let view = self.0.board.view();
        view.node(node).map(|n| n.spec.clone()).ok_or_else(|| Refused::new(format!("node id {node} is not valid")))
    }

    /// Finishes or takes back what a crashed daemon left. Run once, at start, before clients are served.
    pub async fn clean_up_after_crash(&self) -> Vec<String> {
        crash::clean_up(self).await
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
