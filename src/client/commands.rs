//! `SHOW POOL_*` and `PGPOOL …` in ordinary sessions: the door through which the control plane answers them.

/// Answers Pgpool-II's own statements. Implemented by `admin`, plugged in by `app`; the client never calls the console.
pub trait PoolCommands: Send + Sync {
    /// The answer to `sql` (trimmed, without a semicolon) or `None` when it is not such a statement.
    fn answer(&self, sql: &str, database: &str) -> Option<Answer>;
}

/// A result set of text columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Column names.
    pub columns: Vec<String>,
    /// Rows; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// Command tag, e.g. `SELECT 3`.
    pub tag: String,
}
