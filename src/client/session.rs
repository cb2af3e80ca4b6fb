//! A client's life: login, greeting, one transaction after the other, farewell.

mod moving;

use super::activity::{Activity, Limit, Limits};
use super::cancel::{CancelSlot, Listing};
use super::commands::own_statement;
use super::control::{Control, Doing};
use super::core::{Core, Front, Rules};
use super::fault::Fault;
use super::lease::Borrower;
use super::leftovers::{self, Leftovers};
use super::listen::{Since, Subscription};
use super::params;
use super::pins::Pinned;
use super::relay::{Ended, Exchange, Lane, Relay, Until};
use super::replicated::{self, Newcomer};
use super::replication;
use super::scan::Traces;
use super::startup::{self, Arrival, NewSession};
use super::tally::Counted;
use super::worker::Worker;
use crate::auth::ServerSecret;
use crate::cluster::Newcomers;
use crate::net::Stream;
use crate::pool::{PoolKey, PoolMode, Pooled};
use crate::server::{Login, ParamSet, ServerConn, SimpleError};
use crate::wire::{backend, frame, frontend};
use moving::Luggage;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Bound on telling a client why its session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// What may outlive a transaction.
pub(super) const LASTING: Traces = Traces::LEAVES.with(Traces::CALLS).with(Traces::WRITES);
/// A statement of Pgpool-II's own is at most this long.
const MAX_COMMAND: usize = 1024;

/// Serves one client from its first byte to the end. `beyond`: `max_client_conn`, when it is reached; then only a cancel is
/// taken. What happens once is boxed, so that the task of an idle client is small.
pub async fn serve(worker: Rc<Worker>, stream: Stream, control: Rc<Control>, beyond: Option<usize>) {
    let Some(new) = Box::pin(arrive(&worker, stream, &control, beyond)).await else { return };
    let Opened { mut stream, counted, outcome } = Box::pin(open(worker, new, control)).await;
    let fault = match outcome {
        // In the middle of a message nothing of ours would be understood.
        Ok(Kind::One(mut session)) => {
            let ended = session.run(&mut stream).await;
            ended.err().filter(|_| session.is_between_answers())
        }
        Ok(Kind::Several(mut session)) => {
            let ended = session.run(&mut stream).await;
            ended.err().filter(|_| session.is_between_answers())
        }
        Err(fault) => Some(fault),
    };
    if let Some(fault) = fault {
        Box::pin(farewell(&mut stream, &fault)).await;
    }
    drop(counted);
}

/// The login. `None`: there is no session, and the client knows.
async fn arrive(
    worker: &Rc<Worker>,
    stream: Stream,
    control: &Rc<Control>,
    beyond: Option<usize>,
) -> Option<NewSession> {
    let context = worker.plane.startup.load_full();
    match startup::accept(stream, &context, beyond).await {
        Ok(Arrival::Session(new)) => return Some(new),
        Ok(Arrival::Replication(new)) => replication::run(worker.clone(), new, control.clone()).await,
        Ok(Arrival::Cancel { pid, key, mut stream }) => {
            // The client takes the close as the sign that its cancel has been carried out. Over TLS libpq 17 takes an end
            // without a farewell for an error.
            worker.plane.cancel(pid, &key).await;
            let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
        }
        Ok(Arrival::Gone) => {}
        Err(error) => tracing::info!(event = "client.login_failed", %error),
    }
    None
}

/// A client that has logged in, counted among those of its user and database.
struct Opened {
    stream: Stream,
    counted: Option<Counted>,
    outcome: Result<Kind, Fault>,
}

/// How a client is served.
enum Kind {
    /// By the primary.
    One(Box<Session>),
    /// By several nodes that pgmend keeps equal.
    Several(Box<replicated::Session>),
}

