//! COPY FROM STDIN: the client's rows go to all nodes at the same time, no faster than the slowest takes them.

use super::everywhere::{Outcome, connection_lost};
use super::session::Session;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::frontend;
use std::future::poll_fn;
use std::task::Poll;

/// Bytes that wait for the slowest node before no more is read of the client.
const HIGH: usize = 256 * 1024;

impl Session {
    /// From the server's CopyInResponse, which the client has got, to the end of the COPY on all nodes.
    pub(super) async fn copy_in(&mut self, client: &mut Stream, extended: bool) -> Result<Outcome, Fault> {
        let mut ended = false;
        while !ended {
            let (data, last) = poll_fn(|cx| self.poll_copy(client, cx)).await?;
            ended = last;
            for leg in &mut self.legs {
                leg.send_more(&data);
            }
            // A server that has failed says so now; it goes on taking data and drops it.
        }
        if extended {
            let mut sync = Vec::new();
            frontend::sync(&mut sync);
            self.legs.iter_mut().for_each(|leg| leg.send_more(&sync));
        }
        let others: Vec<usize> = (1..self.legs.len()).collect();
        self.round(client, &[0], Some((0, super::bundle::Flow::Hold)), None).await?;
        if !self.in_time(client, &others).await? {
            return Ok(Outcome::Undone(Box::new(super::everywhere::deadlock())));
        }
        if !self.drop_lost(client).await? {
            return Ok(Outcome::Undone(Box::new(connection_lost())));
        }
        self.compare(client, super::verdict::Undo::All, &[]).await
    }

    /// Moves what is there to the servers; ready with more of the client's data.
    fn poll_copy(
        &mut self,
        client: &mut Stream,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<(Vec<u8>, bool), Fault>> {
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
            let (data, last) = self.front.cut_copy(HIGH)?;
            if last || !data.is_empty() {
                return Poll::Ready(Ok((data, last)));
            }
            if self.front.closed {
                return Poll::Ready(Err(Fault::ClientGone));
            }
            std::task::ready!(self.front.poll_fill(client, cx));
        }
    }
}
