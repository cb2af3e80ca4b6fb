//! The session's core: bytes in, bytes out, no IO. Which frames go to the server, which replies are owed, and the renaming
//! of prepared statements in transaction pooling.
//!
//! Frames that need no decision are forwarded as they stand in the read buffer; only when one must change is the batch
//! copied to `out`. In transaction pooling a client's named statement lives on a server under a name of pgmend's own, so
//! that any server can hold it; it is prepared there on demand.

use super::fault::Fault;
use super::params::is_tracked;
use super::statements::{Statement, Statements};
use crate::server::{ParamSet, ServerConn};
use crate::wire::replies::{Expect, Fake, Replies, Verdict};
use crate::wire::{backend, frame, frontend};
use std::collections::HashMap;
use std::sync::Arc;

/// Named statements that one client may have.
const MAX_NAMED: usize = 10_000;
/// A ParameterStatus or CommandComplete is looked at when it is at most this long; real ones are far shorter.
const MAX_INSPECTED: usize = 8 * 1024;

#[derive(Debug)]
struct Named {
    statement: Arc<Statement>,
    /// The server has accepted its Parse; until then an error forgets it.
    confirmed: bool,
}

/// What was done with a piece of input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the input dealt with.
    pub consumed: usize,
    /// True: what is to be sent stands in `out`. False: it is the consumed input itself.
    pub rewritten: bool,
    /// The next frame needs this many bytes at once before it can be dealt with; 0: nothing is awaited.
    pub need: usize,
    /// The client said Terminate (client side), or the transaction ended and the server is free (server side).
    pub end: bool,
    /// Replies of pgmend's own must reach the client now, as the server may say nothing (Flush).
    pub flush: bool,
}

/// What stands at the front of a client's input while it has no server.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// Not enough to act on.
    More,
    /// Terminate.
    Terminate,
    /// So many bytes mean nothing here (the tail of a COPY that failed) and are dropped.
    Stray(usize),
    /// Work for a server.
    Work,
}

/// One client's protocol state.
#[derive(Debug)]
pub struct Core {
    renames: bool,
    replies: Replies,
    named: HashMap<Vec<u8>, Named>,
    unnamed: Vec<u8>,
    to_pass: usize,
    to_drop: usize,
    back_to_pass: usize,
    back_to_drop: usize,
    status: u8,
    max_message: usize,
    /// The client's run-time parameters.
    pub wanted: ParamSet,
}

/// Copies the unchanged part of a batch when the first change comes.
struct Output<'a> {
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    rewritten: bool,
}

impl Output<'_> {
    fn pass(&mut self, from: usize, to: usize) {
        if self.rewritten {
            self.out.extend_from_slice(self.input.get(from..to).unwrap_or_default());
        }
    }

    fn rewrite(&mut self, from: usize) -> &mut Vec<u8> {
        if !self.rewritten {
            self.rewritten = true;
            self.out.extend_from_slice(self.input.get(..from).unwrap_or_default());
        }
        self.out
    }
}

impl Core {
    /// A session between transactions. `renames`: transaction pooling.
    pub fn new(renames: bool, wanted: ParamSet, max_message: usize) -> Core {
        Core {
            renames,
            replies: Replies::new(),
            named: HashMap::new(),
            unnamed: Vec::new(),
            to_pass: 0,
            to_drop: 0,
            back_to_pass: 0,
            back_to_drop: 0,
            status: b'I',
            max_message,
            wanted,
        }
    }

    /// True when the server owes nothing and is outside a transaction: it may serve somebody else.
    pub fn is_clean(&self) -> bool {
        self.status == b'I' && self.is_settled()
    }

    /// True when the server owes nothing and no frame is half through.
    pub fn is_settled(&self) -> bool {
        self.replies.is_quiet() && self.to_pass == 0 && self.back_to_pass == 0
    }