async fn open(worker: Rc<Worker>, new: NewSession, control: Rc<Control>) -> Opened {
    let NewSession { mut stream, user, database, parameters, minor, secret, .. } = new;
    let settings = worker.plane.settings.load_full();
    let rules = settings.pool.rules(&user, &database);
    let counted = match worker.plane.tally.admit(&user, &database, &rules) {
        Ok(counted) => counted,
        Err(too_many) => return Opened { stream, counted: None, outcome: Err(Fault::TooMany(too_many)) },
    };
    let login = login(&worker, &user, &database, secret);
    let key = PoolKey::of_primary(login.user.clone(), database.clone());
    control.limits.set(Limits::of(&rules));
    // Nobody else sets them: a control serves one login.
    let _ = control.database.set(key.database.as_str().into());
    let _ = control.who.set((user, database));
    let gate = worker.plane.board.read().gate.clone();
    control.drain.came_at.set(gate.last);
    if gate.disabled.contains(&key.database) {
        return Opened { stream, counted: None, outcome: Err(Fault::Disabled(key.database)) };
    }
    if let Some((order, _)) = gate.drains(&key.database).filter(|(_, rules)| rules.newcomers == Newcomers::Reject) {
        let why = order.wanted.reason.clone();
        return Opened { stream, counted: None, outcome: Err(Fault::Recovering(why)) };
    }
    let outcome = if worker.plane.board.view().mode.replicates() {
        let new = Newcomer { key, login, parameters, minor };
        replicated::Session::begin(worker, new, control, &mut stream).await.map(Kind::Several)
    } else {
        begin(worker, &mut stream, key, login, &parameters, minor, control).await.map(Kind::One)
    };
    Opened { stream, counted: Some(counted), outcome }
}

/// How servers are logged in to for a client: as himself, or as the database's section says.
fn login(worker: &Worker, user: &str, database: &str, secret: ServerSecret) -> Login {
    let settings = worker.plane.settings.load();
    let section = settings.pool.database(database);
    let (role, secret) = match section.and_then(|s| s.user.clone()) {
        None => (user.to_owned(), secret),
        Some(role) => {
            let given = section.and_then(|s| s.password.clone()).map(ServerSecret::Password);
            let secret = given.unwrap_or_else(|| worker.plane.startup.load().secrets.for_servers(&role));
            (role, secret)
        }
    };
    let certificate_of = settings.pool.certificate_of(database);
    let database = section.and_then(|s| s.dbname.clone()).unwrap_or_else(|| database.to_owned());
    Login { user: role, database, secret, parameters: Vec::new(), certificate_of }
}

pub(super) async fn farewell(stream: &mut Stream, fault: &Fault) {
    let Some(fields) = fault.response() else { return };
    tracing::info!(event = "client.session_ended", reason = %fault);
    let mut out = Vec::new();
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
    up: Lane,
    down: Lane,
    /// The server connection that stays with the client between transactions, and why, if it is an exception.
    held: Option<Box<Pooled>>,
    pin: Option<Pinned>,
    /// Its channels, in transaction pooling.
    subscription: Option<Subscription>,
    max_pins: usize,
    /// What a server that was given up had of its session.
    luggage: Option<Box<Luggage>>,
    database: String,
    _listing: Listing,
}

