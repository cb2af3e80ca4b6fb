//! COPY FROM STDIN: the client's rows go to all nodes at the same time, no faster than the slowest takes them.

use super::everywhere::{Outcome, connection_lost};
use super::front::Piece;
use super::level;
use super::session::Session;
use super::texts::Sequence;
use super::verdict::Undo;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frontend;
use std::task::Poll;

/// Bytes that wait for the slowest node before no more is read of the client.
const HIGH: usize = 256 * 1024;

/// What is said of a message that has no place in a COPY.
const UNEXPECTED: &str = "unexpected message type";

impl Session {
    /// From the server's CopyInResponse, which the client has got, to the end of the COPY on all nodes.
    pub(super) async fn copy_in(&mut self, client: &mut Stream, sequences: &[Sequence]) -> Result<Outcome, Fault> {
        if let Some(tag) = self.follows {
            return Err(self.lose_place(unexpected(tag)));
        }
        // A Sync before the data means nothing to PostgreSQL: the answer to the next one ends the batch.
        self.copied = self.extended;
        let all: Vec<usize> = (0..self.legs.len()).collect();
        let mut stray = None;
        let mut ended = false;
        while !ended {
            let mut frames = Vec::new();
            match self.watching(&all, |session, cx| session.poll_copy(client, cx)).await? {
                Piece::Data(data, last) => (frames, ended) = (data, last),
                Piece::Other(tag) => {
                    (stray, ended) = (Some(unexpected(tag)), true);
                    backend::raw(&mut frames, b'f', format!("{UNEXPECTED} 0x{tag:02X}\0").as_bytes());
                }
            }
            // A server that has failed says so now; it goes on taking data and drops it.
            self.legs.iter_mut().for_each(|leg| leg.send_more(&frames));
        }
        if self.extended {
            let mut sync = Vec::new();
            frontend::sync(&mut sync);
            self.legs.iter_mut().for_each(|leg| leg.send_more(&sync));
        }
        // The rows have taken numbers; before their end nothing could be asked.
        let mut asked = Vec::new();
        sequences.iter().for_each(|sequence| frontend::query(&mut asked, &level::state(sequence)));
        self.legs.iter_mut().for_each(|leg| leg.send_more(&asked));
        let others: Vec<usize> = (1..self.legs.len()).collect();
        self.round(client, &[0], Some((0, super::bundle::Flow::Hold)), None).await?;
        if !self.in_time(client, &others).await? {
            return Ok(Outcome::Undone(Box::new(super::everywhere::deadlock())));
        }
        if !self.drop_lost().await? {
            return Ok(Outcome::Undone(Box::new(connection_lost())));
        }
        // Where the data before it were bad, the COPY was over, and the message stands for itself.
        let failed_by_it =
            |main: &super::leg::Leg| main.account.error.as_ref().is_some_and(|e| e.message.contains(UNEXPECTED));
        if let Some(fault) = stray.filter(|_| self.legs.first().is_some_and(failed_by_it)) {
            return Err(self.lose_place(fault));
        }
        self.compare(Undo::All, sequences).await
    }

    /// The error of the COPY, before that which ends the session, as PostgreSQL tells it.
    fn lose_place(&mut self, fault: Fault) -> Fault {
        let told = ErrorFields::error("08P01", fault.to_string());
        self.front.error(&told);
        fault
    }

    /// Moves what is there to the servers; ready with more of the client's data.
    fn poll_copy(&mut self, client: &mut Stream, cx: &mut std::task::Context<'_>) -> Poll<Result<Piece, Fault>> {
        self.note_working();
        if let Some(end) = self.control.check(cx, false) {
            return Poll::Ready(Err(end.into()));
        }
        for leg in &mut self.legs {
            if let Poll::Ready(done) = leg.poll(cx, &self.plane.statements, true) {
                done?;
            }
        }
        if let Poll::Ready(sent) = self.front.poll_send(client, cx) {
            sent?;
        }
        loop {
            if self.legs.iter().any(|leg| leg.account.lost.is_none() && leg.unsent() > HIGH) {
                return Poll::Pending;
            }
            match self.front.cut_copy(HIGH)? {
                Piece::Data(data, false) if data.is_empty() => {}
                piece => return Poll::Ready(Ok(piece)),
            }
            if self.front.closed {
                return Poll::Ready(Err(Fault::ClientGone));
            }
            std::task::ready!(self.front.poll_fill(client, cx));
        }
    }
}

/// PostgreSQL ends the session: it loses its place in what the client sends.
fn unexpected(tag: u8) -> Fault {
    Fault::Protocol(format!("{UNEXPECTED} 0x{tag:02X} during COPY from stdin"))
}
