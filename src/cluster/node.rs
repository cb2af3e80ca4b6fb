//! What the configuration says of a node.

use crate::base::NodeId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where a node listens: a host name or address, or the directory of its Unix socket (starts with `/`).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Host(pub String);

impl Host {
    /// True for a socket directory (or nothing, which means the same to Pgpool-II with PostgreSQL's default directory).
    pub fn is_local(&self) -> bool {
        self.0.is_empty() || self.0.starts_with('/')
    }
    /// The name that Pgpool-II hands to recovery scripts: `localhost` for a socket directory.
    pub fn for_scripts(&self) -> &str {
        if self.is_local() { "localhost" } else { &self.0 }
    }
}

/// libpq's `sslmode` for connections to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain first; TLS when the server's rules let nobody in plain.
    Allow,
    /// TLS when the server offers it; plain when it does not, or when its rules let nobody in with TLS.
    #[default]
    Prefer,
    /// TLS or nothing, certificate unchecked.
    Require,
    /// TLS, certificate signed by a known authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate names the host.
    VerifyFull,
}

/// One PostgreSQL server as configured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Place in the configuration.
    pub id: NodeId,
    /// `backend_hostname`.
    pub host: Host,
    /// `backend_port`.
    pub port: u16,
    /// `backend_data_directory`; needed for recovery.
    pub data_directory: Option<PathBuf>,
    /// `backend_weight`, for reads that may go to any node; relative.
    pub weight: f64,
    /// `backend_application_name`: the name under which this standby streams. Default `pgmend_<id>`.
    pub application_name: String,
    /// False when `backend_flag` says DISALLOW_TO_FAILOVER.
    pub allow_failover: bool,
    /// True when `backend_flag` says ALWAYS_PRIMARY.
    pub always_primary: bool,
    /// A shell command that starts this node's PostgreSQL; else `pg_ctl` for a local node.
    pub start_command: Option<String>,
    /// A shell command that stops it.
    pub stop_command: Option<String>,
    /// A shell command that exits 0 when it runs, 3 when it does not (as `pg_ctl status`).
    pub status_command: Option<String>,
    /// TLS towards this node.
    pub sslmode: SslMode,
    /// Its own commands for maintenance.
    #[serde(default)]
    pub maintain: MaintainCommands,
}

/// How a node is acted on: shell commands, and where its programs are.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MaintainCommands {
    /// Takes a POSIX shell to the node's machine, as its server's user: `{}` in it is that shell. All of the node's other commands
    /// are then run there.
    pub remote_command: Option<String>,
    /// Directory of PostgreSQL's programs on the node's machine; found by itself when `None`.
    pub bin_directory: Option<PathBuf>,
    /// Switches the automatic start of its server on.
    pub autostart_on_command: Option<String>,
    /// Switches it off.
    pub autostart_off_command: Option<String>,
    /// Runs the maintenance command in `$PGMEND_RUN`; `None`: it is run as it is.
    pub run_command: Option<String>,
}

impl NodeSpec {
    /// `host(port)`, as Pgpool-II's messages write it.
    pub fn label(&self) -> String {
        format!("{}({})", self.host.0, self.port)
    }
}

#[cfg(test)]
impl NodeSpec {
    /// A node for unit tests, which set what matters to them: `h(5432)`, streaming under the name `pgmend_<id>`, with no data
    /// directory and no commands.
    pub fn sample(id: u16) -> NodeSpec {
        NodeSpec {
            id: NodeId(id),
            host: Host("h".into()),
            port: 5432,
            data_directory: None,
            weight: 1.0,
            application_name: format!("pgmend_{id}"),
            allow_failover: true,
            always_primary: false,
            start_command: None,
            stop_command: None,
            status_command: None,
            sslmode: SslMode::Disable,
            maintain: MaintainCommands::default(),
        }
    }
}
