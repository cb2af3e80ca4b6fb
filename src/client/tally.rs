//! Clients counted by database and by user, for the limits on both.

use crate::pool::Rules;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Different users and databases remembered before those that nobody is any more are dropped.
const KEPT: usize = 1024;

/// Whose a session is, as the client names both: one allocation for all that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// Who logged in.
    pub user: String,
    /// To which database.
    pub database: String,
}

/// Clients that have logged in. Entries are those of clients that are there, so they are bounded by `max_client_conn`.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    databases: HashMap<String, usize>,
    users: HashMap<String, usize>,
    known: HashSet<Arc<Who>>,
}

/// A client counted in; dropping it counts him out.
#[derive(Debug)]
pub struct Counted {
    tally: Arc<Tally>,
    /// Whose the session is.
    pub who: Arc<Who>,
}

/// The limit that a client meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// `max_db_client_connections`.
    OfDatabase(String, usize),
    /// `max_user_client_connections`.
    OfUser(String, usize),
}

impl Tally {
    /// Counts a client in, by the name that he gave for the database and the one that he logged in as.
    pub fn admit(self: &Arc<Self>, user: &str, database: &str, rules: &Rules) -> Result<Counted, TooMany> {
        let mut counts = self.lock();
        let of = |map: &HashMap<String, usize>, name: &str| map.get(name).copied().unwrap_or_default();
        let reached = |present: usize, limit: usize| limit > 0 && present >= limit;
        if reached(of(&counts.databases, database), rules.max_db_clients) {
            return Err(TooMany::OfDatabase(database.to_owned(), rules.max_db_clients));
        }
        if reached(of(&counts.users, user), rules.max_user_clients) {
            return Err(TooMany::OfUser(user.to_owned(), rules.max_user_clients));
        }
        *counts.databases.entry(database.to_owned()).or_default() += 1;
        *counts.users.entry(user.to_owned()).or_default() += 1;
        let who = counts.known(Who { user: user.to_owned(), database: database.to_owned() });
        Ok(Counted { tally: self.clone(), who })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.tally.lock();
        count_out(&mut counts.databases, &self.who.database);
        count_out(&mut counts.users, &self.who.user);
    }
}

impl Counts {
    fn known(&mut self, who: Who) -> Arc<Who> {
        if let Some(known) = self.known.get(&who) {
            return known.clone();
        }
        if self.known.len() >= KEPT {
            self.known.retain(|who| Arc::strong_count(who) > 1);
        }
        let who = Arc::new(who);
        self.known.insert(who.clone());
        who
    }
}

fn count_out(map: &mut HashMap<String, usize>, name: &str) {
    let Some(count) = map.get_mut(name) else { return };
    *count -= 1;
    if *count == 0 {
        map.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_by_database_and_by_user_until_they_go() {
        let tally = Arc::new(Tally::default());
        let rules = Rules { max_db_clients: 2, max_user_clients: 1, ..Rules::default() };
        let a = tally.admit("a", "d", &rules).unwrap();
        assert_eq!(tally.admit("a", "e", &rules).unwrap_err(), TooMany::OfUser("a".into(), 1));
        let _b = tally.admit("b", "d", &rules).unwrap();
        assert_eq!(tally.admit("c", "d", &rules).unwrap_err(), TooMany::OfDatabase("d".into(), 2));
        drop(a);
        let _a = tally.admit("a", "d", &rules).unwrap();
        assert!(tally.admit("a", "d", &Rules::default()).is_ok(), "no limit");
    }

    #[test]
    fn nobody_is_remembered_who_has_gone() {
        let tally = Arc::new(Tally::default());
        drop(tally.admit("a", "d", &Rules::default()).unwrap());
        for n in 0..2 * KEPT {
            drop(tally.admit(&n.to_string(), "d", &Rules::default()).unwrap());
        }
        let counts = tally.lock();
        assert!(counts.databases.is_empty() && counts.users.is_empty() && counts.known.len() <= KEPT);
    }

    #[test]
    fn clients_that_are_alike_share_their_names() {
        let tally = Arc::new(Tally::default());
        let names = [("u", "d"), ("u", "d"), ("u", "e")];
        let [a, b, c] = names.map(|(user, database)| tally.admit(user, database, &Rules::default()).unwrap());
        assert!(Arc::ptr_eq(&a.who, &b.who) && !Arc::ptr_eq(&a.who, &c.who));
    }
}
