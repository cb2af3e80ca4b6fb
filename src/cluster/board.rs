//! The board on which the control plane publishes view and gate **together**, so that nobody resumes on an old view.

use super::quiet::Seats;
use super::warm::WarmPlace;
use super::{Gate, Stalls, View};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// View and gate of one moment.
#[derive(Clone, Debug)]
pub struct Published {
    /// The cluster.
    pub view: Arc<View>,
    /// The gate.
    pub gate: Arc<Gate>,
}

/// Shared between the planes. The data plane looks at `version` at each transaction and reads the rest when it moved.
#[derive(Debug)]
pub struct Board {
    now: ArcSwap<Published>,
    version: AtomicU64,
    changed: watch::Sender<u64>,
    pub(super) seats: Seats,
    pub(super) warm: WarmPlace,
    /// How long clients wait at the gate.
    pub stalls: Stalls,
}

impl Board {
    /// A board with a first view and an open gate.
    pub fn new(view: View) -> Arc<Board> {
        let first = Published { view: Arc::new(view), gate: Arc::new(Gate::default()) };
        Arc::new(Board {
            now: ArcSwap::from_pointee(first),
            version: AtomicU64::new(1),
            changed: watch::channel(1).0,
            seats: Seats::default(),
            warm: WarmPlace::default(),
            stalls: Stalls::default(),
        })
    }

    /// A number that moves with every publication: one relaxed-cost load on the hot path.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is in force.
    pub fn read(&self) -> Arc<Published> {
        self.now.load_full()
    }

    /// The view in force.
    pub fn view(&self) -> Arc<View> {
        self.read().view.clone()
    }

    /// Wakes whenever something is published.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Publishes. `change` gets what is in force and returns what shall be, or `None` to leave it (compare-and-swap by
    /// the caller's own check, e.g. of the generation). It may be asked several times. Only `keeper` calls this for the view.
    pub fn publish(&self, change: impl FnMut(&Published) -> Option<Published>) -> bool {
        let mut change = change;
        let mut done = false;
        self.now.rcu(|now| {
            let next = change(now);
            done = next.is_some();
            next.map_or_else(|| now.clone(), Arc::new)
        });
        if done {
            self.tell();
        }
        done
    }

    /// Wakes everybody who watches.
    pub(super) fn tell(&self) {
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        // Publications may overtake each other here; the number only ever says that something moved.
        self.changed.send_modify(|seen| *seen = version.max(*seen));
    }
}
