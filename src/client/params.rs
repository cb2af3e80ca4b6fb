//! A client's run-time parameters: what it gave at startup and changed since, and the statements that bring a server
//! connection to them.

use crate::base::{identifier, literal};
use crate::server::ParamSet;
use std::collections::BTreeMap;

/// Parameters whose changes PostgreSQL reports and a client may change: what a client keeps when it gets another server.
/// (`GUC_REPORT`, <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC>.)
const TRACKED: [&str; 8] = [
    "client_encoding",
    "datestyle",
    "timezone",
    "intervalstyle",
    "application_name",
    "standard_conforming_strings",
    "default_transaction_read_only",
    "search_path",
];

/// True when a change of this parameter, as reported by a server, belongs to the client.
pub fn is_tracked(name: &str) -> bool {
    TRACKED.iter().any(|t| t.eq_ignore_ascii_case(name))
}

/// What a client wants, from its startup parameters. `options` is taken apart (`-c name=value`, `--name=value`).
pub fn wanted(startup: &[(String, String)]) -> Result<ParamSet, String> {
    let mut set = BTreeMap::new();
    for (name, value) in startup {
        if name == "options" {
            for (name, value) in parse_options(value)? {
                set.insert(name, value);
            }
        }
    }
    // A parameter of its own wins over the same one in `options`, as in PostgreSQL.
    for (name, value) in startup {
        let name = name.to_ascii_lowercase();
        if !matches!(name.as_str(), "options" | "user" | "database" | "replication") {
            set.insert(name, value.clone());
        }
    }
    Ok(ParamSet::new(set))
}

/// The words of `options`: separated by white space, a backslash takes the next character as it is.
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-OPTIONS>)
fn parse_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words.next().unwrap_or_default()
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(format!("startup option \"{word}\" is not supported; expected -c name=value"));
        };
        let (name, value) = assignment
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("startup option \"{assignment}\" is not of the form name=value"))?;
        settings.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Ok(settings)
}

/// True when a server at `applied` needs nothing to be at `wanted`. One comparison of pointers as a rule.
pub fn is_same(applied: &ParamSet, wanted: &ParamSet) -> bool {
    ParamSet::ptr_eq(applied, wanted) || applied == wanted
}

/// The statements that turn a server at `applied` into one at `wanted`; `None` when nothing differs. `unsure`: it may have
/// settings that nobody knows of, so all are reset.
pub fn difference(applied: &ParamSet, wanted: &ParamSet, unsure: bool) -> Option<String> {
    if !unsure && is_same(applied, wanted) {
        return None;
    }
    let mut sql = String::new();
    // A role may not be allowed to do the rest: it goes first and comes last.
    if applied.contains_key(ROLE) {
        sql.push_str("RESET ROLE;");
    }
    if unsure {
        sql.push_str("RESET ALL;");
    } else {
        for name in applied.keys().filter(|n| *n != ROLE && !wanted.contains_key(*n)) {
            sql.push_str(&format!("RESET {};", parameter(name)));
        }
    }
    let known = |name: &String| applied.get(name).filter(|_| !unsure);
    for (name, value) in wanted.iter().filter(|(n, v)| *n != ROLE && known(n) != Some(v)) {
        sql.push_str(&set(name, value));
    }
    if let Some(value) = wanted.get(ROLE) {
        sql.push_str(&set(ROLE, value));
    }
    (!sql.is_empty()).then_some(sql)
}

const ROLE: &str = "role";

fn set(name: &str, value: &str) -> String {
    format!("SELECT pg_catalog.set_config({}, {}, false);", literal(name), literal(value))
}

/// A parameter's name, quoted part by part (`myapp.user`).
fn parameter(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> ParamSet {
        ParamSet::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn takes_options_apart() {
        let startup = vec![
            ("options".to_owned(), r"-c search_path=a,b --geqo=off -cwork_mem=1MB -c x.y=a\ b".to_owned()),
            ("TimeZone".to_owned(), "UTC".to_owned()),
        ];
        let expected =
            set(&[("search_path", "a,b"), ("geqo", "off"), ("work_mem", "1MB"), ("x.y", "a b"), ("timezone", "UTC")]);
        assert_eq!(wanted(&startup).unwrap(), expected);
    }

    #[test]
    fn refuses_what_it_cannot_carry() {
        assert!(wanted(&[("options".to_owned(), "-d 5".to_owned())]).is_err());
        assert!(wanted(&[("options".to_owned(), "-c =5".to_owned())]).is_err());
    }

    #[test]
    fn a_role_goes_first_and_comes_last() {
        assert_eq!(
            difference(&set(&[("role", "a")]), &set(&[("role", "b"), ("z", "1")]), true).as_deref(),
            Some(
                "RESET ROLE;RESET ALL;SELECT pg_catalog.set_config('z', '1', false);\
                 SELECT pg_catalog.set_config('role', 'b', false);"
            )
        );
        assert_eq!(difference(&set(&[]), &set(&[]), true).as_deref(), Some("RESET ALL;"));
    }

    #[test]
    fn writes_the_difference_as_statements() {
        assert_eq!(difference(&set(&[("a", "1")]), &set(&[("a", "1")]), false), None);
        assert_eq!(
            difference(&set(&[("a", "1"), ("b.c", "2")]), &set(&[("a", r"it's\")]), false),
            Some(r#"RESET "b"."c";SELECT pg_catalog.set_config('a',  E'it''s\\', false);"#.to_owned())
        );
    }
}
