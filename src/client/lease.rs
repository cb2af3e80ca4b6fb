//! Borrowing a server connection for a transaction: through the gate, from the idle ones, by opening one, or by waiting.

use super::activity::Activity;
use super::cancel::CancelSlot;
use super::control::Control;
use super::fault::Fault;
use super::params;
use super::way::{Route, Way};
use super::worker::Worker;
use crate::cluster::Servers;
use crate::net::Stream;
use crate::pool::{Grant, Local, Permit, Pooled, Refusal};
use crate::server::{self, Login, ParamSet, RouteId, ServerConn, ServerError, SimpleError};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Between two tries to reach a primary that refuses connections.
const RETRY: Duration = Duration::from_millis(200);
/// Bound on bringing a connection to a client's parameters, or on its reset.
const OWN_STATEMENT: Duration = Duration::from_secs(10);
/// Bound on finding out whether a node whose connection was lost is still there.
const PROBE: Duration = Duration::from_secs(2);
/// "Never" for a wait without a limit.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Looked at whenever a client that waits for long is: something that ends the wait.
pub type Watch<'a> = dyn FnMut(&mut Context<'_>) -> Poll<Fault> + 'a;

/// A server for a client without waiting.
#[derive(Debug)]
pub enum AtHand {
    /// This one.
    Taken(Box<Pooled>),
    /// None lies idle: the queue is where to wait for one that leads here.
    Nothing(RouteId),
    /// It needs more: the gate is held, or what lies idle is not as the client wants it.
    Other,
}

/// Everything that borrowing needs to know of a client.
#[derive(Debug)]
pub struct Borrower {
    /// The thread.
    pub worker: Rc<Worker>,
    /// The client's pool here.
    pub pool: Rc<Local>,
    /// How pgmend logs in for it.
    pub login: Rc<Login>,
    /// Where its cancels go.
    pub slot: Arc<CancelSlot>,
    /// Its ending, if it is told to.
    pub control: Rc<Control>,
}

impl Borrower {
    /// The client's number, never used for another.
    pub fn id(&self) -> u64 {
        self.control.drain.session.get()
    }

    /// As [`Borrower::lease`], for a client that may go away while it waits: it gives up its place.
    pub async fn lease_for(&self, client: &Stream, wanted: &ParamSet) -> Result<Box<Pooled>, Fault> {
        let mut leasing = pin!(self.lease(wanted));
        poll_fn(|cx| {
            let leased = leasing.as_mut().poll(cx);
            // The worker's sweep makes sure that this is looked at, and ends who has been away for a while.
            if leased.is_pending() && client.is_read_closed() {
                self.control.note_closed(self.worker.now_s());
            }
            leased
        })
        .await
    }

    /// A connection to the primary with the client's parameters. Fast when an idle one is at hand; else waits, within
    /// `query_wait_timeout`, for the gate, a primary, and a place.
    pub async fn lease(&self, wanted: &ParamSet) -> Result<Box<Pooled>, Fault> {
        self.lease_watching(wanted, &mut |_| Poll::Pending).await
    }

    /// The same; where the wait is not the usual one for a place in a busy pool, `watch` may end it, and so may a cancel.
    pub async fn lease_watching(&self, wanted: &ParamSet, watch: &mut Watch<'_>) -> Result<Box<Pooled>, Fault> {
        self.control.activity.set(Activity::waiting());
        let since_s = self.worker.now_s();
        let first = match self.way() {
            Way::Open(route) => match self.pool.take(route.id) {
                Some(pooled) => Some(Grant::Conn(pooled)),
                // The usual wait, in a busy pool: for the next connection that comes back. It needs no timer and no watch.
                None => self.ask(route.id)?.wait(&mut *watch).await?,
            },
            Way::Blocked(_) | Way::Held { .. } => None,
        };
        self.lease_with(first, since_s, wanted, watch).await
    }

    /// The same for a client that has been granted something, and has waited since then (coarse seconds).
    pub async fn lease_with(
        &self,
        first: Option<Grant>,
        since_s: u64,
        wanted: &ParamSet,
        watch: &mut Watch<'_>,
    ) -> Result<Box<Pooled>, Fault> {
        let first = match (first, self.way()) {
            (Some(Grant::Conn(pooled)), Way::Open(route)) if pooled.conn.route == route.id => {
                return self.ready(pooled, wanted, &route).await;
            }
            (first, _) => first,
        };
        let limit = self.wait_limit();
        let waited = Duration::from_secs(self.worker.now_s().saturating_sub(since_s));
        // What is rare is boxed, here and elsewhere, so that an idle client's task need not have room for it.
        Box::pin(self.wait_or_end(wanted, limit, limit.saturating_sub(waited), first, watch)).await
    }

