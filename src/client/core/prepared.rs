//! Prepared statements in transaction pooling: a client's named statement lives on servers under a name of pgmend's own,
//! so that any server can hold it; it is prepared there on demand.

use super::names::MAX_NAMED;
use super::output::{write_frame, write_header, write_parse};
use super::upstream::{Step, Up};
use super::{Context, Core, Statement, client_fault};
use crate::base::literal;
use crate::client::fault::Fault;
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

impl Core {
    pub(super) fn parse(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let parse = frontend::parse_names(body).map_err(client_fault)?;
        if parse.name.is_empty() {
            return self.parse_unnamed(body, parse.query_and_types, up);
        }
        let doubt = self.is_in_doubt();
        let known = self.named.find(parse.name);
        if doubt && (known.is_some() || self.named.may_return(parse.name)) {
            return Ok(Step::Wait);
        }
        if let Some((statement, name)) = known {
            // PostgreSQL refuses a name that is taken; the server says so itself.
            self.prepare(&statement, up)?;
            let server_name = statement.server_name.as_bytes();
            write_frame(up.output.rewrite(up.at), b'P', &[server_name, b"\0", parse.query_and_types]);
            return self.push(Expect::Parse { forward: true, statement: 0, name });
        }
        if self.named.len() >= MAX_NAMED {
            return Err(Fault::Limit(format!("a client may have {MAX_NAMED} prepared statements")));
        }
        let context = self.present_context(up);
        let statement = up.statements.intern(&context, parse.query_and_types);
        if doubt && (self.own_in_flight || up.server.prepared.has(statement.id)) {
            return Ok(Step::Wait);
        }
        let name = self.named.insert(parse.name, statement.clone());
        self.prepare_for_client(&statement, name, up)
    }

    /// The client's own Parse of a statement: sent, or answered if the server holds it.
    fn prepare_for_client(
        &mut self,
        statement: &Arc<Statement>,
        name: u32,
        up: &mut Up<'_, '_>,
    ) -> Result<Step, Fault> {
        let held = up.server.prepared.touch(statement.id);
        // Another name may stand for the same statement, and an error makes the server skip this Parse.
        self.own_in_flight = true;
        if held && self.status != b'E' {
            up.output.rewrite(up.at);
            return self.push(Expect::FakeParse { name });
        }
        if held {
            // In a failed transaction the server itself shall say whether it takes the text.
            self.close_own(statement.id, up)?;
        }
        self.make_room(statement, up)?;
        up.server.prepared.insert(statement.id);
        write_parse(statement, up.output.rewrite(up.at));
        self.push(Expect::Parse { forward: true, statement: statement.id, name })
    }

