//! Keeps `min_pool_size` server connections open while a pool has clients.

use super::way::Route;
use super::worker::Worker;
use crate::pool::{Local, Permit, Pooled};
use crate::server::{self, ServerConn};
use std::rc::Rc;

/// Opened in one sweep of one worker; the next sweep goes on.
const AT_ONCE: usize = 16;

/// Opens what is missing, each in a task of its own; the budget sees to it that all workers together open no more.
pub fn top_up(worker: &Rc<Worker>, pool: &Rc<Local>, route: &Rc<Route>) {
    if pool.shared.rules().min_size == 0 || pool.shared.refusal(route.id).is_some() {
        return;
    }
    for _ in 0..AT_ONCE {
        let Some(permit) = pool.shared.top_up(route.id.node) else { return };
        tokio::task::spawn_local(open(worker.clone(), pool.clone(), route.clone(), permit));
    }
}

async fn open(worker: Rc<Worker>, pool: Rc<Local>, route: Rc<Route>, permit: Permit) {
    let Some(login) = pool.login() else { return };
    match server::connect(&route.target, &login, pool.shared.rules().connect_timeout).await {
        Ok(connected) => {
            let conn = ServerConn::new(connected, route.id, worker.now_s());
            pool.put(Box::new(Pooled { conn, permit }), worker.now_s());
        }
        Err(error) => tracing::debug!(event = "pool.not_topped_up", node = %route.id.node, %error),
    }
}