    /// The usual case, in which nothing is waited for: an idle connection that is as the client wants it.
    pub fn at_hand(&self, wanted: &ParamSet) -> AtHand {
        let Way::Open(route) = self.way() else { return AtHand::Other };
        let Some(pooled) = self.pool.take(route.id) else { return AtHand::Nothing(route.id) };
        match self.as_it_is(pooled, wanted, &route) {
            Ok(pooled) => AtHand::Taken(pooled),
            Err(pooled) => {
                self.pool.take_not(pooled);
                AtHand::Other
            }
        }
    }

    /// The connection that was granted to a client who has stood in the queue, if it needs nothing done to it and still leads
    /// where transactions go. Else it is for [`Borrower::lease_with`].
    pub fn accept(&self, grant: Grant, wanted: &ParamSet) -> Result<Box<Pooled>, Grant> {
        match (grant, self.way()) {
            (Grant::Conn(pooled), Way::Open(route)) if pooled.conn.route == route.id => {
                self.as_it_is(pooled, wanted, &route).map_err(Grant::Conn)
            }
            (grant, _) => Err(grant),
        }
    }

    fn as_it_is(&self, mut pooled: Box<Pooled>, wanted: &ParamSet, route: &Route) -> Result<Box<Pooled>, Box<Pooled>> {
        if self.is_unsure(&pooled.conn) || !params::is_same(&pooled.conn.applied, wanted) {
            return Err(pooled);
        }
        self.hand_over(&mut pooled.conn, wanted, route);
        Ok(pooled)
    }

    /// `query_wait_timeout`.
    pub fn wait_limit(&self) -> Duration {
        match self.pool.shared.rules().wait_timeout {
            Duration::ZERO => FOREVER,
            limit => limit,
        }
    }

    async fn wait_or_end(
        &self,
        wanted: &ParamSet,
        limit: Duration,
        left: Duration,
        first: Option<Grant>,
        watch: &mut Watch<'_>,
    ) -> Result<Box<Pooled>, Fault> {
        let waiting = self.wait(wanted, Instant::now() + left, limit, first);
        let ended = poll_fn(|cx| {
            if let Some(end) = self.control.check(cx, true) {
                return Poll::Ready(end.into());
            }
            if self.slot.poll_wait(cx).is_ready() {
                return Poll::Ready(Fault::Cancelled);
            }
            watch(cx)
        });
        let outcome = tokio::select! {
            biased;
            fault = ended => Err(fault),
            outcome = waiting => outcome,
        };
        match outcome {
            Ok(pooled) if self.slot.end_wait() => {
                self.give_back(pooled, true, false);
                Err(Fault::Cancelled)
            }
            Ok(pooled) => Ok(pooled),
            Err(fault) => {
                self.slot.end_wait();
                Err(fault)
            }
        }
    }

    /// True when a transaction that begins now is held at the gate, as of the last look.
    pub fn is_held(&self) -> bool {
        self.worker.is_held(&self.pool.shared.key.database)
    }

    /// True when there is an idle connection here, or room for one more.
    pub fn is_served_at_once(&self) -> bool {
        match self.way() {
            Way::Open(route) => self.pool.idle() > 0 || self.pool.shared.has_room(route.id.node),
            Way::Blocked(_) | Way::Held { .. } => false,
        }
    }

