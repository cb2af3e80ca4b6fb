//! While a planned change goes on, what probes see changes nothing: the one who makes the change knows better.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many freezes are in force, and how often that changed.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    now: AtomicUsize,
    changes: AtomicU64,
}

impl Freezes {
    /// A mark of this moment: a probe that began at another mark is not believed.
    pub fn mark(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// True when a probe that began at this mark may be believed.
    pub fn believes(&self, mark: u64) -> bool {
        self.now.load(Ordering::Acquire) == 0 && self.mark() == mark
    }
}

/// A freeze in force; dropping it ends it.
#[derive(Debug)]
pub struct Freeze(Arc<Freezes>);

impl Freeze {
    pub(super) fn new(freezes: &Arc<Freezes>) -> Freeze {
        freezes.now.fetch_add(1, Ordering::AcqRel);
        freezes.changes.fetch_add(1, Ordering::AcqRel);
        Freeze(freezes.clone())
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        // First the mark, so that a probe of the frozen time is not believed in between.
        self.0.changes.fetch_add(1, Ordering::AcqRel);
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_from_before_or_during_a_freeze_is_not_believed() {
        let freezes = Arc::new(Freezes::default());
        let before = freezes.mark();
        assert!(freezes.believes(before));
        let freeze = Freeze::new(&freezes);
        let during = freezes.mark();
        assert!(!freezes.believes(before) && !freezes.believes(during));
        drop(freeze);
        assert!(!freezes.believes(before) && !freezes.believes(during));
        assert!(freezes.believes(freezes.mark()));
    }
}
