//! From the client to the server: what each frame becomes.

use super::output::Output;
use super::{Core, MAX_INSPECTED, Statements, Taken, client_fault};
use crate::client::commands::may_be_own;
use crate::client::fault::Fault;
use crate::client::scan::Traces;
use crate::server::ServerConn;
use crate::wire::replies::Expect;
use crate::wire::{frame, frontend};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is dealt with.
    Taken,
    /// It waits for answers that are on their way, as they decide what becomes of it.
    Wait,
}

/// What the frames of one piece of input are worked on with.
pub(super) struct Up<'a, 'b> {
    /// The borrowed server.
    pub server: &'a mut ServerConn,
    /// All clients' statements.
    pub statements: &'a Statements,
    /// What is sent.
    pub output: &'a mut Output<'b>,
    /// Where the frame begins in the input.
    pub at: usize,
    /// The whole frame's length, also when not all of it has been read.
    pub total: usize,
}

impl Core {
    /// Takes what the client sent, for `server`.
    pub fn on_client(
        &mut self,
        input: &[u8],
        server: &mut ServerConn,
        statements: &Statements,
        out: &mut Vec<u8>,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        let mut output = Output::new(input, out);
        let mut at = self.to_pass.min(input.len());
        self.to_pass -= at;
        output.pass(0, at);
        if self.is_settled() {
            server.prepared.fence();
        }
        self.barrier &= !self.is_settled() && !self.replies.awaits_client();
        while self.to_pass == 0 && !self.barrier {
            let rest = input.get(at..).unwrap_or_default();
            let Some(header) = frame::peek(rest).map_err(client_fault)? else { break };
            let here = rest.get(..header.total);
            if let Some(need) = self.need(&header, rest.len())? {
                taken.need = need;
                break;
            }
            if header.tag == b'X' {
                taken.end = true;
                break;
            }
            let count = header.total.min(rest.len());
            let body = here.unwrap_or(rest).get(frame::HEADER..).unwrap_or_default();
            if self.is_command(header.tag, body, here.is_some()) {
                taken.command = at == 0 && self.is_settled();
                if taken.command || !self.is_settled() {
                    break;
                }
            }
            let mut up = Up { server, statements, output: &mut output, at, total: header.total };
            let step = match header.tag {
                b'Q' => self.query(body, here.is_some(), &mut up)?,
                b'P' if self.rules.transactions => self.parse(body, &mut up)?,
                b'B' if self.rules.transactions => self.bind(body, &mut up)?,
                b'D' if self.rules.transactions => self.describe(body, &mut up)?,
                b'C' if self.rules.transactions => self.close(body, &mut up)?,
                b'P' => {
                    let name = self.carry_parse(body, here.is_some());
                    up.output.pass(at, at + count);
                    self.push(Expect::Parse { forward: true, statement: 0, name })?
                }
                tag => {
                    taken.flush |= tag == b'H';
                    if matches!(tag, b'B' | b'C') {
                        self.carry_other(tag, body, here.is_some());
                    }
                    self.expect(tag)?;
                    output.pass(at, at + count);
                    Step::Taken
                }
            };
            if step == Step::Wait {
                break;
            }
            at += count;
            self.to_pass = header.total - count;
        }
        taken.consumed = at;
        taken.rewritten = output.rewritten;
        // The client goes on in the same exchange: it gets what was kept back first.
        taken.flush |= self.listening.is_held() && at > 0;
        Ok(taken)
    }

    /// How many bytes must be there before the frame can be dealt with, if there are too few.
    fn need(&self, header: &frame::Header, have: usize) -> Result<Option<usize>, Fault> {
        if !self.rules.transactions || have >= header.total {
            return Ok(None);
        }
        match header.tag {
            b'P' | b'D' | b'C' if header.total > self.rules.max_message => Err(Fault::Limit(format!(
                "a message of {} bytes is longer than max_message_size, {}",
                header.total, self.rules.max_message
            ))),
            b'P' | b'D' | b'C' => Ok(Some(header.total)),
            // Of a long one the beginning is enough.
            b'B' | b'Q' if have < MAX_INSPECTED => Ok(Some(header.total.min(MAX_INSPECTED))),
            _ => Ok(None),
        }
    }

    /// A Query that Pgpool-II would answer itself.
    fn is_command(&mut self, tag: u8, body: &[u8], whole: bool) -> bool {
        if tag != b'Q' || !self.rules.pool_commands || !may_be_own(body) || !whole || self.status != b'I' {
            return false;
        }
        let ours = begins(body, b"show pool_") || begins(body, b"pgpool ") || begins(body, b"show pins");
        ours && !std::mem::take(&mut self.pass_command)
    }

    /// Books the reply that a frame, forwarded as it is, will bring.
    fn expect(&mut self, tag: u8) -> Result<(), Fault> {
        let expect = match tag {
            b'F' => {
                self.trace(Traces::LEAVES);
                Expect::Function
            }
            b'B' => Expect::Bind { statement: 0, name: 0 },
            b'D' => Expect::Describe { name: 0 },
            b'E' => Expect::Execute,
            b'C' => Expect::Close,
            b'S' => Expect::Sync,
            b'c' | b'f' => Expect::CopyEnd,
            b'd' | b'H' => return Ok(()),
            tag => return Err(Fault::Protocol(format!("invalid frontend message type {tag}"))),
        };
        self.push(expect).map(drop)
    }

    pub(super) fn push(&mut self, expect: Expect) -> Result<Step, Fault> {
        self.replies.push(expect).map(|_| Step::Taken).map_err(client_fault)
    }

    /// True when the outcome of what was sent before a Sync is not known yet: whether names were made or taken away, whether
    /// the transaction has failed.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.replies.owes_ready() > 0 && !self.replies.awaits_client()
    }

    fn query(&mut self, body: &[u8], whole: bool, up: &mut Up<'_, '_>) -> Result<Step, Fault> {
        if self.rules.transactions {
            let may_forget = matches!(body.trim_ascii_start().first(), Some(b'd' | b'D'));
            let forgets = may_forget && (begins(body, b"deallocate") || begins(body, b"discard"));
            if forgets && self.is_in_doubt() {
                return Ok(Step::Wait);
            }
            self.barrier = forgets;
            // PostgreSQL drops the unnamed statement at a Query.
            up.server.unnamed_is_ours = false;
            self.unnamed.clear();
            self.shared = None;
            if whole {
                let text = frontend::query_text(body).map_err(client_fault)?;
                let traces = self.judge(text);
                self.trace(traces);
                if traces.has(Traces::FREES) && self.deallocate(text, up)? {
                    return self.push(Expect::Query);
                }
            } else {
                self.trace(Traces::LEAVES);
            }
        } else {
            self.carry_query(body, whole);
        }
        up.output.pass(up.at, up.at + frame::HEADER + body.len());
        self.push(Expect::Query)
    }
}

/// True when a text begins with these words in any case.
fn begins(text: &[u8], words: &[u8]) -> bool {
    text.trim_ascii_start().get(..words.len()).is_some_and(|t| t.eq_ignore_ascii_case(words))
}