    async fn wait(
        &self,
        wanted: &ParamSet,
        mut deadline: Instant,
        limit: Duration,
        mut first: Option<Grant>,
    ) -> Result<Box<Pooled>, Fault> {
        let mut board = self.worker.plane.board.watch();
        let mut why = String::new();
        let mut held = None;
        loop {
            board.borrow_and_update();
            let way = self.way();
            let Way::Open(route) = way else {
                // What was granted while the gate closed is for those who may still use it.
                if let Some(Grant::Conn(pooled)) = first.take() {
                    self.shelve(pooled);
                }
                if matches!(way, Way::Held { .. }) {
                    held.get_or_insert_with(Instant::now);
                }
                if let Way::Held { patient: true, .. } = way {
                    let since = Instant::now();
                    if board.changed().await.is_ok() {
                        deadline += since.elapsed();
                        continue;
                    }
                }
                let changed = tokio::time::timeout_at(deadline, board.changed()).await;
                match way {
                    _ if matches!(changed, Ok(Ok(()))) => continue,
                    Way::Held { why: reason, .. } => return Err(Fault::Held(limit, reason.to_string())),
                    Way::Blocked(reason) if why.is_empty() => return Err(Fault::NoPrimary(limit, reason.to_string())),
                    Way::Blocked(_) | Way::Open(_) => return Err(Fault::NoPrimary(limit, why)),
                }
            };
            let Some(grant) = first.take() else {
                if let Some(pooled) = self.pool.take(route.id) {
                    self.stalled(held);
                    return self.ready(pooled, wanted, &route).await;
                }
                // The way is looked at again, as the wait may have been long.
                first = self.ask(route.id)?.wait(|_| Poll::Pending).await?;
                continue;
            };
            match grant {
                Grant::Conn(pooled) if pooled.conn.route == route.id => {
                    self.stalled(held);
                    return self.ready(pooled, wanted, &route).await;
                }
                Grant::Conn(_of_an_old_route) => {}
                Grant::Permit(permit) if permit.node() != route.id.node => {}
                Grant::Permit(permit) => match self.open(&route, permit, deadline).await? {
                    Ok(pooled) => first = Some(Grant::Conn(pooled)),
                    Err(unreachable) => {
                        why = unreachable;
                        if Instant::now() + RETRY >= deadline {
                            return Err(Fault::NoPrimary(limit, why));
                        }
                        // A change of the view ends the pause early.
                        let _ = tokio::time::timeout(RETRY, board.changed()).await;
                    }
                },
            }
        }
    }

    /// The client has been held since then, and goes on.
    fn stalled(&self, held: Option<Instant>) {
        if let Some(since) = held {
            self.worker.plane.board.stalls.record(since.elapsed());
        }
    }

    fn way(&self) -> Way {
        self.worker.way_for(&self.pool.shared.key)
    }

    /// Where the pool's servers are, whoever may use them now.
    fn way_behind_the_gate(&self) -> Way {
        self.worker.way_of(&self.pool.shared.key)
    }

