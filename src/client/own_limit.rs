//! `PGPOOL SET|RESET|SHOW client_idle_limit_in_recovery`: a session's own limit, as Pgpool-II offers it; but only `admin_users`
//! may make theirs longer than the configured one.

use super::commands::Answer;
use super::drain::Draining;
use crate::cluster::IdleLimit;
use crate::wire::backend::{self, ErrorFields};
use std::time::Duration;

const NAME: &str = "client_idle_limit_in_recovery";

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Rows.
    Rows(Answer),
    /// Nothing but the tag of a command.
    Done(&'static str),
    /// An error; the session goes on.
    Refused(ErrorFields),
}

impl Told {
    /// As the whole answer to a simple query outside of transactions.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Told::Rows(answer) => answer.write(out),
            Told::Done(tag) => backend::command_complete(out, tag),
            Told::Refused(fields) => backend::error_response(out, fields),
        }
        backend::ready_for_query(out, b'I');
    }
}

/// What the limit of one session is measured by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// As configured.
    pub configured: IdleLimit,
    /// `recovery_timeout`.
    pub recovery_timeout: Duration,
    /// The session's user is one of `admin_users`.
    pub is_admin: bool,
}

/// Carries a statement out if it is about this limit.
pub fn answer(sql: &str, draining: &Draining, bounds: &Bounds) -> Option<Told> {
    let spaced = sql.replace('=', " = ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let is = |word: &str, expected: &str| word.eq_ignore_ascii_case(expected);
    let (first, rest) = words.split_first()?;
    if !is(first, "pgpool") {
        return None;
    }
    match *rest {
        [verb, name] if is(verb, "show") && is(name, NAME) => {
            let value = draining.own_limit.get().unwrap_or(bounds.configured);
            let rows = vec![vec![Some(value.to_string())]];
            Some(Told::Rows(Answer { columns: vec![NAME.to_owned()], rows, tag: "SELECT 1".to_owned() }))
        }
        [verb, name] if is(verb, "reset") && (is(name, NAME) || is(name, "all")) => {
            draining.own_limit.set(None);
            // The tags are Pgpool-II's.
            Some(Told::Done(if is(name, "all") { "RESET" } else { "SET" }))
        }
        [verb, name, by, value] if is(verb, "set") && is(name, NAME) && (by == "=" || is(by, "to")) => {
            Some(match limit(value, bounds) {
                Ok(limit) => {
                    draining.own_limit.set(limit);
                    Told::Done("SET")
                }
                Err(fields) => Told::Refused(fields),
            })
        }
        _ => None,
    }
}

/// The value that is wished; `None` = the configured one.
fn limit(value: &str, bounds: &Bounds) -> Result<Option<IdleLimit>, ErrorFields> {
    let value = value.trim_matches('\'');
    if value.eq_ignore_ascii_case("default") {
        return Ok(None);
    }
    let Some(limit) = value.parse().ok().and_then(IdleLimit::of) else {
        let message = format!("invalid value for parameter \"{NAME}\": \"{value}\"");
        return Err(ErrorFields::error("22023", message).with_hint("Expected -1, 0 or a number of seconds."));
    };
    if limit > bounds.configured && !bounds.is_admin {
        let message = format!("permission denied to lengthen \"{NAME}\"");
        let detail = format!("It is {}; only users in admin_users may set {limit}.", bounds.configured);
        return Err(ErrorFields::error("42501", message).with_detail(detail));
    }
    if !limit.is_below(bounds.recovery_timeout) {
        let most = bounds.recovery_timeout.as_secs_f64();
        let message = format!("\"{NAME}\" must be smaller than recovery_timeout ({most} s)");
        return Err(ErrorFields::error("22023", message));
    }
    Ok(Some(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(configured: i64, is_admin: bool) -> Bounds {
        let configured = IdleLimit::of(configured).unwrap();
        Bounds { configured, recovery_timeout: Duration::from_secs(90), is_admin }
    }

    fn code(told: Option<Told>) -> String {
        match told {
            Some(Told::Refused(fields)) => fields.code,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_session_has_a_limit_of_its_own_until_it_is_reset() {
        let (draining, bounds) = (Draining::default(), bounds(60, false));
        let shown = || match answer("PGPOOL SHOW Client_Idle_Limit_in_recovery", &draining, &bounds) {
            Some(Told::Rows(answer)) => answer.rows[0][0].clone().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(), "60");
        for (sql, value, tag) in [
            ("pgpool set client_idle_limit_in_recovery=5", "5", "SET"),
            ("PGPOOL SET client_idle_limit_in_recovery TO '-1'", "-1", "SET"),
            ("PGPOOL SET client_idle_limit_in_recovery TO DEFAULT", "60", "SET"),
            ("PGPOOL SET client_idle_limit_in_recovery = 7", "7", "SET"),
            ("PGPOOL RESET client_idle_limit_in_recovery", "60", "SET"),
            ("PGPOOL SET client_idle_limit_in_recovery = 7", "7", "SET"),
            ("PGPOOL RESET ALL", "60", "RESET"),
        ] {
            assert_eq!((answer(sql, &draining, &bounds), shown()), (Some(Told::Done(tag)), value.to_owned()), "{sql}");
        }
    }

    #[test]
    fn only_an_admin_may_lengthen_it() {
        let draining = Draining::default();
        for (sql, refused) in [("61", "42501"), ("0", "42501"), ("-2", "22023"), ("soon", "22023")] {
            let sql = format!("PGPOOL SET client_idle_limit_in_recovery = {sql}");
            assert_eq!(code(answer(&sql, &draining, &bounds(60, false))), refused, "{sql}");
        }
        assert_eq!(draining.own_limit.get(), None);
        let set = |n: i64| answer(&format!("pgpool set {NAME} = {n}"), &draining, &bounds(60, true));
        assert_eq!((set(61), set(0)), (Some(Told::Done("SET")), Some(Told::Done("SET"))));
        assert_eq!(code(set(90)), "22023", "no smaller than recovery_timeout");
        let shorter = answer("pgpool set client_idle_limit_in_recovery = 3", &draining, &bounds(0, false));
        assert_eq!(shorter, Some(Told::Done("SET")), "0 is the longest");
    }

    #[test]
    fn other_statements_are_not_its() {
        for sql in ["PGPOOL SET client_idle_limit = 5", "PGPOOL SHOW ALL", "SHOW client_idle_limit_in_recovery", ""] {
            assert_eq!(answer(sql, &Draining::default(), &bounds(0, true)), None, "{sql}");
        }
    }
}
