//! From the server to the client: which replies are the client's, and what they tell of the session.

use super::output::{Output, write_fake, write_frame};
use super::{Carried, Core, MAX_INSPECTED, Statements, Taken, server_fault};
use crate::client::fault::Fault;
use crate::client::params::is_tracked;
use crate::client::scan::Traces;
use crate::server::{ParamSet, ServerConn};
use crate::wire::replies::Verdict;
use crate::wire::{backend, frame};

/// The severities of an error with which a server closes the connection.
const ENDS: [&[u8]; 2] = [b"\0VFATAL\0", b"\0VPANIC\0"];

impl Core {
    /// Writes the replies of pgmend's own that are due before anything else from the server.
    pub fn due_fakes(&mut self, out: &mut Vec<u8>) {
        if self.listening.release() {
            backend::ready_for_query(out, b'I');
        }
        while let Some(fake) = self.replies.take_fake() {
            write_fake(fake, out);
        }
    }

    /// Takes what the server sent.
    pub fn on_server(
        &mut self,
        input: &[u8],
        server: &mut ServerConn,
        statements: &Statements,
        out: &mut Vec<u8>,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        let mut output = Output::new(input, out);
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
            if self.listening.release() {
                backend::ready_for_query(output.rewrite(at), b'I');
            }
            while let Some(fake) = self.replies.take_fake() {
                write_fake(fake, output.rewrite(at));
            }
            let rest = input.get(at..).unwrap_or_default();
            let Some(header) = frame::peek(rest).map_err(server_fault)? else { break };
            let looked_at = matches!(header.tag, b'Z' | b'S' | b'C' | b'E') && header.total <= MAX_INSPECTED;
            if looked_at && rest.len() < header.total {
                taken.need = header.total;
                break;
            }
            let count = header.total.min(rest.len());
            let body = rest.get(frame::HEADER..count).unwrap_or_default();
            let verdict = self.replies.on_backend(header.tag, body.first().copied()).map_err(server_fault)?;
            match header.tag {
                b'S' => self.parameter_changed(body, server, statements),
                b'C' if verdict == Verdict::Forward => self.note_command(body, server, statements),
                _ => {}
            }
            if header.tag == b'E' {
                self.told_the_end |= ENDS.iter().any(|end| body.windows(end.len()).any(|w| w == *end));
            }
            if header.tag == b'E'
                && let Some(own_words) = self.failed(body, server)
                && count == header.total
            {
                write_frame(output.rewrite(at), b'E', &[&own_words]);
                at += count;
                continue;
            }
            match verdict {
                Verdict::ParseDone { forward: false, .. } | Verdict::Own => {
                    output.rewrite(at);
                    self.back_to_drop = header.total - count;
                }
                Verdict::ParseDone { name, forward: true } => {
                    self.named.prove(name);
                    output.pass(at, at + count);
                    self.back_to_pass = header.total - count;
                }
                Verdict::Forward | Verdict::Async | Verdict::Failed | Verdict::Fatal => {
                    output.pass(at, at + count);
                    self.back_to_pass = header.total - count;
                }
                Verdict::ForwardThenReady { status } => {
                    self.ready(status, server, statements)?;
                    let (clean, listens) = (self.is_clean(), self.traces.has(Traces::LISTENS));
                    if self.listening.on_ready(status == b'I', clean, listens) {
                        output.rewrite(at);
                    } else {
                        output.pass(at, at + count);
                    }
                    if clean {
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

    fn ready(&mut self, status: u8, server: &mut ServerConn, statements: &Statements) -> Result<(), Fault> {
        if self.rules.single_statements && status != b'I' {
            return Err(Fault::TransactionBlock);
        }
        self.status = status;
        self.rounds = self.rounds.wrapping_add(1);
        self.undo_skipped(server);
        if self.replies.is_quiet() {
            self.own_in_flight = false;
            self.named.settle();
        }
        if status == b'I' && self.traces.has(Traces::ALTERS) {
            statements.altered();
        }
        if status == b'I' && self.traces.touches(Traces::ALTERS.with(Traces::CREATES)) {
            statements.created();
        }
        Ok(())
    }

    fn parameter_changed(&mut self, body: &[u8], server: &mut ServerConn, statements: &Statements) {
        let Ok((name, value)) = backend::parse_parameter_status(body) else { return };
        server.reported.insert(name.to_owned(), value.to_owned());
        if is_tracked(name) {
            let mut set = (*self.wanted).clone();
            set.insert(name.to_ascii_lowercase(), value.to_owned());
            self.carried.lexing_changed |= name == "standard_conforming_strings";
            self.set_wanted(ParamSet::new(set), statements);
            server.applied = self.wanted.clone();
        }
    }

    /// The commands that end the server's memory of statements and settings.
    fn note_command(&mut self, body: &[u8], server: &mut ServerConn, statements: &Statements) {
        let tag = body.split(|b| *b == 0).next().unwrap_or_default();
        self.listening.on_command(tag);
        match tag {
            b"DISCARD ALL" => {
                server.forget_session();
                self.named.clear();
                self.unnamed.clear();
                self.shared = None;
                self.custom.clear();
                self.carried = Carried::default();
                self.unlistened = vec![None];
                self.set_wanted(self.initial.clone(), statements);
            }
            b"ROLLBACK" => self.unlistened.clear(),
            b"DEALLOCATE ALL" => {
                server.prepared.clear();
                self.named.clear();
            }
            _ => {}
        }
    }
}
