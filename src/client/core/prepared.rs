//! Prepared statements in transaction pooling: a client's named statement lives on servers under a name of pgmend's own,
//! so that any server can hold it; it is prepared there on demand.

use super::output::{write_frame, write_header, write_parse};
use super::upstream::Up;
use super::{Context, Core, MAX_NAMED, Statement, client_fault};
use crate::client::fault::Fault;
use crate::client::params;
use crate::client::scan::{self, Traces};
use crate::server::ServerConn;
use crate::wire::replies::{Expect, Skipped};
use crate::wire::{frame, frontend};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The empty statement that stands in for a client's one when it is deallocated by SQL.
const VOID: &str = "pgmend_void";
/// Statement and portal of pgmend's own while it changes settings inside a batch.
const OWN: &str = "pgmend_own";

/// A client's named statement.
#[derive(Debug)]
pub(super) struct Named {
    /// What it stands for.
    pub statement: Arc<Statement>,
    /// The server has accepted its Parse; until then an error forgets it.
    pub confirmed: bool,
}

impl Core {
    pub(super) fn parse(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let parse = frontend::parse_names(body).map_err(client_fault)?;
        if parse.name.is_empty() {
            return self.parse_unnamed(body, parse.query_and_types, up);
        }
        if let Some(known) = self.named.get(parse.name) {
            // PostgreSQL refuses a name that is taken; the server says so itself.
            let statement = known.statement.clone();
            self.prepare(&statement, up)?;
            write_parse(&statement, up.output.rewrite(up.at));
            return self.push(Expect::Parse { forward: true, statement: 0 });
        }
        if self.named.len() >= MAX_NAMED {
            return Err(Fault::Limit(format!("a client may have {MAX_NAMED} prepared statements")));
        }
        let context = self.present_context(up);
        let statement = up.statements.intern(&context, parse.query_and_types);
        let on_server = up.server.prepared.touch(statement.id);
        self.named.insert(parse.name.to_vec(), Named { statement: statement.clone(), confirmed: on_server });
        if on_server {
            up.output.rewrite(up.at);
            return self.push(Expect::FakeParse);
        }
        self.make_room(&statement, up)?;
        up.server.prepared.insert(statement.id);
        write_parse(&statement, up.output.rewrite(up.at));
        self.push(Expect::Parse { forward: true, statement: statement.id })
    }

    /// The unnamed statement is kept, so that a later Bind of it works on another server too.
    fn parse_unnamed(&mut self, body: &[u8], query_and_types: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if self.shared.as_ref().is_none_or(|s| *s.query_and_types != *query_and_types) {
            let query = query_and_types.split(|b| *b == 0).next().unwrap_or_default();
            self.unnamed_traces = self.judge(query);
            self.unnamed_is_void = false;
            self.shared = None;
            self.unnamed.clear();
            self.unnamed.extend_from_slice(body);
            if self.unnamed_traces.has(Traces::FREES) && self.deallocate(query, up)? {
                up.server.unnamed_is_ours = true;
                return self.push(Expect::Parse { forward: true, statement: 0 });
            }
        }
        if self.may_share() {
            return self.share_unnamed(query_and_types, up);
        }
        up.server.unnamed_is_ours = true;
        up.output.pass(up.at, up.at + body.len() + frame::HEADER);
        self.push(Expect::Parse { forward: true, statement: 0 })
    }

    /// A text is shared when its analysis depends on nothing but itself and the client's known settings. In a failed
    /// transaction the server itself shall refuse it.
    fn may_share(&self) -> bool {
        let alone = Traces::MOMENT.with(Traces::LEAVES).with(Traces::FREES);
        self.rules.share_unnamed
            && self.status != b'E'
            && self.own_context.is_none()
            && !self.unnamed_traces.touches(alone)
            && !self.traces.touches(Traces::LEAVES.with(Traces::LOCAL))
    }

    fn share_unnamed(&mut self, query_and_types: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let context = self.present_context(up);
        let statement = match &self.shared {
            Some(known) if Arc::ptr_eq(&known.context, &context) => known.clone(),
            _ => up.statements.intern(&context, query_and_types),
        };
        self.shared = Some(statement.clone());
        if up.server.prepared.touch(statement.id) {
            up.output.rewrite(up.at);
            return self.push(Expect::FakeParse);
        }
        self.make_room(&statement, up)?;
        up.server.prepared.insert(statement.id);
        write_parse(&statement, up.output.rewrite(up.at));
        self.push(Expect::Parse { forward: true, statement: statement.id })
    }

    /// The settings under which a text that is prepared now gets its meaning.
    fn present_context(&mut self, up: &Up<'_, '_>) -> Arc<Context> {
        if self.traces.touches(Traces::LEAVES.with(Traces::LOCAL)) {
            return up.statements.private_context(&self.context);
        }
        if let Some(own) = &self.own_context {
            return own.clone();
        }
        if up.statements.is_outdated(&self.context) {
            self.context = up.statements.context(&self.wanted);
        }
        self.context.clone()
    }

