//! Connections to the coming primary, opened before it is one: who wants them, and how many there are.

use super::Board;
use crate::base::NodeId;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A wish for connections to a node that will be the primary soon. Workers answer it.
#[derive(Debug)]
pub struct Warming {
    /// The node.
    pub node: NodeId,
    /// Grows with each wish.
    pub number: u64,
    workers: AtomicUsize,
    asked: AtomicUsize,
    open: AtomicUsize,
    failed: AtomicUsize,
    why: Mutex<Option<String>>,
    /// It is the primary now, though the view does not say so yet.
    promoted: AtomicBool,
    /// Listeners for clients that stand ready, and those that listen there.
    ready: AtomicUsize,
    listening: AtomicUsize,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmth {
    /// Connections that are open.
    pub open: usize,
    /// Those that could not be opened.
    pub failed: usize,
    /// Why the last of them could not.
    pub why: Option<String>,
    /// Every worker has answered, and nothing is being opened any more.
    pub settled: bool,
}

impl Warming {
    /// A worker has seen it and opens so many.
    pub fn begin(&self, connections: usize) {
        self.asked.fetch_add(connections, Ordering::AcqRel);
        self.workers.fetch_add(1, Ordering::AcqRel);
    }

    /// One is open.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    /// One could not be opened.
    pub fn failed(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.failed.fetch_add(1, Ordering::AcqRel);
    }

    /// True from the promotion on, a moment before clients go on there.
    pub fn is_promoted(&self) -> bool {
        self.promoted.load(Ordering::Acquire)
    }

    /// A listener for clients is connected.
    pub fn listener_ready(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// It listens, or is lost: nobody waits for it any more.
    pub fn listener_done(&self) {
        self.listening.fetch_add(1, Ordering::AcqRel);
    }
}

/// The board's part.
#[derive(Debug, Default)]
pub(super) struct WarmPlace {
    now: Mutex<Option<Arc<Warming>>>,
    last: AtomicU64,
    workers: AtomicUsize,
}

/// A wish in force; dropping it takes it back, and what was opened and not used is closed.
#[derive(Debug)]
pub struct Warm {
    board: Arc<Board>,
    warming: Arc<Warming>,
}

impl Warm {
    /// How far it is.
    pub fn look(&self) -> Warmth {
        let w = &self.warming;
        // A worker counts itself in after what it asks for.
        let workers = w.workers.load(Ordering::Acquire) >= self.board.warm.workers.load(Ordering::Acquire);
        let (open, failed) = (w.open.load(Ordering::Acquire), w.failed.load(Ordering::Acquire));
        let settled = workers && open + failed >= w.asked.load(Ordering::Acquire);
        Warmth { open, failed, why: w.why.lock().unwrap_or_else(PoisonError::into_inner).clone(), settled }
    }
}

impl Warm {
    /// The node has been promoted: who listens for clients begins there before they go on, so that nothing is missed.
    pub fn promoted(&self) {
        self.warming.promoted.store(true, Ordering::Release);
        self.board.tell();
    }

    /// Every listener that stood ready listens there.
    pub fn all_listen(&self) -> bool {
        self.warming.listening.load(Ordering::Acquire) >= self.warming.ready.load(Ordering::Acquire)
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        let mut now = self.board.warm.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_ref().is_some_and(|n| n.number == self.warming.number) {
            *now = None;
        }
        drop(now);
        self.board.tell();
    }
}

/// A worker's word that it answers wishes; dropping it leaves.
#[derive(Debug)]
pub struct Warmer(Arc<Board>);

impl Drop for Warmer {
    fn drop(&mut self) {
        self.0.warm.workers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Board {
    /// A worker answers wishes from now on.
    pub fn warmer(self: &Arc<Self>) -> Warmer {
        self.warm.workers.fetch_add(1, Ordering::AcqRel);
        Warmer(self.clone())
    }

    /// Wishes for connections to a node; the last wish counts.
    pub fn warm(self: &Arc<Self>, node: NodeId) -> Warm {
        let warming = Arc::new(Warming {
            node,
            number: self.warm.last.fetch_add(1, Ordering::AcqRel) + 1,
            workers: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            why: Mutex::new(None),
            promoted: AtomicBool::new(false),
            ready: AtomicUsize::new(0),
            listening: AtomicUsize::new(0),
        });
        *self.warm.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(warming.clone());
        self.tell();
        Warm { board: self.clone(), warming }
    }

    /// The wish in force.
    pub fn warming(&self) -> Option<Arc<Warming>> {
        self.warm.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use crate::base::NodeId;
    use crate::cluster::{Board, View};

    #[test]
    fn settled_when_every_worker_has_answered_and_opened() {
        let board = Board::new(View {
            generation: 1,
            mode: crate::cluster::Mode::default(),
            epoch: None,
            primary: None,
            nodes: Vec::new(),
        });
        let workers = [board.warmer(), board.warmer()];
        let version = board.version();
        let warm = board.warm(NodeId(1));
        assert!(board.version() > version, "workers are told");
        let wish = board.warming().unwrap();
        wish.begin(1);
        wish.opened();
        assert!(!warm.look().settled, "the other worker has not answered");
        wish.begin(2);
        wish.opened();
        assert!(!warm.look().settled);
        wish.failed("no".into());
        let warmth = warm.look();
        assert_eq!((warmth.open, warmth.failed, warmth.settled), (2, 1, true));
        assert!(warm.all_listen(), "there is nobody who would");
        wish.listener_ready();
        let version = board.version();
        warm.promoted();
        assert!(wish.is_promoted() && board.version() > version && !warm.all_listen());
        wish.listener_done();
        assert!(warm.all_listen());
        drop((warm, workers));
        assert!(board.warming().is_none());
    }
}
