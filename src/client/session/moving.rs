//! A session gives its server up between transactions and goes on with another one: what the server has of it is asked and
//! carried over, if all of it can be.
//!
//! Settings and prepared statements are carried. Temporary objects, session locks, held cursors, channels and statements made
//! by SQL's PREPARE are not: who has such keeps its server. What no server tells is lost, as it is when PostgreSQL restarts
//! the plan of a statement or a client comes back: `currval` and `lastval` begin anew, and so does `random`'s seed.

use super::{Session, look_after};
use crate::client::control::Doing;
use crate::client::fault::Fault;
use crate::client::leftovers;
use crate::net::Stream;
use crate::pool::{Grant, Pooled};
use crate::server::{self, Row, Said, ServerConn, SimpleError};
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frontend;
use std::task::Context;
use std::time::Duration;

/// Bound on one batch of questions or of statements.
const ASK: Duration = Duration::from_secs(10);
/// Statements that are carried, and the bytes of their texts and names; who has more keeps its server.
const MAX_STATEMENTS: usize = 1000;
const MAX_TEXT: usize = 256 * 1024;
/// Statements of one batch, and about how many bytes: they must fit into the network's buffers.
const AT_ONCE: usize = 32;
const AT_ONCE_BYTES: usize = 16 * 1024;
/// Servers that are tried; one may be lost while it is being prepared.
const TRIES: usize = 3;

/// Names and texts, or one row of nothing when there are too many.
const STATEMENTS: &str = "WITH s AS (SELECT name, statement FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql), \
    n AS (SELECT pg_catalog.count(*) AS all, pg_catalog.sum(pg_catalog.octet_length(statement) OPERATOR(pg_catalog.+) \
    pg_catalog.octet_length(name)) AS bytes FROM s) \
    SELECT s.name, s.statement FROM s, n WHERE n.all OPERATOR(pg_catalog.<=) MAX_STATEMENTS \
    AND n.bytes OPERATOR(pg_catalog.<=) MAX_TEXT \
    UNION ALL SELECT NULL, NULL FROM n WHERE n.all OPERATOR(pg_catalog.>) MAX_STATEMENTS \
    OR n.bytes OPERATOR(pg_catalog.>) MAX_TEXT";

/// Objects of the session that are no relations.
const TEMPORARY: &str = "SELECT 'temporary function ' OPERATOR(pg_catalog.||) proname::pg_catalog.text \
    FROM pg_catalog.pg_proc WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid \
    AND pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
    UNION ALL SELECT 'temporary type ' OPERATOR(pg_catalog.||) typname::pg_catalog.text \
    FROM pg_catalog.pg_type WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid \
    AND typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()";

/// What is to be made again on the next server.
#[derive(Debug, Default)]
pub(super) struct Luggage {
    statements: Vec<Statement>,
}

#[derive(Debug)]
struct Statement {
    name: Vec<u8>,
    text: Vec<u8>,
    /// Number and types of the parameters, as in a Parse.
    parameters: Vec<u8>,
    /// What it returns.
    shape: Shape,
}

/// A RowDescription without the tables that columns come from, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape(Vec<u8>);

/// Why a session keeps its server.
enum Kept {
    Reasons(Vec<String>),
    Lost(String),
}

impl From<SimpleError> for Kept {
    fn from(error: SimpleError) -> Kept {
        match error {
            SimpleError::Lost(why) => Kept::Lost(why),
            // A statement_timeout of the client's, say: so everything is possible.
            SimpleError::Refused(fields) => Kept::Reasons(vec![format!("unknown: {}", fields.message)]),
        }
    }
}

impl Session {
    /// Between transactions, asked to give the server up: does so, or keeps it and says why.
    pub(super) async fn give_up(&mut self, mut pooled: Box<Pooled>) -> Result<(), Fault> {
        let control = self.borrower.control.clone();
        control.drain.asked.set(false);
        if let Some(pin) = &self.pin {
            // That was found after its last transaction, and lasts.
            control.drain.fix(pin.reasons().join(", "), self.core.sight().rounds, self.borrower.worker.now_s());
            self.held = Some(pooled);
            return Ok(());
        }
        control.set_doing(Doing::Moving);
        let packed = self.pack(&mut pooled.conn).await;
        self.down.own().append(&mut pooled.conn.asides);
        match packed {
            Ok(luggage) => {
                control.drain.clear();
                control.set_doing(Doing::Away);
                self.luggage = Some(Box::new(luggage));
                self.borrower.give_back(pooled, self.core.is_clean(), true);
                Ok(())
            }
            Err(Kept::Reasons(reasons)) => {
                let (rounds, now_s) = (self.core.sight().rounds, self.borrower.worker.now_s());
                // The questions were simple queries, which take the unnamed statement away.
                unnamed(&mut pooled.conn, self.core.unnamed()).await?;
                self.down.own().append(&mut pooled.conn.asides);
                control.drain.fix(reasons.join(", "), rounds, now_s);
                control.set_doing(Doing::Bound);
                self.held = Some(pooled);
                Ok(())
            }
            Err(Kept::Lost(why)) => Err(Fault::ServerLost(why)),
        }
    }