    /// True when nothing more will come of the server before the client has sent more. Of a client that is gone: never.
    pub fn awaits_client(&self) -> bool {
        self.to_pass > 0 || self.replies.awaits_client()
    }

    /// Looks at the input of a client that has no server. `full`: no more can be read before something is consumed.
    pub fn front(&mut self, input: &[u8], full: bool) -> Result<Front, Fault> {
        if self.to_drop > 0 && !input.is_empty() {
            let count = self.to_drop.min(input.len());
            self.to_drop -= count;
            return Ok(Front::Stray(count));
        }
        let mut at = 0;
        while let Some(header) = frame::peek(input.get(at..).unwrap_or_default()).map_err(client_fault)? {
            match header.tag {
                b'X' if at == 0 => return Ok(Front::Terminate),
                b'd' | b'c' | b'f' if at == 0 => {
                    let count = header.total.min(input.len());
                    self.to_drop = header.total - count;
                    return Ok(Front::Stray(count));
                }
                b'Q' | b'S' | b'H' | b'F' | b'X' => return Ok(Front::Work),
                b'P' | b'B' | b'D' | b'E' | b'C' | b'd' | b'c' | b'f' => {}
                tag => return Err(Fault::Protocol(format!("invalid frontend message type {tag}"))),
            }
            at += header.total;
            if at > input.len() {
                break;
            }
        }
        Ok(if full { Front::Work } else { Front::More })
    }

    /// Answers a batch that needs no server: Parses of texts that some server has accepted, and the Sync at its end. Returns the bytes answered; 0: the batch needs a server. It matters beyond the time it saves: who
    /// waits for such an answer before he goes on with another connection (pgbench does, in one thread) could wait for
    /// a server that only he can set free.
    pub fn answer_alone(&mut self, input: &[u8], statements: &Statements, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut parsed: Vec<(&[u8], Arc<Statement>)> = Vec::new();
        let mut rest = input;
        let mut answer = Vec::new();
        while self.renames {
            let Some(split) = frame::split(rest).map_err(client_fault)? else { break };
            rest = split.rest;
            match split.tag {
                b'P' => {
                    let parse = frontend::parse_names(split.body).map_err(client_fault)?;
                    let taken =
                        self.named.contains_key(parse.name) || parsed.iter().any(|(name, _)| *name == parse.name);
                    let known = statements.proven(parse.query_and_types);
                    let (false, false, Some(statement)) = (parse.name.is_empty(), taken, known) else { break };
                    if self.named.len() + parsed.len() >= MAX_NAMED {
                        break;
                    }
                    parsed.push((parse.name, statement));
                    backend::parse_complete(&mut answer);
                }
                b'S' => {
                    for (name, statement) in parsed {
                        self.named.insert(name.to_vec(), Named { statement, confirmed: true });
                    }
                    backend::ready_for_query(&mut answer, b'I');
                    out.extend_from_slice(&answer);
                    return Ok(input.len() - rest.len());
                }
                _ => break,
            }
        }
        Ok(0)
    }