/// From authentication to the first ReadyForQuery. In session pooling the client gets its server now, if one is to be had at
/// once: a program that opens all its connections before it uses one must not wait for itself. Else a server is asked only
/// for what is not known of it yet, or when the client's own parameters must be proven valid.
async fn begin(
    worker: Rc<Worker>,
    stream: &mut Stream,
    key: PoolKey,
    login: Login,
    parameters: &[(String, String)],
    minor: u16,
    control: Rc<Control>,
) -> Result<Box<Session>, Fault> {
    let plane = worker.plane.clone();
    let wanted = worker.intern(params::wanted(parameters).map_err(Fault::Protocol)?);
    let settings = plane.settings.load_full();
    let pool =
        worker.pool(&key).ok_or_else(|| Fault::Limit("too many different users and databases at once".into()))?;
    let mode = pool.shared.rules().mode;
    let login = Rc::new(login);
    pool.remember_login(&login);
    let id = plane.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    control.drain.session.set(id);
    let mut borrower = Borrower { worker, pool, login, slot: CancelSlot::unlisted(), control, id };
    let (greeting, held) = match mode {
        PoolMode::Session if borrower.is_served_at_once() => {
            let pooled = borrower.lease_for(stream, &wanted).await?;
            (remember(&borrower, &wanted, &pooled), Some(pooled))
        }
        PoolMode::Session | PoolMode::Transaction | PoolMode::Statement => {
            (greeting(&borrower, stream, &wanted).await?, None)
        }
    };
    let server_pid = held.as_ref().map(|p| p.conn.pid);
    let listing =
        plane.cancels.register(minor, server_pid).map_err(|e| Fault::Limit(format!("no random numbers: {e}")))?;
    borrower.slot.become_listed(&listing.slot);
    borrower.slot = listing.slot.clone();
    let rules = Rules {
        transactions: mode != PoolMode::Session,
        single_statements: mode == PoolMode::Statement,
        max_message: settings.client.max_message,
        max_prepared: settings.pool.max_prepared,
        pool_commands: settings.client.pool_commands,
        share_unnamed: settings.pool.share_unnamed,
    };
    let core = Core::new(rules, wanted, &plane.statements);
    let mut session = Box::new(Session {
        borrower,
        core,
        mode,
        up: Lane::default(),
        down: Lane::default(),
        held,
        pin: None,
        subscription: None,
        max_pins: settings.pool.max_pins,
        luggage: None,
        database: key.database,
        _listing: listing,
    });
    let out = session.down.own();
    for (name, value) in greeting.iter() {
        backend::parameter_status(out, name, value);
    }
    backend::backend_key_data(out, session.borrower.slot.pid, &session.borrower.slot.key);
    backend::ready_for_query(out, b'I');
    let sent = poll_fn(|cx| session.down.poll_send(stream, cx)).await;
    if sent.is_err() {
        session.release();
        return Err(Fault::ClientGone);
    }
    Ok(session)
}

/// The parameters that a server reports to this client at its start. Asked of a server once for each set of wishes and
/// route, then remembered; `application_name` is left out of that, as any value of it is valid.
pub(super) async fn greeting(
    borrower: &Borrower,
    client: &Stream,
    wanted: &ParamSet,
) -> Result<Arc<HashMap<String, String>>, Fault> {
    let mut wishes = (**wanted).clone();
    let application_name = wishes.remove("application_name");
    if let super::worker::Way::Open(route) = borrower.worker.way_of(&borrower.pool.shared.key)
        && let Some(known) = borrower.pool.shared.greeting(route.id, &wishes)
    {
        let Some(name) = application_name else { return Ok(known) };
        let mut own = (*known).clone();
        own.insert("application_name".into(), name);
        return Ok(Arc::new(own));
    }
    let pooled = borrower.lease_for(client, wanted).await?;
    let reported = remember(borrower, wanted, &pooled);
    borrower.give_back(pooled, true, false);
    Ok(reported)
}

/// Remembers what a server with these parameters reports.
fn remember(borrower: &Borrower, wanted: &ParamSet, pooled: &Pooled) -> Arc<HashMap<String, String>> {
    let mut wishes = (**wanted).clone();
    wishes.remove("application_name");
    let reported = Arc::new(pooled.conn.reported.clone());
    borrower.pool.shared.remember_greeting(pooled.conn.route, wishes, reported.clone());
    reported
}

/// What the shared listener has for the client goes on its way.
fn hear(subscription: Option<&Subscription>, down: &mut Lane, cx: &Context<'_>) -> Result<(), Fault> {
    let in_time = subscription.is_none_or(|s| s.inbox.take(down.own(), cx));
    if in_time { Ok(()) } else { Err(Fault::Limit("too many notifications waited for this client".into())) }
}

