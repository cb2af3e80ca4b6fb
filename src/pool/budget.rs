//! The budget of all pools behind its lock, with its clock.

use super::core::Core;
use super::shared::{Grant, SharedPool, hand_out};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The worker on whose thread somebody waits, or a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(pub usize);

/// A waiter, as the core hands it out again.
#[derive(Debug)]
pub struct Waiting {
    /// Where he expects his grant.
    pub gift: oneshot::Sender<Grant>,
    /// His pool.
    pub pool: Arc<SharedPool>,
    /// His worker.
    pub home: Home,
}

/// One order of waiting over all pools and workers. Asked only where no idle connection is at hand or somebody waits.
#[derive(Debug)]
pub struct Budget {
    core: Mutex<Core<Waiting>>,
    contended: Arc<AtomicUsize>,
    started: Instant,
    ticking: AtomicBool,
}

impl Budget {
    /// No pools, no limits.
    pub fn new() -> Arc<Budget> {
        let contended = Arc::new(AtomicUsize::new(0));
        let core = Mutex::new(Core::new(contended.clone()));
        Arc::new(Budget { core, contended, started: Instant::now(), ticking: AtomicBool::new(false) })
    }

    /// Limits for each node: connections, and new ones per second; zero = none.
    pub fn set_node_limits(&self, max: usize, per_second: u32) {
        self.with(|core, _| core.set_node_limits(max, per_second.into()));
    }

    /// Pools whose waiters stand under a limit that they share with others: one load.
    pub fn contended(&self) -> usize {
        self.contended.load(Ordering::Acquire)
    }

    /// Serves who may be served by time alone (the reserve, the rate of new connections) or by new limits.
    pub fn tick(&self) {
        hand_out(self.with(|core, clock| core.tick(clock.now_us())));
    }

    /// Ticks until nobody waits for the rate of new connections any more. One at a time does this; others return at once.
    pub async fn tick_while_rated(&self) {
        // Asked again after the flag is down: who came between would have nobody.
        while self.rate_due().is_some() && !self.ticking.swap(true, Ordering::AcqRel) {
            let _done = Ticking(&self.ticking);
            while let Some(due) = self.rate_due() {
                tokio::time::sleep(due).await;
                self.tick();
            }
        }
    }

    /// For how long the rate of new connections holds somebody up.
    pub fn rate_due(&self) -> Option<Duration> {
        self.with(|core, clock| {
            let now_us = clock.now_us();
            Some(Duration::from_micros(core.rate_due_us(now_us)?.saturating_sub(now_us)))
        })
    }

    /// Works on the core. Nothing of a grant may be dropped inside, as that comes back here.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Core<Waiting>, Clock) -> T) -> T {
        work(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner), Clock(self.started))
    }
}

/// Read only where the time matters: a busy pool asks the core twice per transaction.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Microseconds since the budget was made.
    pub fn now_us(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Lets the next one tick, also when the future is dropped.
struct Ticking<'a>(&'a AtomicBool);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
