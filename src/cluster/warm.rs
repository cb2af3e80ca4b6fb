//! Connections to the coming primary, opened before it is one: who wants them, and how many there are. Likewise those that
//! listen for clients: they listen there before the first client goes on.

use super::Board;
use crate::base::NodeId;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A wish for connections to a node that will be the primary soon. Workers answer it.
#[derive(Debug)]
pub struct Warming {
    /// The node.
    pub node: NodeId,
    /// Grows with each wish.
    pub number: u64,
    /// Connections for clients are wished for; else only those that listen.
    pub for_clients: bool,
    workers: AtomicUsize,
    asked: AtomicUsize,
    open: AtomicUsize,
    failed: AtomicUsize,
    why: Mutex<Option<String>>,
    /// It is the primary now, though the view does not say so yet.
    promoted: AtomicBool,
    /// Listeners that stand ready there or could not be made ready, and those that listen there or have given up; by number.
    ready: Mutex<BTreeSet<u64>>,
    listening: Mutex<BTreeSet<u64>>,
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
        *locked(&self.why) = Some(why);
        self.failed.fetch_add(1, Ordering::AcqRel);
    }

    /// True from the promotion on, a moment before clients go on there.
    pub fn is_promoted(&self) -> bool {
        self.promoted.load(Ordering::Acquire)
    }

    /// This listener is connected, or cannot be.
    pub fn listener_ready(&self, number: u64) {
        locked(&self.ready).insert(number);
    }

    /// It listens, or is lost: nobody waits for it any more.
    pub fn listener_done(&self, number: u64) {
        locked(&self.listening).insert(number);
    }
}

/// The board's part.
#[derive(Debug, Default)]
pub(super) struct WarmPlace {
    now: Mutex<Option<Arc<Warming>>>,
    last: AtomicU64,
    workers: AtomicUsize,
    /// Listeners that there are, and the number of the last.
    listeners: Mutex<BTreeSet<u64>>,
    last_listener: AtomicU64,
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
        Warmth { open, failed, why: locked(&w.why).clone(), settled }
    }
}

impl Warm {
    /// The node has been promoted: who listens for clients begins there before they go on, so that nothing is missed.
    pub fn promoted(&self) {
        self.warming.promoted.store(true, Ordering::Release);
        self.board.tell();
    }

    /// Every listener that there is stands ready, or has said that it cannot.
    pub fn listeners_ready(&self) -> bool {
        locked(&self.board.warm.listeners).is_subset(&locked(&self.warming.ready))
    }

    /// Every listener that there is listens there, or has given up.
    pub fn all_listen(&self) -> bool {
        locked(&self.board.warm.listeners).is_subset(&locked(&self.warming.listening))
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        let mut now = locked(&self.board.warm.now);
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

/// Somebody who listens for clients; dropping it ends that.
#[derive(Debug)]
pub struct Listener {
    board: Arc<Board>,
    /// Among all listeners.
    pub number: u64,
}

impl Drop for Listener {
    fn drop(&mut self) {
        locked(&self.board.warm.listeners).remove(&self.number);
    }
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Somebody listens for clients from now on, and answers wishes.
    pub fn listener(self: &Arc<Self>) -> Listener {
        let number = self.warm.last_listener.fetch_add(1, Ordering::AcqRel) + 1;
        locked(&self.warm.listeners).insert(number);
        Listener { board: self.clone(), number }
    }

    /// A worker answers wishes from now on.
    pub fn warmer(self: &Arc<Self>) -> Warmer {
        self.warm.workers.fetch_add(1, Ordering::AcqRel);
        Warmer(self.clone())
    }

    /// Wishes for connections to a node; the last wish counts.
    pub fn warm(self: &Arc<Self>, node: NodeId) -> Warm {
        self.wish(node, true)
    }

    /// Wishes for those that listen only.
    pub fn warm_listeners(self: &Arc<Self>, node: NodeId) -> Warm {
        self.wish(node, false)
    }

    fn wish(self: &Arc<Self>, node: NodeId, for_clients: bool) -> Warm {
        let warming = Arc::new(Warming {
            node,
            number: self.warm.last.fetch_add(1, Ordering::AcqRel) + 1,
            for_clients,
            workers: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            why: Mutex::new(None),
            promoted: AtomicBool::new(false),
            ready: Mutex::default(),
            listening: Mutex::default(),
        });
        *locked(&self.warm.now) = Some(warming.clone());
        self.tell();
        Warm { board: self.clone(), warming }
    }

    /// The wish in force.
    pub fn warming(&self) -> Option<Arc<Warming>> {
        locked(&self.warm.now).clone()
    }
}

#[cfg(test)]
mod tests {
    use crate::base::NodeId;
    use crate::cluster::{Board, View};
    use std::sync::Arc;

    fn board() -> Arc<Board> {
        Board::new(View {
            generation: 1,
            mode: crate::cluster::Mode::default(),
            epoch: None,
            primary: None,
            nodes: Vec::new(),
        })
    }

    #[test]
    fn whoever_listens_for_clients_is_waited_for_until_it_listens_or_gives_up_or_goes() {
        let board = board();
        let (one, two, three) = (board.listener(), board.listener(), board.listener());
        let warm = board.warm_listeners(NodeId(1));
        let wish = board.warming().unwrap();
        assert!(!wish.for_clients && !warm.listeners_ready());
        [&one, &two, &three].iter().for_each(|listener| wish.listener_ready(listener.number));
        assert!(warm.listeners_ready() && !warm.all_listen());
        let version = board.version();
        warm.promoted();
        assert!(wish.is_promoted() && board.version() > version);
        wish.listener_done(one.number);
        wish.listener_done(one.number);
        drop(one);
        assert!(!warm.all_listen(), "who was counted and has gone does not stand for another");
        wish.listener_done(two.number);
        drop(three);
        assert!(warm.all_listen());
    }

    #[test]
    fn settled_when_every_worker_has_answered_and_opened() {
        let board = board();
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
        drop((warm, workers));
        assert!(board.warming().is_none());
    }
}