    /// Takes what the client sent, for `server`.
    pub fn on_client(
        &mut self,
        input: &[u8],
        server: &mut ServerConn,
        statements: &Statements,
        out: &mut Vec<u8>,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        let mut output = Output { input, out, rewritten: false };
        let mut at = self.to_pass.min(input.len());
        self.to_pass -= at;
        output.pass(0, at);
        while self.to_pass == 0 {
            let rest = input.get(at..).unwrap_or_default();
            let Some(header) = frame::peek(rest).map_err(client_fault)? else { break };
            let whole = rest.get(..header.total);
            let renamed = self.renames && matches!(header.tag, b'P' | b'B' | b'D' | b'C');
            if renamed && whole.is_none() && !(header.tag == b'B' && rest.len() >= MAX_INSPECTED) {
                if header.tag != b'B' && header.total > self.max_message {
                    return Err(Fault::Limit(format!(
                        "a message of {} bytes is longer than max_message_size, {}",
                        header.total, self.max_message
                    )));
                }
                taken.need = header.total.min(if header.tag == b'B' { MAX_INSPECTED } else { header.total });
                break;
            }
            if renamed {
                let body = whole.unwrap_or(rest).get(frame::HEADER..).unwrap_or_default();
                match header.tag {
                    b'P' => self.parse(body, at, server, statements, &mut output)?,
                    b'B' => self.bind(header.total, body, at, server, &mut output)?,
                    b'D' => self.describe(header.total, body, at, server, &mut output)?,
                    _ => self.close(header.total, body, at, &mut output)?,
                }
                at += header.total.min(rest.len());
                self.to_pass = header.total - header.total.min(rest.len());
                continue;
            }
            match header.tag {
                b'X' => {
                    taken.end = true;
                    break;
                }
                b'H' => taken.flush = true,
                _ => {}
            }
            self.expect(header.tag)?;
            let count = header.total.min(rest.len());
            output.pass(at, at + count);
            at += count;
            self.to_pass = header.total - count;
        }
        taken.consumed = at;
        taken.rewritten = output.rewritten;
        Ok(taken)
    }

    /// Books the reply that a frame, forwarded as it is, will bring.
    fn expect(&mut self, tag: u8) -> Result<(), Fault> {
        let expect = match tag {
            b'Q' => Expect::Query,
            b'F' => Expect::Function,
            b'P' => Expect::Parse { forward: true, statement: 0 },
            b'B' => Expect::Bind,
            b'D' => Expect::Describe,
            b'E' => Expect::Execute,
            b'C' => Expect::Close,
            b'S' => Expect::Sync,
            b'c' | b'f' => Expect::CopyEnd,
            b'd' | b'H' => return Ok(()),
            tag => return Err(Fault::Protocol(format!("invalid frontend message type {tag}"))),
        };
        self.push(expect)
    }

    fn push(&mut self, expect: Expect) -> Result<(), Fault> {
        self.replies.push(expect).map(drop).map_err(client_fault)
    }

    fn parse(
        &mut self,
        body: &[u8],
        at: usize,
        server: &mut ServerConn,
        statements: &Statements,
        output: &mut Output<'_>,
    ) -> Result<(), Fault> {
        let parse = frontend::parse_names(body).map_err(client_fault)?;
        if parse.name.is_empty() {
            // Kept, so that a later Bind of it works on another server too.
            self.unnamed.clear();
            self.unnamed.extend_from_slice(body);
            server.unnamed_is_ours = true;
            output.pass(at, at + body.len() + frame::HEADER);
            return self.push(Expect::Parse { forward: true, statement: 0 });
        }
        if let Some(known) = self.named.get(parse.name) {
            // PostgreSQL refuses a name that is taken; the server says so itself.
            let statement = known.statement.clone();
            self.prepare(&statement, at, server, output)?;
            write_parse(&statement, output.rewrite(at));
            return self.push(Expect::Parse { forward: true, statement: 0 });
        }
        if self.named.len() >= MAX_NAMED {
            return Err(Fault::Limit(format!("a client may have {MAX_NAMED} prepared statements")));
        }
        let statement = statements.intern(parse.query_and_types);
        let on_server = server.prepared.contains(&statement.id);
        self.named.insert(parse.name.to_vec(), Named { statement: statement.clone(), confirmed: on_server });
        if on_server {
            output.rewrite(at);
            return self.push(Expect::FakeParse);
        }
        server.prepared.insert(statement.id);
        write_parse(&statement, output.rewrite(at));
        self.push(Expect::Parse { forward: true, statement: statement.id })
    }

    /// Prepares a statement on the server if it is not there; its ParseComplete is pgmend's own.
    fn prepare(
        &mut self,
        statement: &Arc<Statement>,
        at: usize,
        server: &mut ServerConn,
        output: &mut Output<'_>,
    ) -> Result<(), Fault> {
        if server.prepared.insert(statement.id) {
            write_parse(statement, output.rewrite(at));
            self.push(Expect::Parse { forward: false, statement: statement.id })?;
        }
        Ok(())
    }

