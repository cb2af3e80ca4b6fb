//! `SHOW POOL_*` and `PGPOOL …` in ordinary sessions: the door through which the control plane answers them.

use crate::wire::backend;

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

impl Answer {
    /// As the answer to a simple query, without its ReadyForQuery.
    pub fn write(&self, out: &mut Vec<u8>) {
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        backend::row_description_text(out, &columns);
        for row in &self.rows {
            let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
            backend::data_row(out, &row);
        }
        backend::command_complete(out, &self.tag);
    }
}

/// False for a text whose first letters tell that it is none of Pgpool-II's own, which is nearly every one.
pub fn may_be_own(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start(), [b's' | b'S', b'h' | b'H', ..] | [b'p' | b'P', b'g' | b'G', ..])
}

/// A text that may be a statement of Pgpool-II's own, without what surrounds it.
pub fn own_statement(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.trim().trim_end_matches(';').trim_end();
    let first = text.split_ascii_whitespace().next()?;
    let ours = first.eq_ignore_ascii_case("show") || first.eq_ignore_ascii_case("pgpool");
    ours.then(|| text.to_owned())
}
