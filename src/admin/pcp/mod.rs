//! Pgpool-II's control protocol (PCP): its tools drive pgmend. Read `packet`, `login`, `commands`, `session`, `serve`.

mod commands;
mod login;
mod node_info;
mod packet;
mod serve;
mod session;
#[cfg(test)]
mod tests;

pub use packet::{MAX_REQUEST, PacketError, Request, parse};
pub use serve::{Bound, MAX_CONNECTIONS, bind, bind_after, serve};

use super::{BoxFuture, Command, CommandError, Reply};
use crate::cluster::View;
use crate::workflow::JobSnapshot;
use std::sync::Arc;

/// What PCP needs of the daemon.
pub trait Operator: Send + Sync + 'static {
    /// Does what the operator asks.
    fn run(&self, command: Command) -> BoxFuture<Result<Reply, CommandError>>;
    /// Waits until the job has ended; `None` when nobody knows it.
    fn wait_job(&self, id: u64) -> BoxFuture<Option<JobSnapshot>>;
    /// The view in force.
    fn view(&self) -> Arc<View>;
    /// Name, value and description of each configuration parameter.
    fn listed_parameters(&self) -> Vec<(String, String, String)>;
}
