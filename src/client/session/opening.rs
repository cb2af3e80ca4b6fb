//! How a client's session begins: login, its place in the counts, the greeting.

use super::{FAREWELL, Kind, Served, Session, farewell};
use crate::auth::ServerSecret;
use crate::client::activity::Limits;
use crate::client::cancel::CancelSlot;
use crate::client::control::Control;
use crate::client::core::{Core, Rules};
use crate::client::fault::Fault;
use crate::client::lease::Borrower;
use crate::client::params;
use crate::client::relay::Lent;
use crate::client::replicated::{self, Newcomer};
use crate::client::replication;
use crate::client::startup::{self, Arrival, NewSession};
use crate::client::tally::Counted;
use crate::client::way::Way;
use crate::client::worker::{Entry, Worker};
use crate::cluster::Newcomers;
use crate::net::Stream;
use crate::pool::{APPLICATION_NAME, PoolKey, PoolMode, Pooled, Reported};
use crate::server::{Login, ParamSet};
use crate::wire::backend;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;

/// The login. `None`: there is no session, and the client knows.
async fn arrive(
    worker: &Rc<Worker>,
    stream: Stream,
    control: &Rc<Control>,
    beyond: Option<usize>,
) -> Option<NewSession> {
    let context = worker.plane.startup.load_full();
    match Box::pin(startup::accept(stream, &context, beyond)).await {
        Ok(Arrival::Session(new)) => return Some(new),
        Ok(other) => Box::pin(serve_other(worker, other, control)).await,
        Err(error) => tracing::info!(event = "client.login_failed", %error),
    }
    None
}

/// Who wants something else than a session of ours.
async fn serve_other(worker: &Rc<Worker>, arrival: Arrival, control: &Rc<Control>) {
    match arrival {
        Arrival::Replication(new) => replication::run(worker.clone(), new, control.clone()).await,
        Arrival::Cancel { pid, key, mut stream } => {
            // The client takes the close as the sign that its cancel has been carried out. Over TLS libpq 17 takes an end
            // without a farewell for an error.
            worker.plane.cancel(pid, &key).await;
            let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
        }
        Arrival::Session(_) | Arrival::Gone => {}
    }
}

/// From the first byte to the session. `None`: there is none, and the client knows. Above `max_client_conn` only a cancel is
/// taken. What takes room, or only some need, is in boxes of its own: all of it is moved as it is made, and the system's
/// allocator is quick up to a kilobyte.
pub(super) async fn open(
    worker: Rc<Worker>,
    stream: Stream,
    control: Rc<Control>,
    entry: Entry,
) -> Option<Box<Served>> {
    let mut new = Box::pin(arrive(&worker, stream, &control, entry.beyond)).await?;
    match Box::pin(start(&worker, &mut new, control)).await {
        Ok((kind, counted)) => {
            Some(Box::new(Served { stream: new.stream, kind, _counted: counted, _places: entry.places }))
        }
        Err(fault) => {
            Box::pin(farewell(&mut new.stream, new.unsent, &fault)).await;
            None
        }
    }
}

/// What is known of a client that has logged in, unless there are too many of its kind.
fn introduce(worker: &Worker, new: &mut NewSession, control: &Control) -> Result<(Newcomer, Counted), Fault> {
    let (user, database) = (std::mem::take(&mut new.user), std::mem::take(&mut new.database));
    let rules = worker.plane.settings.load().pool.rules(&user, &database);
    control.limits.set(Limits::of(&rules));
    let counted = worker.plane.tally.admit(&user, &database, &rules).map_err(Fault::TooMany)?;
    // Nobody else sets it: a control serves one login.
    let _ = control.who.set(counted.who.clone());
    let login = login(worker, &user, &database, std::mem::replace(&mut new.secret, ServerSecret::None));
    let key = PoolKey::of_primary(login.user.clone(), database);
    let parameters = std::mem::take(&mut new.parameters);
    Ok((Newcomer { key, login, parameters, minor: new.minor }, counted))
}

