//! Cancel requests: from a client's key to the server that works for it **now**, and to nobody else.
//!
//! A server connection is not given to another client while a cancel for it is on its way.

use crate::server::{self, CancelTarget};
use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

/// Bound on carrying one cancel to a server.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Cancels of one client on their way at once; further ones are dropped, as the first has done all.
const MAX_IN_FLIGHT: u32 = 1;

#[derive(Debug, Default)]
struct State {
    target: Option<Arc<CancelTarget>>,
    in_flight: u32,
    /// In the replicating modes: the slots of the client's servers, one for each node.
    followers: Box<[Arc<CancelSlot>]>,
    /// The client's statement waits for a server: a cancel is for pgmend itself.
    waiting: Waiting,
}

/// A statement that no server has seen yet.
#[derive(Debug, Default)]
enum Waiting {
    #[default]
    No,
    Yes(Waker),
    Cancelled,
}

/// A cancel key as a client knows it. Held in its place: it is short, and every client has one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; LONG_KEY],
    is_long: bool,
}

/// Bytes of a key with protocol 3.0, and with 3.2.
const SHORT_KEY: usize = 4;
const LONG_KEY: usize = 32;

impl Key {
    /// A new one with a process id, positive as an int4, as those are: both from the system's random source by one call.
    fn random(is_long: bool) -> Result<(Key, u32), getrandom::Error> {
        let mut random = [[0; SHORT_KEY]; 1 + LONG_KEY / SHORT_KEY];
        getrandom::fill(random.as_flattened_mut())?;
        let [pid, words @ ..] = random;
        let mut key = Key { is_long, ..Key::default() };
        let drawn = words.as_flattened().iter().take(if is_long { LONG_KEY } else { SHORT_KEY });
        key.bytes.iter_mut().zip(drawn).for_each(|(to, from)| *to = *from);
        Ok((key, u32::from_ne_bytes(pid) & 0x7FFF_FFFF))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..if self.is_long { LONG_KEY } else { SHORT_KEY }).unwrap_or_default()
    }
}

/// One client's slot: which server a cancel would go to.
#[derive(Debug)]
pub struct CancelSlot {
    /// The process id told to the client.
    pub pid: u32,
    /// The key told to the client: 4 bytes with protocol 3.0, 32 with 3.2.
    pub key: Key,
    state: Mutex<State>,
    landed: Notify,
}

impl CancelSlot {
    /// A slot that no cancel can reach, for a client that has no key yet.
    pub fn unlisted() -> Arc<CancelSlot> {
        Arc::new(CancelSlot { pid: 0, key: Key::default(), state: Mutex::default(), landed: Notify::new() })
    }

    /// The client has got its key: the server that it has goes with it.
    pub fn become_listed(&self, listed: &CancelSlot) {
        let target = self.lock().target.take();
        listed.lock().target = target;
    }

    /// A cancel of the client goes to the servers of these slots too.
    pub fn lead(&self, followers: Vec<Arc<CancelSlot>>) {
        self.lock().followers = followers.into();
    }