    /// Asks for everything, and changes what is known of the session only when all of it can be carried.
    async fn pack(&mut self, conn: &mut ServerConn) -> Result<Luggage, Kept> {
        if let Some(why) = self.core.uncarried() {
            return Err(Kept::Reasons(vec![why.to_owned()]));
        }
        let worker = self.borrower.worker.clone();
        let functions = match worker.functions(self.database()) {
            Some(known) => known,
            None => worker.learn_functions(self.database(), leftovers::functions(conn).await?),
        };
        let custom = self.core.custom().chain(&functions.names);
        let left = leftovers::ask(conn, &self.borrower.login.user, custom).await?;
        let mut reasons = left.reasons();
        let temporary = server::query(conn, TEMPORARY, ASK).await?;
        reasons.extend(temporary.into_iter().take(1).map(|row| text(&row, 0)));
        if !reasons.is_empty() {
            return Err(Kept::Reasons(reasons));
        }
        let statements = self.statements(conn).await?;
        let wanted = worker.intern(leftovers::wanted(self.core.initial(), &left.settings));
        self.core.set_wanted(wanted, &worker.plane.statements);
        Ok(Luggage { statements })
    }

    /// The statements that the client has prepared by the protocol, with what they take and return.
    async fn statements(&self, conn: &mut ServerConn) -> Result<Vec<Statement>, Kept> {
        let question = STATEMENTS.replace("MAX_STATEMENTS", &MAX_STATEMENTS.to_string());
        let rows = server::query(conn, &question.replace("MAX_TEXT", &MAX_TEXT.to_string()), ASK).await?;
        let mut named: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(rows.len());
        for row in rows {
            let mut values = row.into_iter();
            let (Some(Some(name)), Some(Some(text))) = (values.next(), values.next()) else {
                return Err(Kept::Reasons(vec!["too many prepared statements".into()]));
            };
            named.push((name, text));
        }
        if !named.is_empty() && self.core.reads_texts_otherwise() {
            return Err(Kept::Reasons(vec!["prepared statements, and standard_conforming_strings".into()]));
        }
        let mut statements = Vec::with_capacity(named.len());
        for chunk in named.chunks(AT_ONCE) {
            let mut messages = Vec::new();
            for (name, _) in chunk {
                frontend::describe(&mut messages, b'S', name);
                frontend::sync(&mut messages);
            }
            let answers = server::batch(conn, &messages, chunk.len(), ASK).await?;
            for ((name, text), said) in chunk.iter().zip(answers) {
                // One that cannot be described cannot be used any more either.
                let Some((parameters, shape)) = described(&said) else { continue };
                statements.push(Statement { name: name.clone(), text: text.clone(), parameters, shape });
            }
        }
        Ok(statements)
    }

    /// A server for the statement that the client has sent. While the gate is held the client may go away or cancel; then
    /// its statement is never executed.
    pub(super) async fn borrow_server(
        &mut self,
        client: &mut Stream,
        first: Option<Grant>,
        since_s: u64,
    ) -> Result<Box<Pooled>, Fault> {
        let held_before = self.borrower.is_held();
        let mut pooled = self.lease(client, first, since_s).await?;
        if held_before && client.is_read_closed() {
            self.borrower.give_back(pooled, true, self.luggage.is_some());
            return Err(Fault::ClientGone);
        }
        if self.luggage.is_none() {
            return Ok(pooled);
        }
        for _ in 1..TRIES {
            if self.unpack(&mut pooled.conn).await.is_ok() {
                return Ok(pooled);
            }
            // The statement has not been sent yet: another server will do.
            drop(pooled);
            pooled = self.lease(client, None, self.borrower.worker.now_s()).await?;
        }
        self.unpack(&mut pooled.conn).await?;
        Ok(pooled)
    }

    async fn lease(&mut self, client: &mut Stream, first: Option<Grant>, since_s: u64) -> Result<Box<Pooled>, Fault> {
        let Session { borrower, core, up, down, armed, .. } = self;
        let mut watch = |cx: &mut Context<'_>| look_after(client, up, down, armed, cx);
        match first {
            None => borrower.lease_watching(core.wanted(), &mut watch).await,
            first => borrower.lease_with(first, since_s, core.wanted(), &mut watch).await,
        }
    }

