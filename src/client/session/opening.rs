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
use crate::client::way::Way;
use crate::client::worker::{Entry, Worker};
use crate::cluster::Newcomers;
use crate::net::Stream;
use crate::pool::{PoolKey, PoolMode, Pooled};
use crate::server::{Login, ParamSet};
use crate::wire::backend;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
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

/// From the first byte to the session. `None`: there is none, and the client knows. Above `max_client_conn` only a cancel is
/// taken.
pub(super) async fn open(
    worker: Rc<Worker>,
    stream: Stream,
    control: Rc<Control>,
    entry: Entry,
) -> Option<Box<Served>> {
    let NewSession { mut stream, user, database, parameters, minor, secret, .. } =
        arrive(&worker, stream, &control, entry.beyond).await?;
    let rules = worker.plane.settings.load().pool.rules(&user, &database);
    control.limits.set(Limits::of(&rules));
    let outcome = match worker.plane.tally.admit(&user, &database, &rules) {
        Err(too_many) => Err(Fault::TooMany(too_many)),
        Ok(counted) => {
            // Nobody else sets it: a control serves one login.
            let _ = control.who.set(counted.who.clone());
            let login = login(&worker, &user, &database, secret);
            let key = PoolKey::of_primary(login.user.clone(), database);
            let new = Newcomer { key, login, parameters, minor };
            start(worker, new, control, &mut stream).await.map(|kind| (kind, counted))
        }
    };
    match outcome {
        Ok((kind, counted)) => Some(Box::new(Served { stream, kind, _counted: counted, _places: entry.places })),
        Err(fault) => {
            farewell(&mut stream, &fault).await;
            None
        }
    }
}

/// The session, unless the gate has something against it.
async fn start(worker: Rc<Worker>, new: Newcomer, control: Rc<Control>, stream: &mut Stream) -> Result<Kind, Fault> {
    let gate = worker.plane.board.read().gate.clone();
    control.drain.came_at.set(gate.last);
    if gate.disabled.contains(&new.key.database) {
        return Err(Fault::Disabled(new.key.database));
    }
    if let Some((order, _)) = gate.drains(&new.key.database).filter(|(_, rules)| rules.newcomers == Newcomers::Reject) {
        return Err(Fault::Recovering(order.wanted.reason.clone()));
    }
    if worker.plane.board.view().mode.replicates() {
        replicated::Session::begin(worker, new, control, stream).await.map(Kind::Several)
    } else {
        begin(worker, stream, new, control).await.map(|session| Kind::One(*session))
    }
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
    stream: &mut Stream,
    new: Newcomer,
    control: Rc<Control>,
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
pub(in crate::client) async fn greeting(
    borrower: &Borrower,
    client: &Stream,
    wanted: &ParamSet,
) -> Result<Arc<HashMap<String, String>>, Fault> {
    let mut wishes = (**wanted).clone();
    let application_name = wishes.remove("application_name");
    if let Way::Open(route) = borrower.worker.way_of(&borrower.pool.shared.key)
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
