//! One pool as all workers share it: its rules, its place in the budget, and what its waiters get.

use super::budget::{Budget, Home, Waiting};
use super::core::{Back, Granted, Place, PoolId};
use super::greetings::{Greetings, Reported, Wishes};
use super::rules::Rules;
use crate::base::NodeId;
use crate::server::{RouteId, ServerConn, ServerError};
use arc_swap::ArcSwap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// A pool is one user in one database; where pgmend itself keeps several nodes equal, on one of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PoolKey {
    /// Role that logs in to the servers.
    pub user: String,
    /// Database as clients name it.
    pub database: String,
    /// The node in the replicating modes, where a transaction has a connection to each; `None`: the primary, whoever it is.
    pub node: Option<NodeId>,
}

impl PoolKey {
    /// The pool towards the primary.
    pub fn of_primary(user: String, database: String) -> PoolKey {
        PoolKey { user, database, node: None }
    }

    /// Under which names the shared limits of a database and of a user count. In the replicating modes each node counts for
    /// itself: a transaction takes one connection of each, and must not wait for its own other half.
    fn limit_names(&self) -> (String, String) {
        match self.node {
            None => (self.database.clone(), self.user.clone()),
            // No name has a zero byte.
            Some(node) => (format!("{}\0{node}", self.database), format!("{}\0{node}", self.user)),
        }
    }
}

/// What a waiter gets.
#[derive(Debug)]
pub enum Grant {
    /// A connection that was given back.
    Conn(Box<Pooled>),
    /// The right to open one.
    Permit(Permit),
}

/// A connection with its place in the budget.
#[derive(Debug)]
pub struct Pooled {
    /// The connection.
    pub conn: ServerConn,
    /// Its place; dropping it makes room for the next waiter.
    pub permit: Permit,
}

impl Grant {
    /// Brings a connection that another worker gave to the current runtime. When that fails, the place in the budget is
    /// left: the waiter may open another.
    pub fn arrive(self) -> Grant {
        let pooled = match self {
            Grant::Conn(pooled) if !pooled.conn.is_at_home() => pooled,
            here => return here,
        };
        let Pooled { conn, permit } = *pooled;
        match conn.into_this_runtime() {
            Ok(conn) => {
                permit.pool.moved.fetch_add(1, Ordering::Relaxed);
                Grant::Conn(Box::new(Pooled { conn, permit }))
            }
            Err(error) => {
                tracing::warn!(event = "server.not_moved", %error, "a server connection could not go to another worker");
                Grant::Permit(permit)
            }
        }
    }
}

/// The right to have one connection open. Given back on drop, so a dropped future leaves nothing behind.
#[derive(Debug)]
pub struct Permit {
    pool: Arc<SharedPool>,
    place: Place,
    /// The pool's when it was given.
    reconnects: u64,
}

impl Permit {
    fn of(pool: Arc<SharedPool>, place: Place) -> Permit {
        let reconnects = pool.reconnects.load(Ordering::Relaxed);
        Permit { pool, place, reconnects }
    }

    /// The node that it is for.
    pub fn node(&self) -> NodeId {
        self.place.node
    }

    /// True when a RECONNECT came after it: its connection is closed as soon as nobody uses it. One load.
    pub fn is_outdated(&self) -> bool {
        self.pool.reconnects.load(Ordering::Relaxed) != self.reconnects
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let granted = self.pool.budget.with(|core, clock| core.released(self.place, clock.now_us()));
        hand_out(granted);
    }
}

/// Outcome of asking for a connection when no idle one is at hand.
#[derive(Debug)]
pub enum Asked {
    /// One may be opened.
    Permit(Permit),
    /// Wait for the grant; `id` takes the waiter out again.
    Wait {
        /// Of the waiter.
        id: u64,
        /// Where the grant arrives.
        grant: oneshot::Receiver<Grant>,
        /// The pool itself has room: a limit above it is reached, or the rate of new connections.
        held_up: bool,
        /// Nobody waited before: idle connections may lie somewhere. Later ones need not be called for, as they do not lie
        /// down while somebody waits.
        first: bool,
    },
    /// Too many wait already.
    Full,
}

/// A login that the servers refused, remembered for `server_login_retry`.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// By this node, in this history.
    pub route: RouteId,
    /// When.
    pub at: Instant,
    /// Why.
    pub why: Arc<ServerError>,
}

/// One pool's part of the budget.
#[derive(Debug)]
pub struct SharedPool {
    /// Whose.
    pub key: PoolKey,
    id: PoolId,
    budget: Arc<Budget>,
    rules: ArcSwap<Rules>,
    waiting: Arc<AtomicUsize>,
    moved: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
    reconnects: AtomicU64,
    /// Of all workers, so that a login waits for a server only where no server is known at all.
    greetings: Mutex<Greetings>,
}

