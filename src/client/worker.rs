//! One thread of the data plane: its clients, its idle server connections, its coarse clock.

use super::activity::{Activity, Limit, Limits};
use super::leftovers::Functions;
use super::plane::{Admitted, Plane};
use super::session;
use super::topup;
use crate::cluster::GateState;
use crate::net::{self, StdStream, Stream};
use crate::pool::{Local, PoolKey};
use crate::server::{ParamSet, RouteId, Target};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two sweeps: the grain of idle limits and connection lives.
const SWEEP: Duration = Duration::from_secs(1);

/// Different sets of client parameters remembered per worker.
const MAX_INTERNED: usize = 1024;

/// Seconds for which the answer which functions a database has is good; they may be changed past pgmend.
const FUNCTIONS_S: u64 = 60;
/// Databases whose functions are remembered.
const MAX_DATABASES: usize = 1024;

/// What a worker is told from outside.
#[derive(Debug)]
pub enum Order {
    /// A client just accepted, registered with no runtime yet.
    Client(StdStream, Admitted),
    /// Somebody waits for a server connection: give one if there is an idle one.
    Serve,
    /// New settings are in force.
    Settings,
    /// End sessions between transactions; the others when their transaction ends.
    StopSmart,
    /// End all sessions.
    StopFast,
}

/// Where transactions go now.
#[derive(Debug)]
pub struct Route {
    /// Identity of node and history.
    pub id: RouteId,
    /// Address.
    pub target: Arc<Target>,
}

/// The way to the primary, or why there is none.
#[derive(Clone, Debug)]
pub enum Way {
    /// Go.
    Open(Rc<Route>),
    /// Wait for the board to change.
    Blocked(Rc<str>),
}

/// How a session is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// When it is between transactions.
    Clean(End),
    /// At once.
    Now(End),
}

/// Why a session is ended by pgmend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// pgmend stops.
    Shutdown,
    /// A time limit, in seconds.
    Limit(Limit, u64),
    /// The client closed without saying goodbye, and what it asked for takes long.
    Vanished,
}

/// The handle by which the worker reaches a session: its waker, and what it shall do.
#[derive(Debug, Default)]
pub struct Control {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    /// What it is doing; nothing during the login, which has a limit of its own.
    pub activity: Cell<Activity>,
    /// Its limits.
    pub limits: Cell<Limits>,
    /// Whose rules it follows: user and database as the client names them.
    pub who: OnceCell<(String, String)>,
    /// Until when (coarse seconds) it may wait for a server connection.
    wait_until_s: Cell<Option<u64>>,
    overdue: Cell<bool>,
    /// Since when (coarse seconds) it is closed while an answer is owed.
    pub closed_s: Cell<Option<u64>>,
}

impl Control {
    /// To be called in each poll: lets the worker wake the session, and says whether it must end now.
    pub fn check(&self, cx: &Context<'_>, clean: bool) -> Option<End> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        match self.ending.get()? {
            Ending::Clean(end) => clean.then_some(end),
            Ending::Now(end) => Some(end),
        }
    }

    /// Begins (or ends) a wait that the worker's sweep bounds.
    pub fn wait_until(&self, end_s: Option<u64>) {
        self.wait_until_s.set(end_s);
        self.overdue.set(false);
    }

    /// The wait has lasted too long.
    pub fn is_overdue(&self) -> bool {
        self.overdue.get()
    }

    fn sweep(&self, now_s: u64) {
        if self.wait_until_s.get().is_some_and(|end| now_s >= end) && !self.overdue.replace(true) {
            self.wake();
        }
        if self.closed_s.get().is_some_and(|since| now_s > since) && self.ending.get().is_none() {
            self.end(Ending::Now(End::Vanished));
        }
        let limits = self.limits.get();
        let Some(limit) = self.activity.get().passed(&limits, now_s).filter(|_| self.ending.get().is_none()) else {
            return;
        };
        let end = End::Limit(limit, limits.seconds(limit));
        // Who is idle may have sent something that was not read yet; then it ends after that.
        self.end(if limit == Limit::ClientIdle { Ending::Clean(end) } else { Ending::Now(end) });
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }
}

