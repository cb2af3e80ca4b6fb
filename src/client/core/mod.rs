//! The session's core: bytes in, bytes out, no IO. Which frames go to the server, which replies are owed, the renaming
//! of prepared statements in transaction pooling, and what a transaction may have left behind.
//!
//! Frames that need no decision are forwarded as they stand in the read buffer; only when one must change is the batch
//! copied to `out`. Read `upstream` (client to server), `prepared` (statements), `downstream` (server to client).

mod carried;
mod downstream;
mod few;
mod listening;
mod names;
mod output;
mod prepared;
mod statements;
mod upstream;

pub use carried::Carried;
pub use statements::{Context, Statement, Statements};

use super::activity::Sight;
use super::fault::Fault;
use super::scan::{self, Traces};
use crate::server::ParamSet;
use crate::wire::replies::Replies;
use crate::wire::{backend, frame, frontend};
use carried::Refusing;
use listening::Listening;
use names::{MAX_NAMED, Names};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A ParameterStatus or CommandComplete is looked at when it is at most this long; real ones are far shorter.
const MAX_INSPECTED: usize = 8 * 1024;
/// Names of settings of the user's own that are remembered of one client.
const MAX_CUSTOM: usize = 64;

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
    /// The next frame is a statement of Pgpool-II's own: pgmend answers it.
    pub command: bool,
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
    /// So many bytes are the last of what was refused: ReadyForQuery is due.
    Refused(usize),
}

/// How a session is treated.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Transaction pooling: statements are renamed, and what transactions leave is watched.
    pub transactions: bool,
    /// A transaction must end with its statement (statement pooling).
    pub single_statements: bool,
    /// Longest message that must be held whole, bytes.
    pub max_message: usize,
    /// Statements that one server holds.
    pub max_prepared: usize,
    /// `SHOW POOL_*` and `PGPOOL …` are answered by pgmend.
    pub pool_commands: bool,
    /// The unnamed statement is shared as the named ones are.
    pub share_unnamed: bool,
}

/// One client's protocol state.
#[derive(Debug)]
pub struct Core {
    rules: Rules,
    replies: Replies,
    named: Names,
    /// Which Parse made the unnamed statement.
    unnamed_key: u32,
    unnamed: Vec<u8>,
    /// What the unnamed statement is on servers, when it is shared.
    shared: Option<Arc<Statement>>,
    unnamed_traces: Traces,
    /// It stands in for a DEALLOCATE.
    unnamed_is_void: bool,
    to_pass: usize,
    to_drop: usize,
    back_to_pass: usize,
    back_to_drop: usize,
    status: u8,
    initial: ParamSet,
    wanted: ParamSet,
    /// As `standard_conforming_strings` is in `wanted`.
    standard_strings: bool,
    context: Arc<Context>,
    /// The client has something of its own on its server (a temporary table hides another one, say).
    own_context: Option<Arc<Context>>,
    traces: Traces,
    /// Statements of pgmend's own are on their way; an error may make the server skip them.
    own_in_flight: bool,
    /// The ReadyForQuery of a transaction that listens is kept back until the session has settled what that means.
    listening: Listening,
    /// The server has said FATAL: it closes the connection.
    told_the_end: bool,
    /// What comes next waits until everything is answered.
    barrier: bool,
    /// The next command is the server's although it looks like one of pgmend's.
    pass_command: bool,
    /// ReadyForQuery messages so far; wraps.
    rounds: u32,
    /// What a session that keeps its server may have to take to another one.
    carried: Carried,
    refusing: Refusing,
    // Boxed, as few have it: an idle client is small.
    seldom: Option<Box<Seldom>>,
}

/// What few sessions have.
#[derive(Debug, Default)]
struct Seldom {
    /// Settings of the user's own that the client may have set.
    custom: BTreeSet<String>,
    /// Channels that the transaction has ended; `None` is all.
    unlistened: Vec<Option<String>>,
    /// In session pooling: statements that set what their parameters name.
    naming: Vec<Vec<u8>>,
}

fn has_standard_strings(parameters: &ParamSet) -> bool {
    parameters.get("standard_conforming_strings").is_none_or(|value| value == "on")
}

