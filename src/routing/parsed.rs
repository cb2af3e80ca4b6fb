//! A text that has been read once: its statements with their facts. Cheap to clone, to be kept by its text.

use super::catalog::Wants;
use super::facts::{self, Facts};
use super::functions;
use super::name::Name;
use super::policy::Hints;
use super::tokens::Tokens;
use std::ops::Range;
use std::sync::Arc;

/// Longer texts are not parsed: the tree takes some hundred times the text's memory for as long as it is looked at.
pub const MAX_TEXT: usize = 1 << 20;

/// A text of one or more statements, read by PostgreSQL's parser.
#[derive(Clone)]
pub struct Parsed {
    pub(super) text: Arc<Text>,
}

pub(super) struct Text {
    pub sql: String,
    pub statements: Vec<Facts>,
    pub hints: Hints,
    wants: Wants,
}

/// Why a text could not be read. It goes to all nodes as it is: PostgreSQL has the last word on its syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unparsed {
    /// Not SQL of PostgreSQL 18.
    #[error("a syntax that is not known")]
    Syntax,
    /// More than [`MAX_TEXT`] bytes.
    #[error("a text of more than {MAX_TEXT} bytes")]
    TooLong,
}

impl Parsed {
    /// Reads a text, as with `standard_conforming_strings` on.
    ///
    /// # Errors
    /// [`Unparsed`], with which nothing is known of the text.
    pub fn of(sql: &str) -> Result<Parsed, Unparsed> {
        if sql.len() > MAX_TEXT {
            return Err(Unparsed::TooLong);
        }
        let tokens = Tokens::of(sql).ok_or(Unparsed::Syntax)?;
        let tree = pg_query::parse(sql, 0).map_err(|_| Unparsed::Syntax)?.protobuf;
        let mut statements = Vec::with_capacity(tree.stmts.len());
        for raw in &tree.stmts {
            let Some(node) = raw.stmt.as_ref().and_then(|stmt| stmt.node.as_ref()) else { continue };
            let range = range(raw.stmt_location, raw.stmt_len, sql).ok_or(Unparsed::Syntax)?;
            statements.push(facts::of(node, range, sql, &tokens));
        }
        let mut hints = Hints::default();
        for comment in tokens.comments_from(0) {
            hints.read(sql.get(comment).unwrap_or_default());
        }
        let wants = wants(&statements);
        Ok(Parsed { text: Arc::new(Text { sql: sql.to_owned(), statements, hints, wants }) })
    }

    /// What must be known of the catalog for a plan; without it the plan takes the worst for granted.
    pub fn wants(&self) -> &Wants {
        &self.text.wants
    }

    /// The text.
    pub fn sql(&self) -> &str {
        &self.text.sql
    }
}

fn range(location: i32, length: i32, sql: &str) -> Option<Range<usize>> {
    let start = usize::try_from(location).ok()?;
    // No length: up to the end.
    let end = if length == 0 { sql.len() } else { start.checked_add(usize::try_from(length).ok()?)? };
    sql.get(start..end)?;
    Some(start..end)
}

fn wants(statements: &[Facts]) -> Wants {
    let mut wants = Wants::default();
    for facts in statements {
        wants.relations.extend(facts.relations.iter().map(|(name, _)| name.clone()));
        for call in &facts.calls {
            match functions::known(&call.name) {
                None => drop(wants.functions.insert(call.name.clone())),
                Some(functions::Nature::TakesNumber) => {
                    wants.relations.extend(call.first.as_deref().and_then(Name::parse));
                }
                Some(_) => {}
            }
        }
    }
    wants
}
