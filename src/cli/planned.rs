//! Arguments of planned work: switchover, rehearse, maintenance, rolling-update.

use super::arguments::node;
use crate::base::NodeId;
use crate::maintenance::{LongTransactions, Planned, Rebuilding, RollingOptions};
use clap::{Args, Subcommand, ValueEnum};

/// Planned work. Each is a job, and each has --dry-run.
#[derive(Debug, Subcommand)]
pub enum PlannedOrder {
    /// Move the primary to a standby while clients go on: they wait at their transaction boundaries, nobody gets an error.
    Switchover {
        /// Number of the node that shall be the primary; else the best one.
        #[arg(value_parser = node)]
        node: Option<NodeId>,
        /// Transactions that do not end in time.
        #[arg(long, value_enum, default_value = "retry", value_name = "WHAT")]
        transactions: Transactions,
        /// No commit is acknowledged that is on one server only: from the promotion on commits wait for a synchronous standby.
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        how: How,
    },
    /// Hold clients and release them as for a switchover, with nothing stopped: how long would they wait, and for whom?
    Rehearse {
        /// Number of the node that would be the primary; else the best one.
        #[arg(value_parser = node)]
        node: Option<NodeId>,
        /// Transactions that do not end in time.
        #[arg(long, value_enum, default_value = "retry", value_name = "WHAT")]
        transactions: Transactions,
        #[command(flatten)]
        how: How,
    },
    /// Stop a standby for its maintenance without anybody noticing, and bring it back.
    Maintenance {
        /// Which half.
        #[command(subcommand)]
        action: MaintenanceAction,
    },
    /// Patch every server, one after the other, while clients go on: standbys first, then the primary moves, then the old one.
    RollingUpdate {
        /// Shell command, run for each node while its server is stopped, with PGMEND_NODE, PGMEND_HOST, PGMEND_PORT and
        /// PGMEND_DATA_DIRECTORY; without it servers are only restarted.
        #[arg(long, value_name = "COMMAND")]
        run: Option<String>,
        /// Another command for one node, as NUMBER=COMMAND; may be repeated.
        #[arg(long, value_name = "N=COMMAND", value_parser = of_node)]
        per_node: Vec<(u16, String)>,
        /// Move the primary back at the end.
        #[arg(long)]
        failback: bool,
        #[command(flatten)]
        rebuild: Rebuild,
        /// Transactions that do not end in time.
        #[arg(long, value_enum, default_value = "retry", value_name = "WHAT")]
        transactions: Transactions,
        /// No commit is acknowledged that is on one server only: from the promotion on commits wait for a synchronous standby.
        #[arg(long)]
        strict: bool,
        /// Go on with one that was left.
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        how: How,
    },
}

/// Which half of a maintenance.
#[derive(Debug, Subcommand)]
pub enum MaintenanceAction {
    /// Take a standby out of routing and of synchronous_standby_names, hold its log back, stop it.
    Begin {
        /// Number of the node.
        #[arg(value_parser = node)]
        node: NodeId,
        #[command(flatten)]
        how: How,
    },
    /// Bring it back: as it is or rebuilt, streaming, caught up, synchronous, in routing.
    Finish {
        /// Number of the node.
        #[arg(value_parser = node)]
        node: NodeId,
        #[command(flatten)]
        rebuild: Rebuild,
        #[command(flatten)]
        how: How,
    },
}

/// What all planned work has.
#[derive(Clone, Copy, Debug, Args)]
pub struct How {
    /// Print every step with what takes it back, and what stands against it; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Start it and do not follow.
    #[arg(long)]
    detach: bool,
}

/// How a node comes back.
#[derive(Clone, Copy, Debug, Args)]
pub struct Rebuild {
    /// Rebuild it in any case.
    #[arg(long, conflicts_with = "no_rebuild")]
    rebuild: bool,
    /// Rather fail than rebuild it.
    #[arg(long)]
    no_rebuild: bool,
}

impl From<Rebuild> for Rebuilding {
    fn from(wish: Rebuild) -> Rebuilding {
        match (wish.rebuild, wish.no_rebuild) {
            (true, _) => Rebuilding::Always,
            (false, true) => Rebuilding::Never,
            (false, false) => Rebuilding::AsNeeded,
        }
    }
}

