//! Online recovery: a lost node is rebuilt from the primary while clients work; in the replicating modes from the main node,
//! with a second stage in which clients are held.
//!
//! Never touches a client and never writes the view: attaching goes through [`Attach`]. Read `stages` (the table), `run`
//! (the work behind it), then a file per stage: `preflight` (with `judge` and `earlier`), `first_stage` (scripts), `builtin` (copy and rewind),
//! `starting`, `catch_up`; of the two stages `gating`, `second_stage`, `even`; `compare` tells whether nodes are equal; `crash` is what the next daemon does about an interrupted one.

mod builtin;
mod catch_up;
pub mod compare;
mod crash;
mod disk;
mod earlier;
mod even;
mod first_stage;
mod gating;
mod judge;
mod preflight;
mod progress;
mod run;
mod second_stage;
mod settings;
mod stages;
mod starting;

pub use builtin::streaming;
pub use settings::{Runner, Settings, Unlogged};

use crate::base::NodeId;
use crate::cluster::{Board, DataState, NodeSpec, NodeStatus, Quiet, View};
use crate::keeper::ServerTlsOf;
use crate::store::Store;
use crate::workflow::{Jobs, WorkflowError};
use serde_json::json;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The kind of these jobs in the registry.
pub const KIND: &str = "recovery";
/// The kind of the jobs that put a node in beside equals without a copy.
pub const ATTACH_KIND: &str = "attach";
/// Marks pgmend's children in their environment, so that a later daemon finds what outlived this one.
const MARK: &str = "PGMEND_JOB";

/// How an operator asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoverOptions {
    /// The built-in stage may overwrite a data directory of another system.
    pub overwrite: bool,
    /// Data of the target that the source does not have may be lost.
    pub accept_loss: bool,
}

/// Why a recovery was not begun; the words of PCP's M and D fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct Refused {
    /// Pgpool-II's message.
    pub message: String,
    /// Pgpool-II's detail.
    pub detail: Option<String>,
    /// PCP closes the connection after it (severity FATAL).
    pub fatal: bool,
}

