//! From the server to the client: which replies are the client's, and what they tell of the session.

use super::output::{Output, write_fake, write_frame};
use super::{Carried, Core, MAX_INSPECTED, Seldom, Statements, Taken, server_fault};
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
        if self.back_to_pass > 0 {
            // In the middle of a message that a server may send at any time: they follow it.
            return;
        }
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
                self.carried = Carried::default();
                self.seldom = Some(Box::new(Seldom { unlistened: vec![None], ..Seldom::default() }));
                self.set_wanted(self.initial.clone(), statements);
            }
            b"ROLLBACK" => drop(self.take_unlistened()),
            b"DEALLOCATE ALL" => {
                server.prepared.clear();
                self.named.clear();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::client::core::Rules;
    use crate::server::{Connected, RouteId};
    use crate::wire::frontend;

    fn server() -> ServerConn {
        let stream = tokio::net::UnixStream::pair().unwrap().0.into();
        let connected = Connected { stream, parameters: Vec::new(), pid: 1, cancel_key: Vec::new() };
        ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 0)
    }

    #[tokio::test]
    async fn a_reply_of_pgmends_own_does_not_stand_in_the_middle_of_a_servers_message() {
        let rules = Rules {
            transactions: true,
            single_statements: false,
            max_message: 1 << 20,
            max_prepared: 100,
            pool_commands: true,
            share_unnamed: false,
        };
        let (statements, mut server) = (Statements::default(), server());
        let mut core = Core::new(rules, ParamSet::default(), &statements);
        let mut out = Vec::new();
        let mut up = |core: &mut Core, name: &[u8], end: &[u8], out: &mut Vec<u8>| {
            let mut batch = Vec::new();
            frontend::parse(&mut batch, name, b"select 1\0\0\0");
            batch.extend_from_slice(end);
            let taken = core.on_client(&batch, &mut server, &statements, out).unwrap();
            assert_eq!(taken.consumed, batch.len());
            out.clear();
            taken.flush
        };
        up(&mut core, b"a", b"S\0\0\0\x04", &mut out);
        let mut server = self::server();
        let mut down = |core: &mut Core, bytes: &[u8]| {
            let mut out = Vec::new();
            let taken = core.on_server(bytes, &mut server, &Statements::default(), &mut out).unwrap();
            assert_eq!(taken.consumed, bytes.len());
            if taken.rewritten { out } else { bytes.to_vec() }
        };
        down(&mut core, b"1\0\0\0\x04Z\0\0\0\x05I");
        let mut notice = Vec::new();
        backend::notice_response(&mut notice, &backend::ErrorFields::error("00000", "something to say"));
        let (first, rest) = notice.split_at(9);
        assert_eq!(down(&mut core, first), first);
        // The server holds the text by another name, so the answer is pgmend's own.
        assert!(up(&mut core, b"b", b"H\0\0\0\x04", &mut out));
        core.due_fakes(&mut out);
        assert_eq!(out, b"");
        assert_eq!(down(&mut core, rest), [rest, b"1\0\0\0\x04"].concat());
    }
}
