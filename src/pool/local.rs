//! One worker's share of a pool: its idle connections, newest used first.

use super::{Pooled, SharedPool};
use crate::server::RouteId;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Idle connections of one worker in one pool. Lives on that worker's thread.
#[derive(Debug)]
pub struct Local {
    /// The budget.
    pub shared: Arc<SharedPool>,
    // Boxed, as they travel: a lease moves a pointer and not the connection's state.
    #[allow(clippy::vec_box)]
    idle: RefCell<Vec<Box<Pooled>>>,
    /// `server_lifetime` as of the last sweep, seconds; zero = none.
    lifetime_s: Cell<u64>,
}

impl Local {
    /// No connection yet.
    pub fn new(shared: Arc<SharedPool>) -> Local {
        Local { shared, idle: RefCell::default(), lifetime_s: Cell::new(0) }
    }

    /// An idle connection of this route, if nobody waits before us. Those that the server closed meanwhile are dropped.
    pub fn take(&self, route: RouteId) -> Option<Box<Pooled>> {
        if self.shared.waiting() > 0 {
            return None;
        }
        let mut idle = self.idle.borrow_mut();
        while let Some(mut pooled) = idle.pop() {
            if pooled.conn.route == route && !pooled.permit.is_outdated() && pooled.conn.is_quiet() {
                return Some(pooled);
            }
        }
        None
    }

    /// Gives a clean connection back: to who waits longest, else to the idle ones. One whose life is over is closed here,
    /// never while it works. The caller has checked the route.
    pub fn put(&self, mut pooled: Box<Pooled>, now_s: u64) {
        if pooled.conn.broken || pooled.permit.is_outdated() || pooled.conn.is_past(now_s, self.lifetime_s.get()) {
            return;
        }
        pooled.conn.idle_since_s = now_s;
        if self.shared.waiting() == 0 {
            self.idle.borrow_mut().push(pooled);
            return;
        }
        if self.shared.is_oversize() {
            return;
        }
        let back = self.shared.give(pooled);
        if let Some(pooled) = back {
            self.idle.borrow_mut().push(pooled);
        }
    }

    /// Serves waiters (of any worker) from the idle connections here. Those that the server closed meanwhile are dropped,
    /// which lets a waiter open one.
    pub fn serve_waiters(&self) {
        while self.shared.waiting() > 0 {
            let Some(mut pooled) = self.idle.borrow_mut().pop() else { return };
            if pooled.permit.is_outdated() || !pooled.conn.is_quiet() {
                continue;
            }
            if let Some(back) = self.shared.give(pooled) {
                self.idle.borrow_mut().push(back);
                return;
            }
        }
    }

    /// Drops idle connections of other routes, too old, idle for too long (zero = no limit), or beyond the size.
    pub fn sweep(&self, route: Option<RouteId>, now_s: u64, idle_limit_s: u64, lifetime_s: u64) {
        self.lifetime_s.set(lifetime_s);
        let old = |since: u64, limit: u64| limit > 0 && now_s.saturating_sub(since) >= limit;
        // Dropping a connection gives its permit back, which must not happen while the list is borrowed.
        let dropped: Vec<_> = self
            .idle
            .borrow_mut()
            .extract_if(.., |p| {
                route.is_some_and(|r| r != p.conn.route)
                    || old(p.conn.idle_since_s, idle_limit_s)
                    || p.conn.is_past(now_s, lifetime_s)
                    || !p.conn.is_quiet()
            })
            .collect();
        drop(dropped);
        if self.shared.is_oversize() {
            let one = self.idle.borrow_mut().pop();
            drop(one);
        }
    }

    /// Closes the idle connections from before a RECONNECT.
    pub fn drop_outdated(&self) {
        let dropped: Vec<_> = self.idle.borrow_mut().extract_if(.., |p| p.permit.is_outdated()).collect();
        drop(dropped);
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.idle.borrow_mut());
        drop(all);
    }

    /// Idle connections here.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}
