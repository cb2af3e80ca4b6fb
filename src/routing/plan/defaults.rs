//! The default of a column, judged: is it the same on every node, and if it is a moment, how is it written down?

use crate::routing::catalog::{Called, Column};
use crate::routing::functions::{self, Nature};
use crate::routing::moments;
use crate::routing::parsed::Parsed;

/// What a default is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Default {
    /// The same everywhere, or numbers from sequences that are known.
    Equal,
    /// Holds a moment: the expression to write instead of it.
    Moment(String),
    /// Another value on every node, or one that cannot be written down.
    Unequal,
}

/// Judges the default of a column.
pub(super) fn judged(column: &Column) -> Default {
    let Some(text) = &column.default else { return Default::Equal };
    let mut moment = moments::names_a_moment(text) || text.contains("CURRENT_") || text.contains("LOCALTIME");
    for called in &column.calls {
        match nature(called) {
            Some(Nature::Plain | Nature::Effect) => {}
            Some(Nature::TakesNumber) if !column.sequences.is_empty() => {}
            Some(Nature::Moment) => moment = true,
            _ => return Default::Unequal,
        }
    }
    if !moment {
        return Default::Equal;
    }
    match rewritten(text) {
        Some(Some(expression)) => Default::Moment(expression),
        Some(None) => Default::Equal,
        None => Default::Unequal,
    }
}

/// What a function called by something stored is; `None` for a volatile one of a user.
pub(super) fn nature(called: &Called) -> Option<Nature> {
    if called.schema == "pg_catalog" {
        Some(functions::builtin(&called.name, called.volatile))
    } else {
        (!called.volatile).then_some(Nature::Plain)
    }
}

/// An expression with its moments rewritten; `Some(None)` when it has none, `None` when it cannot be.
fn rewritten(expression: &str) -> Option<Option<String>> {
    const BEFORE: &str = "SELECT (";
    const BEHIND: &str = ") AS x";
    let parsed = Parsed::of(&format!("{BEFORE}{expression}{BEHIND}")).ok()?;
    let [facts] = parsed.text.statements.as_slice() else { return None };
    if !facts.hazards.is_empty() {
        return None;
    }
    if facts.edits.is_empty() {
        return Some(None);
    }
    let text = super::edited(parsed.sql(), 0..parsed.sql().len(), &facts.edits);
    let inside = text.strip_prefix(BEFORE)?.strip_suffix(BEHIND)?;
    Some(Some(format!("({inside})")))
}
