//! Snapshot isolation's coordinator: snapshots and commits exclude each other, so that a transaction sees on every node
//! what the same transactions have committed. The one place where waiting across workers is meant.
//!
//! First in, first out: whoever comes while another group waits stands behind it. A wait ends by its own deadline.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A transaction takes its snapshot on all nodes.
    Snapshots,
    /// A transaction commits on all nodes.
    Commits,
}

/// The pure core: who is in, who waits. `T` is what a waiter is woken by.
#[derive(Debug)]
struct Core<T> {
    inside: usize,
    group: Group,
    waiting: VecDeque<(u64, Group, T)>,
    last: u64,
}

impl<T> Core<T> {
    /// Whether a newcomer may go in at once.
    fn try_enter(&mut self, group: Group) -> bool {
        let free = self.waiting.is_empty() && (self.inside == 0 || self.group == group);
        if free {
            self.inside += 1;
            self.group = group;
        }
        free
    }

    fn wait(&mut self, group: Group, waiter: T) -> u64 {
        self.last += 1;
        self.waiting.push_back((self.last, group, waiter));
        self.last
    }

    fn leave(&mut self) -> Vec<T> {
        self.inside = self.inside.saturating_sub(1);
        self.admit()
    }

    fn forget(&mut self, id: u64) -> Vec<T> {
        self.waiting.retain(|(of, _, _)| *of != id);
        self.admit()
    }

    /// Those at the front of the queue that may go in now.
    fn admit(&mut self) -> Vec<T> {
        let mut admitted = Vec::new();
        while let Some((_, group, _)) = self.waiting.front() {
            if self.inside > 0 && self.group != *group {
                break;
            }
            self.group = *group;
            self.inside += 1;
            admitted.extend(self.waiting.pop_front().map(|(_, _, waiter)| waiter));
        }
        admitted
    }
}

/// The coordinator of all workers.
#[derive(Debug)]
pub struct Snapshots {
    core: Mutex<Core<oneshot::Sender<Inside>>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        let core = Core { inside: 0, group: Group::Snapshots, waiting: VecDeque::new(), last: 0 };
        Snapshots { core: Mutex::new(core) }
    }
}

/// The right to be inside; dropping it leaves.
#[derive(Debug)]
pub struct Inside {
    of: Arc<Snapshots>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let admitted = self.of.lock().leave();
        self.of.hand_out(admitted);
    }
}

impl Snapshots {
    /// Waits for its turn, at most so long.
    pub async fn enter(self: &Arc<Self>, group: Group, limit: Duration) -> Option<Inside> {
        let (gift, turn) = oneshot::channel();
        let id = {
            let mut core = self.lock();
            if core.try_enter(group) {
                return Some(Inside { of: self.clone() });
            }
            core.wait(group, gift)
        };
        let _forget = Forget { of: self, id };
        tokio::time::timeout(limit, turn).await.ok()?.ok()
    }

    fn hand_out(self: &Arc<Self>, admitted: Vec<oneshot::Sender<Inside>>) {
        for waiter in admitted {
            // Whoever has gone meanwhile leaves at once, as the right is dropped with the message.
            let _ = waiter.send(Inside { of: self.clone() });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core<oneshot::Sender<Inside>>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    of: &'a Arc<Snapshots>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let admitted = self.of.lock().forget(self.id);
        self.of.hand_out(admitted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_groups_exclude_each_other_in_order() {
        let mut core: Core<u8> = Core { inside: 0, group: Group::Snapshots, waiting: VecDeque::new(), last: 0 };
        assert!(core.try_enter(Group::Snapshots) && core.try_enter(Group::Snapshots));
        assert!(!core.try_enter(Group::Commits));
        core.wait(Group::Commits, 1);
        assert!(!core.try_enter(Group::Snapshots), "a newcomer stands behind the commit");
        core.wait(Group::Snapshots, 2);
        core.wait(Group::Snapshots, 3);
        assert_eq!(core.leave(), Vec::<u8>::new());
        assert_eq!(core.leave(), [1]);
        assert_eq!(core.leave(), [2, 3]);
    }

    #[test]
    fn who_gives_up_lets_the_next_ones_in() {
        let mut core: Core<u8> = Core { inside: 0, group: Group::Snapshots, waiting: VecDeque::new(), last: 0 };
        assert!(core.try_enter(Group::Snapshots));
        let commit = core.wait(Group::Commits, 1);
        core.wait(Group::Snapshots, 2);
        assert_eq!(core.forget(commit), [2]);
        assert_eq!(core.inside, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_has_a_deadline_and_leaves_nothing() {
        let snapshots = Arc::new(Snapshots::default());
        let inside = snapshots.enter(Group::Commits, LONG).await.unwrap();
        assert!(snapshots.enter(Group::Snapshots, Duration::from_secs(1)).await.is_none());
        let waiting = tokio::spawn({
            let snapshots = snapshots.clone();
            async move { snapshots.enter(Group::Snapshots, LONG).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(inside);
        assert!(waiting.await.unwrap());
        assert!(snapshots.enter(Group::Commits, LONG).await.is_some(), "everybody has left");
    }
}
