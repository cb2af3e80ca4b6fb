//! A client's names of prepared statements. What a request in flight has made or taken away can be undone: an error before
//! it makes the server skip it.

use super::Statement;
use super::few::Few;
use std::sync::Arc;

/// Named statements that one client may have, and names that may come back.
pub(super) const MAX_NAMED: usize = 10_000;

#[derive(Debug)]
struct Named {
    statement: Arc<Statement>,
    key: u32,
}

/// The names, each use of one with a key that no other has.
#[derive(Debug, Default)]
pub(super) struct Names {
    named: Few<Named>,
    // Boxed, as few have it: an idle client is small.
    undo: Option<Box<Undo>>,
    last_key: u32,
}

/// What the answers that are awaited decide on.
#[derive(Debug, Default)]
struct Undo {
    /// Taken away by requests whose answers are still awaited.
    gone: Vec<(Box<[u8]>, Named)>,
    /// Never made; an error that is on its way may still be about them.
    unmade: Vec<(Box<[u8]>, u32)>,
}

impl Names {
    /// A key of its own; never 0.
    pub fn new_key(&mut self) -> u32 {
        self.last_key = self.last_key.checked_add(1).unwrap_or(1);
        self.last_key
    }

    /// What a name stands for, and its key.
    pub fn find(&self, name: &[u8]) -> Option<(Arc<Statement>, u32)> {
        self.named.get(name).map(|n| (n.statement.clone(), n.key))
    }

    /// True when the name stands for something.
    pub fn has(&self, name: &[u8]) -> bool {
        self.named.get(name).is_some()
    }

    /// True when the name was taken away and may come back.
    pub fn may_return(&self, name: &[u8]) -> bool {
        self.undo.as_ref().is_some_and(|undo| undo.gone.iter().any(|(gone, _)| **gone == *name))
    }

    /// A new name.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) -> u32 {
        let key = self.new_key();
        self.named.insert(name.into(), Named { statement, key });
        key
    }

    /// Takes a name away, until [`Names::settle`] not for good; its key, or 0.
    pub fn remove(&mut self, name: &[u8]) -> u32 {
        let Some((name, named)) = self.named.remove(name) else { return 0 };
        let key = named.key;
        let undo = self.undo.get_or_insert_default();
        if undo.gone.len() < MAX_NAMED {
            undo.gone.push((name, named));
        }
        key
    }

    /// The name of this key was never made.
    pub fn unmake(&mut self, key: u32) {
        let present = self.named.iter().find(|(_, named)| named.key == key).map(|(name, _)| Box::from(name));
        let undo = self.undo.get_or_insert_default();
        let gone = undo.gone.iter().position(|(_, named)| named.key == key);
        let name = match (present, gone) {
            (Some(name), _) => {
                self.named.remove(&name);
                name
            }
            (None, Some(at)) => undo.gone.swap_remove(at).0,
            (None, None) => return,
        };
        if undo.unmade.len() < MAX_NAMED {
            undo.unmade.push((name, key));
        }
    }

    /// The name of this key was not taken away.
    pub fn restore(&mut self, key: u32) {
        let Some(undo) = &mut self.undo else { return };
        if let Some(at) = undo.gone.iter().position(|(_, named)| named.key == key) {
            let (name, named) = undo.gone.swap_remove(at);
            if self.named.get(&name).is_none() {
                self.named.insert(name, named);
            }
        }
    }

    /// The server has accepted the Parse that made the name of this key.
    pub fn prove(&self, key: u32) {
        if let Some((_, named)) = self.named.iter().find(|(_, named)| named.key == key) {
            named.statement.prove();
        }
    }

    /// The name of a key, also if it has just been taken away.
    pub fn name_of(&self, key: u32) -> Option<&[u8]> {
        let present = self.named.iter().map(|(name, n)| (name, n.key));
        let undo = self.undo.iter();
        let gone = undo.clone().flat_map(|u| u.gone.iter()).map(|(name, n)| (&**name, n.key));
        let unmade = undo.flat_map(|u| u.unmade.iter()).map(|(name, key)| (&**name, *key));
        let mut all = present.chain(gone).chain(unmade);
        all.find(|(_, of)| *of == key).map(|(name, _)| name)
    }

    /// No answer is awaited: what is gone is gone.
    pub fn settle(&mut self) {
        self.undo = None;
    }

    /// `DEALLOCATE ALL`.
    pub fn clear(&mut self) {
        self.named.clear();
        self.settle();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.named.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Statements;
    use super::*;
    use crate::server::ParamSet;

    fn statement() -> Arc<Statement> {
        let statements = Statements::default();
        statements.intern(&statements.context(&ParamSet::default()), b"q\0\0\0")
    }

    #[test]
    fn a_close_that_was_skipped_did_not_happen() {
        let mut names = Names::default();
        let first = names.insert(b"s", statement());
        assert_eq!((names.remove(b"s"), names.remove(b"s")), (first, 0));
        assert!(!names.has(b"s") && names.may_return(b"s"));
        let second = names.insert(b"s", statement());
        assert_eq!(names.name_of(first), Some(&b"s"[..]));
        // Both were skipped.
        names.unmake(second);
        names.restore(first);
        assert_eq!(names.find(b"s").map(|f| f.1), Some(first));
    }

    #[test]
    fn what_was_never_made_does_not_come_back() {
        let mut names = Names::default();
        let key = names.insert(b"s", statement());
        names.remove(b"s");
        names.unmake(key);
        names.restore(key);
        assert!(!names.has(b"s") && !names.may_return(b"s"));
        // An error on its way may still be about it.
        assert_eq!(names.name_of(key), Some(&b"s"[..]));
    }

    #[test]
    fn what_is_settled_is_gone() {
        let mut names = Names::default();
        let key = names.insert(b"s", statement());
        names.remove(b"s");
        names.settle();
        names.restore(key);
        assert_eq!((names.len(), names.name_of(key)), (0, None));
    }
}
