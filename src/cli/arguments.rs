//! The command line of `pgmend`.

use super::planned::PlannedOrder;
use crate::admin::{MAX_PAUSE_TIMEOUT_S, PAUSE_TIMEOUT_S, StopMode};
use crate::base::NodeId;
use crate::config::Source;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
First steps:
  pgmend check pgmend.toml      name every mistake in a configuration
  pgmend run pgmend.toml        be the daemon; SIGHUP reloads, SIGTERM lets transactions end, SIGINT does not wait
  pgmend -c pgmend.toml status  ask it

The daemon is looked for at --socket, at the socket that the file of -c names, at $PGMEND_SOCKET, at /run/pgmend/pgmend.sock.
Exit codes: 0 it worked, 1 it failed, 2 the command line is wrong, 3 the daemon cannot be reached.";

/// A PostgreSQL connection pooler that keeps its own cluster whole.
#[derive(Debug, Parser)]
#[command(name = "pgmend", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Unix socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", help_heading = "To reach the daemon")]
    pub socket: Option<PathBuf>,
    /// Configuration file that names the socket.
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "To reach the daemon")]
    pub config: Option<PathBuf>,
    /// Print the daemon's answer as JSON.
    #[arg(long, global = true, help_heading = "To reach the daemon")]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub order: Order,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Order {
    /// Be the daemon, in the foreground.
    Run(Run),
    /// Check a configuration without starting.
    Check(Files),
    /// State of the daemon and the cluster: one word, and why.
    Status(StatusHow),
    /// The nodes.
    Nodes,
    /// Rebuild a node from the primary while clients go on working, and follow it.
    Recover {
        /// Number of the node.
        #[arg(value_parser = node)]
        node: NodeId,
        /// Overwrite a data directory that belongs to another system.
        #[arg(long)]
        overwrite: bool,
        /// Overwrite data that are ahead of the primary's.
        #[arg(long)]
        accept_loss: bool,
        /// Start it and do not follow.
        #[arg(long)]
        detach: bool,
    },
    /// Put a node into routing. Where pgmend writes to all nodes, its data are compared with the main node's first, while
    /// clients are held.
    Attach {
        /// Number of the node.
        #[arg(value_parser = node)]
        node: NodeId,
        /// Take its data as they are, without a comparison.
        #[arg(long)]
        accept_data: bool,
    },
    /// Take a node out of routing.
    Detach {
        /// Number of the node.
        #[arg(value_parser = node)]
        node: NodeId,
    },
    #[command(flatten)]
    Planned(PlannedOrder),
    /// Automatic promotion of a standby and detaching of lost nodes: on or off, also over a restart.
    Failover {
        /// On or off.
        #[arg(value_enum)]
        action: FailoverAction,
    },
    /// Note that the backup is made that was due since the primary changed.
    BackedUp,
    /// Hold new transactions, and wait until those under way have ended and no server connection is open. Clients stay
    /// connected and wait, at most for query_wait_timeout each (with --drain: until it ends); `resume` lets them go on.
    Pause {
        /// Only this database; else all.
        database: Option<String>,
        /// Seconds to wait for the transactions under way; then nothing is paused, and the command fails.
        #[arg(long, default_value_t = PAUSE_TIMEOUT_S, value_name = "SECONDS",
              value_parser = clap::value_parser!(u64).range(0..=MAX_PAUSE_TIMEOUT_S))]
        timeout: u64,
        /// Resume by itself after so many seconds.
        #[arg(long, value_name = "SECONDS")]
        at_most: Option<u64>,
        /// With the rules that a recovery has for clients (recovery_clients, client_idle_limit_in_recovery,
        /// recovery_idle_in_transaction_limit, recovery_new_connections): shows what they would do, and really does it.
        #[arg(long)]
        drain: bool,
    },
    /// Take `pause` or `kill` back.
    Resume {
        /// The database that was named then; none when none was.
        database: Option<String>,
    },
    /// Close each server connection as soon as nobody uses it; new ones are opened as needed.
    Reconnect {
        /// Only this database; else all.
        database: Option<String>,
    },
    /// Disconnect all clients and servers at once; new clients wait until `resume`.
    Kill {
        /// Only this database; else all.
        database: Option<String>,
    },
    /// Refuse new clients of a database; those that are connected go on.
    Disable {
        /// Which.
        database: String,
    },
    /// Take new clients again.
    Enable {
        /// Which.
        database: String,
    },
    /// Read the configuration anew.
    Reload,
    /// End the daemon.
    Stop {
        /// What becomes of the clients.
        #[arg(short, long, value_enum, default_value = "smart")]
        mode: Mode,
    },
    /// All jobs that are remembered, newest first.
    Jobs,
    /// Judge one password by PAM: what the daemon starts for each login of the method `pam`.
    #[cfg(feature = "pam")]
    #[command(hide = true)]
    PamJudge,
    /// One job.
    Job {
        /// What to do with it.
        #[command(subcommand)]
        action: JobAction,
    },
}

