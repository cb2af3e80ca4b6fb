//! Connections to the coming primary: opened while it is still a standby, used from the moment when it is the primary.
//!
//! A session on a hot standby outlives the promotion and may write from then on. So after a switchover nobody waits for a
//! login. They are outside the pools' budget until they are taken into use, since those to the old primary are still open.

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
        let Some(target) = self.target_of(wish.node) else {
            wish.begin(1);
            return wish.failed(format!("node {} is not configured", wish.node));
        };
        let (mut left, mut works) = (MOST, Vec::new());
        for (key, busy) in self.busy() {
            let Some(pool) = self.pools.borrow().get(&key).cloned() else { continue };
            let Some(login) = pool.login() else { continue };
            let count = (busy + pool.idle()).min(pool.shared.rules().size.max(1)).min(left);
            left -= count;
            works.push((pool, login, count));
        }
        wish.begin(works.iter().map(|(_, _, count)| count).sum());
        for (pool, login, count) in works {
            tokio::task::spawn_local(open(self.clone(), wish.clone(), target.clone(), pool, login, count));
        }
    }

    /// Clients by pool that use servers or wait for one. Who idles between transactions needs none.
    fn busy(&self) -> HashMap<PoolKey, usize> {
        let mut busy: HashMap<PoolKey, usize> = self.pools.borrow().keys().map(|key| (key.clone(), 0)).collect();
        for control in self.sessions.borrow().values() {
            let Some(who) = control.who.get() else { continue };
            if control.doing() != super::control::Doing::Away
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

    /// The node is the primary now: its connections join the idle ones. To be called before anybody looks for one.
    pub(super) fn adopt_warm(&self, route: RouteId) {
        let mut stock = self.stock.borrow_mut();
        let Some(stock) = stock.as_mut().filter(|stock| stock.warming.node == route.node) else { return };
        for (pool, mut conn) in std::mem::take(&mut stock.conns) {
            match pool.shared.ask(route.node) {
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

async fn open(
    worker: Rc<Worker>,
    wish: Arc<Warming>,
    target: Arc<Target>,
    pool: Rc<Local>,
    login: Rc<Login>,
    count: usize,
) {
    for _ in 0..count {
        let connected = server::connect(&target, &login, pool.shared.rules().connect_timeout).await;
        let mut stock = worker.stock.borrow_mut();
        let current = stock.as_mut().filter(|stock| stock.warming.number == wish.number);
        match (connected, current) {
            (Ok(connected), Some(stock)) => {
                // The timeline is not known yet; nobody finds it before it has its route.
                let route = RouteId { node: wish.node, timeline: 0 };
                stock.conns.push((pool.clone(), ServerConn::new(connected, route, worker.now_s())));
                wish.opened();
            }
            (Err(error), _) => wish.failed(error.for_client()),
            (Ok(_), None) => wish.failed("it is no longer wanted".into()),
        }
    }
}
