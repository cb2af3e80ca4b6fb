//! The one list of operators' commands. Each surface (PCP, HTTP, console) only translates to and from it.

use crate::base::NodeId;
use crate::cluster::View;
use crate::maintenance::{Plan, Planned, Verdict};
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// The view, gate, pools, workers.
    Status,
    /// Rebuild a node; answers with a job.
    Recover {
        /// Which.
        node: NodeId,
        /// Overwrite a data directory of another system.
        #[serde(default)]
        overwrite: bool,
        /// Overwrite data that are ahead of the source.
        #[serde(default)]
        accept_loss: bool,
    },
    /// Put a node into routing. In the replicating modes its data are compared with the main node's first.
    Attach {
        /// Which.
        node: NodeId,
        /// Its data are taken as they are.
        #[serde(default)]
        accept_data: bool,
    },
    /// Take a node out of routing.
    Detach {
        /// Which.
        node: NodeId,
    },
    /// Planned work, such as a switchover; answers with a job.
    Planned {
        /// What.
        work: Planned,
        /// Change nothing; answers with a plan.
        #[serde(default)]
        dry_run: bool,
    },
    /// Automatic failover on or off.
    Failover {
        /// On.
        enabled: bool,
    },
    /// The backup that was due is made.
    BackedUp,
    /// Hold new transactions and wait until no server connection is open.
    Pause {
        /// Only this database; else all.
        #[serde(default)]
        database: Option<String>,
        /// Seconds to wait for the transactions under way; then the gate opens again.
        #[serde(default = "pause_timeout_s")]
        timeout_s: u64,
        /// Seconds after which the pause ends by itself; else by RESUME.
        #[serde(default)]
        at_most_s: Option<u64>,
        /// With the rules that a recovery has for clients.
        #[serde(default)]
        drain: bool,
    },
    /// Take PAUSE or KILL back.
    Resume {
        /// Only this database; else what was held for all.
        #[serde(default)]
        database: Option<String>,
    },
    /// Close every server connection as soon as nobody uses it; new ones are opened as needed.
    Reconnect {
        /// Only this database; else all.
        #[serde(default)]
        database: Option<String>,
    },
    /// End all clients and servers at once; new clients wait until RESUME.
    Kill {
        /// Only this database; else all.
        #[serde(default)]
        database: Option<String>,
    },
    /// Take no new clients for a database.
    Disable {
        /// Which.
        database: String,
    },
    /// Take them again.
    Enable {
        /// Which.
        database: String,
    },
    /// Read the configuration anew.
    Reload,
    /// End the daemon.
    Stop {
        /// smart, fast or immediate.
        mode: StopMode,
    },
    /// All jobs that are remembered.
    Jobs,
    /// One job.
    Job {
        /// Its number.
        id: u64,
    },
    /// Ask a job to end; it undoes what it can.
    CancelJob {
        /// Its number.
        id: u64,
    },
}

/// How long a PAUSE waits unless it is told.
pub const PAUSE_TIMEOUT_S: u64 = 60;
/// How long it may be told to wait.
pub const MAX_PAUSE_TIMEOUT_S: u64 = 3600;

fn pause_timeout_s() -> u64 {
    PAUSE_TIMEOUT_S
}

/// PostgreSQL's and Pgpool-II's three ways to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopMode {
    /// Transactions end first; no new clients.
    Smart,
    /// Clients are disconnected.
    Fast,
    /// At once.
    Immediate,
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done; nothing more to say than this line.
    Done {
        /// For people.
        message: String,
    },
    /// The state of things.
    Status {
        /// The cluster.
        view: View,
        /// `open` or `held: reason`.
        gate: String,
        /// Who keeps what the gate's orders wait for from ending; a bounded list.
        #[serde(default)]
        holdups: Vec<String>,
        /// Version of pgmend.
        version: String,
        /// Process id of the daemon.
        pid: u32,
        /// Clients connected now.
        clients: u64,
        /// Server connections that went from one worker to another so far.
        moved: u64,
        /// Configuration keys that wait for a restart.
        pending_restart: Vec<String>,
        /// The cluster in one word, and why.
        #[serde(default)]
        verdict: Option<Verdict>,
    },
    /// A job was started or looked at.
    Job {
        /// Its state.
        job: crate::workflow::JobSnapshot,
    },
    /// What would be done.
    Plan {
        /// Steps and reasons.
        plan: Plan,
    },
    /// Several jobs, newest first.
    Jobs {
        /// Their states.
        jobs: Vec<crate::workflow::JobSnapshot>,
    },
}

/// Why a command was refused or failed: the words of PCP's M and D fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct CommandError {
    /// Pgpool-II's text where it has one.
    pub message: String,
    /// Detail.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// PCP closes the connection after it (severity FATAL).
    #[serde(default)]
    pub fatal: bool,
}
