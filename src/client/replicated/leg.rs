//! One node's part in a client's transactions: its server connection while borrowed, the protocol state of the client
//! towards it, and the bytes on their way.

use super::account::Account;
use crate::base::NodeId;
use crate::client::buffer::Buffer;
use crate::client::core::{Core, Rules, Statements};
use crate::client::fault::Fault;
use crate::client::lease::{Borrower, Watch};
use crate::pool::Pooled;
use crate::server::{ParamSet, Row};
use crate::wire::frontend;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// An answer that nobody takes stops being read at this many bytes.
const MAX_UNREAD: usize = 256 * 1024;

/// See the module.
pub struct Leg {
    /// Whose server.
    pub node: NodeId,
    /// How a connection is borrowed.
    pub borrower: Borrower,
    /// The client's protocol state towards this node.
    pub core: Core,
    /// The connection, while borrowed.
    pub pooled: Option<Box<Pooled>>,
    /// The answer to what was sent last.
    pub account: Account,
    /// For the client, of the answer.
    pub out: Vec<u8>,
    /// Its transaction knows the moment that all nodes take for now.
    pub has_now: bool,
    todo: Vec<u8>,
    todo_at: usize,
    sending: Vec<u8>,
    sent: usize,
    input: Buffer,
    need: usize,
    answer: Vec<u8>,
    unflushed: bool,
}

impl Leg {
    /// A node without a connection.
    pub fn new(node: NodeId, borrower: Borrower, rules: Rules, wanted: ParamSet, statements: &Statements) -> Leg {
        Leg {
            node,
            borrower,
            core: Core::new(rules, wanted, statements),
            pooled: None,
            account: Account::default(),
            out: Vec::new(),
            has_now: false,
            todo: Vec::new(),
            todo_at: 0,
            sending: Vec::new(),
            sent: 0,
            input: Buffer::default(),
            need: 0,
            answer: Vec::new(),
            unflushed: false,
        }
    }

    /// Borrows a connection if there is none.
    pub async fn lease(&mut self, watch: &mut Watch<'_>) -> Result<(), Fault> {
        if self.pooled.is_none() {
            let mut pooled = self.borrower.lease_watching(self.core.wanted(), watch).await?;
            self.input.put(&std::mem::take(&mut pooled.conn.unread));
            self.pooled = Some(pooled);
            self.account = Account::default();
        }
        Ok(())
    }

    /// A statement that another node's server has accepted: it is prepared here when it is first used.
    pub fn learn(&mut self, body: &[u8], statements: &Statements) -> Result<(), Fault> {
        if let Some(pooled) = &mut self.pooled {
            pooled.conn.unnamed_is_ours &= body.first() != Some(&0);
        }
        self.core.learn(body, statements)
    }

    /// The client has closed it.
    pub fn unlearn(&mut self, name: &[u8]) {
        if let Some(pooled) = &mut self.pooled {
            pooled.conn.unnamed_is_ours &= !name.is_empty();
        }
        self.core.unlearn(name);
    }

    /// Cancels reach its server again.
    pub fn can_be_cancelled(&mut self) {
        if let Some(pooled) = &mut self.pooled {
            self.borrower.expose(pooled);
        }
    }

    /// Inside a transaction on its server.
    pub fn is_in_transaction(&self) -> bool {
        self.pooled.is_some() && self.core.status() != b'I'
    }

    /// Begins an exchange: statements of pgmend's own, then the client's frames, whose answer has so many parts, then own
    /// ones again.
    pub fn send(&mut self, before: &[String], frames: &[u8], parts: usize, after: &[String]) {
        self.account = Account::new(before.len(), parts);
        self.out.clear();
        before.iter().for_each(|sql| frontend::query(&mut self.todo, sql));
        self.todo.extend_from_slice(frames);
        after.iter().for_each(|sql| frontend::query(&mut self.todo, sql));
    }

    /// More of the same exchange (COPY data).
    pub fn send_more(&mut self, frames: &[u8]) {
        self.todo.extend_from_slice(frames);
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.todo.len() - self.todo_at + self.sending.len() - self.sent
    }

