//! Pgpool-II's own statements in ordinary sessions: `SHOW POOL_NODES` and its kin, in the layout of 4.3.5.

use super::{Admin, node_words};
use crate::client::{Answer, PoolCommands};
use crate::cluster::{NodeView, View};
use std::sync::Arc;

/// Answers them from what `Admin` knows. All times are UTC.
pub struct PoolAnswers {
    admin: Arc<Admin>,
}

impl PoolAnswers {
    /// Answers out of `admin`.
    pub fn new(admin: Arc<Admin>) -> PoolAnswers {
        PoolAnswers { admin }
    }
}

impl PoolCommands for PoolAnswers {
    fn answer(&self, sql: &str, _database: &str) -> Option<Answer> {
        let words = Words::of(sql)?;
        match (words.first.as_str(), words.second.as_str(), words.third.as_deref()) {
            ("show", "pool_nodes", None) => Some(pool_nodes(&self.admin.view())),
            ("show", "pool_status", None) | ("pgpool", "show", Some("all")) => {
                Some(parameters(self.admin.listed_parameters()))
            }
            ("show", "pool_version", None) => Some(pool_version()),
            ("show", "pool_processes", None) => Some(self.pool_processes()),
            ("show", "pool_pools", None) => Some(self.pool_pools()),
            ("pgpool", "show", Some(name)) => one_parameter(self.admin.listed_parameters(), name),
            _ => None,
        }
    }
}

impl PoolAnswers {
    /// pgmend is one process, and so one row; its connections to servers belong to no client, so no database is named.
    fn pool_processes(&self) -> Answer {
        let clients = self.admin.clients();
        let row = vec![
            std::process::id().to_string(),
            utc(self.admin.started_at_s()),
            clients.to_string(),
            String::new(),
            String::new(),
            String::new(),
            "0".to_owned(),
            process_status(clients).to_owned(),
        ];
        answer(&PROCESS_COLUMNS, vec![row])
    }

    /// One row per node, for the same reason as in `pool_processes`.
    fn pool_pools(&self) -> Answer {
        let clients = self.admin.clients();
        let row = |node: &NodeView| {
            let mut row = vec![
                std::process::id().to_string(),
                utc(self.admin.started_at_s()),
                clients.to_string(),
                "0".to_owned(),
                node.spec.id.to_string(),
            ];
            // Database, user, four times: not those of any single client.
            row.extend(std::iter::repeat_n(String::new(), 6));
            row.extend(["3", "0", "0", "0", "0"].map(str::to_owned));
            row.push(process_status(clients).to_owned());
            row
        };
        answer(&POOL_COLUMNS, self.admin.view().nodes.iter().map(row).collect())
    }
}

const NODE_COLUMNS: [&str; 14] = [
    "node_id",
    "hostname",
    "port",
    "status",
    "pg_status",
    "lb_weight",
    "role",
    "pg_role",
    "select_cnt",
    "load_balance_node",
    "replication_delay",
    "replication_state",
    "replication_sync_state",
    "last_status_change",
];
const PROCESS_COLUMNS: [&str; 8] = [
    "pool_pid",
    "start_time",
    "client_connection_count",
    "database",
    "username",
    "backend_connection_time",
    "pool_counter",
    "status",
];
const POOL_COLUMNS: [&str; 17] = [
    "pool_pid",
    "start_time",
    "client_connection_count",
    "pool_id",
    "backend_id",
    "database",
    "username",
    "backend_connection_time",
    "client_connection_time",
    "client_disconnection_time",
    "client_idle_duration",
    "majorversion",
    "minorversion",
    "pool_counter",
    "pool_backendpid",
    "pool_connected",
    "status",
];

/// A statement of two or three words, in lower case.
struct Words {
    first: String,
    second: String,
    third: Option<String>,
}

impl Words {
    fn of(sql: &str) -> Option<Words> {
        let mut words = sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).split_whitespace();
        let first = words.next().filter(|w| w.eq_ignore_ascii_case("show") || w.eq_ignore_ascii_case("pgpool"))?;
        let (second, third) = (words.next()?, words.next());
        let lower = str::to_ascii_lowercase;
        let found = Words { first: lower(first), second: lower(second), third: third.map(lower) };
        words.next().is_none().then_some(found)
    }
}

fn pool_nodes(view: &View) -> Answer {
    answer(&NODE_COLUMNS, view.nodes.iter().map(|node| node_row(view, node)).collect())
}

fn node_row(view: &View, node: &NodeView) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    vec![
        node.spec.id.to_string(),
        node.spec.host.0.clone(),
        node.spec.port.to_string(),
        node.status.to_string(),
        node_words::process(node).to_owned(),
        format!("{:.6}", node_words::share(view, node)),
        node_words::role(view, node).to_owned(),
        node_words::role_of_server(view, node).to_owned(),
        // Statements are not counted per node.
        "0".to_owned(),
        // Every statement goes to the primary.
        (view.primary == Some(node.spec.id)).to_string(),
        node.delay_bytes.unwrap_or_default().to_string(),
        text(&node.replication_state),
        text(&node.sync_state),
        utc(node.changed_at_s),
    ]
}

