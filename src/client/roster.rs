//! The sessions of one worker, each at a place that it knows: a list is smaller than a table, and every client is on it.

use super::control::Control;
use std::rc::Rc;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster(Vec<Rc<Control>>);

impl Roster {
    /// Takes a session on. It must not be on any list.
    pub fn add(&mut self, control: Rc<Control>) {
        control.place.set(place(self.0.len()));
        self.0.push(control);
    }

    /// Takes one off; the last one gets its place.
    pub fn remove(&mut self, control: &Rc<Control>) {
        let at = usize::try_from(control.place.get()).unwrap_or(usize::MAX);
        if !self.0.get(at).is_some_and(|known| Rc::ptr_eq(known, control)) {
            return;
        }
        self.0.swap_remove(at);
        if let Some(moved) = self.0.get(at) {
            moved.place.set(place(at));
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Control>> {
        self.0.iter()
    }

    /// Nobody is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Short, as every client keeps one; a worker never has so many that it would not do.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_takes_nobody_else_off() {
        let all: Vec<Rc<Control>> = (0..5).map(|_| Rc::default()).collect();
        let mut roster = Roster::default();
        all.iter().for_each(|control| roster.add(control.clone()));
        let on = |roster: &Roster| {
            let is_on = |control: &&Rc<Control>| roster.iter().any(|on| Rc::ptr_eq(on, control));
            all.iter().enumerate().filter(|(_, control)| is_on(control)).map(|(n, _)| n).collect::<Vec<_>>()
        };
        roster.remove(&all[1]);
        roster.remove(&all[1]);
        assert_eq!(on(&roster), [0, 2, 3, 4]);
        // Another one has its place, and the last has none behind it.
        roster.remove(&all[4]);
        roster.remove(&all[3]);
        assert_eq!(on(&roster), [0, 2]);
        roster.remove(&Rc::default());
        roster.remove(&all[0]);
        roster.remove(&all[2]);
        assert!(roster.is_empty());
    }
}