    /// Makes on a new server what the old one had. A statement that is not the same there is left out: who uses it is told
    /// that it does not exist, which drivers know how to deal with.
    async fn unpack(&mut self, conn: &mut ServerConn) -> Result<(), Fault> {
        let Some(luggage) = &self.luggage else { return Ok(()) };
        let mut rest = luggage.statements.as_slice();
        while !rest.is_empty() {
            let (mut messages, mut count) = (Vec::new(), 0);
            for statement in rest.iter().take(AT_ONCE) {
                if count > 0 && messages.len() + statement.text.len() > AT_ONCE_BYTES {
                    break;
                }
                let query_and_types = [&statement.text[..], b"\0", &statement.parameters].concat();
                frontend::parse(&mut messages, &statement.name, &query_and_types);
                frontend::describe(&mut messages, b'S', &statement.name);
                frontend::sync(&mut messages);
                count += 1;
            }
            let (chunk, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = after;
            let answers = server::batch(conn, &messages, chunk.len(), ASK).await.map_err(lost)?;
            let mut others = Vec::new();
            for (statement, said) in chunk.iter().zip(&answers) {
                if described(said).is_none_or(|(_, shape)| shape != statement.shape) {
                    tracing::warn!(event = "session.statement_not_carried", node = %conn.route.node, database = %self.database());
                    frontend::close(&mut others, b'S', &statement.name);
                }
            }
            if !others.is_empty() {
                frontend::sync(&mut others);
                server::batch(conn, &others, 1, ASK).await.map_err(lost)?;
            }
        }
        unnamed(conn, self.core.unnamed()).await?;
        self.down.own().append(&mut conn.asides);
        self.luggage = None;
        Ok(())
    }

    /// Answers the statement that was cancelled before any server has seen it.
    pub(super) fn refuse(&mut self) {
        let fields = ErrorFields::error("57014", Fault::Cancelled.to_string());
        backend::error_response(self.down.own(), &fields);
        self.core.refuse();
    }
}

/// Prepares the client's unnamed statement, if it has one.
async fn unnamed(conn: &mut ServerConn, body: &[u8]) -> Result<(), Fault> {
    let Some(query_and_types) = body.strip_prefix(b"\0") else { return Ok(()) };
    let mut messages = Vec::new();
    frontend::parse(&mut messages, b"", query_and_types);
    frontend::sync(&mut messages);
    server::batch(conn, &messages, 1, ASK).await.map_err(lost).map(drop)
}

fn lost(error: SimpleError) -> Fault {
    Fault::ServerLost(error.to_string())
}

/// The answer to a Describe: parameters as a Parse wants them, and what is returned. `None`: an error.
fn described(said: &[Said]) -> Option<(Vec<u8>, Shape)> {
    let parameters = said.iter().find(|s| s.tag == b't')?.body.clone();
    let shape = said.iter().find_map(|s| match s.tag {
        b'T' => shape(&s.body),
        b'n' => Some(Shape(Vec::new())),
        _ => None,
    })?;
    Some((parameters, shape))
}

/// Names and types of columns. The tables' numbers may differ between two nodes that were not copied from each other.
fn shape(row_description: &[u8]) -> Option<Shape> {
    // After each name: table (4), column (2), type (4), size (2), modifier (4), format (2).
    const TABLE: usize = 4;
    const OTHERS: usize = 14;
    let (count, mut rest) = row_description.split_at_checked(2)?;
    let mut shape = count.to_vec();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == 0)? + 1;
        shape.extend_from_slice(rest.get(..end)?);
        shape.extend_from_slice(rest.get(end + TABLE..end + TABLE + OTHERS)?);
        rest = rest.get(end + TABLE + OTHERS..)?;
    }
    Some(Shape(shape))
}

fn text(row: &Row, at: usize) -> String {
    let value = row.get(at).and_then(Option::as_ref);
    value.map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, table: u8, kind: u8) -> Vec<u8> {
        [name.as_bytes(), b"\0", &[0, 0, 0, table], &[0, 1], &[0, 0, 0, kind], &[0, 4], &[0xFF; 4], &[0, 0]].concat()
    }

    fn said(tag: u8, body: &[u8]) -> Said {
        Said { tag, body: body.to_vec() }
    }

    #[test]
    fn a_statement_is_the_same_by_names_and_types() {
        let one = shape(&[&[0, 1][..], &column("a", 7, 23)].concat()).unwrap();
        assert_eq!(shape(&[&[0, 1][..], &column("a", 9, 23)].concat()).unwrap(), one, "another table's number");
        assert_ne!(shape(&[&[0, 1][..], &column("a", 7, 25)].concat()).unwrap(), one, "another type");
        assert_ne!(shape(&[&[0, 2][..], &column("a", 7, 23), &column("b", 7, 23)].concat()).unwrap(), one);
        assert_eq!(shape(b"\0\x01abc"), None);
    }

    #[test]
    fn a_description_is_read_and_an_error_is_none() {
        let both = [said(b't', b"\0\x01\0\0\0\x17"), said(b'n', b"")];
        assert_eq!(described(&both), Some((b"\0\x01\0\0\0\x17".to_vec(), Shape(Vec::new()))));
        assert_eq!(described(&[said(b'E', b"...")]), None);
        assert_eq!(described(&both[..1]), None);
    }
}