impl Core {
    /// A session between transactions, with its parameters as given at startup.
    pub fn new(rules: Rules, initial: ParamSet, statements: &Statements) -> Core {
        Core {
            rules,
            replies: Replies::new(),
            named: Names::default(),
            unnamed_key: 0,
            unnamed: Vec::new(),
            shared: None,
            unnamed_traces: Traces::NONE,
            unnamed_is_void: false,
            to_pass: 0,
            to_drop: 0,
            back_to_pass: 0,
            back_to_drop: 0,
            status: b'I',
            context: statements.context(&initial),
            own_context: None,
            standard_strings: has_standard_strings(&initial),
            wanted: initial.clone(),
            initial,
            traces: Traces::NONE,
            own_in_flight: false,
            listening: Listening::default(),
            told_the_end: false,
            barrier: false,
            pass_command: false,
            rounds: 0,
            carried: Carried::default(),
            refusing: Refusing::No,
            seldom: None,
        }
    }

    /// The client's run-time parameters.
    pub fn wanted(&self) -> &ParamSet {
        &self.wanted
    }

    /// As given at startup.
    pub fn initial(&self) -> &ParamSet {
        &self.initial
    }

    /// The client's parameters as they are now known to be.
    pub fn set_wanted(&mut self, wanted: ParamSet, statements: &Statements) {
        self.context = statements.context(&wanted);
        self.standard_strings = has_standard_strings(&wanted);
        self.wanted = wanted;
    }

    /// The client is bound to its server, or not any more: what it prepares meanwhile is its own.
    pub fn set_bound(&mut self, bound: bool, statements: &Statements) {
        match (bound, &self.own_context) {
            (true, None) => self.own_context = Some(statements.private_context(&self.context)),
            (true, Some(_)) => {}
            (false, _) => self.own_context = None,
        }
    }

    /// What the transaction may have done to its session.
    pub fn traces(&self) -> Traces {
        self.traces
    }

    /// The question what the transaction left has been answered, or needs none.
    pub fn forget_traces(&mut self) {
        self.traces = Traces::NONE;
        self.listening.forget();
    }

    /// True when the client cannot know since when it listens to what it has begun to listen to.
    pub fn listens_secretly(&self) -> bool {
        self.listening.is_secret()
    }

    /// Channels that the client has ended since the last call; `None`: all.
    pub fn take_unlistened(&mut self) -> Vec<Option<String>> {
        self.seldom.as_mut().map(|seldom| std::mem::take(&mut seldom.unlistened)).unwrap_or_default()
    }

    /// The server's transaction status at its last ReadyForQuery: `I`, `T` or `E`.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The connection has gone in the middle of something: the next one owes nothing.
    pub fn lose_server(&mut self) {
        self.replies = Replies::new();
        self.to_pass = 0;
        self.to_drop = 0;
        self.back_to_pass = 0;
        self.back_to_drop = 0;
        self.status = b'I';
        self.own_in_flight = false;
        self.told_the_end = false;
        self.barrier = false;
        self.named.settle();
    }

    /// A statement that another node's server has accepted is known here too: it is prepared when it is first used.
    /// `body`: of the Parse.
    pub fn learn(&mut self, body: &[u8], statements: &Statements) -> Result<(), Fault> {
        let parse = frontend::parse_names(body).map_err(client_fault)?;
        if parse.name.is_empty() {
            self.unnamed_key = self.named.new_key();
            self.unnamed_traces = self.judge(parse.query());
            self.unnamed_is_void = false;
            self.shared = None;
            self.unnamed.clear();
            self.unnamed.extend_from_slice(body);
            return Ok(());
        }
        if statements.is_outdated(&self.context) {
            self.context = statements.context(&self.wanted);
        }
        self.named.remove(parse.name);
        let statement = statements.intern(&self.context, parse.query_and_types);
        self.named.insert(parse.name, statement);
        self.named.settle();
        Ok(())
    }