/// Puts a recovered node into routing; `app` implements it over `keeper`.
pub trait Attach: Send + Sync {
    /// Returns once the node is published as up. Fails when the node or the primary has changed since this generation. With
    /// a token the gate opens in the same step, and the node stays out when the gate has opened before.
    fn attach(
        &self,
        node: NodeId,
        generation: u64,
        quiet: Option<Quiet>,
        reason: String,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// Starts recoveries; clones share it.
#[derive(Clone)]
pub struct Recovery(Arc<Inner>);

struct Inner {
    board: Arc<Board>,
    attach: Arc<dyn Attach>,
    store: Store,
    jobs: Jobs,
    settings: Arc<dyn Fn() -> Settings + Send + Sync>,
    tls: ServerTlsOf,
    /// What a crashed daemon left is still being ended: no recovery begins meanwhile.
    cleaning: AtomicBool,
    /// Directories that are being emptied; a cancelled recovery does not wait for a long one.
    emptying: Arc<AtomicUsize>,
}

impl Inner {
    /// The mark of a job's children: the folder tells daemons of one machine apart.
    fn mark(&self, job: u64) -> String {
        format!("{}:{job}", self.store.directory().display())
    }
}

impl Recovery {
    /// A handle; nothing runs yet.
    pub fn new(
        board: Arc<Board>,
        attach: Arc<dyn Attach>,
        store: Store,
        jobs: Jobs,
        settings: Arc<dyn Fn() -> Settings + Send + Sync>,
        tls: ServerTlsOf,
    ) -> Recovery {
        let (cleaning, emptying) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
        Recovery(Arc::new(Inner { board, attach, store, jobs, settings, tls, cleaning, emptying }))
    }

    /// Checks what can be checked at once, in Pgpool-II's order and words, then begins the job and returns its number.
    /// Must be called inside the control plane's runtime. The job ends by itself or by `Jobs::cancel` and `Jobs::stop`.
    pub fn start(&self, node: NodeId, options: RecoverOptions) -> Result<u64, Refused> {
        let view = self.0.board.view();
        let known = refused_at_once(&view, node)?;
        self.nothing_else_runs()?;
        refused_by_state(&view, node)?;
        let source = source_of(&view)?;
        let data = json!({ "source": source.id.0, "options": {
            "overwrite": options.overwrite, "accept_loss": options.accept_loss } });
        let job = self.0.jobs.begin(KIND, node, data).map_err(|error| match error {
            WorkflowError::Busy(_) => busy(),
            other => Refused { message: "node recovery failed".into(), detail: Some(other.to_string()), fatal: false },
        })?;
        let id = job.id();
        let mut work = run::Run::new(self.0.clone(), job.clone(), options, view.mode, source, known);
        let rows = stages::rows(view.mode);
        tokio::spawn(async move {
            crate::workflow::run(&job, rows, &mut work).await;
        });
        Ok(id)
    }

    /// Puts a node in beside nodes that are kept equal: clients are held, its data are compared with the main node's unless
    /// they are accepted as they are. Begins the job and returns its number.
    pub fn attach(&self, node: NodeId, accept_data: bool) -> Result<u64, Refused> {
        let view = self.0.board.view();
        let refuse = |detail: String| Refused {
            message: format!("node {node} was not attached"),
            detail: Some(detail),
            fatal: false,
        };
        let seen = view.node(node).ok_or_else(|| refuse(format!("node id {node} is not valid")))?;
        if seen.status != NodeStatus::Down {
            return Err(refuse(format!("it is {}", seen.status)));
        }
        if seen.data == DataState::Diverged && !accept_data {
            return Err(refuse(format!("its data are known to differ ({}): recover it", seen.reason)));
        }
        self.nothing_else_runs()?;
        let source = source_of(&view)?;
        let data = json!({ "source": source.id.0, "accept_data": accept_data });
        let job = self.0.jobs.begin(ATTACH_KIND, node, data).map_err(|error| refuse(error.to_string()))?;
        let id = job.id();
        let (spec, options) = (seen.spec.clone(), RecoverOptions::default());
        let mut work = run::Run::new(self.0.clone(), job.clone(), options, view.mode, source, spec);
        work.attach_only = true;
        work.how = "its data were accepted as they are".to_owned();
        let rows = if accept_data { stages::ATTACH_ACCEPTED } else { stages::ATTACH_COMPARED };
        tokio::spawn(async move {
            crate::workflow::run(&job, rows, &mut work).await;
        });
        Ok(id)
    }

    fn nothing_else_runs(&self) -> Result<(), Refused> {
        if [KIND, ATTACH_KIND].iter().any(|kind| self.0.jobs.running(kind).is_some()) {
            return Err(busy());
        }
        if self.0.cleaning.load(Ordering::Acquire) {
            return Err(Refused {
                message: "process recovery request failed".into(),
                detail: Some(
                    "what an interrupted recovery left is still being ended; see the log, try again soon".into(),
                ),
                fatal: false,
            });
        }
        Ok(())
    }

    /// Ends what a crashed daemon left: kills its scripts, closes its journals, tells what it found. Run once, at start,
    /// before anybody can ask for a recovery.
    pub async fn cleanup_after_crash(&self) -> Vec<String> {
        crash::clean_up(&self.0).await
    }

    /// The same, its findings to the log. Returns when it is done, at the latest after `patience`: clients wait for the
    /// start. It then goes on by itself, and recoveries are refused until it is done.
    pub async fn cleanup_within(&self, patience: Duration) {
        self.0.cleaning.store(true, Ordering::Release);
        let this = self.clone();
        let work = tokio::spawn(async move {
            for finding in this.cleanup_after_crash().await {
                tracing::warn!(event = "recovery.found_after_crash", "{finding}");
            }
            this.0.cleaning.store(false, Ordering::Release);
        });
        if tokio::time::timeout(patience, work).await.is_err() {
            tracing::warn!(
                event = "recovery.cleanup_goes_on",
                "what an interrupted recovery left is still being ended"
            );
        }
    }
}

fn busy() -> Refused {
    Refused {
        message: "process recovery request failed".into(),
        detail: Some("pgpool-II is already processing another recovery request.".into()),
        fatal: true,
    }
}

/// The effective primary, or the main node.
fn source_of(view: &View) -> Result<Arc<NodeSpec>, Refused> {
    let detail = match view.mode.replicates() {
        true => "no main node is known; a recovery needs one as its source",
        false => "no primary is known; a recovery needs a proven primary as its source",
    };
    view.primary_spec().cloned().ok_or_else(|| Refused {
        message: "node recovery failed, unable to connect to main node: -1 ".to_owned(),
        detail: Some(detail.to_owned()),
        fatal: false,
    })
}

/// Rows 1 and 3 of Pgpool-II's table.
fn refused_at_once(view: &View, node: NodeId) -> Result<Arc<NodeSpec>, Refused> {
    let refuse = |detail: String| Refused {
        message: "process recovery request failed".into(),
        detail: Some(detail),
        fatal: false,
    };
    let known = view.node(node).ok_or_else(|| refuse(format!("node id {node} is not valid")))?;
    if !view.mode.replicates() && view.primary_spec().is_some_and(|p| p.id == node) {
        return Err(refuse("primary server cannot be recovered by online recovery.".into()));
    }
    Ok(known.spec.clone())
}

/// Rows 6 and 7.
fn refused_by_state(view: &View, node: NodeId) -> Result<(), Refused> {
    let refuse = |what: &str| Refused {
        message: format!("node recovery failed, node id: {node} is {what}"),
        detail: None,
        fatal: false,
    };
    match view.node(node).map(|n| n.status) {
        Some(NodeStatus::Down) => Ok(()),
        Some(NodeStatus::Unused) => Err(refuse("unused")),
        Some(NodeStatus::Waiting | NodeStatus::Up) => Err(refuse("alive")),
        None => Err(refuse("not valid")),
    }
}
