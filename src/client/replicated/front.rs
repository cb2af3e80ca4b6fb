//! The client's side of a session over several nodes: what came and is not dealt with yet, what is to be sent.

use super::unit::{self, Cut, Unit};
use crate::client::buffer::Buffer;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frame;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Unsent bytes at which no more of an answer is taken: the back pressure.
const HIGH: usize = 256 * 1024;

/// Parameters that servers report; PostgreSQL has some fifteen, and extensions may have their own.
const MAX_PARAMETERS: usize = 1000;

/// What a client sends while COPY data is awaited.
#[derive(Debug)]
pub enum Piece {
    /// Data, and whether its end is with it.
    Data(Vec<u8>, bool),
    /// A message that has no place there.
    Other(u8),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Front {
    input: Buffer,
    out: Vec<u8>,
    out_at: usize,
    unflushed: bool,
    /// The client has closed its direction.
    pub closed: bool,
    /// What the client knows of its parameters, by name.
    told: Vec<(Vec<u8>, Vec<u8>)>,
    /// What servers have reported since.
    reported: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Front {
    /// Where answers are written.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// A server has reported a parameter: the body of its message. Of several nodes each does, and what is undone is reported
    /// back: the client is told what has changed in the end, where PostgreSQL tells it, before ReadyForQuery.
    pub fn report(&mut self, body: Vec<u8>) {
        let mut parts = body.split(|byte| *byte == 0);
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            set(&mut self.reported, name.to_vec(), value.to_vec());
        }
    }

    /// The same of several messages.
    pub fn report_all(&mut self, messages: &[u8]) {
        let mut rest = messages;
        while let Ok(Some(message)) = frame::split(rest) {
            self.report(message.body.to_vec());
            rest = message.rest;
        }
    }

    /// Tells the client what has changed of its parameters.
    pub fn tell_reported(&mut self) {
        for (name, value) in std::mem::take(&mut self.reported) {
            if self.told.iter().all(|told| told.0 != name || told.1 != value) {
                backend::raw(&mut self.out, b'S', &[name.as_slice(), b"\0", &value, b"\0"].concat());
                set(&mut self.told, name, value);
            }
        }
    }

    /// ReadyForQuery.
    pub fn ready(&mut self, status: u8) {
        self.tell_reported();
        backend::ready_for_query(&mut self.out, status);
    }

    /// An ErrorResponse for the client.
    pub fn error(&mut self, fields: &ErrorFields) {
        backend::error_response(&mut self.out, fields);
    }

    /// Too much is unsent for more to be taken.
    pub fn is_full(&self) -> bool {
        self.out.len() - self.out_at > HIGH
    }

    /// Everything is sent.
    pub fn is_sent(&self) -> bool {
        self.out_at == self.out.len() && !self.unflushed
    }

    /// Writes what is to be sent. Ready: nothing is left.
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while let Some(rest) = self.out.get(self.out_at..).filter(|r| !r.is_empty()) {
            match std::task::ready!(Pin::new(&mut *stream).poll_write(cx, rest)) {
                Ok(count @ 1..) => self.out_at += count,
                Ok(0) | Err(_) => return Poll::Ready(Err(Fault::ClientGone)),
            }
            self.unflushed = true;
        }
        self.out.clear();
        self.out_at = 0;
        if self.out.capacity() > HIGH {
            self.out = Vec::new();
        }
        if self.unflushed {
            std::task::ready!(Pin::new(stream).poll_flush(cx)).map_err(|_| Fault::ClientGone)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads if there is room; notes when the client closes.
    pub fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed || self.input.is_full() {
            return Poll::Pending;
        }
        if self.input.is_empty() && stream.poll_read_ready(cx).is_pending() {
            self.input.release();
            return Poll::Pending;
        }
        match self.input.poll_fill(stream, cx) {
            Poll::Ready(Ok(0) | Err(_)) => self.closed = true,
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// The next piece, if it is there.
    pub fn cut(&mut self) -> Result<Option<Unit>, Fault> {
        loop {
            match unit::cut(self.input.bytes(), self.input.is_full())? {
                Cut::Unit(Unit::Stray, count) => self.input.consume(count),
                Cut::Unit(unit, count) => {
                    self.input.consume(count);
                    return Ok(Some(unit));
                }
                Cut::More(need) => {
                    if need > self.input.bytes().len() && need > 0 {
                        self.input.reserve(need);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// COPY data and what ends it, as far as it has come whole; `true` with the frame that ends it. A Flush or Sync before
    /// that means nothing, as to PostgreSQL.
    pub fn cut_copy(&mut self, most: usize) -> Result<Piece, Fault> {
        let mut taken = Vec::new();
        loop {
            let bytes = self.input.bytes();
            let header = frame::peek(bytes).map_err(|e| Fault::Protocol(e.to_string()))?;
            let Some(header) = header.filter(|_| taken.len() < most) else { return Ok(Piece::Data(taken, false)) };
            if !matches!(header.tag, b'd' | b'c' | b'f' | b'H' | b'S') {
                return Ok(if taken.is_empty() { Piece::Other(header.tag) } else { Piece::Data(taken, false) });
            }
            if header.total > unit::MAX_MESSAGE {
                return Err(Fault::Limit(format!("a message of {} bytes is too long for a COPY", header.total)));
            }
            let Some(whole) = bytes.get(..header.total) else {
                self.input.reserve(header.total);
                return Ok(Piece::Data(taken, false));
            };
            if !matches!(header.tag, b'H' | b'S') {
                taken.extend_from_slice(whole);
            }
            let ends = matches!(header.tag, b'c' | b'f');
            self.input.consume(header.total);
            if ends {
                return Ok(Piece::Data(taken, true));
            }
        }
    }
}

/// The last value counts.
fn set(all: &mut Vec<(Vec<u8>, Vec<u8>)>, name: Vec<u8>, value: Vec<u8>) {
    if let Some((_, old)) = all.iter_mut().find(|(known, _)| *known == name) {
        *old = value;
    } else if all.len() < MAX_PARAMETERS {
        all.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_told_when_it_has_changed_in_the_end() {
        let mut front = Front::default();
        let told = |front: &mut Front, reports: &[&str]| {
            reports.iter().for_each(|zone| front.report(format!("TimeZone\0{zone}\0").into_bytes()));
            front.tell_reported();
            std::mem::take(front.out())
        };
        assert_eq!(told(&mut front, &["UTC"]), b"S\0\0\0\x11TimeZone\0UTC\0");
        assert_eq!(told(&mut front, &["UTC"]), b"", "another node says the same");
        assert_eq!(told(&mut front, &["Asia/Tokyo", "UTC"]), b"", "it was undone");
        assert_eq!(told(&mut front, &["GMT"]), b"S\0\0\0\x11TimeZone\0GMT\0");
        front.report(b"no value".to_vec());
        assert_eq!(told(&mut front, &[]), b"");
    }
}
