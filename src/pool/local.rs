//! One worker's share of a pool: its idle connections, newest used first.

use super::{Pooled, SharedPool};
use crate::server::RouteId;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Idle connections of one worker in one pool. Lives on that worker's thread.
#[derive(Debug)]
pub struct Local {
    /// The budget.
    pub shared: Arc<SharedPool>,
    // Boxed, as they travel: a lease moves a pointer and not the connection's state.
    #[allow(clippy::vec_box)]
    idle: RefCell<Vec<Box<Pooled>>>,
    greetings: RefCell<Greetings>,
}

/// What servers of one route report at a session's start, by the session's own wishes.
#[derive(Debug, Default)]
struct Greetings {
    route: Option<RouteId>,
    known: Vec<(Wishes, Reported)>,
}

type Wishes = BTreeMap<String, String>;
type Reported = Arc<HashMap<String, String>>;

/// Greetings remembered per pool and worker: clients of one pool come in few kinds.
const MAX_GREETINGS: usize = 32;

impl Local {
    /// No connection yet.
    pub fn new(shared: Arc<SharedPool>) -> Local {
        Local { shared, idle: RefCell::default(), greetings: RefCell::default() }
    }

    /// An idle connection of this route, if nobody waits before us. Those that the server closed meanwhile are dropped.
    pub fn take(&self, route: RouteId) -> Option<Box<Pooled>> {
        if self.shared.waiting() > 0 {
            return None;
        }
        let mut idle = self.idle.borrow_mut();
        while let Some(pooled) = idle.pop() {
            if pooled.conn.route == route && pooled.conn.is_quiet() {
                return Some(pooled);
            }
        }
        None
    }

    /// Gives a clean connection back: to who waits longest, else to the idle ones. The caller has checked the route.
    pub fn put(&self, mut pooled: Box<Pooled>, now_s: u64) {
        if pooled.conn.broken {
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

    /// Serves waiters (of any worker) from the idle connections here.
    pub fn serve_waiters(&self) {
        while self.shared.waiting() > 0 {
            let Some(pooled) = self.idle.borrow_mut().pop() else { return };
            if let Some(back) = self.shared.give(pooled) {
                self.idle.borrow_mut().push(back);
                return;
            }
        }
    }

    /// Drops idle connections of other routes, too old, idle for too long (zero = no limit), or beyond the size.
    pub fn sweep(&self, route: Option<RouteId>, now_s: u64, idle_limit_s: u64, lifetime_s: u64) {
        let old = |since: u64, limit: u64| limit > 0 && now_s.saturating_sub(since) >= limit;
        // Dropping a connection gives its permit back, which must not happen while the list is borrowed.
        let dropped: Vec<_> = self
            .idle
            .borrow_mut()
            .extract_if(.., |p| {
                route.is_some_and(|r| r != p.conn.route)
                    || old(p.conn.idle_since_s, idle_limit_s)
                    || old(p.conn.opened_at_s, lifetime_s)
                    || !p.conn.is_quiet()
            })
            .collect();
        drop(dropped);
        if self.shared.is_oversize() {
            let one = self.idle.borrow_mut().pop();
            drop(one);
        }
    }

    /// What a server of this route reports to a session with these wishes, if one was asked before.
    pub fn greeting(&self, route: RouteId, wishes: &Wishes) -> Option<Reported> {
        let greetings = self.greetings.borrow();
        let known = greetings.known.iter().find(|(w, _)| greetings.route == Some(route) && w == wishes)?;
        Some(known.1.clone())
    }

    /// Remembers it; a greeting of another route is forgotten, the oldest goes when there are too many.
    pub fn remember_greeting(&self, route: RouteId, wishes: Wishes, reported: Reported) {
        let mut greetings = self.greetings.borrow_mut();
        if greetings.route != Some(route) {
            greetings.known.clear();
            greetings.route = Some(route);
        }
        if greetings.known.len() >= MAX_GREETINGS {
            greetings.known.remove(0);
        }
        greetings.known.push((wishes, reported));
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
