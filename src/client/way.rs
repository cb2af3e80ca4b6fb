//! Where transactions go, as one look at the board has found it. Nothing in here can look again: all that is read of a look is
//! as of the same moment, and no second look can come in between.

use crate::base::NodeId;
use crate::cluster::{Gate, GateOrder, Servers};
use crate::pool::PoolKey;
use crate::server::{RouteId, Target};
use std::rc::Rc;
use std::sync::Arc;

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

/// What one look has found.
#[derive(Debug)]
pub(super) struct Looked {
    way: Way,
    /// In the replicating modes the ways to all live nodes, the main node first.
    routes: Vec<Rc<Route>>,
    /// While any order holds it.
    gate: Option<Arc<Gate>>,
}

impl Looked {
    /// There has been no look yet.
    pub fn nothing() -> Looked {
        Looked { way: Way::Blocked("not yet known".into()), routes: Vec::new(), gate: None }
    }

    /// One way for everybody, or none.
    pub fn one(route: Result<Rc<Route>, Rc<str>>, gate: &Arc<Gate>) -> Looked {
        let way = route.map_or_else(Way::Blocked, Way::Open);
        Looked { way, routes: Vec::new(), gate: closed(gate) }
    }

    /// The ways to several nodes that are kept equal, the main node first.
    pub fn several(routes: Result<Vec<Rc<Route>>, Rc<str>>, gate: &Arc<Gate>) -> Looked {
        let (way, routes) = match routes {
            Ok(routes) => {
                let main = routes.first().cloned();
                (main.map_or_else(|| Way::Blocked("no node is in use".into()), Way::Open), routes)
            }
            Err(why) => (Way::Blocked(why), Vec::new()),
        };
        Looked { way, routes, gate: closed(gate) }
    }

    /// To the primary, whether the gate is held or not.
    pub fn way(&self) -> Way {
        self.way.clone()
    }

    /// The ways to all live nodes where they are kept equal, else none.
    pub fn routes(&self) -> &[Rc<Route>] {
        &self.routes
    }

    /// For a pool's transactions, which the gate may hold, and which may have a node of their own.
    pub fn way_for(&self, key: &PoolKey) -> Way {
        let mut held: Option<Way> = None;
        for order in self.covering(&key.database) {
            let wanted = &order.wanted;
            let is_patient = is_patient(order);
            held = Some(match held {
                Some(Way::Held { why, servers, patient }) => {
                    let servers = if wanted.servers == Servers::Close { Servers::Close } else { servers };
                    Way::Held { why, servers, patient: patient || is_patient }
                }
                _ => Way::Held { why: wanted.reason.as_str().into(), servers: wanted.servers, patient: is_patient },
            });
        }
        held.unwrap_or_else(|| self.way_of(key))
    }

    /// For a pool, which may have a node of its own, whether the gate is held or not.
    pub fn way_of(&self, key: &PoolKey) -> Way {
        key.node.map_or_else(|| self.way(), |node| self.way_to(node))
    }

    /// To one node of several that are kept equal.
    pub fn way_to(&self, node: NodeId) -> Way {
        match self.routes.iter().find(|route| route.id.node == node) {
            Some(route) => Way::Open(route.clone()),
            None => Way::Blocked(format!("node {node} is not in use").into()),
        }
    }

    /// Some order holds the gate.
    pub fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// Something holds this database's transactions.
    pub fn is_held(&self, database: &str) -> bool {
        self.covering(database).next().is_some()
    }

    /// The same, and the wait counts for no limit.
    pub fn is_held_patiently(&self, database: &str) -> bool {
        self.covering(database).any(is_patient)
    }

    fn covering<'a>(&'a self, database: &'a str) -> impl Iterator<Item = &'a GateOrder> {
        let orders = self.gate.iter().flat_map(|gate| &gate.orders).map(|order| &**order);
        orders.filter(move |order| order.wanted.scope.covers(database))
    }
}

fn closed(gate: &Arc<Gate>) -> Option<Arc<Gate>> {
    (!gate.is_open()).then(|| gate.clone())
}

fn is_patient(order: &GateOrder) -> bool {
    order.wanted.drain.is_some_and(|rules| rules.patient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Holder, Scope, SslMode, Wanted};
    use std::time::Duration;

    fn route(node: u16) -> Rc<Route> {
        let (host, sslmode) = ("h".to_owned(), SslMode::Disable);
        let target = Target { host, port: 1, sslmode, tls: None, keepalive: Duration::ZERO };
        Rc::new(Route { id: RouteId { node: NodeId(node), timeline: 0 }, target: Arc::new(target) })
    }

    fn gate(orders: &[(&str, Servers)]) -> Arc<Gate> {
        let order = |(database, servers): &(&str, Servers)| {
            let scope = Scope::of(Some((*database).to_owned()));
            let (holder, reason) = (Holder::Operator, format!("{database} waits"));
            let wanted =
                Wanted { scope, holder, reason, servers: *servers, drain: None, end_sessions: false, until: None };
            Arc::new(GateOrder { number: 1, wanted })
        };
        Arc::new(Gate { orders: orders.iter().map(order).collect(), ..Gate::default() })
    }

    fn key(database: &str, node: Option<u16>) -> PoolKey {
        PoolKey { node: node.map(NodeId), ..PoolKey::of_primary("u".into(), database.into()) }
    }

    fn told(way: &Way) -> String {
        match way {
            Way::Open(route) => format!("node {}", route.id.node),
            Way::Blocked(why) => why.to_string(),
            Way::Held { why, servers, .. } => format!("{why} {servers:?}"),
        }
    }

    #[test]
    fn a_held_database_waits_and_the_others_go_each_to_its_node() {
        let gate = gate(&[("held", Servers::Keep), ("held", Servers::Close)]);
        let looked = Looked::several(Ok(vec![route(0), route(1)]), &gate);
        let way = |key: PoolKey| told(&looked.way_for(&key));
        assert_eq!(way(key("held", Some(1))), "held waits Close");
        assert_eq!(way(key("free", Some(1))), "node 1");
        assert_eq!(way(key("free", None)), "node 0");
        assert_eq!(way(key("free", Some(2))), "node 2 is not in use");
        assert_eq!(told(&looked.way_of(&key("held", Some(1)))), "node 1", "behind the gate");
        assert!(looked.is_gated() && looked.is_held("held") && !looked.is_held("free"));
    }

    #[test]
    fn where_nothing_is_known_the_reason_is_told() {
        let open = Arc::new(Gate::default());
        assert_eq!(told(&Looked::nothing().way()), "not yet known");
        assert_eq!(told(&Looked::one(Err("no primary".into()), &open).way()), "no primary");
        assert_eq!(told(&Looked::several(Ok(Vec::new()), &open).way()), "no node is in use");
        assert!(!Looked::one(Ok(route(0)), &open).is_gated());
    }
}
