//! The nodes of a session as one: their connections are granted as a bundle, and rounds of bytes go to one, to some or to
//! all of them.

use super::account::asides;
use super::leg::Leg;
use super::session::Session;
use crate::base::NodeId;
use crate::client::control::Doing;
use crate::client::fault::Fault;
use crate::client::way::Way;
use crate::net::Stream;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// An answer that is held back until all nodes agree is at most this long; of a longer one the rows are passed on.
const HOLD: usize = 256 * 1024;
/// What cannot be passed on (rows of several commands) is at most this long.
const MAX_HELD: usize = 64 << 20;
/// Between two looks whether a node that is waited for is still in use.
const LOOK: Duration = Duration::from_millis(50);

/// What becomes of an answer while it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It goes to the client as it comes.
    Stream,
    /// It is held back until the others have agreed.
    Hold,
    /// The same, and so are those of all the others.
    Keep,
    /// It is not for the client.
    Drop,
}

impl Session {
    /// Brings the legs in line with the nodes that are in use. Inside a transaction no node is added. True: the main node
    /// is another one now, although a transaction was open on the old one.
    pub fn refresh(&mut self) -> Result<bool, Fault> {
        let live = self.worker.live_nodes();
        let main = self.legs.first().map(|leg| leg.node);
        let in_transaction = self.legs.iter().any(Leg::is_in_transaction);
        for leg in self.legs.extract_if(.., |leg| !live.contains(&leg.node)) {
            let mut leg = leg;
            leg.close();
        }
        if !in_transaction {
            for node in live.iter().filter(|node| !self.legs.iter().any(|leg| leg.node == **node)).collect::<Vec<_>>() {
                let leg = self.new_leg(*node)?;
                let place = self.legs.iter().take_while(|leg| leg.node < *node).count();
                self.legs.insert(place, leg);
            }
            let slots = self.legs.iter().map(|leg| leg.borrower.slot.clone()).collect();
            self.slot.lead(slots);
        }
        Ok(in_transaction && main.is_some() && self.legs.first().map(|leg| leg.node) != main)
    }

