//! The hot path: one client and the server connection that it has borrowed, until the transaction ends.
//!
//! Per transaction: receive the batch, send it, receive the answer, send it. Both directions are always drained; a side
//! that cannot be written to stops being read for, which is the back pressure.

use super::buffer::{Buffer, lend_out, return_out};
use super::core::{Core, Statements, Taken};
use super::fault::Fault;
use super::scan::Traces;
use crate::net::Stream;
use crate::server::ServerConn;
use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// One direction: bytes read, and how many of them (or of `out`) are on their way to the other side.
#[derive(Debug, Default)]
pub struct Lane {
    /// Bytes read from the one side.
    pub input: Buffer,
    /// What is sent instead where a frame had to change.
    out: Vec<u8>,
    out_at: usize,
    direct: usize,
    unflushed: bool,
}

impl Lane {
    /// True when everything that was decided to be sent has been sent.
    pub fn is_sent(&self) -> bool {
        self.direct == 0 && self.out_at == self.out.len()
    }

    /// Nothing is in it, nor on its way.
    fn is_empty(&self) -> bool {
        self.input.is_empty() && self.direct == 0 && self.out.is_empty() && !self.unflushed
    }

    /// What was read and not decided on.
    pub fn take_unread(&mut self) -> Vec<u8> {
        self.input.split_off(self.direct)
    }

    /// Gives memory back that nothing is in.
    #[inline]
    pub fn release(&mut self) {
        if self.input.is_held() {
            self.input.release();
        }
        if self.out.capacity() > 0 {
            return_out(&mut self.out);
        }
    }

    /// Room for messages of pgmend's own, sent before anything else.
    pub fn own(&mut self) -> &mut Vec<u8> {
        lend_out(&mut self.out);
        &mut self.out
    }

    fn decided(&mut self, taken: &Taken) {
        if taken.rewritten {
            self.input.consume(taken.consumed);
        } else {
            self.direct = taken.consumed;
        }
    }