/// What becomes of transactions that do not end.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Transactions {
    /// Clients go on, and it is tried again, a few times; then it fails.
    Retry,
    /// Old ones are waited for, while everybody works on.
    Wait,
    /// They are ended: their clients get an error.
    End,
}

impl From<Transactions> for LongTransactions {
    fn from(what: Transactions) -> LongTransactions {
        match what {
            Transactions::Retry => LongTransactions::Retry,
            Transactions::Wait => LongTransactions::Wait,
            Transactions::End => LongTransactions::End,
        }
    }
}

/// What was asked for.
#[derive(Debug)]
pub struct Asked {
    /// The work.
    pub work: Planned,
    /// A plan only.
    pub dry_run: bool,
    /// Its job is followed to its end.
    pub follow: bool,
}

impl PlannedOrder {
    /// As the daemon takes it.
    pub fn asked(self) -> Asked {
        let (work, how) = match self {
            PlannedOrder::Switchover { node, transactions, strict, how } => {
                (Planned::Switchover { node, transactions: transactions.into(), strict }, how)
            }
            PlannedOrder::Rehearse { node, transactions, how } => {
                (Planned::Rehearse { node, transactions: transactions.into() }, how)
            }
            PlannedOrder::Maintenance { action: MaintenanceAction::Begin { node, how } } => {
                (Planned::Begin { node }, how)
            }
            PlannedOrder::Maintenance { action: MaintenanceAction::Finish { node, rebuild, how } } => {
                (Planned::Finish { node, rebuild: rebuild.into() }, how)
            }
            PlannedOrder::RollingUpdate { run, per_node, failback, rebuild, transactions, strict, resume, how } => {
                let options = RollingOptions {
                    run,
                    per_node: per_node.into_iter().collect(),
                    failback,
                    rebuild: rebuild.into(),
                    transactions: transactions.into(),
                    strict,
                    resume,
                };
                (Planned::RollingUpdate(options), how)
            }
        };
        Asked { work, dry_run: how.dry_run, follow: !how.detach && !how.dry_run }
    }
}

fn of_node(text: &str) -> Result<(u16, String), String> {
    let wrong = || format!("expected NUMBER=COMMAND, found \"{text}\"");
    let (number, command) = text.split_once('=').ok_or_else(wrong)?;
    Ok((number.trim().parse().map_err(|_| wrong())?, command.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments::{Arguments, Order};
    use clap::Parser;

    fn asked(line: &str) -> Asked {
        match Arguments::try_parse_from(line.split(' ')).unwrap().order {
            Order::Planned(order) => order.asked(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_become_planned_work() {
        let line = asked("pgmend rolling-update --run ./patch.sh --per-node 1=true --failback --no-rebuild");
        let Planned::RollingUpdate(options) = line.work else { panic!("{line:?}") };
        assert_eq!(options.run.as_deref(), Some("./patch.sh"));
        assert_eq!(
            (options.per_node[&1].as_str(), options.failback, options.rebuild),
            ("true", true, Rebuilding::Never)
        );
        assert!(line.follow && !line.dry_run);
        let line = asked("pgmend maintenance finish 2 --rebuild --dry-run");
        assert_eq!(line.work, Planned::Finish { node: NodeId(2), rebuild: Rebuilding::Always });
        assert!(line.dry_run && !line.follow);
        assert!(
            Arguments::try_parse_from(["pgmend", "maintenance", "finish", "2", "--rebuild", "--no-rebuild"]).is_err()
        );
        let line = asked("pgmend switchover 1 --strict");
        assert!(matches!(line.work, Planned::Switchover { node: Some(NodeId(1)), strict: true, .. }));
        let json = serde_json::to_string(&asked("pgmend rolling-update").work).unwrap();
        assert!(json.starts_with("{\"kind\":\"rolling_update\""), "{json}");
        assert_eq!(
            serde_json::from_str::<Planned>("{\"kind\":\"rolling_update\"}").unwrap(),
            asked("pgmend rolling-update").work
        );
    }
}