/// One worker. Lives on its thread; everything in it is plain cells.
#[derive(Debug)]
pub struct Worker {
    /// Shared state.
    pub plane: Arc<Plane>,
    /// Tells the other workers to serve waiters from their idle connections.
    pub nudge: Nudge,
    pools: RefCell<HashMap<PoolKey, Rc<Local>>>,
    sessions: RefCell<HashMap<u64, Rc<Control>>>,
    last_session: Cell<u64>,
    params: RefCell<HashSet<ParamSet>>,
    functions: RefCell<HashMap<String, Learnt>>,
    now_s: Cell<u64>,
    way: RefCell<(u64, Way)>,
    stopping: Cell<Option<Ending>>,
    /// The last session has ended while the worker is stopping.
    emptied: Notify,
}

/// What is known of a database's functions, until when, and at which count of their changes.
#[derive(Debug)]
struct Learnt {
    functions: Rc<Functions>,
    until_s: u64,
    creations: u64,
}

/// The other workers' order queues.
#[derive(Clone, Debug, Default)]
pub struct Nudge(pub Vec<tokio::sync::mpsc::Sender<Order>>);

impl Nudge {
    /// Asks all others to serve waiters. A full queue is no loss: it holds orders that make the worker look anyway.
    pub fn all(&self) {
        for other in &self.0 {
            let _ = other.try_send(Order::Serve);
        }
    }
}

impl Worker {
    /// A worker without clients.
    pub fn new(plane: Arc<Plane>, nudge: Nudge) -> Rc<Worker> {
        Rc::new(Worker {
            plane,
            nudge,
            pools: RefCell::default(),
            sessions: RefCell::default(),
            last_session: Cell::new(0),
            params: RefCell::default(),
            functions: RefCell::default(),
            now_s: Cell::new(0),
            way: RefCell::new((0, Way::Blocked("not yet known".into()))),
            stopping: Cell::new(None),
            emptied: Notify::new(),
        })
    }