    /// Moves bytes until everything is answered, or COPY data is awaited. `may_read`: more of the answer can be taken.
    pub fn poll(&mut self, cx: &mut Context<'_>, statements: &Statements, may_read: bool) -> Poll<Result<(), Fault>> {
        loop {
            let mut moved = self.take_todo(statements)?;
            moved |= self.poll_send(cx);
            moved |= self.take_input(statements)?;
            if self.account.lost.is_some() || self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if may_read && self.answer.len() < MAX_UNREAD {
                moved |= self.poll_read(cx);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Hears what a server says without being asked (notices, its end). Only while nothing is owed.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>, statements: &Statements) -> Result<(), Fault> {
        while self.pooled.is_some() && self.account.lost.is_none() && self.poll_read(cx) {
            self.take_input(statements)?;
        }
        Ok(())
    }

    /// Everything sent, and answered; or the rest of a COPY must come first.
    pub fn is_done(&self) -> bool {
        self.unsent() == 0 && self.answer.is_empty() && (self.core.is_settled() || self.core.awaits_client())
    }

    /// The rows of the last of pgmend's own statements.
    pub fn last_own(&mut self) -> Vec<Row> {
        self.account.own.pop().unwrap_or_default()
    }

    fn take_todo(&mut self, statements: &Statements) -> Result<bool, Fault> {
        let Some(pooled) = &mut self.pooled else {
            self.account.lost.get_or_insert_with(|| "there is no connection".into());
            return Ok(false);
        };
        let mut moved = false;
        while self.todo_at < self.todo.len() && self.sent == self.sending.len() {
            self.sending.clear();
            self.sent = 0;
            let rest = self.todo.get(self.todo_at..).unwrap_or_default();
            let taken = self.core.on_client(rest, &mut pooled.conn, statements, &mut self.sending)?;
            if !taken.rewritten {
                self.sending.extend_from_slice(rest.get(..taken.consumed).unwrap_or_default());
            }
            self.todo_at += taken.consumed;
            if taken.consumed == 0 {
                break;
            }
            moved = true;
        }
        if self.todo_at == self.todo.len() {
            self.todo.clear();
            self.todo_at = 0;
        }
        Ok(moved)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pooled) = &mut self.pooled else { return false };
        let stream = &mut pooled.conn.stream;
        let mut moved = false;
        while let Some(rest) = self.sending.get(self.sent..).filter(|r| !r.is_empty()) {
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.sent += count;
                    self.unflushed = true;
                    moved = true;
                }
                Poll::Ready(Ok(0)) => return self.lose(&io::ErrorKind::WriteZero.into()),
                Poll::Ready(Err(error)) => return self.lose(&error),
                Poll::Pending => return moved,
            }
        }
        if self.unflushed {
            match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return self.lose(&error),
                Poll::Pending => {}
            }
        }
        moved
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pooled) = &mut self.pooled else { return false };
        if self.input.is_full() {
            return false;
        }
        match self.input.poll_fill(&mut pooled.conn.stream, cx) {
            Poll::Ready(Ok(0)) => self.lose(&io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Err(error)) => self.lose(&error),
            Poll::Ready(Ok(_)) => true,
            Poll::Pending => {
                self.input.release();
                false
            }
        }
    }

    fn take_input(&mut self, statements: &Statements) -> Result<bool, Fault> {
        let Some(pooled) = &mut self.pooled else { return Ok(false) };
        let mut moved = false;
        while !self.input.is_empty() && self.input.bytes().len() >= self.need {
            let bytes = self.input.bytes();
            let mut changed = Vec::new();
            let taken = self.core.on_server(bytes, &mut pooled.conn, statements, &mut changed)?;
            self.need = taken.need;
            let passed: &[u8] =
                if taken.rewritten { &changed } else { bytes.get(..taken.consumed).unwrap_or_default() };
            self.answer.extend_from_slice(passed);
            self.input.consume(taken.consumed);
            if taken.consumed == 0 {
                if taken.need > self.input.bytes().len() {
                    self.input.reserve(taken.need);
                }
                break;
            }
            moved = true;
        }
        let count = self.account.take(&self.answer, &mut self.out)?;
        self.answer.drain(..count);
        if let Some(end) =
            self.account.error.as_ref().filter(|error| matches!(error.severity.as_str(), "FATAL" | "PANIC"))
        {
            // It closes the connection, sooner or later.
            let why = end.message.clone();
            self.give_up(&why);
        }
        Ok(moved)
    }

    /// Nothing more is awaited of its server.
    pub fn give_up(&mut self, why: &str) {
        if let Some(pooled) = &mut self.pooled {
            pooled.conn.broken = true;
        }
        self.account.lost.get_or_insert_with(|| why.to_owned());
    }

    fn lose(&mut self, error: &io::Error) -> bool {
        let why = match (&self.account.error, error.kind()) {
            // The server has said why it ends.
            (Some(said), _) if said.severity == "FATAL" => said.message.clone(),
            (_, io::ErrorKind::UnexpectedEof) => "the server closed the connection".into(),
            _ => error.to_string(),
        };
        self.give_up(&why);
        true
    }

    /// Gives the connection back when its transaction is over; otherwise it is closed.
    pub fn give_back(&mut self, session_ended: bool) {
        if let Some(pooled) = self.pooled.take() {
            let clean = self.core.is_clean() && self.unsent() == 0 && self.input.is_empty() && self.answer.is_empty();
            self.borrower.give_back(pooled, clean, session_ended);
        }
        self.forget_exchange();
    }

    /// Closes the connection, whatever it is doing.
    pub fn close(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            if self.core.is_settled() { drop(pooled) } else { self.borrower.abandon(pooled) }
        }
        self.forget_exchange();
    }

    /// Nothing of an exchange that broke off may reach the next connection.
    fn forget_exchange(&mut self) {
        self.todo.clear();
        self.todo_at = 0;
        self.sending.clear();
        self.sent = 0;
        let unread = self.input.bytes().len();
        self.input.consume(unread);
        self.input.release();
        self.answer.clear();
        self.need = 0;
        if !self.core.is_clean() {
            self.core.lose_server();
        }
    }
}
