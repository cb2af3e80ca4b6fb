//! Connections to the coming primary: opened while it is still a standby, used from the moment when it is the primary.
//! Likewise to a node that will be one of several equal ones: opened while clients are held, used when they go on.
//!
//! A session on a hot standby outlives the promotion and may write from then on. So after a switchover nobody waits for a
//! login. They are outside the pools' budget until they are taken into use, since those to the old primary are still open.

use super::control::Doing;
use super::worker::Worker;
use crate::base::NodeId;
use crate::cluster::Warming;
use crate::pool::{Asked, Local, PoolKey, Pooled};
use crate::server::{self, Login, RouteId, ServerConn, Target};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Opened by one worker; further clients open theirs after the switch.
const MOST: usize = 128;

/// Opened at the same time for one pool.
const AT_ONCE: usize = 4;

/// What is to be opened for one pool.
#[derive(Clone)]
struct Work {
    node: NodeId,
    target: Arc<Target>,
    pool: Rc<Local>,
    login: Rc<Login>,
    count: usize,
}

/// What one worker has of them.
#[derive(Debug)]
pub struct Stock {
    warming: Arc<Warming>,
    conns: Vec<(Rc<Local>, ServerConn)>,
}

impl Worker {
    /// Opens what is wished for; closes what is no longer wished for.
    pub(super) fn attend_warming(self: &Rc<Self>) {
        let wish = self.plane.board.warming();
        let old = self.stock.borrow().as_ref().map(|stock| stock.warming.number);
        if wish.as_ref().map(|wish| wish.number) == old {
            return;
        }
        // Whatever an earlier wish has left goes when the borrow has ended.
        let left = self.stock.replace(wish.clone().map(|warming| Stock { warming, conns: Vec::new() }));
        drop(left);
        if let Some(wish) = wish {
            self.warm_up(&wish);
        }
    }

    fn warm_up(self: &Rc<Self>, wish: &Arc<Warming>) {
        if !wish.for_clients {
            return wish.begin(0);
        }
        let works = if self.plane.board.view().mode.replicates() { self.several(wish) } else { self.primary(wish) };
        let mut left = MOST;
        let works: Vec<Work> = works
            .into_iter()
            .map(|work| {
                let count = work.count.min(work.pool.shared.rules().size.max(1)).min(left);
                left -= count;
                Work { count, ..work }
            })
            .collect();
        wish.begin(works.iter().map(|work| work.count).sum());
        for work in works {
            // Some at a time: a node that has just started is not to be stormed.
            let each = work.count.div_ceil(AT_ONCE).max(1);
            let mut rest = work.count;
            while rest > 0 {
                let count = each.min(rest);
                rest -= count;
                tokio::task::spawn_local(open(self.clone(), wish.clone(), Work { count, ..work.clone() }));
            }
        }
    }

    /// To the coming primary: as many as clients and pools have to the old one.
    fn primary(&self, wish: &Arc<Warming>) -> Vec<Work> {
        let Some(target) = self.target_of(wish.node) else {
            wish.begin(1);
            wish.failed(format!("node {} is not configured", wish.node));
            return Vec::new();
        };
        let mut works = Vec::new();
        for (key, busy) in self.busy() {
            let Some(pool) = self.pools.borrow().get(&key).cloned() else { continue };
            let Some(login) = pool.login() else { continue };
            let count = busy + pool.idle();
            works.push(Work { node: wish.node, target: target.clone(), pool, login, count });
        }
        works
    }

