//! The budget of one pool over all workers, and its one order of waiting (first in, first out).

use super::greetings::{Greetings, Reported, Wishes};
use crate::server::{RouteId, ServerConn};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// A pool is one user in one database.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PoolKey {
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
}

/// Waiters of one pool; beyond it a client is refused at once.
const MAX_WAITERS: usize = 100_000;

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
    /// The pool's when it was given.
    reconnects: u64,
}

impl Permit {
    fn of(pool: &Arc<SharedPool>) -> Permit {
        Permit { pool: pool.clone(), reconnects: pool.reconnects.load(Ordering::Relaxed) }
    }

    /// True when a RECONNECT came after it: its connection is closed as soon as nobody uses it. One load.
    pub fn is_outdated(&self) -> bool {
        self.pool.reconnects.load(Ordering::Relaxed) != self.reconnects
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.permit_returned();
    }
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    gift: oneshot::Sender<Grant>,
}

#[derive(Debug, Default)]
struct Queue {
    open: usize,
    waiters: VecDeque<Waiter>,
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
    },
    /// Too many wait already.
    Full,
}

/// One pool's budget.
#[derive(Debug)]
pub struct SharedPool {
    /// Whose.
    pub key: PoolKey,
    size: AtomicUsize,
    waiting: AtomicUsize,
    ids: AtomicU64,
    moved: AtomicU64,
    reconnects: AtomicU64,
    queue: Mutex<Queue>,
    /// Of all workers, so that a login waits for a server only where no server is known at all.
    greetings: Mutex<Greetings>,
}

impl SharedPool {
    /// An empty pool of at most `size` connections.
    pub fn new(key: PoolKey, size: usize) -> Arc<SharedPool> {
        Arc::new(SharedPool {
            key,
            size: AtomicUsize::new(size.max(1)),
            waiting: AtomicUsize::new(0),
            ids: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            queue: Mutex::default(),
            greetings: Mutex::default(),
        })
    }

    /// Changes the size at reload; a smaller one takes effect as connections come back.
    pub fn resize(self: &Arc<Self>, size: usize) {
        self.size.store(size.max(1), Ordering::Relaxed);
        self.grant_permits();
    }