    fn prepare_unnamed(&mut self, at: usize, server: &mut ServerConn, output: &mut Output<'_>) -> Result<(), Fault> {
        if !server.unnamed_is_ours && !self.unnamed.is_empty() {
            server.unnamed_is_ours = true;
            let out = output.rewrite(at);
            write_frame(out, b'P', &[&self.unnamed]);
            self.push(Expect::Parse { forward: false, statement: 0 })?;
        }
        Ok(())
    }

    fn bind(
        &mut self,
        total: usize,
        body: &[u8],
        at: usize,
        server: &mut ServerConn,
        output: &mut Output<'_>,
    ) -> Result<(), Fault> {
        let bind = frontend::bind(body).map_err(client_fault)?;
        if bind.statement.is_empty() {
            self.prepare_unnamed(at, server, output)?;
        } else if let Some(named) = self.named.get(bind.statement) {
            let statement = named.statement.clone();
            self.prepare(&statement, at, server, output)?;
            let rest = body.get(bind.rest_offset..).unwrap_or_default();
            let name = statement.server_name();
            // The frame may go on beyond what has been read: its length is reckoned from its own header.
            let length = total - 1 - bind.statement.len() + name.len();
            let out = output.rewrite(at);
            write_header(out, b'B', length);
            out.extend_from_slice(bind.portal);
            out.push(0);
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            out.extend_from_slice(rest);
            return self.push(Expect::Bind);
        }
        output.pass(at, at + frame::HEADER + body.len());
        self.push(Expect::Bind)
    }