    /// Serves until all senders of orders are gone, or after a stop until the last session has ended. Runs in a `LocalSet`.
    pub async fn run(self: Rc<Self>, mut orders: tokio::sync::mpsc::Receiver<Order>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                _ = sweep.tick() => self.sweep(),
                () = self.emptied.notified() => {}
            }
            if self.stopping.get().is_some() && self.sessions.borrow().is_empty() {
                return;
            }
        }
    }

    fn obey(self: &Rc<Self>, order: Order) {
        match order {
            Order::Client(stream, admitted) => self.adopt(stream, admitted),
            Order::Serve => self.serve_waiters(),
            Order::Settings => self.take_settings(),
            Order::StopSmart => self.stop(Ending::Clean(End::Shutdown)),
            Order::StopFast => self.stop(Ending::Now(End::Shutdown)),
        }
    }

    /// Takes a client in: one task for its whole life.
    pub fn adopt(self: &Rc<Self>, socket: StdStream, admitted: Admitted) {
        let keepalive = self.plane.settings.load().keepalive;
        let stream = Stream::from_std(socket).and_then(|s| net::accept_options(&s, keepalive).map(|()| s));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(event = "client.lost_at_accept", %error);
                return;
            }
        };
        let id = self.last_session.get() + 1;
        self.last_session.set(id);
        let control = Rc::new(Control::default());
        if let Some(ending) = self.stopping.get() {
            control.ending.set(Some(ending));
        }
        self.sessions.borrow_mut().insert(id, control.clone());
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            let _listed = Listed { worker: worker.clone(), id };
            session::serve(worker, stream, control, admitted.beyond).await;
            drop(admitted);
        });
    }

    /// One allocation for all clients with the same parameters, so that a lease compares pointers.
    pub fn intern(&self, set: ParamSet) -> ParamSet {
        let mut params = self.params.borrow_mut();
        if let Some(known) = params.get(&set) {
            return known.clone();
        }
        if params.len() >= MAX_INTERNED {
            params.retain(|p| ParamSet::strong_count(p) > 1);
        }
        // When all are in use the set stays its client's own.
        if params.len() < MAX_INTERNED {
            params.insert(set.clone());
        }
        set
    }

    /// What is known of a database's functions, if it is not too old.
    pub fn functions(&self, database: &str) -> Option<Rc<Functions>> {
        let functions = self.functions.borrow();
        let learnt = functions.get(database)?;
        let fresh = self.now_s() < learnt.until_s && learnt.creations == self.plane.statements.creations();
        fresh.then(|| learnt.functions.clone())
    }

    /// Remembers them.
    pub fn learn_functions(&self, database: &str, functions: Functions) -> Rc<Functions> {
        let functions = Rc::new(functions);
        let mut all = self.functions.borrow_mut();
        if all.len() >= MAX_DATABASES {
            all.clear();
        }
        let until_s = self.now_s() + FUNCTIONS_S;
        let creations = self.plane.statements.creations();
        all.insert(database.to_owned(), Learnt { functions: functions.clone(), until_s, creations });
        functions
    }

    /// Coarse seconds since the data plane's start.
    pub fn now_s(&self) -> u64 {
        self.now_s.get()
    }

    /// Where a transaction that starts now shall go. One load when nothing changed.
    pub fn way(&self) -> Way {
        let version = self.plane.board.version();
        let mut way = self.way.borrow_mut();
        if way.0 != version {
            *way = (version, self.look());
        }
        way.1.clone()
    }

    fn look(&self) -> Way {
        let published = self.plane.board.read();
        if published.gate.state == GateState::Held {
            return Way::Blocked(format!("held: {}", published.gate.reason).into());
        }
        let Some(spec) = published.view.primary_spec() else {
            return Way::Blocked("no node is known to be the primary".into());
        };
        let settings = self.plane.settings.load();
        let target = match Target::new(&spec.host.0, spec.port, spec.sslmode, &settings.server_tls, settings.keepalive)
        {
            Ok(target) => Arc::new(target),
            Err(error) => return Way::Blocked(error.to_string().into()),
        };
        let timeline = published.view.epoch.as_ref().map_or(0, |e| e.timeline);
        Way::Open(Rc::new(Route { id: RouteId { node: spec.id, timeline }, target }))
    }

    /// This worker's share of a pool; `None` when there are too many pools.
    pub fn pool(&self, key: &PoolKey) -> Option<Rc<Local>> {
        if let Some(pool) = self.pools.borrow().get(key) {
            return Some(pool.clone());
        }
        let pool = Rc::new(Local::new(self.plane.pool(key)?));
        self.pools.borrow_mut().insert(key.clone(), pool.clone());
        Some(pool)
    }

    /// Gives idle connections of this worker to those who wait, and closes those whose places are needed elsewhere.
    pub fn serve_waiters(&self) {
        // Waiters that are served here do not come back to this list, but their tasks may add a pool to it later.
        self.pools.borrow().values().for_each(|pool| pool.serve_waiters());
    }

    /// Where only the rate of new connections is in the way of somebody, a task watches the clock for him.
    pub fn watch_rate(&self) {
        if self.plane.budget.rate_due().is_some() {
            let budget = self.plane.budget.clone();
            tokio::task::spawn_local(async move { budget.tick_while_rated().await });
        }
    }

    fn take_settings(&self) {
        self.way.borrow_mut().0 = 0;
        let settings = self.plane.settings.load();
        for control in self.sessions.borrow().values() {
            if let Some((user, database)) = control.who.get() {
                control.limits.set(Limits::of(&settings.pool.rules(user, database)));
            }
        }
    }

    fn sweep(self: &Rc<Self>) {
        // One clock for all workers, since connections and their ages go from one to another.
        self.now_s.set(self.plane.started.elapsed().as_secs());
        self.plane.budget.tick();
        self.watch_rate();
        let way = self.way();
        let route = match &way {
            Way::Open(route) => Some(route.id),
            Way::Blocked(_) => None,
        };
        for pool in self.pools.borrow().values() {
            // Besides this list only clients hold the pool.
            let has_clients = Rc::strong_count(pool) > 1;
            pool.sweep(route, self.now_s.get(), has_clients);
            pool.serve_waiters();
            if let Way::Open(route) = &way
                && has_clients
            {
                topup::top_up(self, pool, route);
            }
        }
        let now = self.now_s.get();
        for control in self.sessions.borrow().values() {
            control.sweep(now);
        }
    }

    fn stop(&self, ending: Ending) {
        self.stopping.set(Some(ending));
        self.sessions.borrow().values().for_each(|control| control.end(ending));
    }
}

/// Takes a session off the worker's list, however it ended.
struct Listed {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut sessions = self.worker.sessions.borrow_mut();
        sessions.remove(&self.id);
        if sessions.is_empty() && self.worker.stopping.get().is_some() {
            self.worker.emptied.notify_one();
        }
    }
}