    /// Clients that wait, over all workers: one load, for the hot path.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Connections open or being opened.
    pub fn open(&self) -> usize {
        self.lock().open
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
    pub fn remember_greeting(&self, route: RouteId, wishes: Wishes, reported: Reported) {
        self.greetings.lock().unwrap_or_else(PoisonError::into_inner).remember(route, wishes, reported);
    }

    /// True when more are open than the size allows (after a reload).
    pub fn is_oversize(&self) -> bool {
        self.open() > self.size.load(Ordering::Relaxed)
    }

    /// True when a connection could be opened now and nobody waits for one.
    pub fn has_room(&self) -> bool {
        let queue = self.lock();
        queue.waiters.is_empty() && queue.open < self.size.load(Ordering::Relaxed)
    }

    /// Asks for the right to open a connection, or joins the queue.
    pub fn ask(self: &Arc<Self>) -> Asked {
        let mut queue = self.lock();
        if queue.waiters.is_empty() && queue.open < self.size.load(Ordering::Relaxed) {
            queue.open += 1;
            return Asked::Permit(Permit::of(self));
        }
        if queue.waiters.len() >= MAX_WAITERS {
            return Asked::Full;
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (gift, grant) = oneshot::channel();
        queue.waiters.push_back(Waiter { id, gift });
        self.waiting.store(queue.waiters.len(), Ordering::Release);
        Asked::Wait { id, grant }
    }

    /// Takes a waiter out again (time-out, disconnect).
    pub fn forget(&self, id: u64) {
        let mut queue = self.lock();
        queue.waiters.retain(|w| w.id != id);
        self.waiting.store(queue.waiters.len(), Ordering::Release);
    }

    /// Gives a connection to whoever waits longest; returns it when nobody does. A waiter of another worker brings it to
    /// its own runtime: see [`Grant::arrive`].
    pub fn give(self: &Arc<Self>, pooled: Box<Pooled>) -> Option<Box<Pooled>> {
        let mut pooled = pooled;
        loop {
            let Some(waiter) = self.pop() else { return Some(pooled) };
            match waiter.gift.send(Grant::Conn(pooled)) {
                Ok(()) => return None,
                Err(Grant::Conn(back)) => pooled = back,
                Err(Grant::Permit(_)) => return None,
            }
        }
    }

    fn pop(&self) -> Option<Waiter> {
        let mut queue = self.lock();
        let waiter = queue.waiters.pop_front();
        self.waiting.store(queue.waiters.len(), Ordering::Release);
        waiter
    }

    fn permit_returned(self: &Arc<Self>) {
        {
            let mut queue = self.lock();
            queue.open = queue.open.saturating_sub(1);
        }
        self.grant_permits();
    }

    /// Lets waiters open connections while there is room.
    fn grant_permits(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut queue = self.lock();
                if queue.open >= self.size.load(Ordering::Relaxed) {
                    return;
                }
                let Some(waiter) = queue.waiters.pop_front() else { return };
                self.waiting.store(queue.waiters.len(), Ordering::Release);
                queue.open += 1;
                waiter
            };
            // When the waiter has gone, the permit in the returned grant is dropped outside the lock and comes back here.
            let _ = waiter.gift.send(Grant::Permit(Permit::of(self)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::pool::Local;
    use crate::server::Connected;
    use tokio::io::AsyncReadExt;

    fn pool(size: usize) -> Arc<SharedPool> {
        SharedPool::new(PoolKey { user: "u".into(), database: "d".into() }, size)
    }

    #[test]
    fn the_budget_is_kept_and_waiters_are_served_in_order() {
        let pool = pool(1);
        let Asked::Permit(first) = pool.ask() else { panic!("expected a permit") };
        let Asked::Wait { grant: mut second, .. } = pool.ask() else { panic!("expected to wait") };
        let Asked::Wait { grant: mut third, .. } = pool.ask() else { panic!("expected to wait") };
        assert_eq!((pool.open(), pool.waiting()), (1, 2));
        drop(first);
        let granted = second.try_recv().unwrap();
        assert!(third.try_recv().is_err());
        drop(granted);
        assert!(matches!(third.try_recv(), Ok(Grant::Permit(_))));
        drop(third);
        assert_eq!((pool.open(), pool.waiting()), (0, 0));
    }

    #[test]
    fn a_waiter_that_left_is_passed_over() {
        let pool = pool(1);
        let Asked::Permit(first) = pool.ask() else { panic!("expected a permit") };
        let Asked::Wait { grant: gone, .. } = pool.ask() else { panic!("expected to wait") };
        let Asked::Wait { grant: mut next, .. } = pool.ask() else { panic!("expected to wait") };
        drop(gone);
        drop(first);
        assert!(matches!(next.try_recv(), Ok(Grant::Permit(_))));
    }

    #[test]
    fn forgetting_a_waiter_takes_it_out() {
        let pool = pool(1);
        let Asked::Permit(_first) = pool.ask() else { panic!("expected a permit") };
        let Asked::Wait { id, grant: _grant } = pool.ask() else { panic!("expected to wait") };
        pool.forget(id);
        assert_eq!(pool.waiting(), 0);
    }

    #[test]
    fn a_larger_size_lets_waiters_in() {
        let pool = pool(1);
        let Asked::Permit(_first) = pool.ask() else { panic!("expected a permit") };
        let Asked::Wait { grant: mut second, .. } = pool.ask() else { panic!("expected to wait") };
        pool.resize(2);
        assert!(matches!(second.try_recv(), Ok(Grant::Permit(_))));
    }

    /// A connection of the current runtime in this place, and the server's end of it.
    fn connection(permit: Permit) -> (Box<Pooled>, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(ours).unwrap().into();
        let connected = Connected { stream, parameters: Vec::new(), pid: 1, cancel_key: Vec::new() };
        let conn = ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 0);
        (Box::new(Pooled { conn, permit }), theirs)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_connection_given_to_another_worker_lives_on_in_its_runtime() {
        let pool = pool(1);
        let Asked::Permit(permit) = pool.ask() else { panic!("expected a permit") };
        let Asked::Wait { mut grant, .. } = pool.ask() else { panic!("expected to wait") };
        let mut theirs = block_on(async {
            let (pooled, theirs) = connection(permit);
            assert!(pool.give(pooled).is_none());
            theirs
        });
        // The runtime that it came from is gone.
        block_on(async {
            let Grant::Conn(pooled) = grant.try_recv().unwrap().arrive() else { panic!("expected the connection") };
            assert!(pooled.conn.is_at_home());
            let mut pooled = pooled;
            std::io::Write::write_all(&mut theirs, b"hi").unwrap();
            let mut got = [0u8; 2];
            pooled.conn.stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hi");
            let Grant::Conn(_stays) = Grant::Conn(pooled).arrive() else { panic!("expected the connection") };
        });
        assert_eq!(pool.moved(), 1, "counted once, not when it was at home");
    }

    #[test]
    fn idle_connections_that_died_are_not_given_to_who_waits() {
        block_on(async {
            let shared = pool(1);
            let local = Local::new(shared.clone());
            let Asked::Permit(permit) = shared.ask() else { panic!("expected a permit") };
            let (pooled, theirs) = connection(permit);
            local.put(pooled, 0);
            let Asked::Wait { mut grant, .. } = shared.ask() else { panic!("expected to wait") };
            drop(theirs);
            // A turn of the driver, in which it learns of the end.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            local.serve_waiters();
            assert!(matches!(grant.try_recv(), Ok(Grant::Permit(_))), "the right to open one instead");
        });
    }

    #[test]
    fn a_connection_past_its_life_is_closed_when_it_comes_back() {
        block_on(async {
            let shared = pool(2);
            let local = Local::new(shared.clone());
            local.sweep(None, 0, 0, 5);
            for (now, idle) in [(4, 1), (5, 0)] {
                let Asked::Permit(permit) = shared.ask() else { panic!("expected a permit") };
                let (pooled, _theirs) = connection(permit);
                local.put(pooled, now);
                assert_eq!((local.idle(), shared.open()), (idle, idle), "at second {now}");
                local.clear();
            }
        });
    }
}