    /// The client's statement waits. Ready: it was cancelled.
    pub fn poll_wait(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        match &state.waiting {
            Waiting::Cancelled => return Poll::Ready(()),
            Waiting::Yes(waker) if waker.will_wake(cx.waker()) => {}
            Waiting::Yes(_) | Waiting::No => state.waiting = Waiting::Yes(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// It waits no more. True: it was cancelled.
    pub fn end_wait(&self) -> bool {
        matches!(std::mem::take(&mut self.lock().waiting), Waiting::Cancelled)
    }

    /// The client has borrowed this server.
    pub fn borrowed(&self, target: Arc<CancelTarget>) {
        self.lock().target = Some(target);
    }

    /// The client gives its server back. False: a cancel is on its way to it; await [`CancelSlot::landed`] first.
    pub fn returned(&self) -> bool {
        let mut state = self.lock();
        state.target = None;
        state.in_flight == 0
    }

    /// Waits until no cancel is on its way.
    pub async fn landed(&self) {
        loop {
            let landed = self.landed.notified();
            if self.lock().in_flight == 0 {
                return;
            }
            landed.await;
        }
    }

    /// Sends a cancel to the server that the client has now, if it has one and none is on its way.
    pub async fn carry_out(self: &Arc<Self>) {
        let (target, _in_flight) = {
            let mut state = self.lock();
            let Some(target) = state.target.clone() else {
                if let Waiting::Yes(waker) = &state.waiting {
                    waker.wake_by_ref();
                    state.waiting = Waiting::Cancelled;
                }
                return;
            };
            if state.in_flight >= MAX_IN_FLIGHT {
                return;
            }
            state.in_flight += 1;
            (target, InFlight(self.clone()))
        };
        if let Err(error) = server::send_cancel(&target.server, target.pid, &target.key, CANCEL_TIMEOUT).await {
            tracing::warn!(event = "cancel.failed", %error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a cancel as landed, also when its future is dropped.
struct InFlight(Arc<CancelSlot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        drop(state);
        self.0.landed.notify_waiters();
    }
}

/// All clients that can be cancelled, by the process id told to them.
#[derive(Debug, Default)]
pub struct Cancels {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    /// As a rule these are all: ids of pgmend's own differ, and of servers' ids few meet. A set, for every client has room in it.
    first: HashSet<ByPid>,
    /// Further ones of the same process ids.
    more: HashMap<u32, Vec<Arc<CancelSlot>>>,
}

/// A slot that is found by its process id.
#[derive(Debug)]
struct ByPid(Arc<CancelSlot>);

impl Borrow<u32> for ByPid {
    fn borrow(&self) -> &u32 {
        &self.0.pid
    }
}

impl Hash for ByPid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.pid.hash(state);
    }
}

impl PartialEq for ByPid {
    fn eq(&self, other: &ByPid) -> bool {
        self.0.pid == other.0.pid
    }
}

impl Eq for ByPid {}

impl Slots {
    fn of(&self, pid: u32) -> impl Iterator<Item = &Arc<CancelSlot>> {
        let more = self.more.get(&pid).into_iter().flatten();
        self.first.get(&pid).map(|first| &first.0).into_iter().chain(more)
    }

    fn add(&mut self, slot: Arc<CancelSlot>) {
        if self.first.contains(&slot.pid) {
            self.more.entry(slot.pid).or_default().push(slot);
        } else {
            self.first.insert(ByPid(slot));
        }
    }

    fn remove(&mut self, slot: &Arc<CancelSlot>) {
        if self.first.get(&slot.pid).is_some_and(|first| Arc::ptr_eq(&first.0, slot)) {
            self.first.remove(&slot.pid);
        } else if let Some(more) = self.more.get_mut(&slot.pid) {
            more.retain(|other| !Arc::ptr_eq(other, slot));
            if more.is_empty() {
                self.more.remove(&slot.pid);
            }
        }
    }
}

/// A slot that can be reached; dropping it takes it off the list.
#[derive(Debug)]
pub struct Listing {
    cancels: Arc<Cancels>,
    /// The slot.
    pub slot: Arc<CancelSlot>,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.cancels.lock().remove(&self.slot);
    }
}

impl Cancels {
    /// A new slot with a key from the system's random source. In session pooling its process id is that of the client's
    /// server, as a client of PostgreSQL expects (`pg_backend_pid()`); else one of pgmend's own.
    pub fn register(self: &Arc<Self>, minor: u16, server_pid: Option<u32>) -> Result<Listing, getrandom::Error> {
        let mut slots = self.lock();
        loop {
            let (key, pid) = Key::random(minor >= 2)?;
            let pid = server_pid.unwrap_or(pid);
            // Servers of two nodes may have the same process id; with the key it is one client's all the same.
            let (mut is_taken, mut is_same) = (false, false);
            for other in slots.of(pid) {
                is_taken = true;
                is_same |= other.key == key;
            }
            let is_free = if server_pid.is_some() { !is_same } else { !is_taken && pid != 0 };
            if is_free {
                let slot = Arc::new(CancelSlot { pid, key, state: Mutex::default(), landed: Notify::new() });
                slots.add(slot.clone());
                return Ok(Listing { cancels: self.clone(), slot });
            }
        }
    }

    /// Carries a cancel request out. A client without a server: if its statement waits for one it never gets there, else
    /// nothing happens, as with PostgreSQL. False: the key is unknown.
    pub async fn cancel(&self, pid: u32, key: &[u8]) -> bool {
        let same: Vec<Arc<CancelSlot>> = self.lock().of(pid).cloned().collect();
        let Some(slot) = same.into_iter().find(|slot| bool::from(slot.key.ct_eq(key))) else { return false };
        let followers = slot.lock().followers.clone();
        slot.carry_out().await;
        for follower in &followers {
            follower.carry_out().await;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processes that serve clients of the same listeners: the one before a takeover, and the one after.
pub trait Elsewhere: Send + Sync {
    /// Carries a cancel request out there; ends when it is done or known to nobody.
    fn cancel(&self, pid: u32, key: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_whose_servers_have_the_same_number_are_told_apart_by_their_keys() {
        let cancels = Arc::new(Cancels::default());
        let [a, b, c] = [7, 7, 7].map(|pid| cancels.register(0, Some(pid)).unwrap());
        let own = cancels.register(2, None).unwrap();
        for listing in [&a, &b, &c, &own] {
            assert!(cancels.cancel(listing.slot.pid, &listing.slot.key).await);
        }
        assert!(!cancels.cancel(own.slot.pid, &a.slot.key).await && !cancels.cancel(7, &own.slot.key).await);
        let keys = [&a, &b, &c].map(|listing| listing.slot.key.to_vec());
        // The first of them leaves, and the others are still found; so is a newcomer in its place.
        drop(a);
        let d = cancels.register(0, Some(7)).unwrap();
        for (key, is_there) in keys.iter().zip([false, true, true]) {
            assert_eq!(cancels.cancel(7, key).await, is_there);
        }
        assert!(cancels.cancel(7, &d.slot.key).await);
        drop((b, c, d, own));
        let slots = cancels.lock();
        assert!(slots.first.is_empty() && slots.more.is_empty());
    }
}