impl SharedPool {
    /// A pool without connections.
    pub fn new(key: PoolKey, rules: Rules, budget: &Arc<Budget>) -> Arc<SharedPool> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let sizes = rules.sizes();
        let (database, user) = key.limit_names();
        let id = budget.with(|core, _| core.add_pool(&database, &user, sizes, waiting.clone()));
        Arc::new(SharedPool {
            key,
            id,
            budget: budget.clone(),
            rules: ArcSwap::from_pointee(rules),
            waiting,
            moved: AtomicU64::new(0),
            refusal: Mutex::default(),
            reconnects: AtomicU64::new(0),
            greetings: Mutex::default(),
        })
    }

    /// What is in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts new rules in force. Smaller sizes take effect as connections come back; call [`Budget::tick`] when all pools
    /// have theirs. A refused login may be tried again at once.
    pub fn set_rules(&self, rules: Rules) {
        self.budget.with(|core, _| core.set_sizes(self.id, rules.sizes()));
        self.rules.store(Arc::new(rules));
        self.remember(None);
    }

    /// Clients that wait, over all workers: one load, for the hot path.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// True when nobody waits who could need a connection of this pool: two loads, for the hot path.
    pub fn is_calm(&self) -> bool {
        self.waiting() == 0 && self.budget.contended() == 0
    }

    /// Connections open or being opened.
    pub fn open(&self) -> usize {
        self.budget.with(|core, _| core.open(self.id))
    }

    /// Connections that went from one worker to another so far. Each costs two registrations and a wake-up across threads:
    /// the exception, unless the pool is smaller than the number of workers.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Every connection that is open now is closed as soon as nobody uses it (RECONNECT).
    pub fn reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// What a server of this route reports to a session with these wishes, if one was asked before.
    pub fn greeting(&self, route: RouteId, wishes: &Wishes) -> Option<Reported> {
        self.greetings.lock().unwrap_or_else(PoisonError::into_inner).of(route, wishes)
    }

    /// Remembers it for the next login.
    pub fn remember_greeting(&self, route: RouteId, wishes: &Wishes, reported: Reported) {
        self.greetings.lock().unwrap_or_else(PoisonError::into_inner).remember(route, wishes, reported);
    }

    /// True when more are open than the size allows (after a reload, or the reserve was needed).
    pub fn is_oversize(&self) -> bool {
        self.budget.with(|core, _| core.is_oversize(self.id))
    }

    /// True when a connection could be opened now and nobody waits for one.
    pub fn has_room(&self, node: NodeId) -> bool {
        let place = Place { pool: self.id, node };
        self.budget.with(|core, clock| core.can_open(place, clock.now_us()))
    }

    /// Asks for the right to open a connection to a node, or joins the queue.
    pub fn ask(self: &Arc<Self>, node: NodeId, home: Home) -> Asked {
        let place = Place { pool: self.id, node };
        let (gift, grant) = oneshot::channel();
        let joined = self.budget.with(|core, clock| {
            let held_up = core.is_open_to(self.id);
            if held_up && core.try_open(place, clock.now_us()) {
                return None;
            }
            let first = self.waiting() == 0;
            Some((core.join(place, clock.now_us(), Waiting { gift, pool: self.clone(), home }), held_up, first))
        });
        match joined {
            None => Asked::Permit(Permit::of(self.clone(), place)),
            Some((Ok(id), held_up, first)) => Asked::Wait { id, grant, held_up, first },
            Some((Err(_), ..)) => Asked::Full,
        }
    }

    /// The right to open one that `min_pool_size` asks for.
    pub fn top_up(self: &Arc<Self>, node: NodeId) -> Option<Permit> {
        let place = Place { pool: self.id, node };
        let may = self.budget.with(|core, clock| core.top_up(place, clock.now_us()));
        may.then(|| Permit::of(self.clone(), place))
    }

    /// Takes a waiter out again (time-out, disconnect).
    pub fn forget(&self, id: u64) {
        let granted = self.budget.with(|core, clock| core.forget(self.id, id, clock.now_us()));
        hand_out(granted);
    }

    /// Offers a connection to those who wait; returns it when it may stay idle. A waiter of another worker brings it to
    /// his own runtime (see [`Grant::arrive`]), so those who are at home where the connection is go before, within bounds.
    pub fn give(&self, pooled: Box<Pooled>, home: Home) -> Option<Box<Pooled>> {
        let mut pooled = pooled;
        loop {
            let place = pooled.permit.place;
            let back = self.budget.with(|core, clock| {
                let now_us = if core.needs_time(self.id) { clock.now_us() } else { 0 };
                core.returned(place, now_us, |waiter| waiter.home == home)
            });
            let waiter = match back {
                Back::Keep => return Some(pooled),
                // Closed here, outside the lock; its place goes to who waits longest for it.
                Back::Close => return None,
                Back::Give(waiter) => waiter,
            };
            match waiter.gift.send(Grant::Conn(pooled)) {
                Ok(()) => return None,
                Err(Grant::Conn(back)) => pooled = back,
                Err(Grant::Permit(_)) => return None,
            }
        }
    }

    /// Remembers that the servers refuse this pool's login, or that they do not.
    pub fn remember(&self, refusal: Option<Refusal>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// A refusal by this route that is not older than `server_login_retry`.
    pub fn refusal(&self, route: RouteId) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let retry = self.rules.load().login_retry;
        refusal.as_ref().filter(|r| r.route == route && r.at.elapsed() < retry).cloned()
    }
}

/// Lets waiters open connections. When one has gone, the permit in the returned grant is dropped here, outside the lock, and
/// goes to the next.
pub fn hand_out(granted: Vec<Granted<Waiting>>) {
    for (Waiting { gift, pool, .. }, place) in granted {
        let _ = gift.send(Grant::Permit(Permit::of(pool, place)));
    }
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
