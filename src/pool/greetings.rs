//! What servers report at a session's start, remembered so that a login need not ask one (nor wait for one) again.

use crate::server::RouteId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Parameters that a session asks for.
pub type Wishes = BTreeMap<String, String>;
/// What a server reported, as messages (ParameterStatus); without `application_name` where the session wishes one.
pub type Reported = Arc<[u8]>;

/// The parameter of which any value is valid: clients that differ in it alone are greeted alike.
pub const APPLICATION_NAME: &str = "application_name";

/// Greetings remembered per pool: clients of one pool come in few kinds.
const MAX_GREETINGS: usize = 32;

/// The greetings of one pool, all of one route, by the session's own wishes.
#[derive(Debug, Default)]
pub struct Greetings {
    route: Option<RouteId>,
    known: Vec<(Wishes, Reported)>,
}

impl Greetings {
    /// What a server of this route reports to a session with these wishes, if one was asked before; only that there is a wish
    /// for [`APPLICATION_NAME`] counts.
    pub fn of(&self, route: RouteId, wishes: &Wishes) -> Option<Reported> {
        let known = self.known.iter().find(|(w, _)| self.route == Some(route) && alike(w, wishes))?;
        Some(known.1.clone())
    }

    /// Remembers it; a greeting of another route is forgotten, the oldest goes when there are too many.
    pub fn remember(&mut self, route: RouteId, wishes: &Wishes, reported: Reported) {
        if self.route != Some(route) {
            self.known.clear();
            self.route = Some(route);
        }
        if self.known.iter().any(|(w, _)| alike(w, wishes)) {
            return;
        }
        if self.known.len() >= MAX_GREETINGS {
            self.known.remove(0);
        }
        self.known.push((wishes.clone(), reported));
    }
}

fn alike(one: &Wishes, other: &Wishes) -> bool {
    let same = |(a, b): ((&String, &String), (&String, &String))| a.0 == b.0 && (a.1 == b.1 || a.0 == APPLICATION_NAME);
    one.len() == other.len() && one.iter().zip(other).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;

    #[test]
    fn another_route_greets_anew_and_the_oldest_makes_room() {
        let route = |timeline| RouteId { node: NodeId(0), timeline };
        let wishes = |n: usize| Wishes::from([("timezone".to_owned(), n.to_string())]);
        let nothing = || Reported::from([]);
        let mut greetings = Greetings::default();
        for n in 0..=MAX_GREETINGS {
            greetings.remember(route(1), &wishes(n), nothing());
        }
        assert!(greetings.of(route(1), &wishes(0)).is_none() && greetings.of(route(1), &wishes(1)).is_some());
        assert!(greetings.of(route(2), &wishes(1)).is_none());
        greetings.remember(route(2), &wishes(7), nothing());
        assert!(greetings.of(route(1), &wishes(1)).is_none() && greetings.of(route(2), &wishes(7)).is_some());
    }

    #[test]
    fn the_name_of_a_program_does_not_matter_but_whether_it_has_one() {
        let route = RouteId { node: NodeId(0), timeline: 1 };
        let wishes = |name: Option<&str>| -> Wishes {
            let zone = [("timezone".to_owned(), "UTC".to_owned())];
            zone.into_iter().chain(name.map(|name| (APPLICATION_NAME.to_owned(), name.to_owned()))).collect()
        };
        let mut greetings = Greetings::default();
        greetings.remember(route, &wishes(Some("psql")), Reported::from(*b"named"));
        assert!(greetings.of(route, &wishes(None)).is_none());
        greetings.remember(route, &wishes(None), Reported::from(*b"unnamed"));
        assert_eq!(greetings.of(route, &wishes(Some("jdbc"))).as_deref(), Some(b"named".as_slice()));
        assert_eq!(greetings.of(route, &wishes(None)).as_deref(), Some(b"unnamed".as_slice()));
    }
}
