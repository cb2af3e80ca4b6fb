//! One look at one node: log in, ask what it is and where it stands.

use crate::base::Lsn;
use crate::cluster::Role;
use crate::server::sql::{Row, Sql, SqlError, SqlTarget};
use std::time::Duration;

/// How many standbys of a primary are looked at; a limit on what a server can make us keep.
const MAX_STANDBYS: usize = 256;

/// A standby as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StandbyReport {
    /// `pg_stat_replication.application_name`.
    pub application_name: String,
    /// `state`, e.g. `streaming`; empty when the role may not see it.
    pub state: String,
    /// `sync_state`.
    pub sync_state: String,
}

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProbeReport {
    /// Primary or standby.
    pub role: Role,
    /// `pg_control_system()`; `None` when the role may not ask.
    pub system_identifier: Option<u64>,
    /// Primary: of the write position. Standby: `received_tli` of the WAL receiver, if it runs and may be seen.
    pub timeline: Option<u32>,
    /// Primary: write position. Standby: replayed.
    pub position: Option<Lsn>,
    /// Standby: received and flushed.
    pub received: Option<Lsn>,
    /// Major version of PostgreSQL.
    pub major: Option<u32>,
    /// Primary: who streams from it.
    pub standbys: Vec<StandbyReport>,
}

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// There is no such node, or it is not in use.
    #[error("node {0} is not configured or not in use")]
    NoSuchNode(crate::base::NodeId),
    /// Nobody answers, or the server is starting, stopping or broken. Counts as a failed health check.
    #[error("{0}")]
    Unreachable(SqlError),
    /// A server is alive but did not let the probe in (password, limits, no such database). Says nothing of its health.
    #[error("the server refused the health check: {0}")]
    Refused(SqlError),
    /// The answer was not understood.
    #[error("the server's answer was not understood: {0}")]
    Answer(String),
}

impl ProbeError {
    /// Whether this counts as a failed health check.
    pub fn is_failure(&self) -> bool {
        matches!(self, ProbeError::Unreachable(_))
    }

    fn of(error: SqlError) -> ProbeError {
        match &error {
            // 57P01..57P05: the server is shutting down, crashed, or cannot connect now; 08: it broke off; XX, 53100,
            // 58: its disk or its inside are broken. Each of them cannot serve clients either.
            SqlError::Server { code, .. } => {
                let broken = ["57P", "08", "XX", "58", "53100"].iter().any(|class| code.starts_with(class));
                if broken { ProbeError::Unreachable(error) } else { ProbeError::Refused(error) }
            }
            // It lives; that our sslmode and its certificate do not agree is no failure of the server.
            SqlError::Tls { .. } => ProbeError::Refused(error),
            SqlError::Connect { .. } | SqlError::Timeout(_) | SqlError::Lost(_) => ProbeError::Unreachable(error),
        }
    }
}

/// `CASE` keeps the functions that fail in the other role from being called. The timeline comes from the write position,
/// since `pg_control_checkpoint()` lags a promotion by seconds.
const LOOK: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN (SELECT received_tli::text FROM pg_catalog.pg_stat_wal_receiver LIMIT 1) \
         ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() END, \
    pg_catalog.current_setting('server_version_num')";
const SYSTEM: &str = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
const ROLE_ONLY: &str = "SELECT pg_catalog.pg_is_in_recovery()";
const STANDBYS: &str = "SELECT application_name, state, sync_state FROM pg_catalog.pg_stat_replication";

