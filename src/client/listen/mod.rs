//! `LISTEN` in transaction pooling: one connection per database listens for all clients, so that none is bound to a server.
//!
//! A client's own `LISTEN` runs on the server that it has at that moment. Then the hub listens too, and a marker is notified
//! on that server: PostgreSQL delivers notifications in one order to all
//! (<https://www.postgresql.org/docs/current/sql-notify.html>), so what comes there before the marker goes to the client from
//! there, and what comes to the hub after it goes to the client from here: nothing is lost and nothing comes twice.

mod hub;

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
    /// Ends one channel, or all (`None`).
    pub async fn unlisten(&mut self, channel: Option<String>) {
        match &channel {
            Some(channel) => drop(self.channels.remove(channel)),
            None => self.channels.clear(),
        }
        // A hub that is gone has nothing to end.
        let _ = self.hub.send(Order::Unlisten { id: self.id, channel }).await;
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
        present: &mut Option<Subscription>,
    ) -> Result<bool, SimpleError> {
        let subscription = present.get_or_insert_with(|| Subscription {
            id: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            hub: self.hub(worker, login),
            channels: HashSet::new(),
            inbox: Arc::default(),
        });
        let marker = format!("pgmend_marker_{}_{}", std::process::id(), self.last.fetch_add(1, Ordering::Relaxed));
        let (done, ready) = oneshot::channel();
        let order = Order::Listen {
            id: subscription.id,
            inbox: subscription.inbox.clone(),
            login: Box::new(login.clone()),
            channels: channels.clone(),
            marker: marker.clone(),
            done,
        };
        let sent = subscription.hub.send(order).await.is_ok();
        if !sent || !matches!(tokio::time::timeout(TAKE_OVER, ready).await, Ok(Ok(()))) {
            return Ok(false);
        }
        let quoted = quote(&marker);
        server::run(conn, &format!("LISTEN {quoted}; NOTIFY {quoted}"), TAKE_OVER).await?;
        conn.broken = true;
        let seen = tokio::time::timeout(TAKE_OVER, until_marker(conn, marker.as_bytes())).await;
        seen.unwrap_or_else(|_| Err(SimpleError::Lost("the marker did not come back".into())))?;
        // Of a channel that it had before, the client is told by the hub all the time.
        let before = without(std::mem::take(&mut conn.asides), &subscription.channels);
        subscription.channels.extend(channels);
        server::run(conn, "UNLISTEN *", TAKE_OVER).await?;
        // What came behind the marker comes by the hub.
        conn.asides = before;
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

/// The notifications that are not of these channels.
fn without(frames: Vec<u8>, channels: &HashSet<String>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = frames.as_slice();
    while let Ok(Some(split)) = frame::split(rest) {
        let known = backend::parse_notification(split.body)
            .is_ok_and(|n| std::str::from_utf8(n.channel).is_ok_and(|name| channels.contains(name)));
        if !known {
            kept.extend_from_slice(rest.get(..rest.len() - split.rest.len()).unwrap_or_default());
        }
        rest = split.rest;
    }
    kept
}

/// Reads until the marker; notifications before it are kept, it and what stands behind it are not.
async fn until_marker(conn: &mut ServerConn, marker: &[u8]) -> Result<(), SimpleError> {
    let mut input = Vec::new();
    std::mem::swap(&mut input, &mut conn.asides);
    let mut at = 0;
    loop {
        while let Some(split) =
            frame::split(input.get(at..).unwrap_or_default()).map_err(|e| SimpleError::Lost(e.to_string()))?
        {
            let next = input.len() - split.rest.len();
            if split.tag == b'A' {
                if backend::parse_notification(split.body).is_ok_and(|n| n.channel == marker) {
                    return Ok(());
                }
                conn.asides.extend_from_slice(input.get(at..next).unwrap_or_default());
            }
            at = next;
        }
        input.drain(..at);
        at = 0;
        match conn.stream.read_buf(&mut input).await {
            Ok(0) => return Err(SimpleError::Lost("the server closed the connection".into())),
            Ok(_) if input.len() > MAX_WAITING => return Err(SimpleError::Lost("too many notifications".into())),
            Ok(_) => {}
            Err(error) => return Err(SimpleError::Lost(error.to_string())),
        }
    }
}

/// A channel's name as SQL.
fn quote(channel: &str) -> String {
    format!("\"{}\"", channel.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hub_tells_is_not_told_by_the_server_too() {
        let frames = |channels: &[&[u8]]| {
            let mut out = Vec::new();
            channels.iter().for_each(|channel| backend::notification(&mut out, 1, channel, b"x"));
            out
        };
        let known = HashSet::from(["a".to_owned()]);
        assert_eq!(without(frames(&[b"a", b"b", b"a", b"c"]), &known), frames(&[b"b", b"c"]));
        assert_eq!(without(Vec::new(), &known), Vec::<u8>::new());
    }
}