    fn describe(
        &mut self,
        total: usize,
        body: &[u8],
        at: usize,
        server: &mut ServerConn,
        output: &mut Output<'_>,
    ) -> Result<(), Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' {
            if name.is_empty() {
                self.prepare_unnamed(at, server, output)?;
            } else if let Some(named) = self.named.get(name) {
                let statement = named.statement.clone();
                self.prepare(&statement, at, server, output)?;
                write_frame(output.rewrite(at), b'D', &[b"S", statement.server_name().as_bytes(), b"\0"]);
                return self.push(Expect::Describe);
            }
        }
        output.pass(at, at + total);
        self.push(Expect::Describe)
    }

    fn close(&mut self, total: usize, body: &[u8], at: usize, output: &mut Output<'_>) -> Result<(), Fault> {
        let (kind, name) = frontend::describe_or_close(body).map_err(client_fault)?;
        if kind == b'S' && !name.is_empty() {
            // The server keeps the statement for others; closing an unknown one is no error in PostgreSQL.
            self.named.remove(name);
            output.rewrite(at);
            return self.push(Expect::FakeClose);
        }
        output.pass(at, at + total);
        self.push(Expect::Close)
    }

    /// Writes the replies of pgmend's own that are due before anything else from the server.
    pub fn due_fakes(&mut self, out: &mut Vec<u8>) {
        while let Some(fake) = self.replies.take_fake() {
            write_fake(fake, out);
        }
    }

    /// Takes what the server sent.
    pub fn on_server(&mut self, input: &[u8], server: &mut ServerConn, out: &mut Vec<u8>) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        let mut output = Output { input, out, rewritten: false };
        let mut at = self.back_to_pass.min(input.len());
        self.back_to_pass -= at;
        output.pass(0, at);
        if self.back_to_drop > 0 {
            let count = self.back_to_drop.min(input.len() - at);
            output.rewrite(at);
            self.back_to_drop -= count;
            at += count;
        }
        while self.back_to_pass == 0 && self.back_to_drop == 0 {
            while let Some(fake) = self.replies.take_fake() {
                write_fake(fake, output.rewrite(at));
            }
            let rest = input.get(at..).unwrap_or_default();
            let Some(header) = frame::peek(rest).map_err(server_fault)? else { break };
            let looked_at = matches!(header.tag, b'Z' | b'S' | b'C') && header.total <= MAX_INSPECTED;
            if looked_at && rest.len() < header.total {
                taken.need = header.total;
                break;
            }
            let count = header.total.min(rest.len());
            let body = rest.get(frame::HEADER..count).unwrap_or_default();
            let verdict = self.replies.on_backend(header.tag, body.first().copied()).map_err(server_fault)?;
            match header.tag {
                b'S' => self.parameter_changed(body, server),
                b'C' => note_command(body, server),
                b'E' => self.forget_failed(server),
                _ => {}
            }
            match verdict {
                Verdict::ParseDone { forward: false, .. } => {
                    output.rewrite(at);
                    self.back_to_drop = header.total - count;
                }
                Verdict::ParseDone { statement, forward: true } => {
                    self.confirm(statement);
                    output.pass(at, at + count);
                    self.back_to_pass = header.total - count;
                }
                Verdict::Forward | Verdict::Async | Verdict::Failed | Verdict::Fatal => {
                    output.pass(at, at + count);
                    self.back_to_pass = header.total - count;
                }
                Verdict::ForwardThenReady { status } => {
                    output.pass(at, at + count);
                    self.status = status;
                    if self.is_clean() {
                        taken.end = true;
                        at += count;
                        break;
                    }
                }
            }
            at += count;
        }
        taken.consumed = at;
        taken.rewritten = output.rewritten;
        Ok(taken)
    }

    fn parameter_changed(&mut self, body: &[u8], server: &mut ServerConn) {
        let Ok((name, value)) = backend::parse_parameter_status(body) else { return };
        server.reported.insert(name.to_owned(), value.to_owned());
        if is_tracked(name) {
            let mut set = (*self.wanted).clone();
            set.insert(name.to_ascii_lowercase(), value.to_owned());
            self.wanted = ParamSet::new(set);
            server.applied = self.wanted.clone();
        }
    }

    fn confirm(&mut self, statement: u64) {
        if statement != 0 {
            for named in self.named.values_mut().filter(|n| n.statement.id == statement) {
                named.confirmed = true;
                named.statement.prove();
            }
        }
    }

    /// An error skipped the Parses behind it: they are on no server, and names that they made are free again.
    fn forget_failed(&mut self, server: &mut ServerConn) {
        for statement in self.replies.drain_failed() {
            server.prepared.remove(&statement);
            self.named.retain(|_, n| n.confirmed || n.statement.id != statement);
        }
    }
}

fn write_fake(fake: Fake, out: &mut Vec<u8>) {
    match fake {
        Fake::ParseComplete => backend::parse_complete(out),
        Fake::CloseComplete => backend::close_complete(out),
    }
}

/// The commands that end the server's memory of prepared statements and parameters.
fn note_command(body: &[u8], server: &mut ServerConn) {
    match body.split(|b| *b == 0).next().unwrap_or_default() {
        b"DISCARD ALL" => {
            server.prepared.clear();
            server.applied = ParamSet::default();
        }
        b"DEALLOCATE ALL" => server.prepared.clear(),
        b"RESET" => server.applied = ParamSet::default(),
        _ => {}
    }
}

fn write_header(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    // A length beyond 2^31 was refused when the frame's header was read.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn write_frame(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    write_header(out, tag, 4 + parts.iter().map(|p| p.len()).sum::<usize>());
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

fn write_parse(statement: &Statement, out: &mut Vec<u8>) {
    write_frame(out, b'P', &[statement.server_name().as_bytes(), b"\0", &statement.query_and_types]);
}

fn client_fault(error: crate::wire::WireError) -> Fault {
    Fault::Protocol(error.to_string())
}

fn server_fault(error: crate::wire::WireError) -> Fault {
    Fault::ServerProtocol(error.to_string())
}