    /// The client has closed a named statement, or the unnamed one.
    pub fn unlearn(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.unnamed.clear();
            self.shared = None;
        } else {
            self.named.remove(name);
            self.named.settle();
        }
    }

    /// Settings of the user's own that the client may have set.
    pub fn custom(&self) -> impl Iterator<Item = &String> {
        let own = self.seldom.iter().flat_map(|seldom| seldom.custom.iter());
        own.chain(self.wanted.keys().filter(|name| name.contains('.')))
    }

    /// `SHOW POOL_*` is answered by pgmend.
    pub fn answers_commands(&self) -> bool {
        self.rules.pool_commands
    }

    /// The command at the front goes to the server.
    pub fn pass_command(&mut self) {
        self.pass_command = true;
    }

    /// What the time limits need to know of the protocol's state.
    pub fn sight(&self) -> Sight {
        Sight { clean: self.is_clean(), settled: self.is_settled(), rounds: self.rounds }
    }

    /// True when no frame to the client is half through: something of pgmend's own may follow.
    pub fn is_between_answers(&self) -> bool {
        self.back_to_pass == 0
    }

    /// True when the server has told the client that, and why, it ends the session.
    pub fn is_told_the_end(&self) -> bool {
        self.told_the_end
    }

    /// The session has nothing to do: memory that it needs for that only is given back.
    pub fn rest(&mut self) {
        self.replies.rest();
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
        if self.refusing != Refusing::No {
            return self.refused(input);
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

    /// Answers a batch that needs no server: Parses of texts that some server has accepted, and the Sync at its end.
    /// Returns the bytes answered; 0: the batch needs a server. It matters beyond the time it saves: who waits for such
    /// an answer before he goes on with another connection (pgbench does, in one thread) could wait for a server that
    /// only he can set free.
    pub fn answer_alone(&mut self, input: &[u8], statements: &Statements, out: &mut Vec<u8>) -> Result<usize, Fault> {
        // The unnamed statement is always parsed anew.
        let begins = input.first() == Some(&b'P') && input.get(frame::HEADER).is_some_and(|first| *first != 0);
        if !begins || !self.rules.transactions || self.own_context.is_some() || statements.is_outdated(&self.context) {
            return Ok(0);
        }
        let mut parsed: Vec<(&[u8], Arc<Statement>)> = Vec::new();
        let mut rest = input;
        let mut answer = Vec::new();
        while let Some(split) = frame::split(rest).map_err(client_fault)? {
            rest = split.rest;
            match split.tag {
                b'P' => {
                    let parse = frontend::parse_names(split.body).map_err(client_fault)?;
                    let taken = self.named.has(parse.name) || parsed.iter().any(|(name, _)| *name == parse.name);
                    let known = statements.proven(&self.context, parse.query_and_types);
                    let (false, false, Some(statement)) = (parse.name.is_empty(), taken, known) else { break };
                    if self.named.len() + parsed.len() >= MAX_NAMED {
                        break;
                    }
                    parsed.push((parse.name, statement));
                    backend::parse_complete(&mut answer);
                }
                b'S' => {
                    for (name, statement) in parsed {
                        self.named.insert(name, statement);
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

    /// Notes what a text may do to the session.
    fn judge(&mut self, sql: &[u8]) -> Traces {
        // Without standard strings a backslash hides a quote, and the words are not where they seem to be.
        let traces = if self.standard_strings { scan::classify(sql) } else { Traces::LEAVES };
        if traces.has(Traces::LEAVES) {
            self.remember_custom(scan::custom_names(sql));
        }
        if traces.has(Traces::FREES) {
            let channels = scan::unlistened(sql);
            if !channels.is_empty() && self.seldom().unlistened.len() < MAX_CUSTOM {
                self.seldom().unlistened.extend(channels);
            }
        }
        traces
    }

    fn remember_custom(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let custom = &mut self.seldom().custom;
            if custom.len() < MAX_CUSTOM {
                custom.insert(name);
            }
        }
    }

    fn seldom(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    fn trace(&mut self, traces: Traces) {
        self.traces = self.traces.with(traces);
    }
}

fn client_fault(error: crate::wire::WireError) -> Fault {
    Fault::Protocol(error.to_string())
}

fn server_fault(error: crate::wire::WireError) -> Fault {
    Fault::ServerProtocol(error.to_string())
}