/// Looks once, within `timeout` in all.
pub(crate) async fn probe(target: &SqlTarget, timeout: Duration) -> Result<ProbeReport, ProbeError> {
    let look = async {
        let sql = Sql::connect(target, timeout).await.map_err(ProbeError::of)?;
        let mut report = match sql.rows(LOOK).await {
            Ok(rows) => read_look(rows.into_iter().next().unwrap_or_default())?,
            Err(error) if may_not(&error) => {
                read_look(sql.rows(ROLE_ONLY).await.map_err(ProbeError::of)?.into_iter().next().unwrap_or_default())?
            }
            Err(error) => return Err(ProbeError::of(error)),
        };
        report.system_identifier = match sql.rows(SYSTEM).await {
            Ok(rows) => text(rows.first(), 0).and_then(|t| t.parse().ok()),
            Err(error) if may_not(&error) => None,
            Err(error) => return Err(ProbeError::of(error)),
        };
        if report.role == Role::Primary {
            report.standbys = match sql.rows(STANDBYS).await {
                Ok(rows) => rows.iter().take(MAX_STANDBYS).filter_map(read_standby).collect(),
                Err(error) if may_not(&error) => Vec::new(),
                Err(error) => return Err(ProbeError::of(error)),
            };
        }
        Ok(report)
    };
    let late = Err(ProbeError::Unreachable(SqlError::Timeout(timeout)));
    tokio::time::timeout(timeout, look).await.unwrap_or(late)
}

/// The role may not call a function, or this version does not have it.
fn may_not(error: &SqlError) -> bool {
    matches!(error.code(), Some("42501" | "42883" | "42P01" | "42703"))
}

fn text(row: Option<&Row>, column: usize) -> Option<&str> {
    row?.get(column)?.as_deref()
}

fn read_look(row: Row) -> Result<ProbeReport, ProbeError> {
    let row = Some(&row);
    let role = match text(row, 0) {
        Some("t") => Role::Standby,
        Some("f") => Role::Primary,
        other => return Err(ProbeError::Answer(format!("pg_is_in_recovery() gave {other:?}"))),
    };
    let timeline = text(row, 2).and_then(|t| match role {
        // A log file's name starts with its timeline, eight hexadecimal digits.
        Role::Primary => t.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()),
        Role::Standby | Role::Unknown => t.parse().ok(),
    });
    let lsn = |column| text(row, column).and_then(|t| t.parse().ok());
    let major = text(row, 4).and_then(|t| t.parse::<u32>().ok()).map(|number| number / 10_000);
    Ok(ProbeReport { role, timeline, position: lsn(1), received: lsn(3), major, ..ProbeReport::default() })
}

fn read_standby(row: &Row) -> Option<StandbyReport> {
    let field = |column| text(Some(row), column).unwrap_or_default().to_owned();
    Some(StandbyReport { application_name: text(Some(row), 0)?.to_owned(), state: field(1), sync_state: field(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[&str]) -> Row {
        fields.iter().map(|f| (!f.is_empty()).then(|| (*f).to_owned())).collect()
    }

    #[test]
    fn reads_a_primary_and_a_standby() {
        let primary = read_look(row(&["f", "0/3000148", "0000000A0000000000000003", "", "170006"])).unwrap();
        assert_eq!(
            (primary.role, primary.timeline, primary.position, primary.major),
            (Role::Primary, Some(10), Some(Lsn(0x300_0148)), Some(17))
        );
        let standby = read_look(row(&["t", "0/3000060", "10", "0/3000148"])).unwrap();
        assert_eq!(
            (standby.role, standby.timeline, standby.received),
            (Role::Standby, Some(10), Some(Lsn(0x300_0148)))
        );
        assert_eq!(read_look(row(&["t"])).unwrap().timeline, None);
        assert!(read_look(row(&["?"])).is_err());
        assert!(read_look(vec![]).is_err());
    }

    #[test]
    fn a_refusal_is_not_a_failure() {
        let server = |code: &str| {
            ProbeError::of(SqlError::Server { code: code.into(), message: "m".into(), detail: None }).is_failure()
        };
        assert!(!server("28P01"));
        assert!(!server("53300"));
        assert!(server("57P03"));
        assert!(ProbeError::of(SqlError::Timeout(Duration::from_secs(1))).is_failure());
    }
}
