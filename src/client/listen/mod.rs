//! `LISTEN` in transaction pooling: one connection per database listens for all clients, so that none is bound to a server.
//!
//! A client's own `LISTEN` runs on the server that it has at that moment. Then the hub listens too, delivers from that moment
//! on, and counts; and a marker is notified on that server. PostgreSQL delivers notifications in one order to all
//! (<https://www.postgresql.org/docs/current/sql-notify.html>), so the last ones that came there before the marker, as many as
//! the hub counted up to it, are those that the hub has delivered; the ones before them came before the hub listened, and go to
//! the client from there. Nothing is lost and nothing comes twice. How those stand between what the hub has of other channels
//! is not known; so a client that cannot know yet since when it listens gets none of them, and all is in order.

mod hub;

use crate::base::identifier;
use crate::server::{self, Login, ServerConn, SimpleError};
use crate::wire::{backend, frame};
use hub::{Hub, Order};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

/// Bytes of notifications that wait for one client. A client that does not read in time loses its session, not messages.
const MAX_WAITING: usize = 8 << 20;
/// Bound on taking a client's channels over.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// Orders to a hub on their way.
const ORDERS: usize = 1024;

/// The hubs of all databases.
#[derive(Debug, Default)]
pub struct Listeners {
    hubs: Mutex<HashMap<String, mpsc::Sender<Order>>>,
    last: AtomicU64,
}

/// From when on a client is entitled to what is told on its new channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Its `LISTEN` took effect at a moment that it may know.
    Listen,
    /// It does not know yet that it listens: as good as when the hub has taken over. What it sent itself is its own.
    Now,
}

/// What has come for one client.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<u8>,
    overflowed: bool,
    waker: Option<Waker>,
}

impl Inbox {
    /// What has come so far.
    fn drain(&self) -> Vec<u8> {
        self.lock().frames.drain(..).collect()
    }

    /// Adds a frame and wakes the client's session.
    fn put(&self, frame: &[u8]) {
        let mut state = self.lock();
        if state.frames.len() + frame.len() > MAX_WAITING {
            state.overflowed = true;
        } else {
            state.frames.extend(frame);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves what has come to `out`; registers the session to be woken by more. False: too much had come.
    pub fn take(&self, out: &mut Vec<u8>, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        let (front, back) = state.frames.as_slices();
        out.extend_from_slice(front);
        out.extend_from_slice(back);
        state.frames.clear();
        state.waker = Some(cx.waker().clone());
        !state.overflowed
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's channels at its database's hub; dropping it ends them.
#[derive(Debug)]
pub struct Subscription {
    id: u64,
    hub: mpsc::Sender<Order>,
    channels: HashSet<String>,
    /// What has come.
    pub inbox: Arc<Inbox>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A full queue: the hub drops who is not there any more when it next has something for him.
        let _ = self.hub.try_send(Order::Forget { id: self.id });
    }
}

impl Subscription {
    /// Ends one channel, or all (`None`), but for those that go on.
    pub async fn unlisten(&mut self, channel: Option<String>, but: &[String]) {
        let ends = |c: &String| channel.as_ref().is_none_or(|one| one == c) && !but.contains(c);
        let ended: Vec<String> = self.channels.extract_if(ends).collect();
        self.end(ended).await;
    }

    async fn end(&self, channels: Vec<String>) {
        if !channels.is_empty() {
            // A hub that is gone has nothing to end.
            let _ = self.hub.send(Order::Unlisten { id: self.id, channels }).await;
        }
    }
}

impl Listeners {
    /// Takes over the channels on which `conn` listens for a client: afterwards the connection listens to nothing, and what
    /// came on it stands in its `asides`. False: the hub cannot be reached, and everything is as it was.
    pub async fn take_over(
        &self,
        worker: &Rc<super::Worker>,
        login: &Login,
        conn: &mut ServerConn,
        channels: Vec<String>,
        since: Since,
        present: &mut Option<Subscription>,
    ) -> Result<bool, SimpleError> {
        let subscription = present.get_or_insert_with(|| Subscription {
            id: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            hub: self.hub(worker, login),
            channels: HashSet::new(),
            inbox: Arc::default(),
        });
        let fresh: Vec<String> = channels.into_iter().filter(|c| !subscription.channels.contains(c)).collect();
        // It came before what the server has from here on.
        let mut due = subscription.inbox.drain();
        let marker = format!("pgmend_marker_{}_{}", std::process::id(), self.last.fetch_add(1, Ordering::Relaxed));
        let (done, ready) = oneshot::channel();
        let (told, count) = oneshot::channel();
        let order = Order::Listen {
            id: subscription.id,
            inbox: subscription.inbox.clone(),
            login: Box::new(login.clone()),
            channels: fresh.clone(),
            marker: marker.clone(),
            done,
            told,
        };
        let sent = subscription.hub.send(order).await.is_ok();
        if !sent || !matches!(tokio::time::timeout(TAKE_OVER, ready).await, Ok(Ok(()))) {
            drop(count);
            subscription.end(fresh).await;
            due.append(&mut conn.asides);
            conn.asides = due;
            if subscription.hub.is_closed() {
                *present = None;
            }
            return Ok(false);
        }
        let quoted = identifier(&marker);
        server::run(conn, &format!("LISTEN {quoted}; NOTIFY {quoted}"), TAKE_OVER).await?;
        conn.broken = true;
        let seen = tokio::time::timeout(TAKE_OVER, until_marker(conn, marker.as_bytes())).await;
        seen.unwrap_or_else(|_| Err(SimpleError::Lost("the marker did not come back".into())))?;
        let Ok(Ok(told)) = tokio::time::timeout(TAKE_OVER, count).await else {
            // What the hub has delivered by now is not known.
            return Err(SimpleError::Lost("the shared listener was lost".into()));
        };
        // Of a channel that it had before, the client is told by the hub all the time.
        let early = without(&conn.asides, &subscription.channels);
        let early = early.get(..early.len().saturating_sub(told)).unwrap_or_default();
        let own = |frame: &&&[u8]| since == Since::Listen || sender(frame) == Some(conn.pid);
        early.iter().filter(own).for_each(|frame| due.extend_from_slice(frame));
        subscription.channels.extend(fresh);
        server::run(conn, "UNLISTEN *", TAKE_OVER).await?;
        // What came behind the marker comes by the hub.
        conn.asides = due;
        Ok(true)
    }

    fn hub(&self, worker: &Rc<super::Worker>, login: &Login) -> mpsc::Sender<Order> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = hubs.get(&login.database).filter(|hub| !hub.is_closed()) {
            return hub.clone();
        }
        let (orders, queue) = mpsc::channel(ORDERS);
        let hub = Hub::new(worker.clone(), login.clone());
        tokio::task::spawn_local(hub.run(queue));
        hubs.insert(login.database.clone(), orders.clone());
        orders
    }
}

/// The notifications that are not of these channels, one by one.
fn without<'a>(frames: &'a [u8], channels: &HashSet<String>) -> Vec<&'a [u8]> {
    let mut kept = Vec::new();
    let mut rest = frames;
    while let Ok(Some(split)) = frame::split(rest) {
        let known = backend::parse_notification(split.body)
            .is_ok_and(|n| std::str::from_utf8(n.channel).is_ok_and(|name| channels.contains(name)));
        if !known {
            kept.push(rest.get(..rest.len() - split.rest.len()).unwrap_or_default());
        }
        rest = split.rest;
    }
    kept
}