/// How the state is shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatusHow {
    /// For monitors: exit with 0 only when the word is "switchable", else with 1 (3: the daemon cannot be reached).
    #[arg(long)]
    pub check: bool,
    /// Again and again, with what a running job does, until Ctrl-C.
    #[arg(long, conflicts_with = "check")]
    pub watch: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailoverAction {
    /// On.
    Enable,
    /// Off.
    Disable,
}

/// What to do with a job.
#[derive(Debug, Subcommand)]
pub enum JobAction {
    /// Show it with its output.
    Show {
        /// Its number.
        id: u64,
    },
    /// Ask it to end; it undoes what it can.
    Cancel {
        /// Its number.
        id: u64,
    },
}

/// How to stop.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// Transactions end first.
    #[value(alias = "s")]
    Smart,
    /// Clients are disconnected.
    #[value(alias = "f")]
    Fast,
    /// At once.
    #[value(alias = "i")]
    Immediate,
}

impl From<Mode> for StopMode {
    fn from(mode: Mode) -> StopMode {
        match mode {
            Mode::Smart => StopMode::Smart,
            Mode::Fast => StopMode::Fast,
            Mode::Immediate => StopMode::Immediate,
        }
    }
}

/// Options of the daemon.
#[derive(Debug, Args)]
pub struct Run {
    /// Which files.
    #[command(flatten)]
    pub files: Files,
    /// Stay in the foreground (it always does, unless --detach is given).
    #[arg(short = 'n', long)]
    pub dont_detach: bool,
    /// Go into the background; only with --pgpool.
    #[arg(long, requires = "pgpool", conflicts_with = "dont_detach")]
    pub detach: bool,
    /// Forget the states of the nodes.
    #[arg(short = 'D', long)]
    pub discard_status: bool,
    /// Take the place of the daemon that runs on the same state directory, without closing a socket: it keeps its clients
    /// until they leave, new ones come here. Without one this is an ordinary start.
    #[arg(long)]
    pub takeover: bool,
}

/// pgmend's file, or Pgpool-II's.
#[derive(Debug, Args)]
pub struct Files {
    /// pgmend.toml.
    #[arg(required_unless_present = "pgpool", conflicts_with = "pgpool")]
    file: Option<PathBuf>,
    /// Use Pgpool-II's files.
    #[arg(long)]
    pgpool: bool,
    /// pgpool.conf.
    #[arg(short = 'f', value_name = "FILE", requires = "pgpool", default_value = "/etc/pgpool2/pgpool.conf")]
    conf: PathBuf,
    /// pcp.conf.
    #[arg(short = 'F', value_name = "FILE", requires = "pgpool")]
    pcp: Option<PathBuf>,
    /// pool_hba.conf.
    #[arg(short = 'a', value_name = "FILE", requires = "pgpool")]
    hba: Option<PathBuf>,
    /// Key file of AES secrets.
    #[arg(short = 'k', value_name = "FILE", requires = "pgpool")]
    key: Option<PathBuf>,
}

impl Files {
    /// The configuration that they make.
    pub fn source(&self) -> Source {
        match &self.file {
            Some(file) if !self.pgpool => Source::Toml(file.clone()),
            Some(_) | None => Source::Pgpool {
                conf: self.conf.clone(),
                pcp: self.pcp.clone(),
                hba: self.hba.clone(),
                keyfile: self.key.clone(),
            },
        }
    }
    /// True for Pgpool-II's files.
    pub fn is_pgpool(&self) -> bool {
        self.pgpool
    }
}

pub fn node(text: &str) -> Result<NodeId, String> {
    text.parse().map(NodeId).map_err(|_| "expected the number of a node, from 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn commands_are_read() {
        let Order::Recover { node, overwrite, .. } = parse("pgmend recover 1 --overwrite --json").unwrap().order else {
            unreachable!()
        };
        assert_eq!((node, overwrite), (NodeId(1), true));
        let Order::Run(run) = parse("pgmend run --pgpool -f a -F b -a c -k d -n -D").unwrap().order else {
            unreachable!()
        };
        let expected = Source::Pgpool {
            conf: "a".into(),
            pcp: Some("b".into()),
            hba: Some("c".into()),
            keyfile: Some("d".into()),
        };
        assert_eq!(run.files.source(), expected);
        assert!(run.discard_status);
        let Order::Run(run) = parse("pgmend run x.toml").unwrap().order else { unreachable!() };
        assert_eq!(run.files.source(), Source::Toml("x.toml".into()));
        assert!(parse("pgmend run").is_err());
        assert!(parse("pgmend run x.toml --pgpool").is_err());
        assert!(parse("pgmend recover one").is_err());
        assert!(parse("pgmend stop -m f").is_ok());
        for line in ["pause", "pause db --timeout 5 --at-most 60", "resume", "reconnect db", "kill db", "disable db"] {
            assert!(parse(&format!("pgmend {line}")).is_ok(), "{line}");
        }
        assert!(parse("pgmend disable").is_err() && parse("pgmend pause --timeout 4000").is_err());
        assert!(parse("pgmend -c pgmend.toml status").is_ok());
    }
}