fn parameters(listed: Vec<(String, String, String)>) -> Answer {
    let rows = listed.into_iter().map(|(name, value, description)| vec![name, value, description]);
    answer(&["item", "value", "description"], rows.collect())
}

fn one_parameter(listed: Vec<(String, String, String)>, name: &str) -> Option<Answer> {
    let (name, value, _) = listed.into_iter().find(|(listed, _, _)| listed.eq_ignore_ascii_case(name))?;
    Some(answer(&[&name], vec![vec![value]]))
}

fn pool_version() -> Answer {
    let version = format!("4.3.5 (pgmend {})", env!("CARGO_PKG_VERSION"));
    answer(&["pool_version"], vec![vec![version]])
}

fn process_status(clients: u64) -> &'static str {
    if clients == 0 { "Wait for connection" } else { "Execute command" }
}

fn answer(columns: &[&str], rows: Vec<Vec<String>>) -> Answer {
    Answer {
        columns: columns.iter().map(|&c| c.to_owned()).collect(),
        tag: format!("SELECT {}", rows.len()),
        rows: rows.into_iter().map(|row| row.into_iter().map(Some).collect()).collect(),
    }
}

/// Unix seconds as `YYYY-MM-DD HH:MM:SS` in UTC.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The Gregorian date of a day since 1970-01-01. Counted in years from March, so that the leap day is a year's last,
/// and in cycles of 400 years, which all have 146097 days; saturating, because a file may hold any number.
fn date(days: u64) -> (u64, u64, u64) {
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    let since = days.saturating_add(719_468);
    let (cycle, in_cycle) = (since / 146_097, since % 146_097);
    let year_in_cycle = (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year_in_cycle + year_in_cycle / 4 - year_in_cycle / 100);
    let month_from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_in_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    fn ask(sql: &str) -> Option<Answer> {
        PoolAnswers::new(fake::admin().1).answer(sql, "postgres")
    }

    fn row(answer: &Answer, at: usize) -> String {
        answer.rows[at].iter().map(|v| v.as_deref().unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn the_nodes_are_shown_as_by_pgpool() {
        let nodes = ask("  Show\n  POOL_NODES ;").unwrap();
        assert_eq!(
            nodes.columns.join("|"),
            "node_id|hostname|port|status|pg_status|lb_weight|role|pg_role|select_cnt|load_balance_node|replication_delay|replication_state|replication_sync_state|last_status_change"
        );
        assert_eq!(nodes.tag, "SELECT 3");
        assert_eq!(row(&nodes, 0), "0|/tmp|5432|up|up|0.333333|primary|primary|0|true|0|||2024-02-29 12:34:56");
        assert_eq!(
            row(&nodes, 1),
            "1|/tmp|5433|down|down|0.666667|standby|standby|0|false|42|streaming|async|2024-02-29 12:34:56"
        );
        assert_eq!(
            row(&nodes, 2),
            "2|/tmp|5434|waiting|unknown|0.000000|standby|unknown|0|false|0|||2024-02-29 12:34:56"
        );
    }

    #[test]
    fn parameters_and_version_are_shown() {
        let status = ask("SHOW POOL_STATUS").unwrap();
        assert_eq!(status.columns, ["item", "value", "description"]);
        assert_eq!(row(&status, 0), "port|6432|where it listens");
        assert_eq!(ask("PGPOOL SHOW ALL").unwrap(), status);
        let port = ask("pgpool show PORT").unwrap();
        assert_eq!((port.columns[0].as_str(), row(&port, 0).as_str()), ("port", "6432"));
        let version = ask("show pool_version").unwrap();
        assert_eq!(version.columns, ["pool_version"]);
        assert_eq!(row(&version, 0), format!("4.3.5 (pgmend {})", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn every_row_is_as_wide_as_its_columns() {
        for (sql, rows) in [("SHOW POOL_PROCESSES", 1), ("SHOW POOL_POOLS", 3)] {
            let answer = ask(sql).unwrap();
            assert_eq!(answer.rows.len(), rows);
            assert!(answer.rows.iter().all(|row| row.len() == answer.columns.len()), "{sql}");
        }
    }

    #[test]
    fn other_statements_are_the_servers() {
        for sql in ["", ";", "SHOW", "SHOW work_mem", "SHOW POOL_NODES x", "SELECT 1", "PGPOOL SHOW nothing", "PGPOOL"]
        {
            assert_eq!(ask(sql), None, "{sql}");
        }
    }

    #[test]
    fn dates_are_gregorian() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(utc(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(utc(1_735_689_599), "2024-12-31 23:59:59");
        // No panic at the edge.
        utc(u64::MAX);
    }
}
