//! A client's life: login, greeting, one transaction after the other, farewell.

mod moving;
mod opening;
mod settling;

pub(super) use opening::Greeting;

use super::activity::{Activity, Limit};
use super::cancel::Listing;
use super::commands::{may_be_own, own_statement};
use super::control::Control;
use super::core::{Core, Front};
use super::fault::Fault;
use super::lease::{AtHand, Borrower};
use super::listen::Subscription;
use super::pins::Pinned;
use super::queue::Place;
use super::relay::{Ended, Exchange, Lent, MAX_TURNS, Relay, Until};
use super::replicated;
use super::scan::Traces;
use super::tally::Counted;
use super::worker::{Entry, Places, Worker};
use crate::net::Stream;
use crate::pool::{PoolMode, Pooled};
use crate::wire::{backend, frame, frontend};
use moving::Luggage;
use opening::open;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Bound on telling a client why its session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// What may outlive a transaction.
pub(super) const LASTING: Traces = Traces::LEAVES.with(Traces::CALLS).with(Traces::WRITES);
/// A statement of Pgpool-II's own is at most this long.
const MAX_COMMAND: usize = 1024;

/// Serves one client from its first byte to the end. What happens once is boxed, so that the task of an idle client is small;
/// so are the arguments, which a future would keep for as long as it lives. For the same reason nothing async stands between
/// this and the session's own loop: each would keep copies.
pub fn serve(worker: Rc<Worker>, stream: Stream, control: Rc<Control>, entry: Entry) -> impl Future<Output = ()> {
    let opening = Box::pin(open(worker, stream, control, entry));
    async move {
        let Some(mut served) = opening.await else { return };
        let farewell = {
            let Served { stream, kind, .. } = &mut *served;
            let ended = match kind {
                Kind::One(session) => session.transactions(stream).await,
                Kind::Several(session) => Box::pin(session.run(stream)).await,
            };
            served.end(ended)
        };
        farewell.await;
    }
}

/// A client that has logged in.
struct Served {
    stream: Stream,
    kind: Kind,
    /// Its place among those of its user and database.
    _counted: Counted,
    _places: Places,
}

/// How a client is served.
// Most are the large one, and it is boxed with what is around it.
#[allow(clippy::large_enum_variant)]
enum Kind {
    /// By the primary.
    One(Session),
    /// By several nodes that pgmend keeps equal.
    Several(Box<replicated::Session>),
}

impl Served {
    /// Whatever has ended the session, a clean server goes back, and the client is told why.
    fn end(&mut self, ended: Result<(), Fault>) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        // In the middle of a message nothing of ours would be understood.
        let is_between_answers = match &mut self.kind {
            Kind::One(session) => {
                session.release();
                session.is_between_answers()
            }
            Kind::Several(session) => session.is_between_answers(),
        };
        let fault = ended.err().filter(|_| is_between_answers);
        Box::pin(async move {
            if let Some(fault) = fault {
                farewell(&mut self.stream, Vec::new(), &fault).await;
            }
        })
    }
}

/// Tells the client why its session ends, after what has not been sent yet.
pub(super) async fn farewell(stream: &mut Stream, unsent: Vec<u8>, fault: &Fault) {
    let Some(fields) = fault.response() else { return };
    tracing::info!(event = "client.session_ended", reason = %fault);
    let mut out = unsent;
    backend::error_response(&mut out, &fields);
    // Best effort: a client that does not read is left.
    let _ = tokio::time::timeout(FAREWELL, async {
        stream.write_all(&out).await?;
        stream.flush().await?;
        stream.shutdown().await
    })
    .await;
}

/// What a session holds between and during transactions.
struct Session {
    borrower: Borrower,
    core: Core,
    mode: PoolMode,
    up: Lent,
    down: Lent,
    /// The runtime has the session's waker for the client's socket.
    armed: bool,
    /// The server connection that stays with the client between transactions, and why, if it is an exception.
    held: Option<Box<Pooled>>,
    pin: Option<Pinned>,
    /// Its channels, in transaction pooling.
    subscription: Option<Box<Subscription>>,
    /// What a server that was given up had of its session.
    luggage: Option<Box<Luggage>>,
    _listing: Listing,
}

/// What the shared listener has for the client goes on its way.
fn hear(subscription: Option<&Subscription>, down: &mut Lent, cx: &Context<'_>) -> Result<(), Fault> {
    let in_time = subscription.is_none_or(|s| s.inbox.take(down.own(), cx));
    if in_time { Ok(()) } else { Err(Fault::Limit("too many notifications waited for this client".into())) }
}

