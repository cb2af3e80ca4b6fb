//! A map from names that is small where few are in it: most clients have no prepared statement or a handful, some thousands.

use std::collections::HashMap;

/// So many are looked through one by one, which is also quicker than hashing.
const FEW: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Few<V> {
    few: Vec<(Box<[u8]>, V)>,
    // Boxed, as few clients have it and every client has the room.
    #[allow(clippy::box_collection)]
    many: Option<Box<HashMap<Box<[u8]>, V>>>,
}

impl<V> Default for Few<V> {
    fn default() -> Few<V> {
        Few { few: Vec::new(), many: None }
    }
}

impl<V> Few<V> {
    /// What stands under a name.
    pub fn get(&self, name: &[u8]) -> Option<&V> {
        match &self.many {
            Some(many) => many.get(name),
            None => self.few.iter().find(|(known, _)| **known == *name).map(|(_, value)| value),
        }
    }

    /// Puts something under a name, in the place of what stood there.
    pub fn insert(&mut self, name: Box<[u8]>, value: V) {
        self.remove(&name);
        if self.many.is_none() && self.few.len() >= FEW {
            self.many = Some(Box::new(std::mem::take(&mut self.few).into_iter().collect()));
        }
        if let Some(many) = &mut self.many {
            many.insert(name, value);
            return;
        }
        if self.few.len() == self.few.capacity() {
            self.few.reserve_exact(self.few.len().max(1));
        }
        self.few.push((name, value));
    }

    /// Takes out what stands under a name.
    pub fn remove(&mut self, name: &[u8]) -> Option<(Box<[u8]>, V)> {
        match &mut self.many {
            Some(many) => many.remove_entry(name),
            None => {
                let at = self.few.iter().position(|(known, _)| **known == *name)?;
                Some(self.few.swap_remove(at))
            }
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        let few = self.few.iter().map(|(name, value)| (&**name, value));
        few.chain(self.many.iter().flat_map(|many| many.iter()).map(|(name, value)| (&**name, value)))
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        *self = Few::default();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.few.len() + self.many.as_ref().map_or(0, |many| many.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_whether_few_are_there_or_many() {
        let mut map = Few::default();
        for count in 1..=3 * FEW {
            map.insert(count.to_string().as_bytes().into(), count);
            assert_eq!((map.len(), map.iter().count()), (count, count));
            assert!((1..=count).all(|n| map.get(n.to_string().as_bytes()) == Some(&n)));
        }
        map.insert(b"1"[..].into(), 100);
        assert_eq!((map.get(b"1"), map.len()), (Some(&100), 3 * FEW));
        assert_eq!(map.remove(b"1").map(|(_, value)| value), Some(100));
        assert!(map.remove(b"1").is_none() && map.get(b"1").is_none());
        map.clear();
        map.insert(b"a"[..].into(), 1);
        assert_eq!((map.remove(b"a").is_some(), map.len()), (true, 0));
    }
}
