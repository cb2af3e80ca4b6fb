//! A client's place in the queue for a pool's connections. In a busy pool every transaction stands here for a moment: nothing
//! is boxed for it, no timer is set, and what it touches is little, as the memory of hundreds of waiting clients is cold.

use super::activity::Activity;
use super::fault::Fault;
use super::lease::{Borrower, Watch};
use crate::pool::{Asked, Grant};
use crate::server::RouteId;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// What became of asking for a connection.
#[derive(Debug)]
pub enum Place<'a> {
    /// It may be opened now; `None`: nothing was asked for.
    Granted(Option<Grant>),
    /// Others are before.
    Queued(Queued<'a>),
}

/// A place in the queue, left on drop.
#[derive(Debug)]
pub struct Queued<'a> {
    borrower: &'a Borrower,
    /// The waiter's number; 0, which nobody has: he has been taken out.
    id: u64,
    grant: oneshot::Receiver<Grant>,
}

impl Borrower {
    /// Asks for a place in the pool's budget, or for a connection that somebody gives back.
    pub fn ask(&self, route: RouteId) -> Result<Place<'_>, Fault> {
        let (id, grant, held_up, first) = match self.pool.ask(route.node) {
            Asked::Permit(permit) => return Ok(Place::Granted(Some(Grant::Permit(permit)))),
            Asked::Full => return Err(Fault::QueueFull(self.pool.shared.rules().max_waiting)),
            Asked::Wait { id, grant, held_up, first } => (id, grant, held_up, first),
        };
        let queued = Queued { borrower: self, id, grant };
        self.call_for_idle(held_up, first);
        self.control.activity.set(Activity::waiting());
        let limit_s = self.wait_limit().as_secs();
        self.control.wait_until(Some(self.worker.now_s().saturating_add(limit_s).saturating_add(1)));
        Ok(Place::Queued(queued))
    }

    /// Idle connections may lie with other workers, here when others waited before, or in other pools under a limit that
    /// is reached.
    fn call_for_idle(&self, held_up: bool, first: bool) {
        let contended = self.worker.plane.budget.contended() > 0;
        match contended {
            false => self.pool.serve_waiters(),
            true => self.worker.serve_waiters(),
        }
        // Telling another worker wakes its thread.
        if first || contended {
            self.worker.nudge.all();
        }
        if held_up {
            self.worker.watch_rate();
        }
    }
}

impl<'a> Place<'a> {
    /// Waits for what is granted, which then is at home in this runtime, or for what ends the wait: the worker's sweep bounds
    /// it. A client that `watch` finds closed may have closed only its own direction, and is ended after a while.
    pub fn wait(
        mut self,
        mut watch: impl FnMut(&mut Context<'_>) -> Poll<Fault> + 'a,
    ) -> impl Future<Output = Result<Option<Grant>, Fault>> + 'a {
        poll_fn(move |cx| match &mut self {
            Place::Granted(grant) => Poll::Ready(Ok(grant.take())),
            Place::Queued(queued) => queued.poll(&mut watch, cx).map_ok(Some),
        })
    }
}

impl Queued<'_> {
    fn poll(&mut self, watch: &mut Watch<'_>, cx: &mut Context<'_>) -> Poll<Result<Grant, Fault>> {
        if let Poll::Ready(granted) = Pin::new(&mut self.grant).poll(cx) {
            let granted = granted.map_err(|_| self.too_long())?;
            // Whoever grants has taken the waiter out.
            self.id = 0;
            return Poll::Ready(Ok(granted.arrive()));
        }
        let Borrower { control, worker, .. } = self.borrower;
        if let Some(end) = control.check(cx, true) {
            return Poll::Ready(Err(end.into()));
        }
        if control.is_overdue() {
            return Poll::Ready(Err(self.too_long()));
        }
        if watch(cx).is_ready() {
            control.note_closed(worker.now_s());
        }
        Poll::Pending
    }

    fn too_long(&self) -> Fault {
        Fault::QueueTimeout(self.borrower.wait_limit())
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.borrower.control.wait_until(None);
        if self.id > 0 {
            self.borrower.pool.shared.forget(self.id);
        }
    }
}
