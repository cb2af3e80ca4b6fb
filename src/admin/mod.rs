//! Operators' surfaces over one command list: PCP, the JSON API, `SHOW POOL_*`.
//!
//! Read `command` (the list), `ports` (what the app lends), `run` (carries a command out), then a surface each:
//! `pcp` (Pgpool-II's tools), `http` (the JSON API) and `pool_commands` (statements in ordinary sessions).

mod command;
#[cfg(test)]
pub(crate) mod fake;
pub mod http;
mod node_words;
pub mod pcp;
mod pool_commands;
mod ports;
mod run;
mod settings;
pub use command::{Command, CommandError, MAX_PAUSE_TIMEOUT_S, PAUSE_TIMEOUT_S, Reply, StopMode};
pub use pool_commands::PoolAnswers;
pub use ports::{BoxFuture, Daemon, MaintenancePort, NodePort, RecoveryPort, TrafficPort};
pub use run::{Admin, PcpOperator};
pub use settings::{PcpSettings, Settings};