    /// Prepares a statement on the server if it is not there; its ParseComplete is pgmend's own.
    fn prepare(&mut self, statement: &Arc<Statement>, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if up.server.prepared.touch(statement.id) {
            return Ok(());
        }
        self.make_room(statement, up)?;
        up.server.prepared.insert(statement.id);
        let other = statement.context.settings != self.context.settings;
        if other {
            let settings = changes(&self.context.settings, &statement.context.settings);
            self.set_inside(&settings, up)?;
        }
        write_parse(statement, up.output.rewrite(up.at));
        self.push(Expect::Parse { forward: false, statement: statement.id })?;
        if other {
            let settings = changes(&statement.context.settings, &self.context.settings);
            self.set_inside(&settings, up)?;
        }
        Ok(())
    }

    /// Closes what must go before the statement can be prepared.
    fn make_room(&mut self, statement: &Statement, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if up.server.prepared.take_stale(statement.id) {
            self.close_own(statement.id, up)?;
        }
        match up.server.prepared.evict(self.rules.max_prepared) {
            Some(id) => self.close_own(id, up),
            None => Ok(()),
        }
    }

    fn close_own(&mut self, id: u64, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        write_frame(up.output.rewrite(up.at), b'C', &[b"S", format!("pgmend_{id}").as_bytes(), b"\0"]);
        self.push(Expect::OwnClose { statement: id })
    }

    /// Changes settings in the middle of a batch: a text must be analysed under those that it was prepared with. An error
    /// before it makes the server skip it, and one after it undoes it.
    fn set_inside(&mut self, settings: &[(String, Option<String>)], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let calls: Vec<String> = settings
            .iter()
            .map(|(name, value)| {
                let value = value.as_deref().map_or("NULL".to_owned(), params::literal);
                format!("pg_catalog.set_config({}, {value}, false)", params::literal(name))
            })
            .collect();
        let query = format!("SELECT {}", calls.join(", "));
        let out = up.output.rewrite(up.at);
        let own = OWN.as_bytes();
        write_frame(out, b'P', &[own, b"\0", query.as_bytes(), b"\0\0\0"]);
        write_frame(out, b'B', &[own, b"\0", own, b"\0\0\0\0\0\0\0"]);
        write_frame(out, b'E', &[own, b"\0\0\0\0\0"]);
        write_frame(out, b'C', &[b"P", own, b"\0"]);
        write_frame(out, b'C', &[b"S", own, b"\0"]);
        self.push(Expect::Parse { forward: false, statement: 0 })?;
        self.push(Expect::OwnBind)?;
        self.push(Expect::OwnExecute)?;
        self.push(Expect::OwnClose { statement: 0 })?;
        self.push(Expect::OwnClose { statement: 0 })
    }

    fn prepare_unnamed(&mut self, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if !up.server.unnamed_is_ours && !self.unnamed.is_empty() {
            up.server.unnamed_is_ours = true;
            write_frame(up.output.rewrite(up.at), b'P', &[&self.unnamed]);
            self.push(Expect::Parse { forward: false, statement: 0 })?;
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let bind = frontend::bind(body).map_err(client_fault)?;
        let named = match (bind.statement.is_empty(), &self.shared) {
            (true, Some(shared)) => Some(shared.clone()),
            (true, None) => None,
            (false, _) => self.named.get(bind.statement).map(|named| named.statement.clone()),
        };
        if bind.statement.is_empty() && named.is_none() {
            self.prepare_unnamed(up)?;
            if self.unnamed_is_void {
                self.make_void(up)?;
            }
            self.trace_bind(self.unnamed_traces, body.get(bind.rest_offset..).unwrap_or_default());
        } else if let Some(statement) = named {
            self.prepare(&statement, up)?;
            let rest = body.get(bind.rest_offset..).unwrap_or_default();
            if statement.traces != Traces::NONE {
                self.remember_custom(statement.custom.iter().cloned());
                self.trace_bind(statement.traces, rest);
            }
            let name = &statement.server_name;
            // The frame may go on beyond what has been read: its length is reckoned from its own header.
            let length = up.total - 1 - bind.statement.len() + name.len();
            let out = up.output.rewrite(up.at);
            write_header(out, b'B', length);
            out.extend_from_slice(bind.portal);
            out.push(0);
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            out.extend_from_slice(rest);
            return self.push(Expect::Bind { statement: statement.id });
        }
        up.output.pass(up.at, up.at + frame::HEADER + body.len());
        self.push(Expect::Bind { statement: 0 })
    }

    /// The name of a setting may come as a parameter: `set_config($1, $2, false)`.
    fn trace_bind(&mut self, traces: Traces, rest: &[u8]) {
        self.trace(traces);
        if traces.has(Traces::LEAVES) {
            let values = frontend::bind_values(rest).unwrap_or_default();
            self.remember_custom(values.into_iter().flatten().filter_map(scan::custom_name));
        }
    }

    pub(super) fn describe(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' {
            let named = match (name.is_empty(), &self.shared) {
                (true, Some(shared)) => Some(shared.clone()),
                (true, None) => None,
                (false, _) => self.named.get(name).map(|named| named.statement.clone()),
            };
            if name.is_empty() && named.is_none() {
                self.prepare_unnamed(up)?;
            } else if let Some(statement) = named {
                self.prepare(&statement, up)?;
                write_frame(up.output.rewrite(up.at), b'D', &[b"S", statement.server_name.as_bytes(), b"\0"]);
                return self.push(Expect::Describe);
            }
        }
        up.output.pass(up.at, up.at + up.total);
        self.push(Expect::Describe)
    }