    /// The unnamed statement is kept, so that a later Bind of it works on another server too.
    fn parse_unnamed(&mut self, body: &[u8], query_and_types: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let name = self.named.new_key();
        self.unnamed_key = name;
        // A text that is parsed anew and anew, as drivers do, is judged once.
        let again = self.unnamed == body && self.unnamed_traces == Traces::NONE && self.standard_strings;
        if !again && self.shared.as_ref().is_none_or(|s| *s.query_and_types != *query_and_types) {
            let query = query_and_types.split(|b| *b == 0).next().unwrap_or_default();
            self.unnamed_traces = self.judge(query);
            self.unnamed_is_void = false;
            self.shared = None;
            self.unnamed.clear();
            self.unnamed.extend_from_slice(body);
            if self.unnamed_traces.has(Traces::FREES) && self.deallocate(query, up)? {
                up.server.unnamed_is_ours = true;
                return self.push(Expect::Parse { forward: true, statement: 0, name });
            }
        }
        if self.may_share() {
            return self.share_unnamed(query_and_types, up);
        }
        up.server.unnamed_is_ours = true;
        up.output.pass(up.at, up.at + body.len() + frame::HEADER);
        self.push(Expect::Parse { forward: true, statement: 0, name })
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

    fn share_unnamed(&mut self, query_and_types: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let context = self.present_context(up);
        let statement = match &self.shared {
            Some(known) if Arc::ptr_eq(&known.context, &context) => known.clone(),
            _ => up.statements.intern(&context, query_and_types),
        };
        if self.is_in_doubt() && (self.own_in_flight || up.server.prepared.has(statement.id)) {
            return Ok(Step::Wait);
        }
        self.shared = Some(statement.clone());
        self.prepare_for_client(&statement, self.unnamed_key, up)
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

    /// True when it is not known what the server will hold: statements of pgmend's own are on their way, and an error
    /// before them would make the server skip them. Settings cannot be changed in a transaction that may have failed.
    fn must_wait(&self, statement: Option<&Statement>) -> bool {
        let foreign = || statement.is_some_and(|s| s.context.settings != self.context.settings);
        self.is_in_doubt() && (self.own_in_flight || foreign())
    }

    /// Prepares a statement on the server if it is not there; its ParseComplete is pgmend's own.
    fn prepare(&mut self, statement: &Arc<Statement>, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if up.server.prepared.touch(statement.id) {
            return Ok(());
        }
        self.make_room(statement, up)?;
        self.own_in_flight = true;
        up.server.prepared.insert(statement.id);
        // What a failed transaction takes at all has no literals.
        let other = statement.context.settings != self.context.settings && self.status != b'E';
        if other {
            let settings = changes(&self.context.settings, &statement.context.settings);
            self.set_inside(&settings, up)?;
        }
        write_parse(statement, up.output.rewrite(up.at));
        self.push(Expect::Parse { forward: false, statement: statement.id, name: 0 })?;
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
        self.own_in_flight = true;
        self.push(Expect::OwnClose { statement: id }).map(drop)
    }

    /// Changes settings in the middle of a batch: a text must be analysed under those that it was prepared with. An error
    /// before it makes the server skip it, and one after it undoes it.
    fn set_inside(&mut self, settings: &[(String, Option<String>)], up: &mut Up<'_, '_>) -> Result<(), Fault> {
        let calls: Vec<String> = settings
            .iter()
            .map(|(name, value)| {
                let value = value.as_deref().map_or("NULL".to_owned(), literal);
                format!("pg_catalog.set_config({}, {value}, false)", literal(name))
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
        self.push(Expect::Parse { forward: false, statement: 0, name: 0 })?;
        self.push(Expect::OwnBind)?;
        self.push(Expect::OwnExecute)?;
        self.push(Expect::OwnClose { statement: 0 })?;
        self.push(Expect::OwnClose { statement: 0 }).map(drop)
    }

    fn prepare_unnamed(&mut self, up: &mut Up<'_, '_>) -> Result<(), Fault> {
        if up.server.unnamed_is_ours {
            return Ok(());
        }
        up.server.unnamed_is_ours = true;
        self.own_in_flight = true;
        if self.unnamed.is_empty() {
            // The server may hold another client's.
            write_frame(up.output.rewrite(up.at), b'C', &[b"S\0"]);
            return self.push(Expect::OwnClose { statement: 0 }).map(drop);
        }
        write_frame(up.output.rewrite(up.at), b'P', &[&self.unnamed]);
        self.push(Expect::Parse { forward: false, statement: 0, name: 0 }).map(drop)
    }

    /// What a name that a client uses stands for, and the name's key; `None` also for an unnamed statement that is not
    /// shared.
    fn meaning(&self, name: &[u8]) -> Option<(Arc<Statement>, u32)> {
        match (name.is_empty(), &self.shared) {
            (true, Some(shared)) => Some((shared.clone(), self.unnamed_key)),
            (true, None) => None,
            (false, _) => self.named.find(name),
        }
    }

    pub(super) fn bind(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let bind = frontend::bind(body).map_err(client_fault)?;
        let named = self.meaning(bind.statement);
        let may_return = self.is_in_doubt() && self.named.may_return(bind.statement);
        if may_return || self.must_wait(named.as_ref().map(|n| &*n.0)) {
            return Ok(Step::Wait);
        }
        if bind.statement.is_empty() && named.is_none() {
            self.prepare_unnamed(up)?;
            if self.unnamed_is_void {
                self.make_void(up)?;
            }
            self.trace_bind(self.unnamed_traces, body.get(bind.rest_offset..).unwrap_or_default());
        } else if let Some((statement, key)) = named {
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
            return self.push(Expect::Bind { statement: statement.id, name: key });
        }
        up.output.pass(up.at, up.at + frame::HEADER + body.len());
        self.push(Expect::Bind { statement: 0, name: 0 })
    }

    /// The name of a setting may come as a parameter: `set_config($1, $2, false)`.
    fn trace_bind(&mut self, traces: Traces, rest: &[u8]) {
        self.trace(traces);
        if traces.has(Traces::LEAVES) {
            let values = frontend::bind_values(rest).unwrap_or_default();
            self.remember_custom(values.into_iter().flatten().filter_map(scan::custom_name));
        }
    }

    pub(super) fn describe(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' {
            let named = self.meaning(name);
            let may_return = self.is_in_doubt() && self.named.may_return(name);
            if may_return || self.must_wait(named.as_ref().map(|n| &*n.0)) {
                return Ok(Step::Wait);
            }
            if name.is_empty() && named.is_none() {
                self.prepare_unnamed(up)?;
            } else if let Some((statement, key)) = named {
                self.prepare(&statement, up)?;
                write_frame(up.output.rewrite(up.at), b'D', &[b"S", statement.server_name.as_bytes(), b"\0"]);
                return self.push(Expect::Describe { name: key });
            }
        }
        up.output.pass(up.at, up.at + up.total);
        self.push(Expect::Describe { name: 0 })
    }

    pub(super) fn close(&mut self, body: &[u8], up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' && !name.is_empty() {
            if self.is_in_doubt() && self.named.may_return(name) {
                return Ok(Step::Wait);
            }
            // The server keeps the statement for others; closing an unknown one is no error in PostgreSQL.
            let name = self.named.remove(name);
            up.output.rewrite(up.at);
            return self.push(Expect::FakeClose { name });
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
        if self.named.remove(name.as_slice()) == 0 {
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
        self.push(Expect::Parse { forward: false, statement: 0, name: 0 }).map(drop)
    }

    /// An error skipped the frames behind it: statements that were to be prepared are on no server, and names that they
    /// made are free again; what was to be closed is still there. `body` is the error's; returned is what the client gets
    /// instead, if the error calls a statement by pgmend's name.
    pub(super) fn failed(&mut self, body: &[u8], server: &mut ServerConn) -> Option<Vec<u8>> {
        let own_words = self.in_the_clients_words(body);
        self.undo_skipped(server);
        // "cached plan must not change result type" comes from this function of PostgreSQL (plancache.c).
        let outdated = body.windows(REVALIDATE.len()).any(|w| w == REVALIDATE);
        if let Some(Expect::Bind { statement: id @ 1.., .. }) = self.replies.failed_request().filter(|_| outdated) {
            server.prepared.spoil(id);
        }
        own_words
    }

    /// What the server has skipped, or will, as an error came before it, did not happen.
    pub(super) fn undo_skipped(&mut self, server: &mut ServerConn) {
        let skipped: Vec<Skipped> = self.replies.drain_skipped().collect();
        for one in &skipped {
            match *one {
                Skipped::Parse { statement: 0, name } => {
                    server.unnamed_is_ours = false;
                    self.forget_unnamed(name);
                }
                Skipped::Parse { statement, name } => {
                    server.prepared.remove(statement);
                    self.named.unmake(name);
                    self.forget_unnamed(name);
                }
                Skipped::NewName(name) => {
                    self.named.unmake(name);
                    self.forget_unnamed(name);
                }
                Skipped::Close(_) | Skipped::Name(_) => {}
            }
        }
        // What was both made and taken away by skipped requests is dealt with: now what was there before.
        for one in &skipped {
            match *one {
                Skipped::Name(name) => self.named.restore(name),
                Skipped::Close(0) => server.unnamed_is_ours = false,
                Skipped::Close(statement) => {
                    server.prepared.insert(statement);
                    server.prepared.spoil(statement);
                }
                Skipped::Parse { .. } | Skipped::NewName(_) => {}
            }
        }
    }

    fn forget_unnamed(&mut self, key: u32) {
        if key == self.unnamed_key {
            self.unnamed.clear();
            self.shared = None;
        }
    }

    /// An error that names a statement as servers know it, with the name that the client gave.
    fn in_the_clients_words(&self, body: &[u8]) -> Option<Vec<u8>> {
        let key = match self.replies.failed_request()? {
            Expect::Parse { name, .. } | Expect::Bind { name, .. } | Expect::Describe { name } if name != 0 => name,
            _ => return None,
        };
        let name = if key == self.unnamed_key { b"" } else { self.named.name_of(key)? };
        let from = body.windows(SERVER_NAME.len()).position(|w| w == SERVER_NAME)?;
        let rest = body.get(from + SERVER_NAME.len()..)?;
        let digits = rest.iter().position(|b| !b.is_ascii_digit())?;
        let rest = rest.get(digits..).filter(|rest| rest.first() == Some(&b'"'))?;
        Some([body.get(..from)?, b"\"", name, rest].concat())
    }
}

/// How a text quotes the name of a statement on servers.
const SERVER_NAME: &[u8] = b"\"pgmend_";
/// The field of an error that names the function in PostgreSQL's source.
const REVALIDATE: &[u8] = b"RRevalidateCachedQuery\0";

/// What must be set, or reset (`None`), to come from one context to the other.
fn changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Vec<(String, Option<String>)> {
    let gone = from.keys().filter(|n| !to.contains_key(*n)).map(|n| (n.clone(), None));
    let new = to.iter().filter(|(n, v)| from.get(*n) != Some(v)).map(|(n, v)| (n.clone(), Some(v.clone())));
    gone.chain(new).collect()
}
