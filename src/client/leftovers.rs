//! What a transaction has left in its server's session, as the server itself tells: settings go with the client, anything
//! else binds it to this server.

use super::scan::{self, Traces};
use super::worker::Worker;
use crate::base::literal;
use crate::server::{self, ParamSet, Row, ServerConn, SimpleError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Bound on asking; a server that does not answer in this time is given up.
const ASK: Duration = Duration::from_secs(10);
/// Names of settings of the user's own that one client or one database is asked for.
const MAX_CUSTOM: usize = 256;
/// Reasons of a pin that are told.
const MAX_REASONS: usize = 8;

/// Settings (`pg_settings` knows neither roles nor settings that no extension defined), then what cannot be carried.
/// Everything is qualified: the session's `search_path` is the client's.
const QUESTION: &str = "SELECT 'set', name, setting FROM pg_catalog.pg_settings \
    WHERE source OPERATOR(pg_catalog.=) 'session' \
    UNION ALL SELECT 'set', 'role', pg_catalog.current_setting('role') \
    WHERE pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none' \
    UNION ALL SELECT 'pin', 'temporary object', relname::pg_catalog.text FROM pg_catalog.pg_class \
    WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
    UNION ALL SELECT 'pin', 'cursor', name FROM pg_catalog.pg_cursors \
    UNION ALL SELECT 'pin', 'prepared statement', name FROM pg_catalog.pg_prepared_statements WHERE from_sql \
    UNION ALL SELECT 'channel', c, '' FROM pg_catalog.pg_listening_channels() AS c \
    UNION ALL SELECT 'pin', 'advisory lock', '' FROM pg_catalog.pg_locks \
    WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
    UNION ALL SELECT 'pin', 'session authorization', session_user::pg_catalog.text \
    WHERE session_user OPERATOR(pg_catalog.<>) ";

/// Whether functions of the database could leave something, by the words of their source, and the settings they name.
/// Members of extensions are left out: they are programs that somebody chose, and most of them are written in C.
const FUNCTIONS: &str = r"WITH own AS (SELECT p.prorettype, pg_catalog.regexp_replace(pg_catalog.regexp_replace(p.prosrc,
    '--[^\n]*|/\*.*?\*/', ' ', 'g'), 'set_config\s*\([^;]*?,\s*true\s*\)', ' ', 'gi') AS src
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
    WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
    AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e')),
    guilty AS (SELECT prorettype, src FROM own WHERE src OPERATOR(pg_catalog.~*)
    '(^|;|\m(begin|then|else|loop)\M)\s*(set|reset|discard|listen|unlisten|prepare|load)\M|\m(set_config|setseed|temp|temporary|pg_temp|hold|execute|dblink\w*)\M|advisory_lock')
    SELECT CASE WHEN prorettype OPERATOR(pg_catalog.=) 'pg_catalog.trigger'::pg_catalog.regtype
    THEN 'trigger' ELSE 'function' END, '' FROM guilty GROUP BY 1
    UNION ALL SELECT 'name', m[1] FROM guilty, pg_catalog.regexp_matches(src,
    '(?:\mset\s+(?:session\s+)?|set_config\s*\(\s*'')([a-z_][a-z0-9_$]*\.[a-z_][a-z0-9_$.]*)', 'gi') m GROUP BY 1, 2";

/// What a server told of its session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Settings made in the session.
    pub settings: BTreeMap<String, String>,
    /// What binds the client to the server, in words: `temporary object t`.
    pub pins: Vec<String>,
    /// Channels that are listened to.
    pub channels: Vec<String>,
}

impl Leftovers {
    /// All that keeps the client on its server, in words.
    pub fn reasons(&self) -> Vec<String> {
        let channels = self.channels.iter().map(|c| format!("channel {c}"));
        self.pins.iter().cloned().chain(channels).take(MAX_REASONS).collect()
    }
}

/// What is known of a database's own functions; asked again from time to time, as they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// Some ordinary function may leave something.
    pub functions: bool,
    /// Some trigger may.
    pub triggers: bool,
    /// Settings of the user's own that they name.
    pub names: BTreeSet<String>,
}

impl Functions {
    /// Whether the server must be asked after a transaction that did this.
    pub fn must_ask(&self, traces: Traces) -> bool {
        traces.has(Traces::LEAVES)
            || traces.has(Traces::CALLS) && (self.functions || self.triggers)
            || traces.has(Traces::WRITES) && self.triggers
    }
}

/// Asks which functions there are.
pub async fn functions(conn: &mut ServerConn) -> Result<Functions, SimpleError> {
    let mut found = Functions::default();
    for row in server::query(conn, FUNCTIONS, ASK).await? {
        let [Some(kind), Some(name)] = row.as_slice() else { continue };
        match kind.as_slice() {
            b"trigger" => found.triggers = true,
            b"function" => found.functions = true,
            _ if found.names.len() < MAX_CUSTOM => found.names.extend(scan::custom_name(name)),
            _ => {}
        }
    }
    Ok(found)
}