    pub(super) fn close(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' && !name.is_empty() {
            // The server keeps the statement for others; closing an unknown one is no error in PostgreSQL.
            self.named.remove(name);
            up.output.rewrite(up.at);
            return self.push(Expect::FakeClose);
        }
        if kind == b'S' {
            self.unnamed.clear();
            self.shared = None;
        }
        up.output.pass(up.at, up.at + up.total);
        self.push(Expect::Close)
    }

    /// `DEALLOCATE name` of a statement that the client prepared by the protocol: the server knows it by another name and
    /// keeps it for others, so an empty one goes in its place. True: written.
    pub(super) fn deallocate(&mut self, sql: &[u8], up: &mut Up<'_, '_>) -> Result<bool, Fault> {
        let Some(name) = scan::deallocated(sql).filter(|_| self.status != b'E') else { return Ok(false) };
        if self.named.remove(name.as_slice()).is_none() {
            return Ok(false);
        }
        self.make_void(up)?;
        let text = format!("DEALLOCATE {VOID}");
        // A Query is its text and a zero byte; a Parse has more.
        let is_query = up.total == sql.len() + frame::HEADER + 1;
        if is_query {
            write_frame(up.output.rewrite(up.at), b'Q', &[text.as_bytes(), b"\0"]);
        } else {
            self.unnamed_is_void = true;
            self.unnamed.clear();
            self.unnamed.push(0);
            self.unnamed.extend_from_slice(text.as_bytes());
            self.unnamed.extend_from_slice(b"\0\0\0");
            write_frame(up.output.rewrite(up.at), b'P', &[&self.unnamed]);
        }
        Ok(true)
    }

    /// Prepares the empty statement that a DEALLOCATE takes away; closed before, in case an error had kept it.
    fn make_void(&mut self, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let out = up.output.rewrite(up.at);
        write_frame(out, b'C', &[b"S", VOID.as_bytes(), b"\0"]);
        write_frame(out, b'P', &[VOID.as_bytes(), b"\0\0\0\0"]);
        self.push(Expect::OwnClose { statement: 0 })?;
        self.push(Expect::Parse { forward: false, statement: 0 })
    }

    pub(super) fn confirm(&mut self, statement: u64) {
        if statement != 0 {
            for named in self.named.values_mut().filter(|n| n.statement.id == statement) {
                named.confirmed = true;
                named.statement.prove();
            }
        }
    }

    /// An error skipped the frames behind it: statements that were to be prepared are on no server, and names that they
    /// made are free again; what was to be closed is still there. `body` is the error's.
    pub(super) fn forget_failed(&mut self, body: &[u8], server: &mut ServerConn) {
        for skipped in self.replies.drain_skipped() {
            match skipped {
                Skipped::Parse(statement) => {
                    server.prepared.remove(statement);
                    if self.shared.as_ref().is_some_and(|s| s.id == statement) {
                        self.shared = None;
                        self.unnamed.clear();
                    }
                    self.named.retain(|_, n| n.confirmed || n.statement.id != statement);
                }
                Skipped::Close(0) => {}
                Skipped::Close(statement) => {
                    server.prepared.insert(statement);
                    server.prepared.spoil(statement);
                }
            }
        }
        // "cached plan must not change result type" comes from this function of PostgreSQL (plancache.c).
        let outdated = body.windows(REVALIDATE.len()).any(|w| w == REVALIDATE);
        if let Some(statement) = self.replies.failed_bind().filter(|id| outdated && *id != 0) {
            server.prepared.spoil(statement);
        }
    }
}

/// The field of an error that names the function in PostgreSQL's source.
const REVALIDATE: &[u8] = b"RRevalidateCachedQuery\0";

/// What must be set, or reset (`None`), to come from one context to the other.
fn changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Vec<(String, Option<String>)> {
    let gone = from.keys().filter(|n| !to.contains_key(*n)).map(|n| (n.clone(), None));
    let new = to.iter().filter(|(n, v)| from.get(*n) != Some(v)).map(|(n, v)| (n.clone(), Some(v.clone())));
    gone.chain(new).collect()
}