    /// Writes what is to be sent. Ready: nothing is left.
    #[inline]
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked at every turn, and mostly there is nothing.
        if self.direct == 0 && self.out.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        self.poll_send_all(stream, cx)
    }

    fn poll_send_all(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_sent() {
            let bytes = if self.direct > 0 {
                self.input.bytes().get(..self.direct).unwrap_or_default()
            } else {
                self.out.get(self.out_at..).unwrap_or_default()
            };
            let count = std::task::ready!(stream.poll_send(cx, bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            if self.direct > 0 {
                self.direct -= count;
                self.input.consume(count);
            } else {
                self.out_at += count;
            }
        }
        self.out_at = 0;
        self.out.clear();
        if self.unflushed {
            std::task::ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads if there is something; without it nobody keeps a buffer. Ready(0): the peer closed. `armed`: see
    /// [`Stream::poll_recv`].
    pub fn poll_receive(
        &mut self,
        stream: &mut Stream,
        armed: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if !self.input.is_held() {
            std::task::ready!(stream.poll_readable(cx, armed))?;
        }
        let filled = self.input.poll_fill_by(|room| stream.poll_recv(cx, room, armed));
        // The buffer that was lent to an idle connection goes to the next one.
        if filled.is_pending() && self.input.is_empty() {
            self.release();
        }
        filled
    }
}

/// Batches moved for one client before the others of its thread have their turn.
pub const MAX_TURNS: usize = 32;
/// Lanes kept per thread for those who have something on its way.
const MAX_SPARE: usize = 256;
static EMPTY: Lane = Lane { input: Buffer::new(), out: Vec::new(), out_at: 0, direct: 0, unflushed: false };

thread_local! {
    // Boxed, as they travel: a session takes a pointer.
    #[allow(clippy::vec_box)]
    static SPARE: RefCell<Vec<Box<Lane>>> = const { RefCell::new(Vec::new()) };
}

/// A lane that is lent while there is something in it: an idle client has none.
#[derive(Debug, Default)]
pub struct Lent(Option<Box<Lane>>);

impl Deref for Lent {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Lane {
        self.0.get_or_insert_with(|| SPARE.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl Lent {
    /// As [`Lane::poll_send`].
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(lane) => lane.poll_send(stream, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// As [`Lane::poll_receive`].
    pub fn poll_receive(
        &mut self,
        stream: &mut Stream,
        armed: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.0.is_none() {
            std::task::ready!(stream.poll_readable(cx, armed))?;
        }
        let received = (**self).poll_receive(stream, armed, cx);
        if received.is_pending() {
            self.release();
        }
        received
    }

    /// Gives the lane back when nothing is in it.
    pub fn release(&mut self) {
        let Some(mut lane) = self.0.take_if(|lane| lane.is_empty()) else { return };
        lane.release();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MAX_SPARE {
                spare.push(lane);
            }
        });
    }
}

/// Why an exchange ended well.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The transaction is over and the server free. What is left for the client may still be unsent.
    Transaction,
    /// The client said goodbye or closed.
    Client,
    /// A statement that pgmend answers itself is next; the server is free and stays borrowed.
    Command,
    /// The client is between transactions, and asked to give its server up.
    Boundary,
}

/// For how long an exchange goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the transaction's end.
    Transaction,
    /// To the end of a transaction that may have left or freed something: the client is bound to its server.
    Traces,
    /// As long as the client stays.
    Session,
}

/// The state of one exchange beside the lanes.
#[derive(Debug, Default)]
pub struct Exchange {
    need_client: usize,
    need_server: usize,
    /// The client has closed its direction.
    pub client_closed: bool,
    free: bool,
    worked: bool,
    /// The runtime has the task's waker for the server's socket.
    server_armed: bool,
}

/// Everything that an exchange works on.
pub struct Relay<'a> {
    /// The client's socket.
    pub client: &'a mut Stream,
    /// The runtime has the task's waker for it.
    pub client_armed: &'a mut bool,
    /// Client to server.
    pub up: &'a mut Lane,
    /// Server to client.
    pub down: &'a mut Lane,
    /// The borrowed server.
    pub server: &'a mut ServerConn,
    /// Protocol state.
    pub core: &'a mut Core,
    /// For renaming.
    pub statements: &'a Statements,
    /// When it ends.
    pub until: Until,
}

impl Relay<'_> {
    /// Moves bytes until nothing moves. Ready when the exchange is over.
    pub fn poll(&mut self, state: &mut Exchange, cx: &mut Context<'_>) -> Poll<Result<Ended, Fault>> {
        for _ in 0..MAX_TURNS {
            if let Some(ended) = self.turn_up(state, cx)? {
                return Poll::Ready(Ok(ended));
            }
            let mut moved = self.turn_down(state, cx)?;
            if state.free || self.may_end() && self.is_over(state) {
                return Poll::Ready(Ok(Ended::Transaction));
            }
            // A closed client's last requests are still answered, as it may have closed only its own direction; the worker
            // ends what takes long.
            let over = self.core.is_settled() || self.core.awaits_client();
            if state.client_closed && self.up.is_sent() && over {
                return Poll::Ready(Ok(Ended::Client));
            }
            moved |= self.receive(state, cx)?;
            if !moved {
                return Poll::Pending;
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// True when a transaction that ended may be the last of this exchange.
    fn may_end(&self) -> bool {
        match self.until {
            Until::Transaction => true,
            Until::Traces => self.core.traces() != Traces::NONE,
            Until::Session => false,
        }
    }

    /// Client's bytes to the server. `Some`: the client said Terminate, or wants an answer of pgmend's own.
    fn turn_up(&mut self, state: &mut Exchange, cx: &mut Context<'_>) -> Result<Option<Ended>, Fault> {
        loop {
            if let Poll::Ready(result) = self.up.poll_send(&mut self.server.stream, cx) {
                result.map_err(|e| self.server_lost(&e))?;
            }
            let input = self.up.input.bytes();
            if !self.up.is_sent() || input.is_empty() || input.len() < state.need_client {
                return Ok(None);
            }
            let taken = self.core.on_client(input, self.server, self.statements, &mut self.up.out)?;
            if taken.consumed > 0 {
                state.worked = true;
            }
            self.up.decided(&taken);
            state.need_client = taken.need;
            if taken.need > self.up.input.bytes().len() && self.up.direct == 0 {
                self.up.input.reserve(taken.need);
            }
            if taken.flush {
                self.core.due_fakes(&mut self.down.out);
            }
            if taken.end && taken.consumed == 0 {
                return Ok(Some(Ended::Client));
            }
            if taken.command && self.down.is_sent() {
                return Ok(Some(Ended::Command));
            }
            if taken.consumed == 0 {
                return Ok(None);
            }
        }
    }

    /// Server's bytes to the client. True: something moved.
    fn turn_down(&mut self, state: &mut Exchange, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let mut moved = false;
        loop {
            if let Poll::Ready(result) = self.down.poll_send(self.client, cx) {
                // A client that has gone is noticed when it is read from; the server's answer is drained all the same.
                if result.is_err() {
                    return Err(Fault::ClientGone);
                }
            }
            let input = self.down.input.bytes();
            if !self.down.is_sent() || input.is_empty() || input.len() < state.need_server || state.free {
                return Ok(moved);
            }
            let taken = self.core.on_server(input, self.server, self.statements, &mut self.down.out)?;
            self.down.decided(&taken);
            state.need_server = taken.need;
            if taken.need > self.down.input.bytes().len() && self.down.direct == 0 {
                self.down.input.reserve(taken.need);
            }
            if taken.end && self.may_end() && self.up.is_sent() {
                state.free = true;
            }
            if taken.consumed == 0 && self.down.is_sent() {
                return Ok(moved);
            }
            moved = true;
        }
    }

    /// The transaction ended earlier, while bytes that mean nothing any more (the tail of a failed COPY) were on their way.
    fn is_over(&self, state: &Exchange) -> bool {
        state.worked && self.core.is_clean() && self.up.is_sent() && self.down.is_sent() && self.down.input.is_empty()
    }

    /// True when nothing is on its way: the client could go on with another server.
    pub fn is_at_boundary(&self, state: &Exchange) -> bool {
        let up = self.up.is_sent() && self.up.input.is_empty();
        let down = self.down.is_sent() && self.down.input.is_empty();
        self.until != Until::Transaction && !state.client_closed && up && down && self.core.is_clean()
    }

    fn receive(&mut self, state: &mut Exchange, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let mut moved = false;
        if !state.client_closed && self.up.direct == 0 && !self.up.input.is_full() && self.wants_client(state) {
            match self.up.poll_receive(self.client, self.client_armed, cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    state.client_closed = true;
                    moved = true;
                }
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        if self.down.direct == 0 && !self.down.input.is_full() && self.wants_server(state) {
            match self.down.poll_receive(&mut self.server.stream, &mut state.server_armed, cx) {
                Poll::Ready(Ok(0)) => return Err(self.server_lost(&io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(e)) => return Err(self.server_lost(&e)),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// More input is taken only when what came before has been dealt with: the bound on memory.
    fn wants_client(&self, state: &Exchange) -> bool {
        self.up.is_sent() && (self.up.input.is_empty() || self.up.input.bytes().len() < state.need_client.max(5))
    }

    fn wants_server(&self, state: &Exchange) -> bool {
        self.down.is_sent() && (self.down.input.is_empty() || self.down.input.bytes().len() < state.need_server.max(5))
    }

    fn server_lost(&mut self, error: &io::Error) -> Fault {
        self.server.broken = true;
        match error.kind() {
            _ if self.core.is_told_the_end() => Fault::ServerEnded,
            io::ErrorKind::UnexpectedEof => Fault::ServerLost("the server closed the connection".into()),
            _ => Fault::ServerLost(error.to_string()),
        }
    }
}