/// Asks what is left. `user` is who logged in; `custom` are names of settings to ask for besides those that PostgreSQL
/// lists.
pub async fn ask<'a>(
    conn: &mut ServerConn,
    user: &str,
    custom: impl Iterator<Item = &'a String>,
) -> Result<Leftovers, SimpleError> {
    let mut sql = format!("{QUESTION}{}", literal(user));
    let names: Vec<String> = custom.take(MAX_CUSTOM).map(|n| literal(n)).collect();
    if !names.is_empty() {
        // A setting that was reset is an empty text ever after.
        sql.push_str(&format!(
            " UNION ALL SELECT 'set', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest(ARRAY[{}]) AS n \
             WHERE pg_catalog.current_setting(n, true) OPERATOR(pg_catalog.<>) ''",
            names.join(",")
        ));
    }
    Ok(read(server::query(conn, &sql, ASK).await?))
}

/// What a transaction with these traces has left, or `None` when it can be nothing. `pinned`: the client is bound already,
/// and may have become free.
pub async fn after(
    worker: &Worker,
    database: &str,
    user: &str,
    conn: &mut ServerConn,
    traces: Traces,
    pinned: bool,
    custom: impl IntoIterator<Item = String>,
) -> Result<Option<Leftovers>, SimpleError> {
    let functions = match worker.functions(database) {
        Some(known) => known,
        None => worker.learn_functions(database, functions(conn).await?),
    };
    if !pinned && !functions.must_ask(traces) {
        return Ok(None);
    }
    let custom: Vec<String> = custom.into_iter().collect();
    ask(conn, user, custom.iter().chain(&functions.names)).await.map(Some)
}

fn read(rows: Vec<Row>) -> Leftovers {
    let mut left = Leftovers::default();
    for row in rows {
        let text = |i: usize| row.get(i).and_then(Option::as_ref).map(|v| String::from_utf8(v.clone()));
        match (text(0), text(1), text(2)) {
            (Some(Ok(kind)), Some(Ok(name)), Some(Ok(value))) if kind == "set" => {
                left.settings.insert(name.to_ascii_lowercase(), value);
            }
            (Some(Ok(kind)), Some(Ok(name)), _) if kind == "channel" => left.channels.push(name),
            (_, Some(Ok(name)), Some(Ok(value))) if left.pins.len() < MAX_REASONS => {
                left.pins.push(format!("{name} {value}").trim_end().to_owned());
            }
            // What cannot be read as UTF-8 cannot be carried.
            _ if left.pins.len() < MAX_REASONS => left.pins.push("setting in another encoding".into()),
            _ => {}
        }
    }
    left
}

/// What a client wants from now on: what the session has, and what the client gave at startup and has reset since.
pub fn wanted(initial: &ParamSet, settings: &BTreeMap<String, String>) -> ParamSet {
    let mut all = (**initial).clone();
    all.extend(settings.iter().map(|(n, v)| (n.clone(), v.clone())));
    ParamSet::new(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [&str; 3]) -> Row {
        values.iter().map(|v| Some(v.as_bytes().to_vec())).collect()
    }

    #[test]
    fn rows_become_settings_and_pins() {
        let left = read(vec![
            row(["set", "DateStyle", "German, DMY"]),
            row(["pin", "advisory lock", ""]),
            row(["pin", "cursor", "c"]),
            row(["channel", "news", ""]),
            vec![Some(b"set".to_vec()), Some(b"x".to_vec()), Some(vec![0xE4])],
        ]);
        assert_eq!(left.settings, BTreeMap::from([("datestyle".to_owned(), "German, DMY".to_owned())]));
        assert_eq!(left.pins, ["advisory lock", "cursor c", "setting in another encoding"]);
        assert_eq!(left.channels, ["news"]);
        assert_eq!(left.reasons().last().map(String::as_str), Some("channel news"));
    }

    #[test]
    fn a_reset_setting_goes_back_to_the_one_given_at_startup() {
        let initial = ParamSet::new(BTreeMap::from([("timezone".to_owned(), "UTC".to_owned())]));
        let now = wanted(&initial, &BTreeMap::from([("work_mem".to_owned(), "1".to_owned())]));
        assert_eq!(now.get("timezone").map(String::as_str), Some("UTC"));
        assert_eq!(now.get("work_mem").map(String::as_str), Some("1"));
    }

    #[test]
    fn functions_decide_who_must_be_asked() {
        let none = Functions::default();
        assert!(none.must_ask(Traces::LEAVES) && !none.must_ask(Traces::CALLS) && !none.must_ask(Traces::WRITES));
        let trigger = Functions { triggers: true, ..Functions::default() };
        assert!(
            trigger.must_ask(Traces::WRITES) && trigger.must_ask(Traces::CALLS) && !trigger.must_ask(Traces::FREES)
        );
    }
}
