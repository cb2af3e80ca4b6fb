//! What the surfaces need of the daemon's other parts. `app` implements these traits, tests stand in for it.

use super::{CommandError, StopMode};
use crate::base::NodeId;
use crate::client::Pause;
use crate::cluster::Scope;
use crate::maintenance::{Plan, Planned, Verdict};
use crate::workflow::JobSnapshot;
use std::future::Future;
use std::pin::Pin;

/// A future that owns all it needs, so that a surface may await it anywhere.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Takes nodes into routing and out of it. The words of a failure are for people.
pub trait NodePort: Send + Sync + 'static {
    /// Puts a node into routing; `accept_data`: an operator answers for its data.
    fn attach(&self, node: NodeId, accept_data: bool, reason: String) -> BoxFuture<Result<(), String>>;
    /// Takes a node out of routing.
    fn detach(&self, node: NodeId, reason: String) -> BoxFuture<Result<(), String>>;
}

/// Recoveries and the jobs they run as.
pub trait RecoveryPort: Send + Sync + 'static {
    /// Begins a recovery; its job's number, or Pgpool-II's words of refusal.
    fn start(&self, node: NodeId, overwrite: bool, accept_loss: bool) -> Result<u64, CommandError>;
    /// Begins an attach beside nodes that are kept equal: compared with the main node unless its data are accepted as they
    /// are, while clients are held; its job's number.
    fn attach(&self, node: NodeId, accept_data: bool) -> Result<u64, CommandError>;
    /// One job as it is now; `None` when nobody remembers it.
    fn job(&self, id: u64) -> Option<JobSnapshot>;
    /// All jobs that are remembered.
    fn jobs(&self) -> Vec<JobSnapshot>;
    /// Asks a job to end.
    fn cancel(&self, id: u64) -> Result<(), String>;
    /// The job once it has ended; `None` when nobody remembers it.
    fn wait(&self, id: u64) -> BoxFuture<Option<JobSnapshot>>;
}

/// Planned work on the cluster.
pub trait MaintenancePort: Send + Sync + 'static {
    /// Begins it; its job's number.
    fn begin(&self, work: Planned) -> Result<u64, CommandError>;
    /// The cluster in one word.
    fn verdict(&self) -> Option<Verdict>;
    /// Automatic failover on or off; a line for people.
    fn set_failover(&self, enabled: bool) -> Result<String, String>;
    /// The backup that was due is made; a line for people.
    fn backed_up(&self) -> Result<String, String>;
    /// What it would do.
    fn plan(&self, work: Planned) -> BoxFuture<Result<Plan, CommandError>>;
}

/// What may be ordered of the data plane. Each answers with a line for people.
pub trait TrafficPort: Send + Sync + 'static {
    /// Holds new transactions and waits until no server connection is open.
    fn pause(&self, pause: Pause) -> BoxFuture<Result<String, CommandError>>;
    /// Takes PAUSE or KILL back.
    fn resume(&self, scope: Scope) -> Result<String, CommandError>;
    /// Closes server connections as soon as nobody uses them.
    fn reconnect(&self, scope: Scope) -> String;
    /// Ends all clients and servers.
    fn kill(&self, scope: Scope) -> BoxFuture<Result<String, CommandError>>;
    /// Takes no new clients for a database, or takes them again.
    fn disable(&self, database: String, disabled: bool) -> Result<String, CommandError>;
}

/// The daemon's own life.
pub trait Daemon: Send + Sync + 'static {
    /// Reads the configuration anew; a report for people, or all mistakes.
    fn reload(&self) -> Result<String, String>;
    /// Begins to stop and returns at once.
    fn stop(&self, mode: StopMode);
    /// Clients connected now.
    fn clients(&self) -> u64;
    /// Server connections that went from one worker to another so far.
    fn moved(&self) -> u64;
    /// Configuration keys that wait for a restart.
    fn pending_restart(&self) -> Vec<String>;
    /// The configuration as Pgpool-II lists it: name, value, description.
    fn listed_parameters(&self) -> Vec<(String, String, String)>;
}
