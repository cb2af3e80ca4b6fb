//! A text that has been read once: its statements with their facts. Cheap to clone, to be kept by its text.

use super::catalog::Wants;
use super::facts::Facts;
use super::functions;
use super::name::Name;
use super::policy::{Hints, Kind, Unequal};
use super::tokens::Tokens;
use super::walk;
use std::ops::Range;
use std::sync::Arc;

/// Longer texts are not parsed: the tree takes some hundred times the text's memory for as long as it is looked at.
pub const MAX_TEXT: usize = 1 << 20;

/// Of longer texts not even the words are looked at: each takes some bytes.
const MAX_SCANNED: usize = 8 << 20;

/// Texts whose tree may be deeper are read on a stack of their own. A level takes up to three messages of the parser's
/// answer, and each of them some kilobytes of stack without optimisation.
const SHALLOW: usize = 48;

/// That stack. The parser itself ends at 10,000 messages within each other, or at 2 MB of its own.
const DEEP_STACK: usize = 256 << 20;

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
    /// Expressions within each other without end, or no memory for them.
    #[error("expressions within each other without end")]
    TooDeep,
}

impl Unparsed {
    /// What of a text that cannot be read may differ between nodes, by its words alone. A default, view or trigger shows in no word:
    /// something of the kind `Opaque` is always among it.
    pub fn unequal(self, sql: &str) -> Vec<Unequal> {
        let mut unequal = vec![Unequal::new(Kind::Opaque, self.to_string())];
        let tokens = if sql.len() <= MAX_SCANNED { Tokens::of(sql) } else { None };
        if let Some(tokens) = tokens {
            for word in tokens.names(sql) {
                let suspect = functions::suspected(word).map(|kind| Unequal::new(kind, format!("{word:?}")));
                unequal.extend(suspect.filter(|one| !unequal.contains(one)));
            }
        }
        unequal
    }
}

impl Parsed {
    /// Reads a text, as with `standard_conforming_strings` on. Takes some 50 µs for a short statement, and the better part of a
    /// second and 150 MB for one of [`MAX_TEXT`]: long texts are better read where nobody else waits.
    ///
    /// # Errors
    /// [`Unparsed`], with which nothing is known of the text.
    pub fn of(sql: &str) -> Result<Parsed, Unparsed> {
        if sql.len() > MAX_TEXT {
            return Err(Unparsed::TooLong);
        }
        let tokens = Tokens::of(sql).ok_or(Unparsed::Syntax)?;
        let statements = if tokens.depth() <= SHALLOW {
            statements(sql, &tokens)
        } else {
            on_deep_stack(|| statements(sql, &tokens))
        }?;
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

/// The tree lives only in here: to drop it takes as deep a stack as to make it.
fn statements(sql: &str, tokens: &Tokens) -> Result<Vec<Facts>, Unparsed> {
    let tree = pg_query::parse(sql, 0).map_err(|_| Unparsed::Syntax)?.protobuf;
    let mut statements = Vec::with_capacity(tree.stmts.len());
    for raw in &tree.stmts {
        let Some(node) = raw.stmt.as_ref().and_then(|stmt| stmt.node.as_ref()) else { continue };
        let own = range(raw.stmt_location, raw.stmt_len, sql).ok_or(Unparsed::Syntax)?;
        // Hints stand in front; behind, a comment would swallow what is added.
        let range = tokens.behind_semicolon(own.start)..tokens.last_end(own.end).unwrap_or(own.end);
        statements.push(walk::gathered(node, range, sql, tokens));
    }
    Ok(statements)
}

/// Runs it on a thread with a deep stack, and waits. Only what is touched of the stack takes memory.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Unparsed> + Send) -> Result<T, Unparsed> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("parse".into()).stack_size(DEEP_STACK);
        let running = thread.spawn_scoped(scope, work).map_err(|_| Unparsed::TooDeep)?;
        running.join().map_err(|_| Unparsed::TooDeep)?
    })
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
