//! One worker's share of a pool: its idle connections, newest used first.

use super::{Asked, Home, Pooled, SharedPool};
use crate::base::NodeId;
use crate::server::{Login, RouteId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Idle connections of one worker in one pool. Lives on that worker's thread.
#[derive(Debug)]
pub struct Local {
    /// The budget.
    pub shared: Arc<SharedPool>,
    home: Home,
    // Boxed, as they travel: a lease moves a pointer and not the connection's state.
    #[allow(clippy::vec_box)]
    idle: RefCell<Vec<Box<Pooled>>>,
    /// How the last client's servers were logged in to, for connections that are opened without a client.
    login: RefCell<Option<Rc<Login>>>,
    /// `server_lifetime` as of the last sweep, seconds; zero = none.
    lifetime_s: Cell<u64>,
}

impl Local {
    /// No connection yet.
    pub fn new(shared: Arc<SharedPool>, home: Home) -> Local {
        Local { shared, home, idle: RefCell::default(), login: RefCell::default(), lifetime_s: Cell::new(0) }
    }

    /// A client has come, whose servers are logged in to like this. As a rule all the pool's clients have the same: then they
    /// share it.
    pub fn share_login(&self, login: Login) -> Rc<Login> {
        let mut known = self.login.borrow_mut();
        match known.as_ref().filter(|known| ***known == login) {
            Some(same) => same.clone(),
            None => known.insert(Rc::new(login)).clone(),
        }
    }

    /// How to log in, if a client has been here.
    pub fn login(&self) -> Option<Rc<Login>> {
        self.login.borrow().clone()
    }

    /// Asks for the right to open a connection to a node, or joins the queue.
    pub fn ask(&self, node: NodeId) -> Asked {
        self.shared.ask(node, self.home)
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

    /// Puts one back that has just been taken and was not used after all.
    pub fn take_not(&self, pooled: Box<Pooled>) {
        self.idle.borrow_mut().push(pooled);
    }

    /// Gives a clean connection back: to who waits longest, else to the idle ones. One whose life is over is closed here,
    /// never while it works. The caller has checked the route.
    pub fn put(&self, mut pooled: Box<Pooled>, now_s: u64) {
        if pooled.conn.broken || pooled.permit.is_outdated() || pooled.conn.is_past(now_s, self.lifetime_s.get()) {
            return;
        }
        pooled.conn.idle_since_s = now_s;
        let kept = if self.shared.is_calm() { Some(pooled) } else { self.shared.give(pooled, self.home) };
        if let Some(pooled) = kept {
            self.idle.borrow_mut().push(pooled);
        }
    }

    /// Serves waiters (of any worker) from the idle connections here, and closes those whose places other pools need. What
    /// the server closed meanwhile is dropped, which lets a waiter open one.
    pub fn serve_waiters(&self) {
        while !self.shared.is_calm() {
            let Some(mut pooled) = self.idle.borrow_mut().pop() else { return };
            if pooled.permit.is_outdated() || !pooled.conn.is_quiet() {
                continue;
            }
            if let Some(back) = self.shared.give(pooled, self.home) {
                self.idle.borrow_mut().push(back);
                return;
            }
        }
    }

    /// Drops idle connections of other routes, too old, idle for too long (above `min_pool_size`), or beyond the size.
    /// Without clients in this worker there is no least number.
    pub fn sweep(&self, route: Option<RouteId>, now_s: u64, has_clients: bool) {
        let rules = self.shared.rules();
        let (idle_s, lifetime_s) = (whole_seconds(rules.server_idle_timeout), whole_seconds(rules.server_lifetime));
        self.lifetime_s.set(lifetime_s);
        if self.idle.borrow().is_empty() {
            return;
        }
        let mut spare = self.shared.open().saturating_sub(if has_clients { rules.min_size } else { 0 });
        // Dropping a connection gives its permit back, which must not happen while the list is borrowed.
        let dropped: Vec<_> = self
            .idle
            .borrow_mut()
            .extract_if(.., |p| {
                let dead =
                    route.is_some_and(|r| r != p.conn.route) || p.conn.is_past(now_s, lifetime_s) || !p.conn.is_quiet();
                let tired = idle_s > 0 && now_s.saturating_sub(p.conn.idle_since_s) >= idle_s && spare > 0;
                spare -= usize::from((dead || tired) && spare > 0);
                dead || tired
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

/// A limit in the coarse clock's grain; never shorter than it was meant, and zero only when it was.
fn whole_seconds(limit: Duration) -> u64 {
    limit.as_secs() + u64::from(limit.subsec_nanos() > 0)
}