    /// To each of the equal nodes, of which every transaction takes one connection: as many as clients wait. While they were
    /// held, all connections were closed.
    fn several(&self, wish: &Arc<Warming>) -> Vec<Work> {
        let view = self.plane.board.view();
        let mut nodes: Vec<NodeId> = view.live().map(|node| node.spec.id).collect();
        let Some(main) = nodes.first().copied() else { return Vec::new() };
        if !nodes.contains(&wish.node) {
            nodes.push(wish.node);
        }
        let mut waiting: HashMap<(String, String), usize> = HashMap::new();
        for control in self.sessions.borrow().iter().filter(|control| control.doing() != Doing::Away) {
            if let Some(who) = control.who.get() {
                *waiting.entry((who.user.clone(), who.database.clone())).or_default() += 1;
            }
        }
        let pools: Vec<(PoolKey, Rc<Local>)> =
            self.pools.borrow().iter().map(|(key, pool)| (key.clone(), pool.clone())).collect();
        let mut works = Vec::new();
        for (key, pool) in pools.into_iter().filter(|(key, _)| key.node == Some(main)) {
            let Some(login) = pool.login() else { continue };
            let who = (key.user.to_string(), key.database.to_string());
            let count = waiting.get(&who).copied().unwrap_or_default();
            for node in &nodes {
                let Some(target) = self.target_of(*node) else { continue };
                let Some(pool) = self.pool(&PoolKey { node: Some(*node), ..key.clone() }) else { continue };
                let login = pool.share_login(login.as_ref().clone());
                works.push(Work { node: *node, target, pool, login, count });
            }
        }
        works
    }

    /// How many server connections clients have or want, by pool.
    fn busy(&self) -> HashMap<PoolKey, usize> {
        let mut busy: HashMap<PoolKey, usize> = self.pools.borrow().keys().map(|key| (key.clone(), 0)).collect();
        for control in self.sessions.borrow().iter() {
            let Some(who) = control.who.get() else { continue };
            if control.doing() != Doing::Away
                && let Some(count) = busy.get_mut(&PoolKey::of_primary(who.user.clone(), who.database.clone()))
            {
                *count += 1;
            }
        }
        busy
    }

    pub(super) fn target_of(&self, node: NodeId) -> Option<Arc<Target>> {
        let (view, settings) = (self.plane.board.view(), self.plane.settings.load());
        let spec = &view.node(node)?.spec;
        Target::new(&spec.host.0, spec.port, spec.sslmode, &settings.server_tls, settings.keepalive).ok().map(Arc::new)
    }

    /// The nodes in use are these now. With the one that was waited for among them, its connections and those to its equals
    /// join the idle ones.
    pub(super) fn adopt_all(&self, routes: &[RouteId]) {
        let wished = self.stock.borrow().as_ref().map(|stock| stock.warming.node);
        if routes.iter().any(|route| Some(route.node) == wished) {
            routes.iter().for_each(|route| self.adopt_stock(*route));
        }
    }

    /// The node is the primary now, or one of several: its connections join the idle ones. To be called before anybody looks for one.
    pub(super) fn adopt_warm(&self, route: RouteId) {
        if self.stock.borrow().as_ref().is_some_and(|stock| stock.warming.node == route.node) {
            self.adopt_stock(route);
        }
    }

    fn adopt_stock(&self, route: RouteId) {
        let mut stock = self.stock.borrow_mut();
        let Some(stock) = stock.as_mut() else { return };
        for (pool, mut conn) in stock.conns.extract_if(.., |(_, conn)| conn.route.node == route.node) {
            match pool.ask(route.node) {
                Asked::Permit(permit) => {
                    conn.route = route;
                    pool.put(Box::new(Pooled { conn, permit }), self.now_s());
                }
                Asked::Wait { id, .. } => pool.shared.forget(id),
                Asked::Full => {}
            }
        }
    }
}

async fn open(worker: Rc<Worker>, wish: Arc<Warming>, work: Work) {
    let Work { node, target, pool, login, count } = work;
    for _ in 0..count {
        let connected = server::connect(&target, &login, pool.shared.rules().connect_timeout).await;
        let mut stock = worker.stock.borrow_mut();
        let current = stock.as_mut().filter(|stock| stock.warming.number == wish.number);
        match (connected, current) {
            (Ok(connected), Some(stock)) => {
                // The timeline is not known yet; nobody finds it before it has its route.
                let route = RouteId { node, timeline: 0 };
                stock.conns.push((pool.clone(), ServerConn::new(connected, route, worker.now_s())));
                wish.opened();
            }
            (Err(error), _) => wish.failed(error.for_client()),
            (Ok(_), None) => wish.failed("it is no longer wanted".into()),
        }
    }
}