    /// Opens a connection. The inner error means that the node cannot be reached now: worth another try.
    async fn open(
        &self,
        route: &Route,
        permit: Permit,
        deadline: Instant,
    ) -> Result<Result<Box<Pooled>, String>, Fault> {
        let pool = &self.pool.shared;
        if let Some(refusal) = pool.refusal(route.id) {
            return Err(refused(&refusal.why));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = pool.rules().connect_timeout.min(left);
        match server::connect(&route.target, &self.login, timeout).await {
            Ok(connected) => {
                let conn = ServerConn::new(connected, route.id, self.worker.now_s());
                Ok(Ok(Box::new(Pooled { conn, permit })))
            }
            Err(error) if error.is_passing() => {
                tracing::debug!(event = "server.unreachable", node = %route.id.node, %error);
                Ok(Err(error.for_client()))
            }
            Err(error) => {
                let user = &self.login.user;
                tracing::warn!(event = "server.login_failed", node = %route.id.node, %user, %error);
                let why = Arc::new(error);
                pool.remember(Some(Refusal { route: route.id, at: std::time::Instant::now(), why: why.clone() }));
                Err(refused(&why))
            }
        }
    }

    /// Brings the connection to the client's parameters and lets cancels reach it.
    async fn ready(&self, mut pooled: Box<Pooled>, wanted: &ParamSet, route: &Route) -> Result<Box<Pooled>, Fault> {
        let conn = &mut pooled.conn;
        let unsure = self.is_unsure(conn);
        if let Some(sql) = params::difference(&conn.applied, wanted, unsure) {
            match Box::pin(server::run(conn, &sql, OWN_STATEMENT)).await {
                Ok(()) => {}
                Err(SimpleError::Refused(fields)) => {
                    // Some of the settings may be in force: the connection is not like any client's now.
                    conn.broken = true;
                    return Err(Fault::Refused(fields));
                }
                Err(SimpleError::Lost(why)) => return Err(Fault::ServerLost(why)),
            }
        }
        conn.unsure &= !unsure;
        self.hand_over(conn, wanted, route);
        Ok(pooled)
    }

    /// It may have settings of another client's.
    fn is_unsure(&self, conn: &ServerConn) -> bool {
        conn.unsure && conn.last_user != self.id()
    }

    /// The connection is the client's now, and his cancels reach it.
    fn hand_over(&self, conn: &mut ServerConn, wanted: &ParamSet, route: &Route) {
        if !ParamSet::ptr_eq(&conn.applied, wanted) {
            conn.applied = wanted.clone();
        }
        conn.unnamed_is_ours = false;
        self.slot.borrowed(conn.cancel_target(&route.target));
    }

    /// Lets cancels reach a borrowed connection.
    pub fn expose(&self, pooled: &mut Pooled) {
        if let Way::Open(route) = self.way_behind_the_gate() {
            self.slot.borrowed(pooled.conn.cancel_target(&route.target));
        }
    }

    /// Whether the node answers now, a refusal included. A node without a way does not.
    pub async fn answers(&self) -> bool {
        let Way::Open(route) = self.way_behind_the_gate() else { return false };
        match server::connect(&route.target, &self.login, PROBE).await {
            Ok(_) => true,
            Err(error) => !error.is_passing(),
        }
    }

    /// Gives a connection back. Unless it is clean it is closed; `reset` says whether the session ended with it.
    pub fn give_back(&self, pooled: Box<Pooled>, clean: bool, reset: bool) {
        let no_cancel = self.slot.returned();
        if !clean || pooled.conn.broken {
            return;
        }
        // Nobody will use it any more: it need not be reset.
        if reset && matches!(self.way(), Way::Held { servers: Servers::Close, .. }) {
            return;
        }
        let statement = reset.then(|| self.worker.plane.settings.load().server.reset_query.clone());
        let statement = statement.filter(|s| !s.is_empty());
        if no_cancel && statement.is_none() {
            self.shelve(pooled);
            return;
        }
        let (worker, pool, slot) = (self.worker.clone(), self.pool.clone(), self.slot.clone());
        // A task of its own, so that the client does not wait for it; bounded by the limits inside.
        tokio::task::spawn_local(async move {
            let mut pooled = pooled;
            slot.landed().await;
            if let Some(sql) = statement {
                match server::run(&mut pooled.conn, &sql, OWN_STATEMENT).await {
                    Ok(()) => pooled.conn.forget_session(),
                    Err(error) => {
                        tracing::warn!(event = "server.reset_failed", %error);
                        return;
                    }
                }
            }
            shelve(&worker, &pool, pooled);
        });
    }

    /// The client has gone in the middle of a statement: what it began is cancelled, and the connection closed. Its place in
    /// the budget stays taken until then, so that the server is not asked for more than the pool may have.
    pub fn abandon(&self, pooled: Box<Pooled>) {
        self.slot.returned();
        let Way::Open(route) = self.way_behind_the_gate() else { return };
        if route.id != pooled.conn.route || pooled.conn.broken {
            return;
        }
        tokio::task::spawn_local(async move {
            let (pid, key) = (pooled.conn.pid, pooled.conn.cancel_key.clone());
            if let Err(error) = server::send_cancel(&route.target, pid, &key, OWN_STATEMENT).await {
                tracing::warn!(event = "cancel.failed", %error);
            }
            drop(pooled);
        });
    }

    fn shelve(&self, pooled: Box<Pooled>) {
        shelve(&self.worker, &self.pool, pooled);
    }
}

/// Puts a clean connection where the next client finds it, unless the primary has changed or the connection is too old.
fn shelve(worker: &Worker, pool: &Local, pooled: Box<Pooled>) {
    if !pooled.conn.unread.is_empty() {
        // What a server says unasked is the last client's, and the last message may not be whole.
        return;
    }
    match worker.way_for(&pool.shared.key) {
        Way::Open(route) if route.id != pooled.conn.route => {}
        Way::Held { servers: Servers::Close, .. } => {}
        Way::Open(_) | Way::Blocked(_) | Way::Held { servers: Servers::Keep, .. } => pool.put(pooled, worker.now_s()),
    }
}

/// What a client is told when the servers refuse the pool's login, now or within `server_login_retry`.
fn refused(why: &ServerError) -> Fault {
    match why {
        ServerError::Refused(fields) => Fault::Refused(Box::new(fields.clone())),
        other => Fault::Login(other.for_client()),
    }
}
