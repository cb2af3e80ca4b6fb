//! Asks both servers what the judgement needs to know. Changes nothing.

use super::facts::{CandidateFacts, Facts, PrimaryFacts, Streaming, Transaction};
use super::server::Server;
use super::{Inner, Settings};
use crate::cluster::{NodeSpec, NodeStatus};
use crate::server::sql::{Row, Sql, SqlError};
use crate::workflow::Outcome;
use std::time::Duration;

/// Bound on a connect and on a short question.
pub(super) const SHORT: Duration = Duration::from_secs(5);
/// Transactions that are named.
const MAX_NAMED: usize = 20;

impl Inner {
    /// Connects to a node as `recovery_user`.
    pub(super) async fn connect(&self, node: &NodeSpec) -> Result<Sql, SqlError> {
        let access = (self.access)();
        let mut target =
            crate::server::sql::SqlTarget::of(node, &access.database, &access.user, &access.password, (self.tls)());
        target.application_name = "pgmend_maintenance".to_owned();
        Sql::connect(&target, SHORT).await
    }

    /// The facts for a switchover; the jobs `own` do not stand against it.
    pub(super) async fn look(&self, from: &NodeSpec, to: &NodeSpec, limits: &Settings, own: &[u64]) -> Facts {
        let view = self.board.view();
        let running = self.jobs.list().into_iter().filter(|j| j.outcome == Outcome::Running && !own.contains(&j.id));
        let control = Server::find(self, from, 0).await.err();
        let (primary, candidate) = tokio::join!(
            async {
                let sql = self.connect(from).await.map_err(|e| e.to_string())?;
                primary(&sql, limits).await.map_err(|e| e.to_string())
            },
            async {
                let sql = self.connect(to).await.map_err(|e| e.to_string())?;
                candidate(&sql).await.map_err(|e| e.to_string())
            }
        );
        Facts {
            from: from.id,
            to: to.id,
            to_name: to.application_name.clone(),
            to_is_up: view.node(to.id).is_some_and(|n| n.status == NodeStatus::Up),
            fixed: from.always_primary,
            jobs: running.map(|j| format!("job {} ({} of node {})", j.id, j.kind, j.node)).collect(),
            no_control: control,
            primary,
            candidate,
            epoch: view.epoch.as_ref().map(|e| (e.system_identifier, e.timeline)),
        }
    }
}

/// What the primary says of itself.
pub(super) async fn primary(sql: &Sql, limits: &Settings) -> Result<PrimaryFacts, SqlError> {
    let version = sql.value("SELECT current_setting('server_version_num')", SHORT).await?;
    let major = version.and_then(|v| v.parse::<u32>().ok()).unwrap_or(0) / 10_000;
    let ask = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END, \
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END, \
        current_setting('synchronous_standby_names'), \
        CASE WHEN current_setting('archive_mode') = 'off' THEN NULL \
             ELSE (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') END, \
        (SELECT count(*) FROM pg_stat_progress_basebackup)";
    let rows = sql.rows_within(ask, SHORT).await?;
    let row = rows.first();
    let standbys = sql.rows_within(STANDBYS, SHORT).await?.iter().map(streaming).collect();
    let slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical' ORDER BY 1";
    let logical_slots = sql.rows_within(slots, SHORT).await?.iter().map(|r| text(Some(r), 0)).collect();
    let transactions = transactions(sql, limits.max_transaction_age).await?;
    Ok(PrimaryFacts {
        is_primary: text(row, 0) == "f",
        major,
        system_identifier: number(row, 1),
        timeline: text(row, 2).get(..8).and_then(|t| u32::from_str_radix(t, 16).ok()).unwrap_or(0),
        position: text(row, 3).parse().unwrap_or_default(),
        sync_names: text(row, 4),
        archive_waiting: row.and_then(|r| r.get(5)?.as_ref()?.parse().ok()),
        backups: number(row, 6),
        logical_slots,
        standbys,
        transactions,
    })
}

const STANDBYS: &str = "SELECT r.application_name, coalesce(r.state, ''), coalesce(r.sync_state, ''), \
    coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn), 0)::bigint, r.pid, s.slot_name \
    FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid";

fn streaming(row: &Row) -> Streaming {
    let row = Some(row);
    Streaming {
        name: text(row, 0),
        state: text(row, 1),
        sync_state: text(row, 2),
        lag_bytes: number(row, 3),
        pid: u32::try_from(number(row, 4)).unwrap_or(0),
        slot: row.and_then(|r| r.get(5)?.clone()),
    }
}

/// The names of those that stream from a primary.
pub(super) async fn who_streams(sql: &Sql) -> Result<Vec<String>, SqlError> {
    let ask = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'";
    Ok(sql.rows_within(ask, SHORT).await?.iter().map(|r| text(Some(r), 0)).collect())
}

/// Clients' transactions that are older than a limit, oldest first.
pub(super) async fn transactions(sql: &Sql, older_than: Duration) -> Result<Vec<Transaction>, SqlError> {
    let ask = format!(
        "SELECT pid, coalesce(usename, ''), coalesce(datname, ''), coalesce(application_name, ''), coalesce(state, ''), \
         floor(extract(epoch FROM clock_timestamp() - xact_start))::bigint FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL \
         AND clock_timestamp() - xact_start > interval '{} milliseconds' ORDER BY xact_start LIMIT {MAX_NAMED}",
        older_than.as_millis()
    );
    let rows = sql.rows_within(&ask, SHORT).await?;
    let read = |row: &Row| {
        let row = Some(row);
        Transaction {
            pid: u32::try_from(number(row, 0)).unwrap_or(0),
            user: text(row, 1),
            database: text(row, 2),
            application: text(row, 3),
            state: text(row, 4),
            age_s: number(row, 5),
        }
    };
    Ok(rows.iter().map(read).collect())
}

/// What the coming primary says of itself.
pub(super) async fn candidate(sql: &Sql) -> Result<CandidateFacts, SqlError> {
    let ask = "SELECT pg_is_in_recovery(), current_setting('server_version_num'), \
        (SELECT system_identifier FROM pg_control_system()), \
        (SELECT received_tli FROM pg_stat_wal_receiver LIMIT 1), (SELECT status FROM pg_stat_wal_receiver LIMIT 1), \
        CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
        (SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'), s.setting, s.source, \
        coalesce(s.sourcefile, '') FROM pg_settings s WHERE s.name = 'synchronous_standby_names'";
    let rows = sql.rows_within(ask, SHORT).await?;
    let row = rows.first();
    Ok(CandidateFacts {
        is_standby: text(row, 0) == "t",
        major: u32::try_from(number(row, 1)).unwrap_or(0) / 10_000,
        system_identifier: number(row, 2),
        timeline: row.and_then(|r| r.get(3)?.as_ref()?.parse().ok()),
        receiver: row.and_then(|r| r.get(4)?.clone()),
        paused: text(row, 5) == "t",
        apply_delay_ms: number(row, 6),
        sync_names: text(row, 7),
        sync_names_fixed: text(row, 8) == "command line",
        sync_names_by_system: text(row, 9).ends_with("postgresql.auto.conf"),
    })
}

pub(super) fn text(row: Option<&Row>, column: usize) -> String {
    row.and_then(|r| r.get(column)?.clone()).unwrap_or_default()
}

fn number(row: Option<&Row>, column: usize) -> u64 {
    text(row, column).parse().unwrap_or(0)
}