/// While a client waits for a server: sends what is left for it, and takes what it sends. Ready: it has gone.
fn look_after(
    client: &mut Stream,
    up: &mut Lent,
    down: &mut Lent,
    armed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Fault> {
    if let Poll::Ready(Err(_)) = down.poll_send(client, cx) {
        return Poll::Ready(Fault::ClientGone);
    }
    // A full buffer is not read into; whether such a client is still there is asked at the end of the wait.
    while !up.input.is_full() {
        match std::task::ready!(up.poll_receive(client, armed, cx)) {
            Ok(0) | Err(_) => return Poll::Ready(Fault::ClientGone),
            Ok(_) => {}
        }
    }
    Poll::Pending
}

impl Session {
    fn release(&mut self) {
        self.pin = None;
        if let Some(pooled) = self.held.take() {
            self.borrower.give_back(pooled, self.core.is_clean(), true);
        }
    }

    /// One transaction (or, in session pooling, one session) after the other.
    async fn transactions(&mut self, client: &mut Stream) -> Result<(), Fault> {
        loop {
            let mut pooled = match self.held.take() {
                Some(pooled) => pooled,
                None => {
                    match self.next(client).await? {
                        Front::Work => {}
                        Front::Terminate | Front::More | Front::Stray(_) | Front::Refused(_) => return Ok(()),
                    }
                    if self.command() || self.answered_alone()? {
                        continue;
                    }
                    match self.server(client).await {
                        Ok(pooled) => pooled,
                        Err(Fault::Cancelled) => {
                            self.refuse();
                            continue;
                        }
                        Err(fault) => return Err(fault),
                    }
                }
            };
            let ended = self.exchange(client, &mut pooled).await;
            match ended {
                Ok(Ended::Transaction) if self.pin.is_none() && !self.core.traces().touches(LASTING) => {
                    if self.core.traces() != Traces::NONE {
                        Box::pin(self.unlisten(&[])).await;
                        self.core.forget_traces();
                    }
                    self.borrower.give_back(pooled, self.core.is_clean(), false);
                }
                Ok(Ended::Transaction) => Box::pin(self.settle(pooled)).await?,
                Ok(Ended::Command) => {
                    self.held = Some(pooled);
                    if !self.command() {
                        self.core.pass_command();
                    }
                }
                Ok(Ended::Boundary) => Box::pin(self.give_up(pooled)).await?,
                Ok(Ended::Client) => {
                    self.held = Some(pooled);
                    return Ok(());
                }
                Err(fault) => {
                    match fault {
                        Fault::Shutdown | Fault::TimeLimit(Limit::ClientIdle, _) if self.up.is_sent() => {
                            self.held = Some(pooled)
                        }
                        Fault::ClientGone | Fault::Killed | Fault::TimeLimit(..) | Fault::Drained(_)
                            if !self.core.is_settled() =>
                        {
                            self.borrower.abandon(pooled)
                        }
                        // What the server has seen of the last batch is not known: it is closed.
                        _ => drop(pooled),
                    }
                    return Err(fault);
                }
            }
        }
    }

    fn database(&self) -> &str {
        &self.borrower.pool.shared.key.database
    }

    fn is_between_answers(&self) -> bool {
        self.down.is_sent() && self.core.is_between_answers()
    }

    /// Waits for work, sending what is left of the last answer. An idle client holds no buffer here.
    async fn next(&mut self, client: &mut Stream) -> Result<Front, Fault> {
        let Session { up, down, armed, core, borrower, subscription, .. } = self;
        borrower.control.activity.set(Activity::idle(borrower.worker.now_s()));
        core.rest();
        poll_fn(|cx| {
            for _ in 0..MAX_TURNS {
                hear(subscription.as_deref(), down, cx)?;
                if let Poll::Ready(Err(_)) = down.poll_send(client, cx) {
                    return Poll::Ready(Err(Fault::ClientGone));
                }
                if down.is_sent() {
                    down.release();
                }
                if let Some(end) = borrower.control.check(cx, true) {
                    return Poll::Ready(Err(end.into()));
                }
                match core.front(up.input.bytes(), up.input.is_full())? {
                    Front::Stray(count) => {
                        up.input.consume(count);
                        continue;
                    }
                    Front::Refused(count) => {
                        up.input.consume(count);
                        backend::ready_for_query(down.own(), b'I');
                        continue;
                    }
                    Front::More => {}
                    front => return Poll::Ready(Ok(front)),
                }
                match std::task::ready!(up.poll_receive(client, armed, cx)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Fault::ClientGone)),
                    Ok(_) => borrower.control.activity.set(Activity::idle(borrower.worker.now_s())),
                }
            }
            // Others have their turn.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// A server for the statement that the client has sent. As a rule one is at hand or comes back in a moment; what is to be
    /// carried over, or waited for otherwise, is another matter.
    async fn server(&mut self, client: &mut Stream) -> Result<Box<Pooled>, Fault> {
        let since_s = self.borrower.worker.now_s();
        let at_hand = match self.luggage {
            None => self.borrower.at_hand(self.core.wanted()),
            Some(_) => AtHand::Other,
        };
        let place = match at_hand {
            AtHand::Taken(pooled) => return Ok(pooled),
            AtHand::Nothing(route) => self.borrower.ask(route)?,
            AtHand::Other => Place::Granted(None),
        };
        let (up, down, armed) = (&mut self.up, &mut self.down, &mut self.armed);
        let granted = place.wait(|cx| look_after(client, up, down, armed, cx)).await?;
        let first = match granted.map(|granted| self.borrower.accept(granted, self.core.wanted())) {
            Some(Ok(pooled)) => return Ok(pooled),
            Some(Err(granted)) => Some(granted),
            None => None,
        };
        Box::pin(self.borrow_server(client, first, since_s)).await
    }

    async fn exchange(&mut self, client: &mut Stream, pooled: &mut Pooled) -> Result<Ended, Fault> {
        let unread = std::mem::take(&mut pooled.conn.unread);
        if !unread.is_empty() {
            self.down.input.put(&unread);
        }
        let mut state = Exchange::default();
        let ended = poll_fn(|cx| self.poll_exchange(client, pooled, &mut state, cx)).await;
        if matches!(ended, Ok(Ended::Transaction)) {
            pooled.conn.unread = self.down.take_unread();
        }
        ended
    }

    fn poll_exchange(
        &mut self,
        client: &mut Stream,
        pooled: &mut Pooled,
        state: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ended, Fault>> {
        let Session { up, down, armed, core, borrower, mode, pin, subscription, .. } = self;
        let (worker, control) = (&*borrower.worker, &*borrower.control);
        let clean = core.is_clean();
        if let Some(end) = control.check(cx, clean) {
            return Poll::Ready(Err(end.into()));
        }
        if clean {
            hear(subscription.as_deref(), down, cx)?;
        }
        let until = match mode {
            PoolMode::Session => Until::Session,
            PoolMode::Transaction | PoolMode::Statement if pin.is_some() => Until::Traces,
            PoolMode::Transaction | PoolMode::Statement => Until::Transaction,
        };
        let (server, statements) = (&mut pooled.conn, &worker.plane.statements);
        let (up, down) = (&mut **up, &mut **down);
        let mut relay = Relay { client, client_armed: armed, up, down, server, core, statements, until };
        let mut outcome = relay.poll(state, cx);
        if outcome.is_pending() && control.drain.asked.get() && relay.is_at_boundary(state) {
            outcome = Poll::Ready(Ok(Ended::Boundary));
        }
        let now_s = worker.now_s();
        control.activity.set(control.activity.get().seen(core.sight(), now_s));
        if state.client_closed {
            control.note_closed(now_s);
        }
        outcome
    }

    /// Answers what needs no server; the answer leaves while the next batch is awaited.
    fn answered_alone(&mut self) -> Result<bool, Fault> {
        let Session { core, up, down, borrower, .. } = self;
        if up.input.bytes().first() != Some(&b'P') || !down.is_sent() {
            return Ok(false);
        }
        let count = core.answer_alone(up.input.bytes(), &borrower.worker.plane.statements, down.own())?;
        up.input.consume(count);
        Ok(count > 0)
    }

    /// Answers `SHOW POOL_…` and `PGPOOL …` when they come alone in a simple query. True: answered; the answer leaves while
    /// the next statement is awaited.
    fn command(&mut self) -> bool {
        let Some((total, sql)) = self.pool_command() else { return false };
        let Some(told) = self.borrower.worker.plane.answer(&sql, self.database(), &self.borrower.control) else {
            return false;
        };
        self.up.input.consume(total);
        told.write(self.down.own());
        true
    }

    fn pool_command(&self) -> Option<(usize, String)> {
        let input = self.up.input.bytes();
        if !self.core.answers_commands() || input.first() != Some(&b'Q') || !may_be_own(input.get(frame::HEADER..)?) {
            return None;
        }
        let split = frame::split(input).ok()??;
        let total = input.len() - split.rest.len();
        if total > MAX_COMMAND {
            return None;
        }
        own_statement(frontend::query_text(split.body).ok()?).map(|text| (total, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that a function of these arguments makes.
    fn future<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// The same of a method.
    fn method<'a, A: 'a, B: 'a, F: Future>(_: fn(&'a mut A, &'a mut B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_client_keeps_little() {
        let futures = [("next", method(Session::next)), ("transactions", method(Session::transactions))];
        println!("{futures:?}");
        let parts = [
            ("task", future(serve)),
            ("served", size_of::<Served>()),
            ("session", size_of::<Session>()),
            ("core", size_of::<Core>()),
            ("control", size_of::<Control>()),
            ("cancel slot", size_of::<crate::client::cancel::CancelSlot>()),
            ("fault", size_of::<Fault>()),
        ];
        println!("{parts:?}");
        let whole: usize =
            parts.iter().filter(|(part, _)| !matches!(*part, "core" | "session" | "fault")).map(|(_, n)| n).sum();
        assert!(whole <= 1280, "{whole} bytes: {parts:?}");
    }

    #[test]
    fn a_login_is_made_of_small_pieces() {
        // glibc keeps pieces of up to 1032 bytes for each thread; larger ones cost several times as much.
        let login = future(open);
        assert!(login <= 1032, "{login} bytes");
    }
}
