//! What servers report at a session's start, remembered so that a login need not ask one (nor wait for one) again.

use crate::server::RouteId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Parameters that a session asks for.
pub type Wishes = BTreeMap<String, String>;
/// Parameters that a server reported, by its spelling.
pub type Reported = Arc<HashMap<String, String>>;

/// Greetings remembered per pool: clients of one pool come in few kinds.
const MAX_GREETINGS: usize = 32;

/// The greetings of one pool, all of one route, by the session's own wishes.
#[derive(Debug, Default)]
pub struct Greetings {
    route: Option<RouteId>,
    known: Vec<(Wishes, Reported)>,
}

impl Greetings {
    /// What a server of this route reports to a session with these wishes, if one was asked before.
    pub fn of(&self, route: RouteId, wishes: &Wishes) -> Option<Reported> {
        let known = self.known.iter().find(|(w, _)| self.route == Some(route) && w == wishes)?;
        Some(known.1.clone())
    }

    /// Remembers it; a greeting of another route is forgotten, the oldest goes when there are too many.
    pub fn remember(&mut self, route: RouteId, wishes: Wishes, reported: Reported) {
        if self.route != Some(route) {
            self.known.clear();
            self.route = Some(route);
        }
        if self.known.iter().any(|(w, _)| *w == wishes) {
            return;
        }
        if self.known.len() >= MAX_GREETINGS {
            self.known.remove(0);
        }
        self.known.push((wishes, reported));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;

    #[test]
    fn another_route_greets_anew_and_the_oldest_makes_room() {
        let route = |timeline| RouteId { node: NodeId(0), timeline };
        let wishes = |n: usize| Wishes::from([("timezone".to_owned(), n.to_string())]);
        let mut greetings = Greetings::default();
        for n in 0..=MAX_GREETINGS {
            greetings.remember(route(1), wishes(n), Reported::default());
        }
        assert!(greetings.of(route(1), &wishes(0)).is_none() && greetings.of(route(1), &wishes(1)).is_some());
        assert!(greetings.of(route(2), &wishes(1)).is_none());
        greetings.remember(route(2), wishes(7), Reported::default());
        assert!(greetings.of(route(1), &wishes(1)).is_none() && greetings.of(route(2), &wishes(7)).is_some());
    }
}