/// The session, unless its kind or the gate has something against it.
async fn start(worker: &Rc<Worker>, new: &mut NewSession, control: Rc<Control>) -> Result<(Kind, Counted), Fault> {
    let (newcomer, counted) = introduce(worker, new, &control)?;
    let gate = worker.plane.board.read().gate.clone();
    control.drain.came_at.set(gate.last);
    if gate.disabled.contains(&newcomer.key.database) {
        return Err(Fault::Disabled(newcomer.key.database));
    }
    let drains = gate.drains(&newcomer.key.database);
    if let Some((order, _)) = drains.filter(|(_, rules)| rules.newcomers == Newcomers::Reject) {
        return Err(Fault::Recovering(order.wanted.reason.clone()));
    }
    drop(gate);
    let (worker, NewSession { stream, unsent, .. }) = (worker.clone(), new);
    let kind = if worker.plane.board.view().mode.replicates() {
        Kind::Several(Box::pin(replicated::Session::begin(worker, newcomer, control, stream, unsent)).await?)
    } else {
        Kind::One(*Box::pin(begin(worker, newcomer, control, stream, unsent)).await?)
    };
    Ok((kind, counted))
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

/// From authentication to the first ReadyForQuery. In session pooling the client gets its server now, if one is to be had at
/// once: a program that opens all its connections before it uses one must not wait for itself. Else a server is asked only
/// for what is not known of it yet, or when the client's own parameters must be proven valid.
async fn begin(
    worker: Rc<Worker>,
    new: Newcomer,
    control: Rc<Control>,
    stream: &mut Stream,
    unsent: &mut Vec<u8>,
) -> Result<Box<Session>, Fault> {
    let Newcomer { key, login, parameters, minor } = new;
    let plane = worker.plane.clone();
    let wanted = worker.intern(params::wanted(&parameters).map_err(Fault::Protocol)?);
    let settings = plane.settings.load_full();
    let pool =
        worker.pool(&key).ok_or_else(|| Fault::Limit("too many different users and databases at once".into()))?;
    let mode = pool.shared.rules().mode;
    let login = pool.share_login(login);
    let id = plane.sessions.fetch_add(1, Ordering::Relaxed) + 1;
    control.drain.session.set(id);
    let mut borrower = Borrower { worker, pool, login, slot: CancelSlot::unlisted(), control };
    let (greeting, held) = match mode {
        PoolMode::Session if borrower.is_served_at_once() => {
            let pooled = Box::pin(borrower.lease_for(stream, &wanted)).await?;
            (Greeting::of(&borrower, &wanted, &pooled), Some(pooled))
        }
        PoolMode::Session | PoolMode::Transaction | PoolMode::Statement => {
            (Greeting::find(&borrower, stream, &wanted).await?, None)
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
        up: Lent::default(),
        down: Lent::default(),
        armed: false,
        held,
        pin: None,
        subscription: None,
        luggage: None,
        _listing: listing,
    });
    let out = session.down.own();
    out.append(unsent);
    greeting.write(out);
    backend::backend_key_data(out, session.borrower.slot.pid, &session.borrower.slot.key);
    backend::ready_for_query(out, b'I');
    let sent = poll_fn(|cx| session.down.poll_send(stream, cx)).await;
    if sent.is_err() {
        session.release();
        return Err(Fault::ClientGone);
    }
    Ok(session)
}

/// The parameters that a server reports to this client at its start.
pub(in crate::client) struct Greeting {
    reported: Reported,
    /// Its name for itself, if it gave one, is not among what servers reported.
    wanted: ParamSet,
}

impl Greeting {
    /// Asked of a server once for each set of wishes and route, then remembered.
    pub async fn find(borrower: &Borrower, client: &Stream, wanted: &ParamSet) -> Result<Greeting, Fault> {
        if let Way::Open(route) = borrower.worker.way_of(&borrower.pool.shared.key)
            && let Some(reported) = borrower.pool.shared.greeting(route.id, wanted)
        {
            return Ok(Greeting { reported, wanted: wanted.clone() });
        }
        let pooled = Box::pin(borrower.lease_for(client, wanted)).await?;
        let greeting = Greeting::of(borrower, wanted, &pooled);
        borrower.give_back(pooled, true, false);
        Ok(greeting)
    }

    /// What a server with these parameters has reported; it is remembered.
    fn of(borrower: &Borrower, wanted: &ParamSet, pooled: &Pooled) -> Greeting {
        let is_named = wanted.contains_key(APPLICATION_NAME);
        let mut messages = Vec::new();
        for (parameter, value) in pooled.conn.reported.iter().filter(|(p, _)| !is_named || *p != APPLICATION_NAME) {
            backend::parameter_status(&mut messages, parameter, value);
        }
        let reported = Reported::from(messages);
        borrower.pool.shared.remember_greeting(pooled.conn.route, wanted, reported.clone());
        Greeting { reported, wanted: wanted.clone() }
    }

    /// As messages.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.reported);
        if let Some(name) = self.wanted.get(APPLICATION_NAME) {
            backend::parameter_status(out, APPLICATION_NAME, name);
        }
    }
}
