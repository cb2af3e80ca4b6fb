//! Which prepared statements a server connection holds, in the order of their last use.

use std::collections::{HashMap, HashSet};

/// The statements on one connection, by pgmend's numbers.
#[derive(Debug, Default)]
pub struct Prepared {
    last_use: HashMap<u64, u64>,
    /// They return something else than what was promised: to be closed before they are prepared again.
    stale: HashSet<u64>,
    clock: u64,
    fence: u64,
}

impl Prepared {
    /// From here on uses belong to a batch in flight: what it uses is not evicted before the next fence.
    pub fn fence(&mut self) {
        self.fence = self.clock;
    }

    /// True when it is there.
    pub fn has(&self, id: u64) -> bool {
        self.last_use.contains_key(&id)
    }

    /// Marks a statement as used. False: it is not there.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.last_use.get_mut(&id) {
            Some(last) => {
                *last = self.clock;
                true
            }
            None => false,
        }
    }

    /// It is being prepared.
    pub fn insert(&mut self, id: u64) {
        self.clock += 1;
        self.last_use.insert(id, self.clock);
    }

    /// It is not there any more, or never was.
    pub fn remove(&mut self, id: u64) {
        self.last_use.remove(&id);
        self.stale.remove(&id);
    }

    /// Its plan is of no more use, but its name is still taken.
    pub fn spoil(&mut self, id: u64) {
        if self.last_use.remove(&id).is_some() {
            self.stale.insert(id);
        }
    }

    /// True, once, when the name must be closed before it is prepared anew.
    pub fn take_stale(&mut self, id: u64) -> bool {
        self.stale.remove(&id)
    }

    /// Takes out one that must go for the limit to hold: a spoilt one, else the longest unused, unless the batch in
    /// flight needs it.
    pub fn evict(&mut self, limit: usize) -> Option<u64> {
        if self.len() < limit {
            return None;
        }
        if let Some(id) = self.stale.iter().next().copied() {
            self.stale.remove(&id);
            return Some(id);
        }
        let (id, last) = self.last_use.iter().min_by_key(|(_, last)| **last).map(|(id, last)| (*id, *last))?;
        (last <= self.fence).then(|| {
            self.last_use.remove(&id);
            id
        })
    }

    /// The session was reset.
    pub fn clear(&mut self) {
        self.last_use.clear();
        self.stale.clear();
    }

    /// How many the server holds.
    pub fn len(&self) -> usize {
        self.last_use.len() + self.stale.len()
    }

    /// The server holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut held = Prepared::default();
        [1, 2, 3].iter().for_each(|id| held.insert(*id));
        assert!(held.touch(1) && !held.touch(9));
        held.fence();
        assert_eq!(held.evict(4), None);
        assert_eq!(held.evict(3), Some(2));
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn what_the_batch_in_flight_uses_stays() {
        let mut held = Prepared::default();
        held.insert(1);
        held.fence();
        held.insert(2);
        held.touch(1);
        assert_eq!(held.evict(2), None);
        held.fence();
        assert_eq!(held.evict(2), Some(2));
    }

    #[test]
    fn a_spoilt_statement_keeps_its_name_until_it_is_closed() {
        let mut held = Prepared::default();
        held.insert(1);
        held.spoil(1);
        held.spoil(7);
        assert!(!held.touch(1));
        assert_eq!(held.len(), 1);
        assert!(held.take_stale(1) && !held.take_stale(1) && !held.take_stale(7));
    }
}
