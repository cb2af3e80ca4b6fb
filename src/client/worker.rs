//! One thread of the data plane: its clients, its idle server connections, its coarse clock.

use super::activity::Limits;
use super::control::{Control, End, Ending};
use super::leftovers::Functions;
use super::plane::{Admitted, Plane, Presence};
use super::replicated::Books;
use super::roster::Roster;
use super::session;
use super::topup;
use super::warm::Stock;
use super::way::{Looked, Route, Way};
use crate::base::NodeId;
use crate::cluster::{NodeSpec, Seat, Warmer};
use crate::net::{StdStream, Stream};
use crate::pool::{Home, Local, PoolKey};
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

/// One worker. Lives on its thread; everything in it is plain cells.
#[derive(Debug)]
pub struct Worker {
    /// Shared state.
    pub plane: Arc<Plane>,
    /// Which of the workers it is.
    home: Home,
    /// Tells the other workers to serve waiters from their idle connections.
    pub nudge: Nudge,
    pub(super) pools: RefCell<HashMap<PoolKey, Rc<Local>>>,
    pub(super) sessions: RefCell<Roster>,
    params: RefCell<HashSet<ParamSet>>,
    functions: RefCell<HashMap<String, Learnt>>,
    /// Plans of texts, in the replicating modes.
    pub(super) books: RefCell<Books>,
    now_s: Cell<u64>,
    /// The last look at the board, and the board's version then. Never borrowed over a call: whoever reads it has it whole.
    looked: RefCell<Rc<Looked>>,
    seen: Cell<u64>,
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
    pub fn new(plane: Arc<Plane>, home: Home, nudge: Nudge) -> Rc<Worker> {
        let (seat, warmer) = (plane.board.take_seat(), plane.board.warmer());
        Rc::new(Worker {
            plane,
            home,
            nudge,
            pools: RefCell::default(),
            sessions: RefCell::default(),
            params: RefCell::default(),
            functions: RefCell::default(),
            books: RefCell::default(),
            now_s: Cell::new(0),
            looked: RefCell::new(Rc::new(Looked::nothing())),
            seen: Cell::new(0),
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
            let held = self.last_look().is_gated();
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
        let stream = match Stream::from_std(socket) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(event = "client.lost_at_accept", %error);
                return;
            }
        };
        let control = Rc::new(Control::default());
        if let Some(ending) = self.stopping.get() {
            control.end(ending);
        }
        self.sessions.borrow_mut().add(control.clone());
        let Admitted { counted, beyond } = admitted;
        let listed = Listed { worker: self.clone(), control: control.clone() };
        let entry = Entry { places: Places { _counted: counted, _listed: listed }, beyond };
        tokio::task::spawn_local(session::serve(self.clone(), stream, control, entry));
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
        self.look().way()
    }

    /// The same for a pool's transactions, which the gate may hold, and which may have a node of their own.
    pub fn way_for(&self, key: &PoolKey) -> Way {
        self.look().way_for(key)
    }

    /// The way for a pool, which may have a node of its own, whether the gate is held or not.
    pub fn way_of(&self, key: &PoolKey) -> Way {
        self.look().way_of(key)
    }

    /// In the replicating modes the live nodes, the main node first.
    pub fn live_nodes(&self) -> Vec<NodeId> {
        self.look().routes().iter().map(|route| route.id.node).collect()
    }

    /// True where something holds this database's transactions, as of the last look; for who waits anyway.
    pub(super) fn is_held(&self, database: &str) -> bool {
        self.last_look().is_held(database)
    }

    /// Nothing that was looked up counts any more.
    pub(super) fn look_again(&self) {
        self.seen.set(0);
    }

    fn last_look(&self) -> Rc<Looked> {
        self.looked.borrow().clone()
    }

    fn look(&self) -> Rc<Looked> {
        let version = self.plane.board.version();
        if self.seen.get() == version {
            return self.last_look();
        }
        let looked = Rc::new(self.look_at_the_board());
        self.seen.set(version);
        self.looked.replace(looked.clone());
        // Connections to nodes that are in use from now on join the idle ones before anybody looks for one.
        match looked.way() {
            _ if !looked.routes().is_empty() => {
                self.adopt_all(&looked.routes().iter().map(|route| route.id).collect::<Vec<_>>());
            }
            Way::Open(route) => self.adopt_warm(route.id),
            Way::Blocked(_) | Way::Held { .. } => {}
        }
        looked
    }

    fn look_at_the_board(&self) -> Looked {
        let published = self.plane.board.read();
        let (view, gate) = (&published.view, &published.gate);
        if view.mode.replicates() {
            // Timelines differ here by design, so they tell nothing.
            return Looked::several(view.live().map(|node| self.route(&node.spec, 0)).collect(), gate);
        }
        let Some(spec) = view.primary_spec() else {
            return Looked::one(Err("no node is known to be the primary".into()), gate);
        };
        Looked::one(self.route(spec, view.epoch.as_ref().map_or(0, |e| e.timeline)), gate)
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
        let pool = Rc::new(Local::new(self.plane.pool(key)?, self.home));
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
        self.look_again();
        let settings = self.plane.settings.load();
        for control in self.sessions.borrow().iter() {
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
            let way = self.way_of(key);
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
        let (now, looked) = (self.now_s.get(), self.last_look());
        for control in self.sessions.borrow().iter() {
            let held = control.database().is_some_and(|database| looked.is_held_patiently(database));
            control.sweep(now, held);
        }
    }

    fn stop(&self, ending: Ending) {
        self.stopping.set(Some(ending));
        self.sessions.borrow().iter().for_each(|control| control.end(ending));
    }
}

/// How a client comes in.
#[derive(Debug)]
pub struct Entry {
    /// What it keeps.
    pub places: Places,
    /// `max_client_conn`, when there were so many already.
    pub beyond: Option<usize>,
}

/// A client's places in the plane's count and on the worker's list, for as long as it is there.
#[derive(Debug)]
pub struct Places {
    _counted: Presence,
    _listed: Listed,
}

/// Takes a session off the worker's list, however it ended.
#[derive(Debug)]
struct Listed {
    worker: Rc<Worker>,
    control: Rc<Control>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut sessions = self.worker.sessions.borrow_mut();
        sessions.remove(&self.control);
        if sessions.is_empty() && self.worker.stopping.get().is_some() {
            self.worker.emptied.notify_one();
        }
    }
}