impl Session {
    /// The session's life; whatever ends it, a clean server goes back.
    async fn run(&mut self, client: &mut Stream) -> Result<(), Fault> {
        let ended = self.transactions(client).await;
        self.release();
        ended
    }

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
                    match self.borrow_server(client).await {
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
                        self.unlisten(&[]).await;
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

    /// After a transaction that may have left something: the server is asked. Settings go with the client; anything else
    /// binds it to this server for as long as it lasts.
    async fn settle(&mut self, mut pooled: Box<Pooled>) -> Result<(), Fault> {
        let traces = self.core.traces();
        let left = match self.leftovers(&mut pooled.conn, traces).await {
            Ok(left) => left,
            Err(SimpleError::Lost(why)) => return Err(Fault::ServerLost(why)),
            // The question was not answered (a statement_timeout of the client's, say), so everything is possible.
            Err(SimpleError::Refused(error)) => {
                Some(Leftovers { pins: vec![format!("unknown: {}", error.message)], ..Leftovers::default() })
            }
        };
        let listens = left.as_ref().map(|l| l.channels.as_slice()).unwrap_or_default();
        self.unlisten(listens).await;
        let Some(mut left) = left else {
            self.core.due_fakes(self.down.own());
            self.core.forget_traces();
            self.borrower.give_back(pooled, self.core.is_clean(), false);
            return Ok(());
        };
        let worker = self.borrower.worker.clone();
        if left.pins.is_empty() && !left.channels.is_empty() {
            let login = &self.borrower.login;
            // Of a bound client's channels some may be older.
            let since = match self.core.listens_secretly() && self.pin.is_none() {
                true => Since::Now,
                false => Since::Listen,
            };
            let (listeners, all) = (&worker.plane.listeners, left.channels.clone());
            let taken = listeners.take_over(&worker, login, &mut pooled.conn, all, since, &mut self.subscription).await;
            match taken {
                Ok(true) => left.channels.clear(),
                Ok(false) => tracing::warn!(event = "listener.unreachable", database = %self.database),
                Err(error) => return Err(Fault::ServerLost(error.to_string())),
            }
        }
        let reasons = left.reasons();
        self.core.due_fakes(self.down.own());
        self.down.own().append(&mut pooled.conn.asides);
        let known = !left.pins.iter().any(|p| p.starts_with("unknown"));
        if known {
            self.core.forget_traces();
            let wanted = worker.intern(leftovers::wanted(self.core.initial(), &left.settings));
            pooled.conn.applied = if *wanted == left.settings { wanted.clone() } else { left.settings.into() };
            self.core.set_wanted(wanted, &worker.plane.statements);
        }
        self.core.set_bound(!reasons.is_empty(), &worker.plane.statements);
        pooled.conn.unsure = true;
        pooled.conn.last_user = self.borrower.id;
        if reasons.is_empty() {
            self.pin = None;
            self.borrower.give_back(pooled, self.core.is_clean(), false);
            return Ok(());
        }
        match &self.pin {
            Some(pin) => pin.update(reasons),
            None => {
                let (pool, pid) = (&self.borrower.pool.shared.key, pooled.conn.pid);
                tracing::debug!(event = "client.pinned", user = %pool.user, database = %pool.database);
                let pin = worker.plane.pins.pin(pool, pid, reasons, self.max_pins).map_err(Fault::Pins)?;
                self.pin = Some(pin);
            }
        }
        self.held = Some(pooled);
        Ok(())
    }

    /// Ends the channels that the client has ended itself and has not begun anew.
    async fn unlisten(&mut self, but: &[String]) {
        let ended = self.core.take_unlistened();
        if let Some(subscription) = &mut self.subscription {
            for channel in ended {
                subscription.unlisten(channel, but).await;
            }
        }
    }

    /// What is left, or `None` when nothing can be.
    async fn leftovers(&mut self, conn: &mut ServerConn, traces: Traces) -> Result<Option<Leftovers>, SimpleError> {
        let custom: Vec<String> = self.core.custom().cloned().collect();
        let Borrower { worker, login, .. } = &self.borrower;
        leftovers::after(worker, &self.database, &login.user, conn, traces, self.pin.is_some(), custom).await
    }

    fn is_between_answers(&self) -> bool {
        self.down.is_sent() && self.core.is_between_answers()
    }

    /// Waits for work, sending what is left of the last answer. An idle client holds no buffer here.
    async fn next(&mut self, client: &mut Stream) -> Result<Front, Fault> {
        let Session { up, down, core, borrower, subscription, .. } = self;
        borrower.control.activity.set(Activity::idle(borrower.worker.now_s()));
        borrower.control.doing.set(Doing::Away);
        poll_fn(|cx| {
            loop {
                hear(subscription.as_ref(), down, cx)?;
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
                match std::task::ready!(up.poll_receive(client, cx)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Fault::ClientGone)),
                    Ok(_) => borrower.control.activity.set(Activity::idle(borrower.worker.now_s())),
                }
            }
        })
        .await
    }

    async fn exchange(&mut self, client: &mut Stream, pooled: &mut Pooled) -> Result<Ended, Fault> {
        let Session { up, down, core, borrower, mode, pin, subscription, .. } = self;
        down.input.put(&std::mem::take(&mut pooled.conn.unread));
        let plane = borrower.worker.plane.clone();
        let until = match mode {
            PoolMode::Session => Until::Session,
            PoolMode::Transaction | PoolMode::Statement if pin.is_some() => Until::Traces,
            PoolMode::Transaction | PoolMode::Statement => Until::Transaction,
        };
        let mut state = Exchange::default();
        let ended = poll_fn(|cx| {
            if let Some(end) = borrower.control.check(cx, core.is_clean()) {
                return Poll::Ready(Err(end.into()));
            }
            if core.is_clean() {
                hear(subscription.as_ref(), down, cx)?;
            }
            let now_s = borrower.worker.now_s();
            let mut relay =
                Relay { client, up, down, server: &mut pooled.conn, core, statements: &plane.statements, until };
            let mut outcome = relay.poll(&mut state, cx);
            if outcome.is_pending() && borrower.control.drain.asked.get() && relay.is_at_boundary(&state) {
                outcome = Poll::Ready(Ok(Ended::Boundary));
            }
            let activity = &borrower.control.activity;
            activity.set(activity.get().seen(core.sight(), now_s));
            borrower.control.doing.set(match (core.is_settled(), core.is_clean()) {
                (false, _) => Doing::Working,
                (true, false) => Doing::InTransaction,
                (true, true) => Doing::Bound,
            });
            if state.client_closed {
                borrower.control.note_closed(now_s);
            }
            outcome
        })
        .await;
        if matches!(ended, Ok(Ended::Transaction)) {
            pooled.conn.unread = down.take_unread();
        }
        ended
    }

    /// Answers what needs no server; the answer leaves while the next batch is awaited.
    fn answered_alone(&mut self) -> Result<bool, Fault> {
        let Session { core, up, down, borrower, .. } = self;
        if !down.is_sent() {
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
        let Some(told) = self.borrower.worker.plane.answer(&sql, &self.database, &self.borrower.control) else {
            return false;
        };
        self.up.input.consume(total);
        told.write(self.down.own());
        true
    }

    fn pool_command(&self) -> Option<(usize, String)> {
        let input = self.up.input.bytes();
        if !self.core.answers_commands() || input.first() != Some(&b'Q') {
            return None;
        }
        let first = input.get(frame::HEADER..)?.iter().find(|b| !b.is_ascii_whitespace())?;
        if !matches!(first, b's' | b'S' | b'p' | b'P') {
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