    /// Borrows connections to these legs, in the order of the nodes, so that no two clients wait for each other. False: the
    /// nodes in use have changed, or the gate has closed, meanwhile; nothing that was idle is held.
    pub async fn lease(&mut self, client: &mut Stream, which: &[usize]) -> Result<bool, Fault> {
        self.control.set_doing(Doing::Waiting);
        for place in which {
            let holds_any = self.legs.iter().any(|leg| leg.pooled.is_some());
            let worker = self.worker.clone();
            let Session { legs, front, .. } = self;
            let Some(leg) = legs.get_mut(*place) else { return Ok(false) };
            if leg.pooled.is_some() {
                continue;
            }
            // A client that goes away while it waits never has its statement carried out.
            let mut watch = |cx: &mut Context<'_>| {
                if let Poll::Ready(Err(gone)) = front.poll_send(client, cx) {
                    return Poll::Ready(gone);
                }
                while front.poll_fill(client, cx).is_ready() {
                    if front.closed {
                        return Poll::Ready(Fault::ClientGone);
                    }
                }
                Poll::Pending
            };
            let (node, pool) = (leg.node, leg.borrower.pool.clone());
            let useless = async {
                loop {
                    let held = holds_any && matches!(worker.way_for(&pool.shared.key), Way::Held { .. });
                    if held || !worker.live_nodes().contains(&node) {
                        return;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            };
            // With no node at all the wait is the pool's own, and ends with its error.
            let outcome = if worker.live_nodes().is_empty() {
                Some(leg.lease(&mut watch).await)
            } else {
                tokio::select! {
                    biased;
                    leased = leg.lease(&mut watch) => Some(leased),
                    () = useless => None,
                }
            };
            match outcome {
                Some(leased) => leased?,
                None => {
                    self.legs.iter_mut().filter(|leg| !leg.is_in_transaction()).for_each(|leg| leg.give_back(false));
                    return Ok(false);
                }
            }
        }
        self.control.set_doing(Doing::Working);
        Ok(true)
    }

    /// Borrows connections to all nodes, whichever are in use by then.
    pub async fn lease_all(&mut self, client: &mut Stream) -> Result<(), Fault> {
        loop {
            let all: Vec<usize> = (0..self.legs.len().max(1)).collect();
            if self.legs.is_empty() {
                // Waits for a node, within the pool's own limit.
                let leg = self.new_leg(NodeId(0))?;
                self.legs.push(leg);
            }
            let leased = self.lease(client, &all).await? && self.legs.iter().all(|leg| leg.pooled.is_some());
            // The wait may have been at the gate, and what was let go on meets other nodes than it came for.
            let live = self.worker.live_nodes();
            // A transaction goes on with the nodes on which it has begun: none is added to it.
            let complete = live.len() == self.legs.len() || self.legs.iter().any(Leg::is_in_transaction);
            if leased && complete && self.legs.iter().all(|leg| live.contains(&leg.node)) {
                return Ok(());
            }
            self.refresh()?;
        }
    }

    /// Moves bytes until each of these legs has its whole answer (or has lost its server). The client is heard meanwhile, so
    /// that its end is noticed. False: the time is over.
    pub async fn round(
        &mut self,
        client: &mut Stream,
        which: &[usize],
        lead: Option<(usize, Flow)>,
        limit: Option<Duration>,
    ) -> Result<bool, Fault> {
        self.rounds = self.rounds.wrapping_add(1);
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut alarm = std::pin::pin!(async move {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        self.watching(which, |session, cx| match session.poll_round(client, cx, which, lead) {
            Poll::Pending if alarm.as_mut().poll(cx).is_ready() => Poll::Ready(Ok(false)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(done) => Poll::Ready(done.map(|()| true)),
        })
        .await
    }

    /// Polls what waits for the servers of these legs, and looks now and then whether their nodes are still in use: a frozen
    /// machine neither answers nor closes anything, and its health check is what tells.
    pub async fn watching<T>(
        &mut self,
        which: &[usize],
        mut poll: impl FnMut(&mut Session, &mut Context<'_>) -> Poll<T>,
    ) -> T {
        let mut look = std::pin::pin!(tokio::time::sleep(LOOK));
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = poll(self, cx) {
                    return Poll::Ready(done);
                }
                std::task::ready!(look.as_mut().poll(cx));
                look.as_mut().reset(Instant::now() + LOOK);
                self.give_up_unreachable(which);
            }
        })
        .await
    }

    fn poll_round(
        &mut self,
        client: &mut Stream,
        cx: &mut Context<'_>,
        which: &[usize],
        lead: Option<(usize, Flow)>,
    ) -> Poll<Result<(), Fault>> {
        self.note_working();
        // A commit that some nodes have carried out is brought to its end on all, whoever wants the session to end.
        let end = self.control.check(cx, false).filter(|_| !self.committing);
        if let Some(end) = end {
            return Poll::Ready(Err(end.into()));
        }
        loop {
            let mut all_done = true;
            for place in which {
                let is_lead = lead.filter(|(of, flow)| of == place || *flow == Flow::Keep);
                let may_read = is_lead.is_none_or(|_| !self.front.is_full());
                let Some(leg) = self.legs.get_mut(*place) else { continue };
                match leg.poll(cx, &self.plane.statements, may_read) {
                    Poll::Ready(done) => done?,
                    Poll::Pending => all_done = false,
                }
                let reports = std::mem::take(&mut leg.account.reports);
                if *place == 0 || is_lead.is_some_and(|(of, _)| of == *place) {
                    reports.into_iter().for_each(|report| self.front.report(report));
                }
                match is_lead {
                    Some((_, Flow::Stream)) => self.front.out().append(&mut leg.out),
                    Some((_, Flow::Hold)) if leg.out.len() > HOLD && leg.account.marks.is_empty() => {
                        self.front.out().append(&mut leg.out);
                    }
                    Some((_, Flow::Hold | Flow::Keep)) if leg.out.len() > MAX_HELD => {
                        return Poll::Ready(Err(Fault::Limit(
                            "the answer is too long to be held back until all nodes agree".into(),
                        )));
                    }
                    Some((_, Flow::Hold | Flow::Keep)) => {}
                    Some((_, Flow::Drop)) | None => {
                        // What is the same on all nodes the main node tells.
                        if *place == 0 && !leg.out.is_empty() {
                            self.front.out().extend_from_slice(&asides(&leg.out));
                        }
                        leg.out.clear();
                    }
                }
            }
            let was_full = self.front.is_full();
            if let Poll::Ready(sent) = self.front.poll_send(client, cx)
                && !self.committing
            {
                sent?;
            }
            if self.front.poll_fill(client, cx).is_ready() && self.front.closed {
                self.control.note_closed(self.worker.now_s());
            }
            if all_done {
                return Poll::Ready(Ok(()));
            }
            // What was held up by the client goes on as soon as it has taken enough.
            if !was_full || self.front.is_full() {
                return Poll::Pending;
            }
        }
    }

    /// Servers whose node was taken out of use because it cannot be reached count as lost. One that an operator has taken
    /// out answers, and ends what it began.
    fn give_up_unreachable(&mut self, which: &[usize]) {
        let view = self.plane.board.view();
        let is_gone =
            |id: NodeId| view.node(id).is_none_or(|node| !node.status.is_live() && node.reachable == Some(false));
        for place in which {
            if let Some(leg) = self.legs.get_mut(*place).filter(|leg| !leg.is_done() && is_gone(leg.node)) {
                leg.give_up("its node cannot be reached and is out of use");
            }
        }
    }

    /// Asks a node something of pgmend's own; the rows as text. In a transaction it is part of it.
    pub async fn ask(&mut self, client: &mut Stream, place: usize, sql: String) -> Result<Asked, Fault> {
        let Some(leg) = self.legs.get_mut(place) else { return Ok(Asked::Lost) };
        leg.send(&[], &[], 0, &[sql]);
        self.round(client, &[place], Some((place, Flow::Drop)), None).await?;
        let Some(leg) = self.legs.get_mut(place) else { return Ok(Asked::Lost) };
        if leg.account.lost.is_some() {
            return Ok(Asked::Lost);
        }
        if let Some(error) = leg.account.error.clone() {
            return Ok(Asked::Refused(Box::new(error)));
        }
        let text = |value: Option<Vec<u8>>| value.map(|v| String::from_utf8_lossy(&v).into_owned());
        Ok(Asked::Rows(leg.last_own().into_iter().map(|row| row.into_iter().map(text).collect()).collect()))
    }
}

/// The answer to pgmend's own question.
#[derive(Debug)]
pub enum Asked {
    /// Rows of text.
    Rows(Vec<Vec<Option<String>>>),
    /// The server's error.
    Refused(Box<crate::wire::backend::ErrorFields>),
    /// The connection ended.
    Lost,
}