/// The process id of a notification's sender.
fn sender(frame: &[u8]) -> Option<u32> {
    let split = frame::split(frame).ok()??;
    backend::parse_notification(split.body).ok().map(|n| n.pid)
}

/// Reads until the marker; notifications before it are kept, and what stands behind it is left unread.
async fn until_marker(conn: &mut ServerConn, marker: &[u8]) -> Result<(), SimpleError> {
    let mut input = std::mem::take(&mut conn.asides);
    input.append(&mut conn.unread);
    loop {
        let mut at = 0;
        while let Some(split) =
            frame::split(input.get(at..).unwrap_or_default()).map_err(|e| SimpleError::Lost(e.to_string()))?
        {
            let next = input.len() - split.rest.len();
            if split.tag == b'A' {
                if backend::parse_notification(split.body).is_ok_and(|n| n.channel == marker) {
                    conn.unread = input.split_off(next);
                    return Ok(());
                }
                conn.asides.extend_from_slice(input.get(at..next).unwrap_or_default());
            }
            at = next;
        }
        input.drain(..at);
        match conn.stream.read_buf(&mut input).await {
            Ok(0) => return Err(SimpleError::Lost("the server closed the connection".into())),
            Ok(_) if input.len() + conn.asides.len() > MAX_WAITING => {
                return Err(SimpleError::Lost("too many notifications".into()));
            }
            Ok(_) => {}
            Err(error) => return Err(SimpleError::Lost(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_in_time_loses_the_session_and_no_message() {
        let (inbox, mut out) = (Inbox::default(), Vec::new());
        let cx = Context::from_waker(Waker::noop());
        inbox.put(b"one");
        assert!(inbox.take(&mut out, &cx));
        inbox.put(&vec![0; MAX_WAITING]);
        inbox.put(b"too much");
        assert!(!inbox.take(&mut out, &cx));
        assert_eq!(out.len(), 3 + MAX_WAITING);
    }

    #[test]
    fn what_the_hub_tells_is_not_told_by_the_server_too() {
        let frames = |channels: &[&[u8]]| {
            let mut out = Vec::new();
            channels.iter().for_each(|channel| backend::notification(&mut out, 1, channel, b"x"));
            out
        };
        let known = HashSet::from(["a".to_owned()]);
        let all = frames(&[b"a", b"b", b"a", b"c"]);
        assert_eq!(without(&all, &known), [frames(&[b"b"]), frames(&[b"c"])]);
        assert!(without(&[], &known).is_empty());
    }
}
