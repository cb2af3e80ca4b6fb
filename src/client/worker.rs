//! One thread of the data plane: its clients, its idle server connections, its coarse clock.

use super::activity::Limits;
use super::control::{Control, End, Ending};
use super::leftovers::Functions;
use super::plane::{Admitted, Plane};
use super::replicated::Books;
use super::session;
use super::topup;
use super::warm::Stock;
use crate::base::NodeId;
use crate::cluster::{Gate, GateOrder, NodeSpec, Seat, Servers, Warmer};
use crate::net::{self, StdStream, Stream};
use crate::pool::{Local, PoolKey};
use crate::server::{ParamSet, RouteId, Target};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
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
/// Between two reports of a worker while the gate is held: the grain of a report's truth and of an order's deadline.
const GATE_LOOK: Duration = Duration::from_millis(10);

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
    /// Held at the gate: wait for the board to change.
    Held {
        /// Why, for people.
        why: Rc<str>,
        /// What becomes of servers meanwhile.
        servers: Servers,
        /// The wait counts for no limit.
        patient: bool,
    },
}

/// One worker. Lives on its thread; everything in it is plain cells.
#[derive(Debug)]
pub struct Worker {
    /// Shared state.
    pub plane: Arc<Plane>,
    /// Tells the other workers to serve waiters from their idle connections.
    pub nudge: Nudge,
    pub(super) pools: RefCell<HashMap<PoolKey, Rc<Local>>>,
    pub(super) sessions: RefCell<HashMap<u64, Rc<Control>>>,
    last_session: Cell<u64>,
    params: RefCell<HashSet<ParamSet>>,
    functions: RefCell<HashMap<String, Learnt>>,
    /// Plans of texts, in the replicating modes.
    pub(super) books: RefCell<Books>,
    now_s: Cell<u64>,
    way: RefCell<(u64, Way)>,
    /// In the replicating modes the ways to all live nodes, the main node first; as of `way`.
    routes: RefCell<Vec<Rc<Route>>>,
    /// The gate as of `way`, while any order holds it.
    gate: RefCell<Option<Arc<Gate>>>,
    pub(super) seat: Seat,
    /// Connections to the coming primary.
    pub(super) stock: RefCell<Option<Stock>>,
    _warmer: Warmer,
    /// The last order and the last RECONNECT that were attended to.
    pub(super) attended: Cell<(u64, u64)>,
    /// Orders that drain, and since when (coarse seconds) this worker knows of them.
    pub(super) drains: RefCell<Vec<(u64, u64)>>,
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
        let (seat, warmer) = (plane.board.take_seat(), plane.board.warmer());
        Rc::new(Worker {
            plane,
            nudge,
            pools: RefCell::default(),
            sessions: RefCell::default(),
            last_session: Cell::new(0),
            params: RefCell::default(),
            functions: RefCell::default(),
            books: RefCell::default(),
            now_s: Cell::new(0),
            way: RefCell::new((0, Way::Blocked("not yet known".into()))),
            routes: RefCell::default(),
            gate: RefCell::default(),
            seat,
            stock: RefCell::default(),
            _warmer: warmer,
            attended: Cell::default(),
            drains: RefCell::default(),
            stopping: Cell::new(None),
            emptied: Notify::new(),
        })
    }

    /// Serves until all senders of orders are gone, or after a stop until the last session has ended. Runs in a `LocalRuntime`.
    pub async fn run(self: Rc<Self>, mut orders: tokio::sync::mpsc::Receiver<Order>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // An interval, not a sleep for each turn: a worker with many orders would never get to its end.
        let mut gate_look = tokio::time::interval(GATE_LOOK);
        gate_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut board = self.plane.board.watch();
        self.attend();
        loop {
            let held = self.gate.borrow().is_some();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                _ = sweep.tick() => self.sweep(),
                Ok(()) = board.changed() => {
                    self.attend();
                    self.attend_warming();
                }
                _ = gate_look.tick(), if held => self.attend(),
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
            control.end(ending);
        }
        self.sessions.borrow_mut().insert(id, control.clone());
        let places = Places { admitted, _listed: Listed { worker: self.clone(), id } };
        tokio::task::spawn_local(session::serve(self.clone(), stream, control, places));
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

    /// The same for a pool's transactions, which the gate may hold, and which may have a node of their own.
    pub fn way_for(&self, key: &PoolKey) -> Way {
        let way = self.way();
        let gate = self.gate.borrow();
        let Some(gate) = gate.as_ref() else { return self.way_looked_up(way, key) };
        let covering =
            gate.orders.iter().map(|order| &order.wanted).filter(|wanted| wanted.scope.covers(&key.database));
        let mut held: Option<Way> = None;
        for wanted in covering {
            let is_patient = wanted.drain.is_some_and(|rules| rules.patient);
            held = Some(match held {
                Some(Way::Held { why, servers, patient }) => {
                    let servers = if wanted.servers == Servers::Close { Servers::Close } else { servers };
                    Way::Held { why, servers, patient: patient || is_patient }
                }
                _ => Way::Held { why: wanted.reason.as_str().into(), servers: wanted.servers, patient: is_patient },
            });
        }
        held.unwrap_or_else(|| self.way_looked_up(way, key))
    }

    /// The way for a pool, as of a look that was just taken. Another look could find the next view, and what was looked up is
    /// in use here.
    fn way_looked_up(&self, way: Way, key: &PoolKey) -> Way {
        key.node.map_or(way, |node| self.route_to(node))
    }

    /// The way for a pool, which may have a node of its own, whether the gate is held or not.
    pub fn way_of(&self, key: &PoolKey) -> Way {
        self.way_looked_up(self.way(), key)
    }

    /// The way to one node of several that are kept equal.
    pub(super) fn way_to(&self, node: NodeId) -> Way {
        self.way();
        self.route_to(node)
    }

    fn route_to(&self, node: NodeId) -> Way {
        match self.routes.borrow().iter().find(|route| route.id.node == node) {
            Some(route) => Way::Open(route.clone()),
            None => Way::Blocked(format!("node {node} is not in use").into()),
        }
    }

    /// In the replicating modes the live nodes, the main node first.
    pub fn live_nodes(&self) -> Vec<NodeId> {
        self.way();
        self.routes.borrow().iter().map(|route| route.id.node).collect()
    }

    /// True where something holds this database's transactions, as of the last look; for who waits anyway.
    pub(super) fn is_held(&self, database: &str) -> bool {
        self.gate.borrow().as_ref().is_some_and(|gate| gate.holds(database).is_some())
    }

    /// True where this database's transactions are held and the wait counts for no limit.
    fn is_held_patiently(&self, database: &str) -> bool {
        let gate = self.gate.borrow();
        let patient = |order: &Arc<GateOrder>| {
            order.wanted.scope.covers(database) && order.wanted.drain.is_some_and(|rules| rules.patient)
        };
        gate.as_ref().is_some_and(|gate| gate.orders.iter().any(patient))
    }

    /// Nothing that was looked up counts any more.
    pub(super) fn look_again(&self) {
        self.way.borrow_mut().0 = 0;
    }

    fn look(&self) -> Way {
        let published = self.plane.board.read();
        *self.gate.borrow_mut() = Some(published.gate.clone()).filter(|gate| !gate.is_open());
        self.routes.borrow_mut().clear();
        if published.view.mode.replicates() {
            // Timelines differ here by design, so they tell nothing.
            let ways: Result<Vec<_>, _> = published.view.live().map(|node| self.route(&node.spec, 0)).collect();
            return match ways {
                Ok(routes) => {
                    self.adopt_all(&routes.iter().map(|route| route.id).collect::<Vec<_>>());
                    let main = routes.first().cloned();
                    *self.routes.borrow_mut() = routes;
                    main.map_or_else(|| Way::Blocked("no node is in use".into()), Way::Open)
                }
                Err(why) => Way::Blocked(why),
            };
        }
        let Some(spec) = published.view.primary_spec() else {
            return Way::Blocked("no node is known to be the primary".into());
        };
        let timeline = published.view.epoch.as_ref().map_or(0, |e| e.timeline);
        let route = match self.route(spec, timeline) {
            Ok(route) => route,
            Err(why) => return Way::Blocked(why),
        };
        self.adopt_warm(route.id);
        Way::Open(route)
    }

    fn route(&self, spec: &NodeSpec, timeline: u32) -> Result<Rc<Route>, Rc<str>> {
        let settings = self.plane.settings.load();
        let target = Target::new(&spec.host.0, spec.port, spec.sslmode, &settings.server_tls, settings.keepalive)
            .map_err(|error| error.to_string())?;
        Ok(Rc::new(Route { id: RouteId { node: spec.id, timeline }, target: Arc::new(target) }))
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
            if let Some(who) = control.who.get() {
                control.limits.set(Limits::of(&settings.pool.rules(&who.user, &who.database)));
            }
        }
    }

    fn sweep(self: &Rc<Self>) {
        // One clock for all workers, since connections and their ages go from one to another.
        self.now_s.set(self.plane.started.elapsed().as_secs());
        self.plane.budget.tick();
        self.watch_rate();
        for (key, pool) in self.pools.borrow().iter() {
            let way = key.node.map_or_else(|| self.way(), |node| self.way_to(node));
            let route = match &way {
                Way::Open(route) => Some(route.id),
                Way::Blocked(_) | Way::Held { .. } => None,
            };
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
            let held = control.database().is_some_and(|database| self.is_held_patiently(database));
            control.sweep(now, held);
        }
    }

    fn stop(&self, ending: Ending) {
        self.stopping.set(Some(ending));
        self.sessions.borrow().values().for_each(|control| control.end(ending));
    }
}

/// A client's places in the plane's count and on the worker's list, for as long as it is there.
#[derive(Debug)]
pub struct Places {
    admitted: Admitted,
    _listed: Listed,
}

impl Places {
    /// `max_client_conn`, when there were so many already.
    pub fn beyond(&self) -> Option<usize> {
        self.admitted.beyond
    }
}

/// Takes a session off the worker's list, however it ended.
#[derive(Debug)]
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
